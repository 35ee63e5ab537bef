//! Core: the demo's steps on the mesh: two real Envoys, requests through both, rotation under load.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use enclaveid_envoy::bootstrap::{Bootstrap, Inbound, Outbound, SpiffeMatch};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::app::App;
use super::{Outcome, PATIENCE, Stage, client};
use crate::deployment::{Pod, succeed};
use crate::fixture::envoy::Envoy;

/// Requests that the step sends at least.
const REQUESTS_MIN: u64 = 1_000;
/// Rotations of each pod under load.
const ROTATIONS: usize = 5;
/// Clients at once.
const CLIENTS: usize = 4;
/// Connections between the Envoys are replaced this often, so that new certificates meet new
/// handshakes while the demo watches.
const CONNECTION_LIFETIME: Duration = Duration::from_millis(200);

/// The application and the Envoys.
pub(super) struct Mesh {
    app: App,
    ingress: Envoy,
    _egress: Envoy,
    egress_address: SocketAddr,
}

impl Mesh {
    /// Where pod-a's application reaches pod-b's.
    pub(super) fn egress_port(&self) -> u16 {
        self.egress_address.port()
    }
}

/// What the load sees.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    requests: AtomicU64,
    failures: AtomicU64,
}

/// Starts pod-b's application and Envoy, then pod-a's Envoy.
pub(super) async fn start(stage: &Stage) -> Outcome<(Mesh, String)> {
    let app = App::start().await?;
    let mut inbound = bootstrap(&stage.pod_b);
    inbound.inbound = Some(Inbound {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        app_port: app.port(),
        callers: vec![SpiffeMatch::exact(&stage.pod_a.spiffe_id())?],
    });
    let ingress = Envoy::start(&inbound.to_json()?).await?;
    let mut outbound = bootstrap(&stage.pod_a);
    outbound.outbound.push(Outbound {
        name: "pod-b".to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        host: "127.0.0.1".to_owned(),
        port: ingress.listener("inbound").await?.port(),
        peer: SpiffeMatch::exact(&stage.pod_b.spiffe_id())?,
    });
    let egress = Envoy::start(&outbound.to_json()?).await?;
    let egress_address = egress.listener("outbound_pod-b").await?;
    let shown = format!("pod-a's application calls http://{egress_address}");
    Ok((
        Mesh {
            app,
            ingress,
            _egress: egress,
            egress_address,
        },
        shown,
    ))
}

fn bootstrap(pod: &Pod) -> Bootstrap {
    Bootstrap {
        node_id: pod.name.clone(),
        cluster: pod.name.clone(),
        sds_socket: pod.sockets().join("sds.sock"),
        admin_port: 0,
        inbound: None,
        outbound: Vec::new(),
        health: None,
        connections_max: 1_000,
        connection_lifetime: CONNECTION_LIFETIME,
    }
}

/// Sends requests while both pods rotate, and counts.
pub(super) async fn traffic(stage: &Stage, mesh: &Mesh) -> Outcome {
    let handshakes_before = handshakes(&mesh.ingress).await?;
    let load = Arc::new(Load::default());
    let clients: Vec<JoinHandle<()>> = (0..CLIENTS)
        .map(|_| tokio::spawn(send_requests(mesh.egress_address, Arc::clone(&load))))
        .collect();
    let mut serials = BTreeSet::from([served_serial(&mesh.ingress).await?]);
    for _ in 0..ROTATIONS {
        rotate(&stage.pod_a).await?;
        let serial = rotate(&stage.pod_b).await?;
        wait_until_served(&mesh.ingress, &serial).await?;
        serials.insert(serial);
        wait_for_handshake(&mesh.ingress).await?;
    }
    let enough = async {
        while load.requests.load(Ordering::Relaxed) < REQUESTS_MIN {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, enough).await?;
    load.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await?;
    }
    let requests = load.requests.load(Ordering::Relaxed);
    let failures = load.failures.load(Ordering::Relaxed);
    let new_handshakes = handshakes(&mesh.ingress).await? - handshakes_before;
    let shown = format!(
        "{requests} requests, {failures} failures, {new_handshakes} new handshakes\n\
         {} distinct serials served by pod-b, {} client certificates of pod-a seen by the application",
        serials.len(),
        mesh.app.distinct_clients(),
    );
    let held = failures == 0
        && new_handshakes > 0
        && serials.len() >= 2
        && mesh.app.distinct_clients() >= 2;
    if held { Ok(shown) } else { Err(shown.into()) }
}

/// One client of pod-a's Envoy, on one connection as long as it lives.
async fn send_requests(egress: SocketAddr, load: Arc<Load>) {
    let mut sender = None;
    while !load.stop.load(Ordering::Relaxed) {
        let answered = request(egress, &mut sender).await;
        load.requests.fetch_add(1, Ordering::Relaxed);
        if !matches!(answered, Ok(StatusCode::OK)) {
            load.failures.fetch_add(1, Ordering::Relaxed);
            sender = None;
        }
    }
}

async fn request(
    egress: SocketAddr,
    sender: &mut Option<SendRequest<Empty<Bytes>>>,
) -> Outcome<StatusCode> {
    if sender.as_ref().is_none_or(SendRequest::is_closed) {
        let stream = TcpStream::connect(egress).await?;
        stream.set_nodelay(true)?;
        let (fresh, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        *sender = Some(fresh);
    }
    let sender = sender.as_mut().ok_or("no connection")?;
    sender.ready().await?;
    let request = Request::get("/")
        .header("host", "pod-b")
        .body(Empty::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    answer.into_body().collect().await?;
    Ok(status)
}

/// Rotates the pod's leaf and returns the new serial.
async fn rotate(pod: &Pod) -> Outcome {
    let output = succeed(client(pod, "rotate")).await?;
    let view: Value = serde_json::from_slice(&output.stdout)?;
    Ok(view["serial"].as_str().ok_or("no serial")?.to_owned())
}

async fn handshakes(envoy: &Envoy) -> Outcome<u64> {
    let stats = envoy
        .get_json("/stats?format=json&filter=ssl.handshake$")
        .await?;
    let all = stats["stats"].as_array().into_iter().flatten();
    let inbound = all.filter(|stat| {
        stat["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("listener."))
    });
    Ok(inbound.filter_map(|stat| stat["value"].as_u64()).sum())
}

/// The serial number of the certificate that the Envoy presents now.
async fn served_serial(envoy: &Envoy) -> Outcome {
    let certs = envoy.get_json("/certs").await?;
    let serial = certs["certificates"][0]["cert_chain"][0]["serial_number"].as_str();
    Ok(serial.ok_or("no certificate")?.to_ascii_lowercase())
}

async fn wait_until_served(envoy: &Envoy, serial: &str) -> Outcome<()> {
    let served = async {
        while served_serial(envoy).await? != serial {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, served).await?
}

/// Waits for the next handshake, which is made with what is served now.
async fn wait_for_handshake(envoy: &Envoy) -> Outcome<()> {
    let before = handshakes(envoy).await?;
    let made = async {
        while handshakes(envoy).await? == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, made).await?
}
