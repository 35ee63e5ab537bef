//! Edge: the sockets of an agent: where, with which mode, and for whom.

use runtime::listener::{AllowedPeers, SocketOptions, UnixSocket};

use super::RunError;
use crate::config::Config;

/// The sockets of an agent.
pub(super) struct Sockets {
    pub(super) admin: UnixSocket,
    pub(super) api: UnixSocket,
    pub(super) sds: UnixSocket,
    pub(super) vsock: Option<tokio_vsock::VsockListener>,
}

impl Sockets {
    pub(super) fn bind(config: &Config) -> Result<Self, RunError> {
        let sockets = &config.sockets;
        make_socket_dir(&sockets.dir, sockets.group).map_err(RunError::SocketDir)?;
        let own_uid = rustix::process::geteuid().as_raw();
        let own = AllowedPeers {
            uids: vec![own_uid],
            gids: Vec::new(),
        };
        let bind = |name: &str, mode: u32, allowed: AllowedPeers| {
            let options = SocketOptions {
                mode,
                group: sockets.group,
            };
            UnixSocket::bind(&sockets.dir.join(name), options, allowed).map_err(RunError::Socket)
        };
        let vsock = match sockets.vsock_port {
            None => None,
            Some(port) => {
                let address = vsock::VsockAddr::new(vsock::VMADDR_CID_ANY, port);
                Some(tokio_vsock::VsockListener::bind(address).map_err(RunError::Vsock)?)
            }
        };
        Ok(Self {
            admin: bind("admin.sock", 0o600, own)?,
            api: bind("api.sock", 0o660, sockets.allowed.clone())?,
            sds: bind("sds.sock", 0o660, sockets.allowed.clone())?,
            vsock,
        })
    }
}

fn make_socket_dir(dir: &std::path::Path, group: Option<u32>) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))?;
    chown(dir, None, group)
}
