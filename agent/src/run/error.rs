//! Core: why a run ended, whoever it was that failed.

use runtime::listener::SocketError;

use crate::broker::BrokerError;
use crate::cloud::HttpError;
use crate::own_evidence::OwnEvidenceError;
use crate::pki::CaError;
use crate::platform::PlatformError;
use crate::unlock::UnlockError;
use crate::vault::{VaultError, WrapKeyError};

/// Why the agent, or a command that unlocks like it, ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The platform cannot be used.
    #[error("the configured platform cannot be used")]
    Platform(#[source] PlatformError),
    /// The pod's evidence, or its configuration's measurement, is not in order.
    #[error("the pod's evidence is not in order")]
    Evidence(#[source] OwnEvidenceError),
    /// The HTTP client could not be set up.
    #[error("cannot set up TLS")]
    Http(#[source] HttpError),
    /// The wrap key could not be begun.
    #[error("no wrap key")]
    WrapKey(#[source] WrapKeyError),
    /// The secret was not obtained.
    #[error("the deployment's secret was not obtained")]
    Unlock(#[source] UnlockError),
    /// The vault did not make the key.
    #[error("the master key was not made")]
    Vault(#[source] VaultError),
    /// The CA certificate cannot be read or written.
    #[error("cannot read or write the CA certificate's file")]
    CaFile(#[source] std::io::Error),
    /// The CA, or a leaf of it, cannot be used.
    #[error("the mesh CA cannot be used")]
    Ca(#[source] CaError),
    /// The volume cannot be opened.
    #[error("the volume cannot be opened")]
    Volume(#[source] fuse_encfs::OpenError),
    /// The volume cannot be made.
    #[error("the volume cannot be made")]
    VolumeInit(#[source] fuse_encfs::OpenError),
    /// The volume cannot be mounted.
    #[error("the volume cannot be mounted")]
    Broker(#[source] BrokerError),
    /// The volume cannot be served.
    #[error("the volume cannot be served")]
    Serve(#[source] fuse_encfs::mount::MountError),
    /// The volume did not end cleanly.
    #[error("the volume did not end cleanly")]
    Unmount(#[source] fuse_encfs::mount::UnmountError),
    /// A socket cannot be made.
    #[error("cannot make a socket")]
    Socket(#[source] SocketError),
    /// The directory of the sockets cannot be made.
    #[error("cannot make the directory of the sockets")]
    SocketDir(#[source] std::io::Error),
    /// The vsock port cannot be bound.
    #[error("cannot bind the vsock port")]
    Vsock(#[source] std::io::Error),
    /// A command was given a configuration that lacks its section.
    #[error("the configuration has no section [{0}]")]
    Section(&'static str),
    /// Signals cannot be handled.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// SDS ended before it was told to.
    #[error("the SDS server ended")]
    Sds(#[source] enclaveid_envoy::SdsError),
    /// The mount was taken away.
    #[error("the volume was unmounted under the agent")]
    VolumeEnded,
    /// A served task died.
    #[error("a task died")]
    Task,
}

impl RunError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Platform(error) => error.code(),
            Self::Evidence(error) => error.code(),
            Self::Http(_) => "tls.setup",
            Self::WrapKey(error) => error.code(),
            Self::Unlock(error) => error.code(),
            Self::Vault(error) => error.code(),
            Self::CaFile(_) => "ca.file",
            Self::Ca(error) => error.code(),
            Self::Volume(error) => error.code(),
            Self::VolumeInit(error) => error.code(),
            Self::Broker(error) => error.code(),
            Self::Serve(error) => error.code(),
            Self::Unmount(error) => error.code(),
            Self::Socket(error) => error.code(),
            Self::SocketDir(_) => "socket.dir",
            Self::Vsock(_) => "socket.vsock",
            Self::Section(_) => "config.invalid",
            Self::Signals(_) => "bug.signals",
            Self::Sds(error) => error.code(),
            Self::VolumeEnded => "mount.ended",
            Self::Task => "bug.panic",
        }
    }
}
