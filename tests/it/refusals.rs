//! Core: what must not work, row by row: each has its own code and exit code, and nothing weaker
//! takes the place of what was refused.

use std::path::Path;
use std::time::Duration;

use enclaveid_tests::deployment::{Deployment, MEASUREMENT, Pod, PodOptions};
use enclaveid_tests::emulator::{Fault, ReleaseLie, TokenLie};
use enclaveid_tests::fixture::{Need, enabled};
use enclaveid_tests::pki::Validity;
use enclaveid_tests::process::RunningAgent;
use runtime::clock::{Clock, SystemClock};

/// More failures than a retry budget of five seconds has tries for.
const ALWAYS: u32 = 1_000;

/// One row: what is wrong, and what the agent must say.
struct Row {
    name: &'static str,
    /// Makes it wrong, and gives arguments for the agent.
    arrange: fn(&Bench, &Pod) -> Vec<String>,
    code: &'static str,
    exit: i32,
}

struct Bench {
    deployment: Deployment,
    key_id: String,
    foreign_key_id: String,
    foreign_ca: Vec<u8>,
}

fn row(
    name: &'static str,
    code: &'static str,
    exit: i32,
    arrange: fn(&Bench, &Pod) -> Vec<String>,
) -> Row {
    Row {
        name,
        arrange,
        code,
        exit,
    }
}

fn nothing() -> Vec<String> {
    Vec::new()
}

fn rows() -> Vec<Row> {
    let mut rows = launch_rows();
    rows.extend(service_rows());
    rows.extend(lie_rows());
    rows
}

/// What the host can do wrong at the launch.
#[expect(clippy::too_many_lines, reason = "a table")]
fn launch_rows() -> Vec<Row> {
    vec![
        row(
            "an unmeasured configuration",
            "config.unmeasured",
            41,
            |_, pod| {
                let text = std::fs::read_to_string(&pod.config).unwrap();
                std::fs::write(&pod.config, text + "\n").unwrap();
                nothing()
            },
        ),
        row(
            "another measurement than the policy lists",
            "skr.denied",
            42,
            |_, pod| {
                pod.write_launch(&[0x77; 48], &pod.host_data, "").unwrap();
                nothing()
            },
        ),
        row(
            "a policy that does not list this pod",
            "skr.denied",
            42,
            |bench, _| vec!["--key-id".into(), bench.foreign_key_id.clone()],
        ),
        row("a debug guest", "evidence.debug", 41, |_, pod| {
            pod.write_launch(&MEASUREMENT, &pod.host_data, "policy = 720927\n")
                .unwrap();
            nothing()
        }),
        row(
            "a guest that may migrate",
            "evidence.migration",
            41,
            |_, pod| {
                pod.write_launch(&MEASUREMENT, &pod.host_data, "policy = 458783\n")
                    .unwrap();
                nothing()
            },
        ),
        row("another VMPL", "evidence.vmpl", 41, |_, pod| {
            pod.write_launch(&MEASUREMENT, &pod.host_data, "vmpl = 1\n")
                .unwrap();
            nothing()
        }),
        row(
            "no simulated chip where one is configured",
            "platform.missing",
            40,
            |_, pod| {
                std::fs::remove_file(&pod.launch).unwrap();
                nothing()
            },
        ),
        row(
            "a measured key on the environment's side",
            "config.invalid",
            78,
            |_, pod| {
                let text = std::fs::read_to_string(&pod.config).unwrap();
                std::fs::write(&pod.config, text.replace("[mesh]", "[mesh]\nsurprise = 1"))
                    .unwrap();
                nothing()
            },
        ),
        row(
            "a CA certificate of another secret",
            "ca.mismatch",
            44,
            |bench, pod| {
                let path = pod.dir.join("foreign-ca.pem");
                std::fs::write(&path, &bench.foreign_ca).unwrap();
                vec!["--ca-certificate".into(), path.display().to_string()]
            },
        ),
        row("no CA certificate", "ca.file", 78, |_, pod| {
            vec![
                "--ca-certificate".into(),
                pod.dir.join("none.pem").display().to_string(),
            ]
        }),
        row(
            "a key id without a version",
            "config.invalid",
            78,
            |bench, _| {
                let (unversioned, _) = bench.key_id.rsplit_once('/').unwrap();
                vec!["--key-id".into(), unversioned.to_owned()]
            },
        ),
    ]
}

