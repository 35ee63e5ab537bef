//! Core: the program that runs the emulators for the demo.

use std::process::Stdio;
use std::time::Duration;

use enclaveid_tests::emulator::Client;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn the_program_says_where_everything_is_and_stops_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_enclaveid-emulators"))
        .arg("--dir")
        .arg(dir.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut ready = async || {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("ready") {
                return;
            }
        }
        panic!("ended before it was ready");
    };
    tokio::time::timeout(Duration::from_secs(60), ready())
        .await
        .unwrap();

    let index = std::fs::read(dir.path().join("emulators.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let read = |value: &Value| std::fs::read_to_string(value.as_str().unwrap()).unwrap();
    let client = Client::new(&read(&index["tls_roots"])).unwrap();
    let certs = format!("{}/certs", index["maa"]["url"].as_str().unwrap());
    assert_eq!(client.get(&certs, None).await.unwrap().status, 200);
    let (entra, identity) = (&index["entra"], &index["identities"]["pod"]);
    let (url, tenant) = (
        entra["url"].as_str().unwrap(),
        entra["tenant"].as_str().unwrap(),
    );
    let workload = enclaveid_tests::emulator::Workload {
        client_id: identity["client_id"].as_str().unwrap().to_owned(),
        object_id: String::new(),
        assertion: read(&identity["token_file"]),
    };
    let url = format!("{url}/{tenant}/oauth2/v2.0/token");
    let reply = client
        .post_form(&url, &super::support::token_form(&workload))
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
    for file in ["ark.pem", "ask.pem", "vcek.pem", "vcek.key", "chip.toml"] {
        assert!(dir.path().join("chip").join(file).exists(), "{file}");
    }

    let pid = i32::try_from(program.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(10), program.wait()).await;
    assert!(status.unwrap().unwrap().success());
}
