//! Core: a Unix stream listener that knows who connects.
//!
//! **Design.** The socket is bound under a temporary name in its own directory, given its group and
//! mode while nobody can connect to it yet, and renamed over the path: clients see the old socket
//! or the new one, never none. A lock on the directory, held for that moment, makes "is somebody
//! listening there?" and "take the path" one step for all who go through here.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use crate::sync::{Mutex, MutexGuard};

mod blocking;

pub use self::blocking::{BlockingSocket, peer_of_blocking};
pub use crate::peer::{AdmittedPeer, AllowedPeers, Peer, RefusedPeer};

/// Connections that may wait to be accepted; the kernel refuses the next.
const BACKLOG: i32 = 64;
/// Ending of the temporary name: short, since a socket's path has at most 107 bytes.
const TEMPORARY: &str = "~";

/// How a socket appears in the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permission bits, such as `0o660`; to connect takes write permission.
    pub mode: u32,
    /// Group of the socket; the process's own when absent.
    pub group: Option<u32>,
}

/// A listening Unix socket, removed from the file system when dropped unless another has taken its
/// path by then.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    allowed: AllowedPeers,
    place: Place,
}

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The directory does not exist or cannot be opened.
    #[error("cannot open the directory of socket {}", path.display())]
    Directory {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens at the path, or is taking it at this moment.
    #[error("socket {} is in use by another process", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path exists and is no socket: not ours to replace.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Inspect {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be bound.
    #[error("cannot bind socket {}", path.display())]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Group or mode cannot be set.
    #[error("cannot set group and mode of socket {}", path.display())]
    Permissions {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// Stable code for logs and exit codes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "socket.directory",
            Self::InUse { .. } => "socket.in_use",
            Self::NotASocket { .. } => "socket.not_a_socket",
            Self::Inspect { .. } => "socket.inspect",
            Self::Bind { .. } => "socket.bind",
            Self::Permissions { .. } => "socket.permissions",
        }
    }
}

impl UnixSocket {
    /// Listens at `path` and admits `allowed`. The directory must exist; a socket that nobody
    /// listens on any more is replaced.
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled, as tokio's own listener does.
    pub fn bind(
        path: &Path,
        options: SocketOptions,
        allowed: AllowedPeers,
    ) -> Result<Self, SocketError> {
        let (listener, place) = occupy(path, options)?;
        let bound = StdUnixListener::from(listener);
        let listener = UnixListener::from_std(bound).map_err(|source| SocketError::Bind {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            allowed,
            place,
        })
    }

    /// Waits for a connection and tells who made it, and whether they may.
    ///
    /// Cancel-safe. An error concerns one connection, or is a shortage of the system
    /// (descriptors, memory); the caller may go on after a pause.
    pub async fn accept(&self) -> io::Result<(UnixStream, Result<AdmittedPeer, RefusedPeer>)> {
        let (stream, _unnamed) = self.listener.accept().await?;
        let peer = peer_of(&stream)?;
        Ok((stream, self.allowed.admit(peer)))
    }

    /// Where the socket listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }
}

/// Who connected `stream`.
pub fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let peer = stream.peer_cred()?;
    // The kernel reports 0 for a process that our PID namespace does not show.
    let pid = peer.pid().filter(|pid| *pid != 0);
    Ok(Peer {
        uid: peer.uid(),
        gid: peer.gid(),
        pid,
    })
}

/// Listens at `path`, which nobody else has or is taking.
fn occupy(path: &Path, options: SocketOptions) -> Result<(OwnedFd, Place), SocketError> {
    let _lock = DirectoryLock::take(path)?;
    refuse_occupied(path)?;
    listen(path, options)
}