/// Services that fail.
#[expect(clippy::too_many_lines, reason = "a table")]
fn service_rows() -> Vec<Row> {
    vec![
        row("a vault that says 403", "skr.denied", 42, |bench, _| {
            bench.deployment.cloud.hsm.fail_next(1, Fault::Status(403));
            nothing()
        }),
        row(
            "a vault that says 429 for ever",
            "skr.unreachable",
            43,
            |bench, _| {
                let fault = Fault::RetryAfter {
                    status: 429,
                    seconds: 1,
                };
                bench.deployment.cloud.hsm.fail_next(ALWAYS, fault);
                nothing()
            },
        ),
        row(
            "a vault that says 503 for ever",
            "skr.unreachable",
            43,
            |bench, _| {
                bench
                    .deployment
                    .cloud
                    .hsm
                    .fail_next(ALWAYS, Fault::Status(503));
                nothing()
            },
        ),
        row("an unknown key", "skr.no_such_key", 42, |bench, _| {
            let (unversioned, _) = bench.key_id.rsplit_once('/').unwrap();
            vec![
                "--key-id".into(),
                format!("{unversioned}/{}", "0".repeat(32)),
            ]
        }),
        row(
            "an attestation service that is down",
            "maa.unreachable",
            43,
            |bench, _| {
                bench
                    .deployment
                    .cloud
                    .maa
                    .fail_next(ALWAYS, Fault::CloseConnection);
                nothing()
            },
        ),
        row(
            "an attestation service that refuses",
            "maa.appraisal_failed",
            41,
            |bench, _| {
                bench.deployment.cloud.maa.fail_next(2, Fault::Status(400));
                nothing()
            },
        ),
        row(
            "an identity service that refuses",
            "identity.refused",
            43,
            |bench, _| {
                bench
                    .deployment
                    .cloud
                    .entra
                    .fail_next(1, Fault::Status(401));
                nothing()
            },
        ),
        row(
            "a service with a foreign certificate",
            "maa.unreachable",
            43,
            |bench, pod| {
                // The roots in the configuration are another deployment's: measured, hence launched so.
                let text = std::fs::read_to_string(&pod.config).unwrap();
                let foreign = String::from_utf8(bench.foreign_ca.clone()).unwrap();
                let text = text.replace(&bench.deployment.cloud.roots_pem, &foreign);
                std::fs::write(&pod.config, &text).unwrap();
                let digest = sha2::Digest::finalize(sha2::Digest::chain_update(
                    <sha2::Sha256 as sha2::Digest>::new(),
                    &text,
                ));
                pod.write_launch(&MEASUREMENT, &digest.into(), "").unwrap();
                nothing()
            },
        ),
    ]
}

