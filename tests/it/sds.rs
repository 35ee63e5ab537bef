//! Edge: a real Envoy on our SDS server: rotation, refusals, outages, and who gets in.

mod mesh;
mod server;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use enclaveid_envoy::bootstrap::Bootstrap;
use enclaveid_tests::fixture::envoy::{self, Envoy};
use enclaveid_tests::fixture::{Need, enabled};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use openssl::ssl::SslVersion;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;

use mesh::{Client, MeshCa};
use server::{Sds, bootstrap, inbound, loopback, outbound, own_uid, start_app};

const POD: &str = "spiffe://mesh.test/pod";
const CALLER: &str = "spiffe://mesh.test/caller";
const STRANGER: &str = "spiffe://mesh.test/stranger";
/// Time for any one thing to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// An Envoy that lets [`CALLER`] in to an application, with its SDS server.
struct World {
    ca: MeshCa,
    caller: Client,
    sds: Sds,
    envoy: Envoy,
    inbound: SocketAddr,
    dir: TempDir,
}

impl World {
    /// All of it, with a leaf of serial number 1 in use.
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let ca = MeshCa::new("mesh");
        let sds = Sds::start(&dir.path().join("sds.sock"), own_uid());
        sds.publisher.publish(&ca.svid(POD, 1));
        let envoy = Envoy::start(&pod_bootstrap(&dir).await).await.unwrap();
        let inbound = envoy.listener("inbound").await.unwrap();
        let caller = Client::with(ca.leaf(CALLER, 1_000));
        Self {
            ca,
            caller,
            sds,
            envoy,
            inbound,
            dir,
        }
    }

    async fn call(&self) -> Result<mesh::Answer, String> {
        self.caller.call(self.inbound, &self.ca).await
    }

    /// Calls until the leaf of number `serial` is served; none may fail.
    async fn handshakes_until(&self, serial: u32) {
        let deadline = Instant::now() + PATIENCE;
        while self.call().await.unwrap().serial != serial {
            assert!(Instant::now() < deadline, "serial {serial} is not served");
        }
    }

    /// Calls again and again; none may fail, and the serial number never goes back.
    async fn call_forever(&self) -> Infallible {
        let mut newest = 0;
        loop {
            let serial = self.call().await.unwrap().serial;
            assert!(serial >= newest, "{serial} after {newest}");
            newest = serial;
        }
    }
}

async fn pod_bootstrap(dir: &TempDir) -> String {
    let inbound = Some(inbound(start_app().await, CALLER));
    let bootstrap = bootstrap(dir.path().join("sds.sock"));
    Bootstrap {
        inbound,
        ..bootstrap
    }
    .to_json()
    .unwrap()
}

#[tokio::test]
async fn envoy_accepts_the_generated_bootstrap() {
    if !enabled(Need::Envoy) {
        return;
    }
    let mut whole = bootstrap("/run/enclaveid/sds.sock".into());
    whole.inbound = Some(inbound(8080, CALLER));
    let by_name = outbound("by_name", loopback(), POD);
    whole.outbound = vec![
        outbound("by_address", SocketAddr::from(([10, 0, 0, 1], 15006)), POD),
        server::named(by_name, "ledger.shop.svc", 15006),
    ];
    whole.health = Some(loopback());
    envoy::validate(&whole.to_json().unwrap()).await.unwrap();

    // So that the above can fail.
    let broken = whole.to_json().unwrap().replace("TLSv1_3", "TLSv1_9");
    envoy::validate(&broken).await.unwrap_err();
}

#[tokio::test]
async fn every_rotation_reaches_new_handshakes_and_none_fails() {
    const ROTATIONS: u32 = 60;
    if !enabled(Need::Envoy) {
        return;
    }
    let world = World::start().await;
    let before = world.sds.status.wait_for(|view| view.acks == 2).await;
    let (mut acknowledged, mut served) = (Vec::new(), Vec::new());
    let rotations = async {
        for rotation in 1..=ROTATIONS {
            let next = world.ca.svid(POD, rotation + 1);
            let start = Instant::now();
            world.sds.publisher.publish(&next);
            let acks = before.acks + u64::from(rotation);
            world.sds.status.wait_for(|view| view.acks == acks).await;
            acknowledged.push(start.elapsed());
            world.handshakes_until(rotation + 1).await;
            served.push(start.elapsed());
        }
    };
    // Peers that know nothing of rotations.
    tokio::select! {
        () = rotations => {}
        _ = world.call_forever() => {}
        _ = world.call_forever() => {}
    }
    // One push for each rotation: the bundle has not changed and was not sent again.
    let after = world.sds.status.view();
    assert_eq!((after.pushes, after.nacks), (2 + u64::from(ROTATIONS), 0));
    let stat = async |name: &str| world.envoy.stat(name).await.unwrap();
    assert_eq!(stat("sds.default.update_rejected").await, 0);
    assert_eq!(stat("sds.ROOTCA.update_success").await, 1);
    assert_eq!(stat("listener.inbound.ssl.connection_error").await, 0);
    let handshakes = stat("listener.inbound.ssl.handshake").await;
    assert!(
        handshakes > 2 * u64::from(ROTATIONS),
        "{handshakes} handshakes"
    );
    print_times("push to acknowledgement", &mut acknowledged);
    print_times("push to new handshake", &mut served);
}

