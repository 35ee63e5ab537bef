//! Core: our SDS server in this process, and an application for the Envoys to stand before.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use enclaveid_envoy::bootstrap::{Bootstrap, Inbound, Outbound, SpiffeMatch};
use enclaveid_envoy::{Publisher, SdsError, SdsStatus, channel, serve};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use runtime::listener::{AllowedPeers, SocketOptions, UnixSocket};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// An SDS server; dropping it ends it without a word, as a crash would.
pub(crate) struct Sds {
    pub(crate) publisher: Publisher,
    pub(crate) status: SdsStatus,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), SdsError>>,
}

impl Sds {
    /// Serves on `path` those who run as `uid`.
    pub(crate) fn start(path: &Path, uid: u32) -> Self {
        let allowed = AllowedPeers {
            uids: vec![uid],
            gids: Vec::new(),
        };
        let options = SocketOptions {
            mode: 0o660,
            group: None,
        };
        let socket = UnixSocket::bind(path, options, allowed).unwrap();
        let (publisher, snapshots) = channel();
        let status = snapshots.status();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(socket, snapshots, async {
            let _ = stopped.await;
        }));
        Self {
            publisher,
            status,
            stop,
            served,
        }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.served.await.unwrap().unwrap();
    }
}

/// The user whom the Envoys of these tests run as.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// An application that answers 200 with the header in which Envoy tells it who called.
pub(crate) async fn start_app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(async |request: Request<_>| {
                let _: &hyper::body::Incoming = request.body();
                let caller = request.headers().get("x-forwarded-client-cert");
                let caller =
                    caller.map_or_else(Bytes::new, |v| Bytes::copy_from_slice(v.as_bytes()));
                Ok::<_, Infallible>(Response::new(Full::new(caller)))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    port
}

/// A bootstrap with every port of the system's choosing.
pub(crate) fn bootstrap(sds_socket: PathBuf) -> Bootstrap {
    Bootstrap {
        node_id: "pod-0".to_owned(),
        cluster: "pod".to_owned(),
        sds_socket,
        admin_port: 0,
        inbound: None,
        outbound: Vec::new(),
        health: None,
        connections_max: 1_000,
        connection_lifetime: Duration::from_secs(600),
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A door for `caller` alone.
pub(crate) fn inbound(app_port: u16, caller: &str) -> Inbound {
    Inbound {
        listen: loopback(),
        app_port,
        callers: vec![SpiffeMatch::exact(caller).unwrap()],
    }
}

/// A way to `server`, who has to be `peer`.
pub(crate) fn outbound(name: &str, server: SocketAddr, peer: &str) -> Outbound {
    Outbound {
        name: name.to_owned(),
        listen: loopback(),
        host: server.ip().to_string(),
        port: server.port(),
        peer: SpiffeMatch::exact(peer).unwrap(),
    }
}

/// The same way to a server that is looked up.
pub(crate) fn named(outbound: Outbound, host: &str, port: u16) -> Outbound {
    Outbound {
        host: host.to_owned(),
        port,
        ..outbound
    }
}