/// Services that lie.
#[expect(clippy::too_many_lines, reason = "a table")]
fn lie_rows() -> Vec<Row> {
    macro_rules! token {
        ($name:literal, $lie:ident, $code:literal) => {
            row($name, $code, 41, |bench, _| {
                bench.deployment.cloud.maa.lie_next(1, TokenLie::$lie);
                nothing()
            })
        };
    }
    macro_rules! release {
        ($name:literal, $lie:ident, $code:literal, $exit:literal) => {
            row($name, $code, $exit, |bench, _| {
                bench.deployment.cloud.hsm.lie_next(1, ReleaseLie::$lie);
                nothing()
            })
        };
    }
    vec![
        token!("an unsecured token", AlgNone, "token.algorithm"),
        token!(
            "a token under another appraisal policy",
            AnotherPolicy,
            "token.policy_hash"
        ),
        token!(
            "a token about another report",
            AnotherReport,
            "token.foreign"
        ),
        token!("a replayed token", AnotherRuntimeData, "token.runtime_data"),
        token!("an expired token", Expired, "token.expired"),
        token!(
            "a token signed by another key",
            ForeignKey,
            "token.signature"
        ),
        token!("a token of another issuer", WrongIssuer, "token.issuer"),
        release!(
            "another key under the same name",
            AnotherMaterial,
            "ca.mismatch",
            44
        ),
        release!(
            "another key version",
            AnotherVersion,
            "release.key_version",
            41
        ),
        release!(
            "a release signed by another chain",
            ForeignSigner,
            "release.chain",
            41
        ),
        release!(
            "a release policy that does not admit this pod",
            AnotherPolicy,
            "release.policy_denies",
            41
        ),
        release!(
            "a release policy that can change",
            MutablePolicy,
            "release.policy_mutable",
            41
        ),
        release!(
            "an answer about another key",
            WrongKeyEcho,
            "release.key_id",
            41
        ),
        release!(
            "an answer to another nonce",
            WrongNonceEcho,
            "release.nonce",
            41
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code_and_nothing_weaker_follows() {
    if !enabled(Need::Programs) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment::start(dir.path()).await.unwrap();
    let rows = rows();
    let pods: Vec<Pod> = (0..rows.len())
        .map(|i| {
            deployment
                .pod(&format!("pod-{i}"), &PodOptions::default())
                .unwrap()
        })
        .collect();
    let expired = expired_chip(&deployment);
    let good = deployment.pod("good", &PodOptions::default()).unwrap();
    let listed: Vec<&Pod> = pods.iter().chain([&expired, &good]).collect();
    let (key_id, foreign_key_id, foreign_ca) = provision(&deployment, &listed).await;
    let bench = Bench {
        deployment,
        key_id,
        foreign_key_id,
        foreign_ca,
    };
    let mut wrong = Vec::new();
    for (row, pod) in rows.iter().zip(&pods) {
        let arguments = (row.arrange)(&bench, pod);
        wrong.extend(run(&bench, row.name, pod, arguments, row.code, row.exit).await);
        bench.deployment.cloud.hsm.recover();
        bench.deployment.cloud.maa.recover();
        bench.deployment.cloud.entra.recover();
    }
    let chip = "an expired VCEK";
    wrong.extend(run(&bench, chip, &expired, nothing(), "evidence.expired", 41).await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The table would also pass if nothing ever worked.
    let good = RunningAgent::start(&good, &bench.key_id).await.unwrap();
    assert_eq!(good.terminate().await.unwrap().code, Some(0));
}

fn expired_chip(deployment: &Deployment) -> Pod {
    let now = SystemClock.now();
    let validity = Validity {
        not_before: now.minus(Duration::from_secs(7_200)),
        not_after: now.minus(Duration::from_secs(3_600)),
    };
    let chip = deployment.add_chip("expired-chip", validity).unwrap();
    deployment
        .pod(
            "expired",
            &PodOptions {
                chip: Some(chip),
                ..PodOptions::default()
            },
        )
        .unwrap()
}

/// Two master keys: one under a policy that lists all pods, one that lists none of them.
async fn provision(deployment: &Deployment, pods: &[&Pod]) -> (String, String, Vec<u8>) {
    let foreign_key_id = deployment.create_secrets(&[]).await.unwrap();
    let foreign_ca = std::fs::read(deployment.ca_certificate()).unwrap();
    let key_id = deployment.create_secrets(pods).await.unwrap();
    (key_id, foreign_key_id, foreign_ca)
}

/// Runs the pod's agent to its end and compares; returns what is wrong.
async fn run(
    bench: &Bench,
    name: &str,
    pod: &Pod,
    mut arguments: Vec<String>,
    code: &str,
    exit: i32,
) -> Option<String> {
    if !arguments.iter().any(|argument| argument == "--key-id") {
        arguments.extend(["--key-id".to_owned(), bench.key_id.clone()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = RunningAgent::spawn(pod, &arguments).unwrap();
    let ended = agent.wait().await.unwrap();
    let says = ended.log.contains(&format!("enclaveid: {code}:")) && ended.log.contains("hint: ");
    let quiet = !ended.log.contains("ready_after_ms") && !Path::new(&pod.store()).exists();
    let right = says && quiet && ended.code == Some(exit);
    (!right).then(|| {
        format!(
            "{name}: want {code} and {exit}, got {:?}\n{}",
            ended.code, ended.log
        )
    })
}