/// Numbers for whoever runs with `--no-capture`.
fn print_times(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let (p50, p90) = (times[times.len() / 2], times[times.len() * 9 / 10]);
    println!(
        "{what}: p50 {p50:?}, p90 {p90:?}, max {:?}",
        times[times.len() - 1]
    );
}

#[tokio::test]
async fn a_pair_that_does_not_fit_is_refused_and_the_one_before_stays() {
    if !enabled(Need::Envoy) {
        return;
    }
    let mut world = World::start().await;
    world.sds.status.wait_for(|view| view.acks == 2).await;
    let mut bad = world.ca.svid(POD, 2);
    bad.private_key_pem = world.ca.svid(POD, 2).private_key_pem;
    world.sds.publisher.publish(&bad);
    let view = world.sds.status.wait_for(|view| view.nacks == 1).await;
    let last = view.last_nack.unwrap();
    assert_eq!((last.name, last.node.as_str()), ("default", "pod-0"));
    world
        .envoy
        .wait_for_stat("sds.default.update_rejected", |count| count == 1)
        .await
        .unwrap();
    assert_eq!(world.call().await.unwrap().serial, 1);

    world.sds.publisher.publish(&world.ca.svid(POD, 3));
    world.handshakes_until(3).await;
    let after = world.sds.status.wait_for(|view| view.acks == 3).await;
    // Two at the start, the bad one, the good one: the bad one was not offered again.
    assert_eq!((after.pushes, after.nacks), (4, 1));
}

#[tokio::test]
async fn the_door_stays_shut_until_there_is_an_identity() {
    if !enabled(Need::Envoy) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let ca = MeshCa::new("mesh");
    let sds = Sds::start(&dir.path().join("sds.sock"), own_uid());
    let mut envoy = Envoy::spawn(&pod_bootstrap(&dir).await).await.unwrap();
    // One stream for each of the two names, held.
    sds.status.wait_for(|view| view.streams == 2).await;
    assert!(!envoy.is_ready().await.unwrap());

    sds.publisher.publish(&ca.svid(POD, 1));
    envoy.wait_ready().await.unwrap();
    let caller = Client::with(ca.leaf(CALLER, 1_000));
    let inbound = envoy.listener("inbound").await.unwrap();
    assert_eq!(caller.call(inbound, &ca).await.unwrap().serial, 1);
}

#[tokio::test]
async fn an_envoy_of_another_user_is_refused_by_name() {
    if !enabled(Need::Envoy) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sds.sock");
    let ca = MeshCa::new("mesh");
    let sds = Sds::start(&path, own_uid() + 1);
    sds.publisher.publish(&ca.svid(POD, 1));
    let mut envoy = Envoy::spawn(&pod_bootstrap(&dir).await).await.unwrap();
    // 7 is PERMISSION_DENIED; Envoy prints the message as it is encoded.
    envoy
        .wait_for_log("closed: 7, this%20user%20is%20not%20allowed")
        .await
        .unwrap();
    let view = sds.status.view();
    assert!(view.refused_peers > 0);
    assert_eq!((view.pushes, view.streams), (0, 0));
    assert!(!envoy.is_ready().await.unwrap());
    sds.stop().await;

    // With the right user in the list it comes back by itself.
    let sds = Sds::start(&path, own_uid());
    sds.publisher.publish(&ca.svid(POD, 1));
    envoy.wait_ready().await.unwrap();
}

#[tokio::test]
async fn an_outage_of_the_server_is_survived_and_ended_by_its_successor() {
    if !enabled(Need::Envoy) {
        return;
    }
    let mut world = World::start().await;
    let path = world.dir.path().join("sds.sock");
    world.sds.stop().await;
    assert!(!path.exists());
    let connected = "sds.default.control_plane.connected_state";
    world
        .envoy
        .wait_for_stat(connected, |state| state == 0)
        .await
        .unwrap();
    let served = world.caller.call(world.inbound, &world.ca).await.unwrap();
    assert_eq!(served.serial, 1, "the last identity stays in use");

    let start = Instant::now();
    world.sds = Sds::start(&path, own_uid());
    world.sds.publisher.publish(&world.ca.svid(POD, 2));
    world.handshakes_until(2).await;
    // Envoy tries again at least every half a second; the rest is the machine's.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?}",
        start.elapsed()
    );
}

/// Calls as `client` and expects TLS to say `refusal`, and Envoy to count it under `stat`.
async fn check_refused(world: &mut World, client: Client, refusal: &str, stat: &str) {
    let before = world.envoy.stat(stat).await.unwrap();
    let said = client.refusal(world.inbound, &world.ca).await;
    assert!(said.contains(refusal), "{said}");
    world
        .envoy
        .wait_for_stat(stat, |count| count > before)
        .await
        .unwrap();
}

