//! Core: the application of the demo: answers requests, and remembers which client certificates
//! its Envoy saw.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use runtime::sync::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running application. Dropping it stops it.
pub(super) struct App {
    address: SocketAddr,
    clients: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl App {
    /// Listens on loopback, on a free port.
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let clients = Arc::new(Mutex::new(BTreeSet::new()));
        let task = tokio::spawn(accept(listener, Arc::clone(&clients)));
        Ok(Self {
            address,
            clients,
            task,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many client certificates, by their digests, the requests so far came with.
    pub(super) fn distinct_clients(&self) -> usize {
        self.clients.lock().len()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, clients: Arc<Mutex<BTreeSet<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let clients = Arc::clone(&clients);
        let service = service_fn(move |request| {
            let answer = answer(&request, &clients);
            async move { Ok::<_, hyper::Error>(answer) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// 200 for who comes through the mesh, 403 for who does not: Envoy sets the header, and strips it
/// from what comes in.
fn answer(request: &Request<Incoming>, clients: &Mutex<BTreeSet<String>>) -> Response<Full<Bytes>> {
    let header = request.headers().get("x-forwarded-client-cert");
    let header = header
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let digest = header
        .split(';')
        .find_map(|part| part.strip_prefix("Hash="));
    let mut response = Response::new(Full::new(Bytes::from_static(b"hello through the mesh\n")));
    match digest {
        Some(digest) => {
            clients.lock().insert(digest.to_owned());
        }
        None => *response.status_mut() = StatusCode::FORBIDDEN,
    }
    response
}
