//! Adapter: the same listener for who waits in threads of his own.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::Shutdown;

use super::{
    AdmittedPeer, AllowedPeers, Peer, Place, RefusedPeer, SocketError, SocketOptions, occupy,
};

/// A listening Unix socket as [`super::UnixSocket`], without an asynchronous runtime.
#[derive(Debug)]
pub struct BlockingSocket {
    listener: UnixListener,
    allowed: AllowedPeers,
    place: Place,
}

impl BlockingSocket {
    /// Listens at `path` and admits `allowed`. The directory must exist; a socket that nobody
    /// listens on any more is replaced.
    pub fn bind(
        path: &Path,
        options: SocketOptions,
        allowed: AllowedPeers,
    ) -> Result<Self, SocketError> {
        let (listener, place) = occupy(path, options)?;
        let listener = UnixListener::from(listener);
        listener
            .set_nonblocking(false)
            .map_err(|source| SocketError::Bind {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            listener,
            allowed,
            place,
        })
    }

    /// Waits for a connection and tells who made it, and whether they may. Fails for good once
    /// [`BlockingSocket::stop`] was called; any other error concerns one connection, or is a
    /// shortage of the system.
    pub fn accept(&self) -> io::Result<(UnixStream, Result<AdmittedPeer, RefusedPeer>)> {
        let (stream, _unnamed) = self.listener.accept()?;
        let peer = peer_of_blocking(&stream)?;
        Ok((stream, self.allowed.admit(peer)))
    }

    /// Ends [`BlockingSocket::accept`], in whichever thread it waits.
    pub fn stop(&self) {
        // It fails only for what is no socket.
        let _ = rustix::net::shutdown(self.listener.as_fd(), Shutdown::Both);
    }

    /// Where the socket listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }
}

impl Drop for BlockingSocket {
    fn drop(&mut self) {
        self.place.give_up();
    }
}

/// Who is at the other end of `stream`.
pub fn peer_of_blocking(stream: &UnixStream) -> io::Result<Peer> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    Ok(Peer {
        uid: peer.uid(),
        gid: peer.gid(),
        // The kernel reports 0 for a process that our PID namespace does not show.
        pid: Some(peer.pid()).filter(|pid| *pid != 0),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OPTIONS: SocketOptions = SocketOptions {
        mode: 0o600,
        group: None,
    };

    #[track_caller]
    fn check(uids: impl Fn(u32) -> Vec<u32>, admitted: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let own = rustix::process::geteuid().as_raw();
        let (uids, gids) = (uids(own), Vec::new());
        let socket = BlockingSocket::bind(&path, OPTIONS, AllowedPeers { uids, gids }).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = UnixStream::connect(&path).unwrap();
        let (mut stream, peer) = socket.accept().unwrap();
        assert_eq!(peer.is_ok(), admitted);
        let peer = peer.map_or_else(RefusedPeer::peer, AdmittedPeer::peer);
        assert_eq!(peer.uid, own);
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        stream.write_all(b"a").unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn peers_are_told_and_the_socket_goes_with_its_owner() {
        check(|own| vec![own], true);
        check(|own| vec![own + 1], false);
    }

    #[test]
    fn stopping_ends_a_waiting_accept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = BlockingSocket::bind(&path, OPTIONS, AllowedPeers::default()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| socket.accept().is_err());
            socket.stop();
            assert!(waiting.join().unwrap());
        });
    }
}
