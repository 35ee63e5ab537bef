//! Edge: asking the control socket of a mounted volume.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use keys::VolumeKek;
use runtime::listener::peer_of_blocking;

use super::protocol::{Failed, REPLY_MAX, Reply, Request, line};
use super::{Happening, ROOT, socket_path};
use crate::exit::Exit;
use crate::sys;
use crate::volume::claimed_volume_id;

/// A connection to the control socket of a mounted volume.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
}

/// Why a request got no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The daemon did not do it.
    #[error("{}", .0.message)]
    Failed(Box<Failed>),
    /// Whoever listens is neither root nor the caller.
    #[error("the socket is served by uid {0}, who is not to be trusted")]
    Foreign(u32),
    /// No volume is mounted there.
    #[error("no mounted volume answers for {}", .0.display())]
    NotMounted(PathBuf),
    /// The connection broke, or what came was no reply.
    #[error("the mounted volume did not answer")]
    Silent(#[source] io::Error),
}

impl Client {
    /// Connects to the socket at `path`.
    pub(crate) fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream =
            UnixStream::connect(path).map_err(|_| ClientError::NotMounted(path.to_path_buf()))?;
        let peer = peer_of_blocking(&stream).map_err(ClientError::Silent)?;
        let (own, _) = sys::effective_owner();
        if ![ROOT, own].contains(&peer.uid) {
            return Err(ClientError::Foreign(peer.uid));
        }
        Ok(Self { stream })
    }

    /// Connects to the volume that is mounted on `target`, or whose store `target` is, among the
    /// sockets in `directory`. The mount itself is never touched: it may be frozen.
    pub(crate) fn find(directory: &Path, target: &Path) -> Result<Self, ClientError> {
        let absolute = without_touching(target).map_err(ClientError::Silent)?;
        let sockets = fs::read_dir(directory).into_iter().flatten().flatten();
        for socket in sockets.map(|entry| entry.path()) {
            if socket
                .extension()
                .is_none_or(|extension| extension != "sock")
            {
                continue;
            }
            // One that nobody listens on any more is none.
            let Ok(client) = Self::connect(&socket) else {
                continue;
            };
            if let Ok(Reply::About(about)) = client.call(&Request::About {}, None, &mut |_| {})
                && Path::new(&about.mountpoint) == absolute
            {
                return Self::connect(&socket);
            }
        }
        match claimed_volume_id(target) {
            Ok(volume) => Self::connect(&socket_path(directory, volume)),
            Err(_) => Err(ClientError::NotMounted(target.to_path_buf())),
        }
    }

    /// Sends a request, and the key that follows it, and gives its last reply.
    pub(crate) fn call(
        mut self,
        request: &Request,
        key: Option<&VolumeKek>,
        told: &mut dyn FnMut(Happening),
    ) -> Result<Reply, ClientError> {
        let sent = self.stream.write_all(&line(request));
        let sent = sent.and_then(|()| match key {
            Some(key) => self.stream.write_all(key.expose()),
            None => Ok(()),
        });
        // A refusal may have come before all was sent, so it is read in any case.
        let mut replies = BufReader::new(&self.stream);
        loop {
            match next_reply(&mut replies) {
                Ok(Reply::Failed(failed)) => return Err(ClientError::Failed(Box::new(failed))),
                Ok(Reply::Happening(happening)) => told(happening),
                Ok(last) => return Ok(last),
                Err(e) => return Err(ClientError::Silent(sent.err().unwrap_or(e))),
            }
        }
    }
}

impl ClientError {
    /// Its stable name, as in docs/errors.md.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Failed(failed) => &failed.code,
            Self::Foreign(_) => "fs.control_refused",
            Self::NotMounted(_) => "fs.not_mounted",
            Self::Silent(_) => "fs.control_failed",
        }
    }

    /// The exit code of a program that ends with it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(failed) => failed.exit,
            Self::Foreign(_) | Self::NotMounted(_) | Self::Silent(_) => Exit::MountFailed.code(),
        }
    }
}

fn next_reply(replies: &mut impl BufRead) -> io::Result<Reply> {
    let mut reply = Vec::new();
    replies
        .take(REPLY_MAX as u64)
        .read_until(b'\n', &mut reply)?;
    if reply.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&reply).map_err(io::Error::from)
}

/// `path` as the mount shows it: links on the way are followed, but not its last part, which would
/// ask the filesystem that is mounted there.
pub(crate) fn without_touching(path: &Path) -> io::Result<PathBuf> {
    let path: PathBuf = std::path::absolute(path)?.components().collect();
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(path),
    }
}