#[tokio::test]
async fn only_the_caller_with_the_right_certificate_gets_in() {
    if !enabled(Need::Envoy) {
        return;
    }
    let mut world = World::start().await;
    let answer = world.call().await.unwrap();
    assert!(answer.text.starts_with("HTTP/1.1 200"), "{}", answer.text);
    assert!(
        answer.text.contains(&format!("URI={CALLER}")),
        "{}",
        answer.text
    );

    let nobody = Client {
        leaf: None,
        version_max: SslVersion::TLS1_3,
    };
    let stat = "listener.inbound.ssl.fail_verify_no_cert";
    check_refused(&mut world, nobody, "certificate required", stat).await;

    let stranger = Client::with(world.ca.leaf(STRANGER, 1_001));
    let stat = "listener.inbound.ssl.fail_verify_san";
    check_refused(&mut world, stranger, "certificate unknown", stat).await;

    let foreign = Client::with(MeshCa::new("foreign").leaf(CALLER, 1_002));
    let stat = "listener.inbound.ssl.fail_verify_error";
    check_refused(&mut world, foreign, "unknown ca", stat).await;

    let old = Client {
        version_max: SslVersion::TLS1_2,
        ..world.caller.clone()
    };
    let stat = "listener.inbound.ssl.connection_error";
    check_refused(&mut world, old, "protocol version", stat).await;
}

/// `count` requests one after the other on one plaintext connection; none may fail.
async fn requests(way: SocketAddr, count: usize) {
    let stream = TcpStream::connect(way).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let requests = async {
        for _ in 0..count {
            let request = Request::get("/")
                .header("host", "pod")
                .body(Empty::<Bytes>::new());
            sender.ready().await.unwrap();
            let response = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap();
        }
        drop(sender);
    };
    let ((), ended) = tokio::join!(requests, connection);
    ended.unwrap();
}

#[tokio::test]
async fn connections_between_pods_that_end_of_age_cost_no_request() {
    const LIFETIME: Duration = Duration::from_millis(100);
    if !enabled(Need::Envoy) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sds.sock");
    let ca = MeshCa::new("mesh");
    let sds = Sds::start(&path, own_uid());
    // Both pods have the same identity: who is who does not matter here.
    sds.publisher.publish(&ca.svid(POD, 1));
    let mut called = bootstrap(path);
    called.connection_lifetime = LIFETIME;
    let mut calling = called.clone();
    called.inbound = Some(inbound(start_app().await, POD));
    let called = Envoy::start(&called.to_json().unwrap()).await.unwrap();
    let server = called.listener("inbound").await.unwrap();
    calling.outbound = vec![outbound("pod", server, POD)];
    let calling = Envoy::start(&calling.to_json().unwrap()).await.unwrap();
    let way = calling.listener("outbound_pod").await.unwrap();

    // As many rounds as it takes to have seen several connections.
    let deadline = Instant::now() + PATIENCE;
    let mut rounds = 0;
    while calling
        .stat("cluster.peer_pod.upstream_cx_total")
        .await
        .unwrap()
        < 6
    {
        let several = [(); 4].map(|()| tokio::spawn(requests(way, 100)));
        for one in several {
            one.await.unwrap();
        }
        rounds += 1;
        assert!(Instant::now() < deadline, "connections do not end");
    }
    let served = called.stat("http.inbound.downstream_rq_2xx").await.unwrap();
    assert_eq!(served, rounds * 400);
}

#[tokio::test]
async fn two_pods_talk_and_an_impostor_is_not_talked_to() {
    if !enabled(Need::Envoy) {
        return;
    }
    let world = World::start().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sds.sock");
    let sds = Sds::start(&path, own_uid());
    sds.publisher.publish(&world.ca.svid(CALLER, 2_000));
    let mut calling = bootstrap(path);
    calling.outbound = vec![
        outbound("pod", world.inbound, POD),
        outbound("someone_else", world.inbound, STRANGER),
    ];
    calling.health = Some(loopback());
    let calling = Envoy::start(&calling.to_json().unwrap()).await.unwrap();

    let way = calling.listener("outbound_pod").await.unwrap();
    let (status, body) = envoy::get(way, "/").await.unwrap();
    let body = String::from_utf8_lossy(&body);
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(&format!("URI={CALLER}")), "{body}");

    // The server is who it is, not whom this way leads to.
    let way = calling.listener("outbound_someone_else").await.unwrap();
    let (status, _) = envoy::get(way, "/").await.unwrap();
    assert_eq!(status, 503);
    let refused = calling
        .stat("cluster.peer_someone_else.ssl.fail_verify_san")
        .await
        .unwrap();
    assert!(refused > 0);

    let health = calling.listener("health").await.unwrap();
    assert_eq!(envoy::get(health, "/healthz/ready").await.unwrap().0, 200);
    assert_eq!(envoy::get(health, "/").await.unwrap().0, 404);
}
