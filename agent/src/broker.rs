//! Edge: a small privileged child that makes the mount and hands the FUSE connection back.
//!
//! **Design.** Mounting needs CAP_SYS_ADMIN. The child is started before the runtime, from the same
//! executable, with one end of a socket pair as its standard input. It knows no secret, parses one
//! request of fixed form, and ends when the socket closes, which the agent does after the mount. It
//! is a fresh process image rather than a bare fork, so it shares no memory with the agent and needs
//! no unsafe code.
//!
//! **Limits.** The agent does not drop the capability yet: it detaches the mount itself when it
//! stops. What the broker separates today is the code, not the privilege.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::telemetry::Chain;

/// Name of the hidden subcommand that runs the child.
pub const SUBCOMMAND: &str = "broker";
/// Linux PATH_MAX: a longer mount point cannot exist.
const PATH_BYTES_MAX: usize = 4096;
/// First byte of an answer that carries a descriptor.
const MOUNTED: u8 = 0;
/// First byte of an answer that carries an error text instead.
const FAILED: u8 = 1;

/// The agent's end of the broker.
#[derive(Debug)]
pub struct Broker {
    socket: UnixStream,
    child: Child,
}

/// The broker could not be started, or could not mount.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The child did not start.
    #[error("cannot start the mount broker")]
    Start(#[source] std::io::Error),
    /// The child is gone or sent nonsense.
    #[error("the mount broker does not answer")]
    Gone(#[source] std::io::Error),
    /// The child could not mount; its reason as it came.
    #[error("cannot mount: {0}")]
    Mount(String),
}

impl BrokerError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Start(_) | Self::Gone(_) => "mount.broker",
            Self::Mount(_) => "mount.failed",
        }
    }
}

impl Broker {
    /// Starts the child. Call it before any thread or secret exists.
    pub fn start() -> Result<Self, BrokerError> {
        let (ours, theirs) = UnixStream::pair().map_err(BrokerError::Start)?;
        let child = Command::new("/proc/self/exe")
            .arg(SUBCOMMAND)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(BrokerError::Start)?;
        Ok(Self {
            socket: ours,
            child,
        })
    }

    /// Mounts a FUSE filesystem at `mountpoint` and returns its connection; blocks.
    pub fn mount(&mut self, mountpoint: &Path) -> Result<OwnedFd, BrokerError> {
        let path = mountpoint.as_os_str().as_bytes();
        let mut request = u32::try_from(path.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes()
            .to_vec();
        request.extend_from_slice(path);
        self.socket.write_all(&request).map_err(BrokerError::Gone)?;
        receive(&self.socket)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Closing the socket ends the child; waiting for it leaves no zombie behind.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// The child: serves requests from standard input until it closes.
pub fn serve() -> std::io::Result<()> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut socket = UnixStream::from(stdin);
    loop {
        let mut len = [0; 4];
        match socket.read_exact(&mut len) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if len > PATH_BYTES_MAX {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut path = vec![0; len];
        socket.read_exact(&mut path)?;
        let mountpoint = PathBuf::from(std::ffi::OsString::from_vec(path));
        answer(&socket, &mountpoint)?;
    }
}

fn answer(socket: &UnixStream, mountpoint: &Path) -> std::io::Result<()> {
    let options = fuse_encfs::mount::MountOptions {
        allow_other: true,
        ..Default::default()
    };
    match fuse_encfs::mount::attach(mountpoint, &options) {
        Ok(connection) => {
            let descriptors = [connection.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(
                socket,
                &[IoSlice::new(&[MOUNTED])],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?;
        }
        Err(error) => {
            let mut text = vec![FAILED];
            text.extend(Chain(&error).to_string().bytes().take(PATH_BYTES_MAX));
            let mut none = SendAncillaryBuffer::default();
            sendmsg(
                socket,
                &[IoSlice::new(&text)],
                &mut none,
                SendFlags::NOSIGNAL,
            )?;
        }
    }
    Ok(())
}

fn receive(socket: &UnixStream) -> Result<OwnedFd, BrokerError> {
    let mut bytes = [0; PATH_BYTES_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let len = received
        .map_err(|error| BrokerError::Gone(error.into()))?
        .bytes;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        RecvAncillaryMessage::ScmCredentials(_) | _ => None,
    });
    match (
        bytes.get(..len),
        descriptors.next().and_then(|mut list| list.next()),
    ) {
        (Some([MOUNTED]), Some(connection)) => Ok(connection),
        (Some([FAILED, text @ ..]), _) => Err(BrokerError::Mount(
            String::from_utf8_lossy(text).into_owned(),
        )),
        _ => Err(BrokerError::Gone(std::io::ErrorKind::UnexpectedEof.into())),
    }
}