/// Fails unless nothing, or a socket without listener, is at `path`.
fn refuse_occupied(path: &Path) -> Result<(), SocketError> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::Inspect {
                path: path.to_owned(),
                source,
            });
        }
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    match probe(path) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // A full backlog (EAGAIN), another socket type (EPROTOTYPE) or a mode that keeps us out
        // (EACCES): in doubt it is in use.
        Ok(()) | Err(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Connects and hangs up, without waiting.
fn probe(path: &Path) -> Result<(), Errno> {
    let probe = stream_socket()?;
    rustix::net::connect(&probe, &SocketAddrUnix::new(path)?)
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Binds under the temporary name and moves the socket to `path`.
fn listen(path: &Path, options: SocketOptions) -> Result<(OwnedFd, Place), SocketError> {
    let bind_error = |source: io::Error| SocketError::Bind {
        path: path.to_owned(),
        source,
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);

    let socket = stream_socket().map_err(|errno| bind_error(errno.into()))?;
    let address = SocketAddrUnix::new(&temporary).map_err(|errno| bind_error(errno.into()))?;
    remove_leftover(&temporary).map_err(bind_error)?;
    rustix::net::bind(&socket, &address).map_err(|errno| bind_error(errno.into()))?;
    let placed = open_doors(&socket, &temporary, path, options);
    if placed.is_err() {
        // The directory is locked, so the name is still ours. What failed matters more than this.
        let _ = std::fs::remove_file(&temporary);
    }
    Ok((socket, placed?))
}

/// Group and mode, then listen, then rename: no connection is possible before the permissions
/// are right.
fn open_doors(
    socket: &OwnedFd,
    temporary: &Path,
    path: &Path,
    options: SocketOptions,
) -> Result<Place, SocketError> {
    set_permissions(temporary, options).map_err(|source| SocketError::Permissions {
        path: path.to_owned(),
        source,
    })?;
    let opened = rustix::net::listen(socket, BACKLOG).map_err(io::Error::from);
    opened
        .and_then(|()| Place::of(temporary, path))
        .and_then(|place| std::fs::rename(temporary, path).map(|()| place))
        .map_err(|source| SocketError::Bind {
            path: path.to_owned(),
            source,
        })
}

/// Removes what a process that died between bind and rename left behind. The directory is locked,
/// so it is nobody's any more.
fn remove_leftover(temporary: &Path) -> io::Result<()> {
    match temporary.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(temporary),
        // Anything else makes bind fail, as it should.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn set_permissions(path: &Path, options: SocketOptions) -> io::Result<()> {
    if let Some(group) = options.group {
        rustix::fs::chown(path, None, Some(Gid::from_raw(group)))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(options.mode))
}

/// A name in the file system, and the file that we put there.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    // A number is not given to another file as long as the socket is open.
    device: u64,
    inode: u64,
}

impl Place {
    /// The file that is at `now` and will be at `path`.
    fn of(now: &Path, path: &Path) -> io::Result<Self> {
        let found = now.symlink_metadata()?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    fn is_ours(&self) -> bool {
        self.path
            .symlink_metadata()
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode)
    }

    /// Removes the socket from the file system. While it is still open.
    fn give_up(&self) {
        // Without the lock a successor may be taking the path: then it is the successor's.
        let Ok(_lock) = DirectoryLock::take(&self.path) else {
            return;
        };
        if self.is_ours() {
            // A socket that stays behind has no listener and is replaced by the next one.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.place.give_up();
    }
}

/// Orders the threads of this process, which a lock on a file would let in together or fail.
static THREADS: Mutex<()> = Mutex::new(());

/// Name of the file in a socket's directory that is locked. Its mode keeps others of the group, who
/// may open the directory, from holding the lock.
const LOCK_FILE: &str = ".lock";

/// An exclusive lock that stands for the directory of a socket, free again when dropped.
struct DirectoryLock {
    // Declared in the order in which they are let go.
    _file: OwnedFd,
    _thread: MutexGuard<'static, ()>,
}

impl DirectoryLock {
    /// Does not wait for other processes: one that holds it is about to listen in there.
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let directory_error = |source: io::Error| SocketError::Directory {
            path: socket.to_owned(),
            source,
        };
        let directory = match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let thread = THREADS.lock();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory.join(LOCK_FILE), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| directory_error(errno.into()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                _file: file,
                _thread: thread,
            }),
            Err(Errno::WOULDBLOCK) => Err(SocketError::InUse {
                path: socket.to_owned(),
            }),
            Err(errno) => Err(directory_error(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests;
