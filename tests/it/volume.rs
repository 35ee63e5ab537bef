//! Core: a pod's encrypted volume, mounted by its agent: what must work, and what must not.

use std::path::Path;

use enclaveid_tests::deployment::{Deployment, Pod, PodOptions};
use enclaveid_tests::fixture::{Need, enabled};
use enclaveid_tests::process::RunningAgent;

struct Scene {
    dir: tempfile::TempDir,
    key_id: String,
    pod: Pod,
    other: Pod,
    /// As `pod`, but for the volume id.
    renamed: Pod,
    /// As `pod`, the volume id included.
    twin: Pod,
    deployment: Deployment,
}

async fn scene() -> Option<Scene> {
    if !enabled(Need::Programs) || !enabled(Need::Fuse) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment::start(dir.path()).await.unwrap();
    let pod = |name: &str, id: &str| {
        let options = PodOptions {
            volume_id: Some(id.repeat(16)),
            ..PodOptions::default()
        };
        deployment.pod(name, &options).unwrap()
    };
    let (pod_a, twin) = (pod("pod", "a1"), pod("twin", "a1"));
    let (other, renamed) = (pod("other", "b2"), pod("renamed", "c3"));
    let key_id = deployment
        .create_secrets(&[&pod_a, &other, &renamed, &twin])
        .await
        .unwrap();
    pod_a.init_volume(&key_id).await.unwrap();
    other.init_volume(&key_id).await.unwrap();
    for pod in [&renamed, &twin] {
        std::fs::create_dir_all(pod.mountpoint()).unwrap();
    }
    Some(Scene {
        dir,
        key_id,
        pod: pod_a,
        other,
        renamed,
        twin,
        deployment,
    })
}

/// File operations on a mount block; the services must go on meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_files_survive_a_clean_stop_and_what_was_synced_survives_a_kill() {
    let Some(scene) = scene().await else { return };
    let agent = RunningAgent::start(&scene.pod, &scene.key_id)
        .await
        .unwrap();
    let volume = agent.volume();
    blocking(move || {
        std::fs::create_dir(volume.join("folder")).unwrap();
        std::fs::write(volume.join("folder/file"), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("folder/file", volume.join("link")).unwrap();
    })
    .await;
    let api = scene.pod.sockets().join("api.sock");
    let status = enclaveid::client::call(&api, hyper::Method::GET, "/v1/status", None).await;
    let status: serde_json::Value = serde_json::from_slice(&status.unwrap()).unwrap();
    assert!(
        status["volume"]["bytes_written"].as_u64().unwrap() >= 300_000,
        "{status}"
    );
    assert_eq!(status["volume"]["auth_failures"], 0);
    assert_eq!(status["volume"]["read_only"], false);
    let ended = agent.terminate().await.unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);

    let agent = RunningAgent::start(&scene.pod, &scene.key_id)
        .await
        .unwrap();
    let volume = agent.volume();
    blocking(move || {
        assert_eq!(
            std::fs::read(volume.join("link")).unwrap(),
            vec![7; 300_000]
        );
        let file = std::fs::File::create(volume.join("synced")).unwrap();
        std::io::Write::write_all(&mut &file, b"acknowledged").unwrap();
        file.sync_all().unwrap();
    })
    .await;
    agent.kill().await.unwrap();

    let agent = RunningAgent::start(&scene.pod, &scene.key_id)
        .await
        .unwrap();
    let volume = agent.volume();
    blocking(move || {
        assert_eq!(
            std::fs::read(volume.join("synced")).unwrap(),
            b"acknowledged"
        );
        assert_eq!(
            std::fs::read(volume.join("folder/file")).unwrap(),
            vec![7; 300_000]
        );
    })
    .await;
    let ended = agent.terminate().await.unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

/// Starts the pod's agent with a store of its own choice, and returns the code that it ends with.
async fn refusal(scene: &Scene, pod: &Pod, store: &Path) -> (Option<i32>, String) {
    let store = store.display().to_string();
    let agent = RunningAgent::spawn(pod, &["--key-id", &scene.key_id, "--store", &store]).unwrap();
    let ended = agent.wait().await.unwrap();
    assert!(!ended.log.contains("ready_after_ms"), "{}", ended.log);
    let line = ended
        .log
        .lines()
        .find_map(|line| line.strip_prefix("enclaveid: "));
    let code = line
        .and_then(|line| line.split(':').next())
        .unwrap_or_default()
        .to_owned();
    (ended.code, code)
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_store_that_is_not_the_pods_volume_is_refused_and_left_alone() {
    let Some(scene) = scene().await else { return };
    let missing = scene.dir.path().join("missing");
    let foreign = scene.dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("somebody-elses-file"), "x").unwrap();
    let got = refusal(&scene, &scene.pod, &missing).await;
    assert_eq!(
        (got.0, got.1.as_str()),
        (Some(50), "fs.not_a_volume"),
        "missing store"
    );
    assert!(!missing.exists());
    let got = refusal(&scene, &scene.pod, &foreign).await;
    assert_eq!(
        (got.0, got.1.as_str()),
        (Some(50), "fs.not_a_volume"),
        "foreign folder"
    );
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
    let got = refusal(&scene, &scene.pod, &scene.other.store()).await;
    assert_eq!(
        (got.0, got.1.as_str()),
        (Some(50), "fs.other_volume"),
        "another pod's volume"
    );
    let got = refusal(&scene, &scene.renamed, &scene.pod.store()).await;
    assert_eq!(
        (got.0, got.1.as_str()),
        (Some(50), "fs.other_volume"),
        "another id"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_second_agent_on_one_volume_is_refused() {
    let Some(scene) = scene().await else { return };
    let agent = RunningAgent::start(&scene.pod, &scene.key_id)
        .await
        .unwrap();
    let (exit, code) = refusal(&scene, &scene.pod, &scene.pod.store()).await;
    assert_eq!(
        (exit, code.as_str()),
        (Some(49), "socket.in_use"),
        "the same pod again"
    );
    let (exit, code) = refusal(&scene, &scene.twin, &scene.pod.store()).await;
    assert_eq!(
        (exit, code.as_str()),
        (Some(49), "fs.in_use"),
        "another pod of the same volume"
    );
    // And the command that makes volumes does not touch one that is there.
    let mut again = scene.pod.command("volume init");
    let output = again
        .args(["--key-id", &scene.key_id])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(50));
    let ended = agent.terminate().await.unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_volume_of_another_master_key_does_not_open() {
    let Some(mut scene) = scene().await else {
        return;
    };
    scene.key_id = scene
        .deployment
        .create_secrets(&[&scene.pod])
        .await
        .unwrap();
    let (exit, code) = refusal(&scene, &scene.pod, &scene.pod.store()).await;
    assert_eq!((exit, code.as_str()), (Some(48), "fs.wrong_key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_stale_socket_of_an_agent_that_was_killed_is_replaced() {
    let Some(scene) = scene().await else { return };
    let agent = RunningAgent::start(&scene.pod, &scene.key_id)
        .await
        .unwrap();
    agent.kill().await.unwrap();
    assert!(
        scene.pod.sockets().join("api.sock").exists(),
        "a kill leaves the socket"
    );
    let agent = RunningAgent::start(&scene.pod, &scene.key_id)
        .await
        .unwrap();
    let ended = agent.terminate().await.unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        !scene.pod.sockets().join("api.sock").exists(),
        "a stop removes it"
    );
}
