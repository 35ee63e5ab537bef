//! Core: the local API of a real agent, through its own client and by hand.

use std::path::Path;
use std::process::Stdio;

use enclaveid_tests::deployment::{Deployment, Pod, PodOptions, succeed};
use enclaveid_tests::fixture::{Need, binary, enabled};
use enclaveid_tests::process::RunningAgent;
use hyper::Method;
use serde_json::{Value, json};
use tokio::process::Command;

struct Scene {
    _dir: tempfile::TempDir,
    deployment: Deployment,
    pod: Pod,
    agent: RunningAgent,
}

async fn scene() -> Option<Scene> {
    if !enabled(Need::Programs) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment::start(dir.path()).await.unwrap();
    let pod = deployment.pod("pod", &PodOptions::default()).unwrap();
    let key_id = deployment.create_secrets(&[&pod]).await.unwrap();
    let agent = RunningAgent::start(&pod, &key_id).await.unwrap();
    Some(Scene {
        _dir: dir,
        deployment,
        pod,
        agent,
    })
}

fn client(pod: &Pod, subcommand: &str) -> Command {
    let mut command = Command::new(binary("enclaveid"));
    command
        .args(subcommand.split(' '))
        .arg("--sockets")
        .arg(pod.sockets());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn call(
    socket: &Path,
    method: Method,
    route: &str,
    body: Option<Value>,
) -> Result<Value, String> {
    let answer = enclaveid::client::call(socket, method, route, body.as_ref()).await;
    answer
        .map(|body| serde_json::from_slice(&body).unwrap())
        .map_err(|error| match error {
            enclaveid::client::ClientError::Refused { code, hint } => {
                assert!(!hint.is_empty());
                code
            }
            other => panic!("{other:?}"),
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_its_state_and_rotates_on_demand() {
    let Some(scene) = scene().await else { return };
    let status = succeed(client(&scene.pod, "status")).await.unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["simulated"], true);
    assert_eq!(status["key_provenance"], "unproven");
    assert_eq!(status["identity"]["spiffe_id"], scene.pod.spiffe_id());
    assert_eq!(
        status["config_sha256"],
        enclaveid_tests::hex(&scene.pod.host_data)
    );
    let stages: Vec<&str> = status["boot"]["passed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    for stage in [
        "measured_config",
        "wrap_key_generation",
        "evidence",
        "attestation",
        "release",
        "ca",
    ] {
        assert!(stages.contains(&stage), "{stages:?}");
    }
    succeed(client(&scene.pod, "healthcheck")).await.unwrap();

    let rotated = succeed(client(&scene.pod, "rotate")).await.unwrap();
    let rotated: Value = serde_json::from_slice(&rotated.stdout).unwrap();
    assert_eq!(rotated["issued"], 2);
    assert_ne!(rotated["serial"], status["identity"]["serial"]);
    assert_eq!(scene.agent.terminate().await.unwrap().code, Some(0));
    let down = client(&scene.pod, "healthcheck").output().await.unwrap();
    assert_eq!(down.status.code(), Some(43));
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_an_agent_verifies_and_convinces_nobody_else() {
    let Some(scene) = scene().await else { return };
    let out = scene.pod.dir.join("evidence");
    let mut fetch = client(&scene.pod, "evidence");
    fetch.arg("--out").arg(&out).args(["--audience", "auditor"]);
    succeed(fetch).await.unwrap();
    let verify = |binding: &Path| {
        scene
            .deployment
            .verify_evidence(&scene.pod, &out, binding)
            .unwrap()
    };
    let accepted = verify(&out.join("binding.json")).output().await.unwrap();
    let text = String::from_utf8_lossy(&accepted.stdout);
    assert_eq!(accepted.status.code(), Some(0), "{text}");
    assert!(text.contains("SIMULATED"), "{text}");

    let binding = std::fs::read_to_string(out.join("binding.json")).unwrap();
    let mut binding: Value = serde_json::from_str(&binding).unwrap();
    binding["audience"] = json!("another auditor");
    let forged = scene.pod.dir.join("forged.json");
    std::fs::write(&forged, binding.to_string()).unwrap();
    let refused = verify(&forged).output().await.unwrap();
    assert_eq!(refused.status.code(), Some(41));
}

/// A relay that answers every question with what an agent once answered to another.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_evidence_is_noticed_by_who_fetches_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Some(scene) = scene().await else { return };
    let question = json!({"nonce": "ab".repeat(32), "audience": "enclaveid-cli"});
    let api = scene.pod.sockets().join("api.sock");
    let old = call(&api, Method::POST, "/v1/evidence", Some(question)).await;
    let old = old.unwrap().to_string();

    let relay = scene.pod.dir.join("relay");
    std::fs::create_dir(&relay).unwrap();
    let listener = tokio::net::UnixListener::bind(relay.join("api.sock")).unwrap();
    let relayed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4_096];
        let _ = stream.read(&mut request).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", old.len());
        stream.write_all((head + &old).as_bytes()).await.unwrap();
    });
    let mut fetch = Command::new(binary("enclaveid"));
    fetch
        .args(["evidence", "--sockets"])
        .arg(&relay)
        .arg("--out")
        .arg(relay.join("out"));
    let output = fetch.output().await.unwrap();
    relayed.await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(41), "{stderr}");
    assert!(stderr.contains("client.stale_evidence"), "{stderr}");
    assert!(!relay.join("out").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_door_has_its_routes() {
    let Some(scene) = scene().await else { return };
    let pod = scene.pod.sockets().join("api.sock");
    let admin = scene.pod.sockets().join("admin.sock");
    let question = || Some(json!({"nonce": "ab".repeat(32), "audience": "a"}));
    let get = Method::GET;
    let post = Method::POST;
    for socket in [&pod, &admin] {
        call(socket, get.clone(), "/livez", None).await.unwrap();
        call(socket, get.clone(), "/readyz", None).await.unwrap();
        call(socket, get.clone(), "/v1/status", None).await.unwrap();
        let evidence = call(socket, post.clone(), "/v1/evidence", question())
            .await
            .unwrap();
        for member in ["report", "vcek", "chain", "binding", "statement"] {
            assert!(!evidence[member].is_null(), "{member}");
        }
    }
    let code = |result: Result<Value, String>| result.unwrap_err();
    assert_eq!(
        code(call(&pod, post.clone(), "/v1/rotate", None).await),
        "api.admin_only"
    );
    assert_eq!(
        code(call(&pod, get.clone(), "/v1/evidence", None).await),
        "api.method"
    );
    assert_eq!(
        code(call(&pod, get.clone(), "/v1/secrets", None).await),
        "api.no_such_route"
    );
    for bad in [
        json!({"nonce": "ab", "audience": "a"}),
        json!({"nonce": "ab".repeat(32), "audience": ""}),
        json!({"nonce": "ab".repeat(32), "audience": "a".repeat(257)}),
        json!({"nonce": "ab".repeat(32)}),
        json!({"nonce": "ab".repeat(32), "audience": "a", "more": 1}),
    ] {
        assert_eq!(
            code(call(&pod, post.clone(), "/v1/evidence", Some(bad)).await),
            "api.body"
        );
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let modes = [scene.pod.sockets(), pod.clone(), admin.clone()].map(|path| mode(&path));
    assert_eq!(modes, [0o750, 0o660, 0o600]);
}

/// The host's door is served over a socket pair here: the code behind it is the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_gets_three_routes_and_a_rate_limit() {
    use enclaveid::api::{Door, State, serve_connection};
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment::start(dir.path()).await.unwrap();
    let pod = deployment.pod("pod", &PodOptions::default()).unwrap();
    let chip = dir.path().join("chip");
    let simulator = enclaveid::platform::simulator::Simulator::open(&chip, &pod.launch).unwrap();
    let stages = std::sync::Arc::new(enclaveid::stages::BootStages::new());
    let digest = enclaveid::config::ConfigDigest(pod.host_data);
    let clock = std::sync::Arc::new(runtime::clock::SystemClock);
    let state = State::new(std::sync::Arc::new(simulator), clock, digest, stages);
    let state = std::sync::Arc::new(state);
    state.set_identity(identity());
    let mut statuses = Vec::new();
    let routes = ["/livez", "/readyz", "/v1/status", "/v1/rotate"].map(|route| ("GET", route));
    for (method, route) in routes.into_iter().chain([("POST", "/v1/evidence"); 6]) {
        let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let served = tokio::spawn(serve_connection(theirs, Door::Host, state.clone()));
        let body = json!({"nonce": "ab".repeat(32), "audience": "a"}).to_string();
        let request = format!(
            "{method} {route} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        ours.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap();
        statuses.push(answer.get(9..12).unwrap().parse::<u16>().unwrap());
    }
    assert_eq!(statuses, [200, 503, 404, 404, 200, 200, 200, 200, 429, 429]);
}

/// An identity of a mesh that exists in this test alone.
fn identity() -> std::sync::Arc<enclaveid::identity::PodIdentity> {
    use enclaveid::pki::{MeshCa, SpiffeId};
    use runtime::clock::{Clock, SystemClock};
    let secret = keys::MasterSecret::from_release(&mut [7; 32]).unwrap();
    let seed = secret
        .derive_intermediate()
        .derive_ca(keys::CaGeneration(0));
    let now = SystemClock.now();
    let certificate = MeshCa::from_seed(&seed).unwrap().issue("demo", now);
    let pem = certificate.unwrap().to_pem().unwrap();
    let ca = MeshCa::from_seed(&seed).unwrap().verify(&pem, now).unwrap();
    let id = SpiffeId::parse("spiffe://demo/pod").unwrap();
    let (publisher, _snapshots) = enclaveid_envoy::channel();
    let lifetime = std::time::Duration::from_secs(3_600);
    let clock = std::sync::Arc::new(SystemClock);
    let identity = enclaveid::identity::PodIdentity::start(ca, id, lifetime, clock, publisher);
    std::sync::Arc::new(identity.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_are_not_listed_are_refused() {
    let Some(scene) = scene().await else { return };
    if !enabled(Need::Root) {
        return;
    }
    // The file modes alone would stop a stranger: open them, so that the peer check is what acts.
    use std::os::unix::fs::PermissionsExt;
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    let pod_dirs = scene
        .pod
        .dir
        .ancestors()
        .take_while(|dir| dir.starts_with("/tmp"));
    pod_dirs
        .filter(|dir| *dir != Path::new("/tmp"))
        .for_each(open);
    open(&scene.pod.sockets());
    open(&scene.pod.sockets().join("api.sock"));
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                  s.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: h\\r\\nConnection: close\\r\\n\\r\\n')\n\
                  d=b''\nwhile True:\n  c=s.recv(4096)\n  if not c: break\n  d+=c\nprint(d.decode())";
    let mut stranger = Command::new("setpriv");
    stranger
        .args([
            "--reuid",
            "4242",
            "--regid",
            "4242",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            script,
        ])
        .arg(scene.pod.sockets().join("api.sock"));
    let answer = succeed(stranger).await.unwrap();
    let answer = String::from_utf8_lossy(&answer.stdout);
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("api.forbidden"), "{answer}");
}
