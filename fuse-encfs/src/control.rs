//! Edge: the control socket of a mount: figures, freezing for a backup, scrubbing, new keys.
//!
//! A Unix socket that only the owner of the mount and root may use. A connection carries one
//! request; each has a thread, of which there are few.
//!
//! **Freezing.** A freeze belongs to no connection, so that a script can freeze, copy and thaw. It
//! ends by itself when its time is over: whoever asked for it may have died. The thaw that comes too
//! late fails, which tells that the copy may be torn.

use std::io::{self, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keys::{KekEpoch, VolumeId, VolumeKek};
use runtime::listener::{AllowedPeers, BlockingSocket, RefusedPeer, SocketError, SocketOptions};
use runtime::sync::Mutex;
use zeroize::Zeroizing;

use self::freezer::Freezer;
use self::protocol::{Failed, KEY_LEN, REQUEST_MAX, Reply, Request, line};
use crate::sys;

pub(crate) mod client;
mod controlled;
mod freezer;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod mounted;
pub(crate) mod protocol;
#[cfg(test)]
mod tests;

pub use controlled::{
    ControlError, Controlled, Figure, Figures, Happening, NewKeys, Scrubbed, Tell,
};
pub(crate) use mounted::MountedVolume;
pub use protocol::About;

/// Where the sockets and the guest's memories are unless told otherwise.
pub const RUNTIME_DIRECTORY: &str = "/run/fuse-encfs";
/// Only the owner and root may connect.
const MODE: u32 = 0o600;
const ROOT: u32 = 0;
/// Requests at once.
const REQUESTS_MAX: usize = 8;
/// How long a peer may take to send or to receive something.
const PATIENCE: Duration = Duration::from_secs(30);

/// The control socket of a mount. Dropped, it ends requests, lets a frozen volume go on, and is
/// removed; to be dropped before the volume is closed.
#[derive(Debug)]
pub struct ControlSocket {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    socket: BlockingSocket,
    about: About,
    volume: Arc<dyn Controlled>,
    freezer: Freezer,
    connections: Mutex<Connections>,
}

/// What is served at the moment.
#[derive(Default)]
struct Connections {
    ending: bool,
    number: u64,
    open: Vec<(u64, UnixStream)>,
    threads: Vec<JoinHandle<()>>,
}

/// The socket of a volume below `directory`.
pub fn socket_path(directory: &Path, volume: VolumeId) -> PathBuf {
    directory.join(format!("{volume}.sock"))
}

impl ControlSocket {
    /// Listens at `path`, whose directory must exist, and serves `volume`.
    pub fn serve(
        path: &Path,
        about: About,
        volume: Arc<dyn Controlled>,
    ) -> Result<Self, SocketError> {
        let (own, _) = sys::effective_owner();
        let allowed = AllowedPeers {
            uids: vec![ROOT, own],
            gids: Vec::new(),
        };
        let options = SocketOptions {
            mode: MODE,
            group: None,
        };
        let socket = BlockingSocket::bind(path, options, allowed)?;
        let shared = Arc::new(Shared {
            socket,
            about,
            freezer: Freezer::new(Arc::clone(&volume)),
            volume,
            connections: Mutex::default(),
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || shared.accept()
        };
        let accepting = thread::Builder::new()
            .name("encfs-control".into())
            .spawn(run)
            .map_err(|source| SocketError::Bind {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            shared,
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.shared.socket.path()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let threads = {
            let mut connections = self.shared.connections.lock();
            connections.ending = true;
            for (_, stream) in &connections.open {
                // Whoever waits for it notices; what is closed already needs it not.
                let _ = stream.shutdown(Shutdown::Both);
            }
            std::mem::take(&mut connections.threads)
        };
        self.shared.socket.stop();
        for thread in threads.into_iter().chain(self.accepting.take()) {
            // A panic of the thread was reported by the panic itself.
            let _ = thread.join();
        }
        self.shared.freezer.end();
    }
}

impl Shared {
    fn accept(self: Arc<Self>) {
        loop {
            let accepted = self.socket.accept();
            if self.connections.lock().ending {
                return;
            }
            match accepted {
                Ok((stream, Ok(_))) => self.begin(stream),
                Ok((stream, Err(refused))) => self.refuse(stream, refused),
                Err(e) => {
                    tracing::warn!(error = %e, "a control connection was not accepted");
                    // Short of descriptors, the next one would fail as well, and at once.
                    thread::park_timeout(Duration::from_millis(100));
                }
            }
        }
    }

    fn refuse(&self, mut stream: UnixStream, refused: RefusedPeer) {
        let uid = refused.peer().uid;
        tracing::warn!(
            error_code = "fs.control_refused",
            uid,
            "control connection refused"
        );
        answer(&mut stream, &Err(ControlError::Refused { uid }));
    }

    /// Serves a connection on a thread of its own.
    fn begin(self: &Arc<Self>, mut stream: UnixStream) {
        let mut connections = self.connections.lock();
        connections.threads.retain(|thread| !thread.is_finished());
        if connections.ending {
            return;
        }
        if connections.open.len() >= REQUESTS_MAX {
            drop(connections);
            answer(&mut stream, &Err(ControlError::Busy));
            return;
        }
        let Ok(watched) = stream.try_clone() else {
            return;
        };
        connections.number += 1;
        let number = connections.number;
        connections.open.push((number, watched));
        let shared = Arc::clone(self);
        let serve = move || {
            let done = shared.serve(&mut stream);
            answer(&mut stream, &done);
            let mut connections = shared.connections.lock();
            connections.open.retain(|(open, _)| *open != number);
        };
        let thread = thread::Builder::new().name("encfs-request".into());
        match thread.spawn(serve) {
            Ok(thread) => connections.threads.push(thread),
            Err(_) => connections.open.retain(|(open, _)| *open != number),
        }
    }

    fn serve(&self, stream: &mut UnixStream) -> Result<Reply, ControlError> {
        let limits = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        limits.map_err(unreadable)?;
        let request = Request::parse(&request_line(stream)?)?;
        if request.only_asks() {
            tracing::debug!(request = ?request, "control");
        } else {
            tracing::info!(request = ?request, "control");
        }
        match request {
            Request::About {} => Ok(Reply::About(self.about.clone())),
            Request::Checkpoint {} => self.volume.checkpoint().map(|()| Reply::Done {}),
            Request::Freeze { seconds } => {
                let limit = Duration::from_secs(seconds.into());
                self.freezer.freeze(limit).map(|()| Reply::Done {})
            }
            Request::Rekey {
                key_follows,
                kek_epoch,
                reseal,
            } => {
                let key = key_follows.then(|| key(stream)).transpose()?;
                let kek = key.map(|key| (key, kek_epoch.map(KekEpoch)));
                let mut tell = |happening| self.tell(stream, happening);
                let done = self.volume.rekey(NewKeys { kek, reseal }, &mut tell);
                done.map(|()| Reply::Done {})
            }
            Request::Scrub {} => {
                let mut tell = |happening| self.tell(stream, happening);
                self.volume.scrub(&mut tell).map(Reply::Scrubbed)
            }
            Request::Stats {} => self.volume.figures().map(Reply::Stats),
            Request::Thaw {} => self.freezer.thaw().map(|()| Reply::Done {}),
        }
    }

    fn tell(&self, stream: &mut UnixStream, happening: Happening) -> ControlFlow<()> {
        let told = stream.write_all(&line(&Reply::Happening(happening)));
        if told.is_err() || self.connections.lock().ending {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("path", &self.socket.path())
            .finish_non_exhaustive()
    }
}

/// Sends the last reply.
fn answer(stream: &mut UnixStream, done: &Result<Reply, ControlError>) {
    let bytes = match done {
        Ok(reply) => line(reply),
        Err(e) => line(&Reply::Failed(Failed::from(e))),
    };
    // Nobody may listen any more.
    let _ = stream.write_all(&bytes);
}

/// The request without its newline. Byte by byte: what follows may be a key, which must not pass
/// through a buffer that nobody wipes.
fn request_line(stream: &mut UnixStream) -> Result<Vec<u8>, ControlError> {
    let mut request = Vec::with_capacity(REQUEST_MAX);
    loop {
        let mut byte = [0];
        io::Read::read_exact(stream, &mut byte).map_err(unreadable)?;
        match byte {
            [b'\n'] => return Ok(request),
            _ if request.len() == REQUEST_MAX => {
                return Err(ControlError::Request("it is too long".into()));
            }
            [byte] => request.push(byte),
        }
    }
}

fn key(stream: &mut UnixStream) -> Result<VolumeKek, ControlError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    io::Read::read_exact(stream, bytes.as_mut_slice()).map_err(unreadable)?;
    VolumeKek::take_from(bytes.as_mut_slice())
        .map_err(|_| ControlError::Request("the key has another length".into()))
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn unreadable(e: io::Error) -> ControlError {
    ControlError::Request(format!("it ends early: {}", e.kind()))
}
