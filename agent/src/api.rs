//! Edge: the local API, HTTP/1.1 over Unix sockets and, where configured, over AF_VSOCK.
//!
//! Three doors to the same routes: `api.sock` for the pod's containers, `admin.sock` for the
//! agent's own user, and a vsock port for the host, who gets three routes and a rate limit.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

mod evidence;
mod problem;
mod rate;
mod routes;
mod state;

pub use evidence::{BindingView, EvidenceAnswer};
pub use problem::Problem;
pub use rate::{RateLimit, TooMany};
pub use routes::Door;
pub use state::State;

/// Connections served at once on each door.
const CONNECTIONS_MAX: usize = 64;
/// Connections of callers who are not admitted, answered at once on each door.
const REFUSED_MAX: usize = 4;
/// Pause when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest time for the head of a request, and for all requests of a connection: who holds one open
/// takes a place of others.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Serves one connection to its end. Safe to drop: requests change nothing half-way.
pub async fn serve_connection<S>(stream: S, door: Door, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let state = Arc::clone(&state);
        async move {
            Ok::<Response<Full<Bytes>>, hyper::Error>(routes::answer(&state, door, request).await)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection ended"),
        Err(_elapsed) => tracing::debug!("connection ended: it was open too long"),
    }
}

/// Accepts on a Unix socket until dropped. Connections that are not admitted are answered with 403
/// rather than closed: a wrong uid should be easy to find. They have few places, of their own.
pub async fn serve_unix(socket: runtime::listener::UnixSocket, admin: bool, state: Arc<State>) {
    let admitted = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let refused = Arc::new(Semaphore::new(REFUSED_MAX));
    loop {
        let (stream, admission) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, error_code = "api.accept", "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (door, places) = match (admission, admin) {
            (Err(_refused), _) => (Door::Refused, &refused),
            (Ok(_), true) => (Door::Admin, &admitted),
            (Ok(_), false) => (Door::Pod, &admitted),
        };
        // Without a place the connection is closed: waiting would hold up the others.
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            serve_connection(stream, door, state).await;
            drop(place);
        });
    }
}

/// Accepts on a vsock port until dropped. The peer is the host.
pub async fn serve_vsock(listener: tokio_vsock::VsockListener, state: Arc<State>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _address)) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    serve_connection(stream, Door::Host, state).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, error_code = "api.accept", "cannot accept on vsock");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
