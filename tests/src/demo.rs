//! Core: the whole main job on this machine, step by step, each shown with its time.
//!
//! Two pods on a simulated chip, emulated services on the real wire, real programs: two agents,
//! two Envoys, real mounts. A step that does not hold ends the demo with an error; nothing is
//! printed that was not done.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;

use crate::deployment::{Deployment, Pod, PodOptions, succeed};
use crate::fixture;
use crate::process::RunningAgent;

mod app;
mod evidence;
mod mesh;
mod storage;

/// The outcome of a step: what to print of it, or why it did not hold.
type Outcome<T = String> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The demo could not be finished.
#[derive(Debug, thiserror::Error)]
#[error("step {step:?} does not hold")]
pub struct DemoError {
    step: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Everything that is running.
struct Stage {
    deployment: Deployment,
    key_id: String,
    pod_a: Pod,
    pod_b: Pod,
    agent_a: Option<RunningAgent>,
    agent_b: Option<RunningAgent>,
    boots: Vec<Boot>,
}

/// Figures of one start of an agent.
struct Boot {
    ready_ms: f64,
    wrap_key_wait_ms: f64,
    wrap_key_generation_ms: f64,
    resident_kib: u64,
}

/// Prints steps with their times.
struct Steps {
    start: Instant,
    done: u32,
}

impl Steps {
    /// Runs `work` as the next step. `F` borrows what it needs for as long as it runs.
    #[expect(clippy::print_stdout, reason = "printing is what a demo is for")]
    async fn run<T: Shown>(
        &mut self,
        title: &str,
        work: impl Future<Output = Outcome<T>>,
    ) -> Result<T, DemoError> {
        let start = Instant::now();
        let outcome = work.await;
        self.done += 1;
        let took_ms = start.elapsed().as_millis();
        match outcome {
            Ok(value) => {
                println!("[{:2}] {title:<58} ok {took_ms:>6} ms", self.done);
                value
                    .shown()
                    .iter()
                    .for_each(|line| println!("       {line}"));
                Ok(value)
            }
            Err(source) => {
                println!("[{:2}] {title:<58} FAILED {took_ms:>2} ms", self.done);
                Err(DemoError {
                    step: title.to_owned(),
                    source,
                })
            }
        }
    }
}

/// What a step has to show.
trait Shown {
    fn shown(&self) -> Vec<String>;
}

impl Shown for String {
    fn shown(&self) -> Vec<String> {
        self.lines().map(str::to_owned).collect()
    }
}

impl<T> Shown for (T, String) {
    fn shown(&self) -> Vec<String> {
        self.1.shown()
    }
}

/// Runs the demo below `dir`; with `keep` it then leaves everything running until a signal.
#[expect(clippy::print_stdout, reason = "printing is what a demo is for")]
pub async fn run(dir: &Path, keep: bool) -> Result<(), DemoError> {
    println!(
        "EnclaveID demo. SIMULATED: the chip is a key in a file, the cloud runs on this machine.\n"
    );
    let mut steps = Steps {
        start: Instant::now(),
        done: 0,
    };
    let mut stage = set_up(&mut steps, dir).await?;
    steps
        .run(
            "files on pod-a's volume, their traces in its store",
            storage::write(&mut stage),
        )
        .await?;
    steps
        .run(
            "agent stopped and started again: the files are back",
            storage::remount(&mut stage),
        )
        .await?;
    steps
        .run(
            "fresh evidence of pod-a, verified with --strict",
            evidence::verify(&stage),
        )
        .await?;
    let (mesh, _) = steps
        .run(
            "an Envoy for each pod, from a generated bootstrap",
            mesh::start(&stage),
        )
        .await?;
    steps
        .run(
            "requests app -> Envoy -> mTLS -> Envoy -> app",
            mesh::traffic(&stage, &mesh),
        )
        .await?;
    steps
        .run(
            "a release under a tampered policy is refused",
            tampered_policy(&stage),
        )
        .await?;
    if keep {
        for agent in [&mut stage.agent_a, &mut stage.agent_b] {
            agent.iter_mut().for_each(RunningAgent::unguard);
        }
        wait(&stage, &mesh).await;
        return Ok(());
    }
    drop(mesh);
    steps
        .run(
            "one stored byte flipped: a clear error",
            storage::flip(&mut stage),
        )
        .await?;
    steps
        .run("both agents stop cleanly", stop(&mut stage))
        .await?;
    summary(&stage, &steps);
    Ok(())
}

async fn set_up(steps: &mut Steps, dir: &Path) -> Result<Stage, DemoError> {
    let (deployment, _) = steps
        .run(
            "attestation service, Managed HSM, Entra (emulated)",
            async {
                let deployment = Deployment::start(dir).await?;
                let cloud = &deployment.cloud;
                let urls = format!(
                    "{}\n{}\n{}",
                    cloud.maa.url(),
                    cloud.hsm.url(),
                    cloud.entra.url()
                );
                Ok((deployment, urls))
            },
        )
        .await?;
    let ((pod_a, pod_b, key_id), _) = steps
        .run(
            "create-secrets: master key in the HSM, immutable policy",
            secrets(&deployment),
        )
        .await?;
    let volumes = async {
        pod_a.init_volume(&key_id).await?;
        pod_b.init_volume(&key_id).await?;
        Ok(String::new())
    };
    steps
        .run("an encrypted volume for each pod", volumes)
        .await?;
    let mut stage = Stage {
        deployment,
        key_id,
        pod_a,
        pod_b,
        agent_a: None,
        agent_b: None,
        boots: Vec::new(),
    };
    steps
        .run(
            "two agents: evidence, token, release, CA, mount, SDS",
            boot_both(&mut stage),
        )
        .await?;
    Ok(stage)
}

async fn secrets(deployment: &Deployment) -> Outcome<((Pod, Pod, String), String)> {
    let options = |volume: &str| PodOptions {
        volume_id: Some(volume.repeat(16)),
        ..PodOptions::default()
    };
    let pod_a = deployment.pod("pod-a", &options("a1"))?;
    let pod_b = deployment.pod("pod-b", &options("b2"))?;
    let key_id = deployment.create_secrets(&[&pod_a, &pod_b]).await?;
    let shown = format!("key {key_id}\nkey provenance: unproven (see docs/threat-model.md, T-09)");
    Ok(((pod_a, pod_b, key_id), shown))
}

async fn boot_both(stage: &mut Stage) -> Outcome {
    stage.agent_a = Some(boot(&stage.pod_a, &stage.key_id, &mut stage.boots).await?);
    stage.agent_b = Some(boot(&stage.pod_b, &stage.key_id, &mut stage.boots).await?);
    Ok(stage
        .boots
        .iter()
        .map(Boot::line)
        .collect::<Vec<_>>()
        .join("\n"))
}

/// Starts an agent and notes its figures.
async fn boot(pod: &Pod, key_id: &str, boots: &mut Vec<Boot>) -> Outcome<RunningAgent> {
    let agent = RunningAgent::start(pod, key_id).await?;
    let status: Value = serde_json::from_slice(&succeed(client(pod, "status")).await?.stdout)?;
    let stage = |name: &str| {
        let passed = status["boot"]["passed"].as_array().into_iter().flatten();
        let found = passed.filter(|stage| stage["name"] == name);
        found
            .filter_map(|stage| stage["duration_ms"].as_f64())
            .sum::<f64>()
    };
    boots.push(Boot {
        ready_ms: status["boot"]["ready_after_ms"]
            .as_f64()
            .ok_or("not ready")?,
        wrap_key_wait_ms: stage("wrap_key_wait"),
        wrap_key_generation_ms: stage("wrap_key_generation"),
        resident_kib: agent.resident_kib().ok_or("no memory figure")?,
    });
    Ok(agent)
}

impl Boot {
    fn line(&self) -> String {
        format!(
            "ready after {:.0} ms: {:.0} ms, and {:.0} ms of waiting for the wrap key ({:.0} ms to make)",
            self.ready_ms,
            self.ready_ms - self.wrap_key_wait_ms,
            self.wrap_key_wait_ms,
            self.wrap_key_generation_ms,
        )
    }
}

/// A second key whose policy was tampered with: it lists another pod in pod-a's place.
async fn tampered_policy(stage: &Stage) -> Outcome {
    let mut other = stage.pod_a.clone();
    other.host_data[0] ^= 1;
    let ca = std::fs::read(stage.deployment.ca_certificate())?;
    let key_id = stage.deployment.create_secrets(&[&other]).await?;
    std::fs::write(stage.deployment.ca_certificate(), ca)?;
    // The running agent is not disturbed: this one is another process of the same pod, and it
    // gets no further than the release.
    let mut command = stage.pod_a.command("volume init");
    let output = command.args(["--key-id", &key_id]).output().await?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = stderr
        .lines()
        .find(|line| line.starts_with("enclaveid: skr.denied"));
    match (output.status.code(), said) {
        (Some(42), Some(line)) => Ok(format!("exit 42, {line}")),
        (code, _) => Err(format!("exit {code:?}: {stderr}").into()),
    }
}

async fn stop(stage: &mut Stage) -> Outcome {
    for agent in [stage.agent_a.take(), stage.agent_b.take()]
        .into_iter()
        .flatten()
    {
        let ended = agent.terminate().await?;
        if ended.code != Some(0) {
            return Err(format!("exit {:?}:\n{}", ended.code, ended.log).into());
        }
    }
    Ok(String::new())
}

#[expect(clippy::print_stdout, reason = "printing is what a demo is for")]
fn summary(stage: &Stage, steps: &Steps) {
    let median = |figure: fn(&Boot) -> f64| {
        let mut figures: Vec<f64> = stage.boots.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let met = |value: f64, target: f64| {
        if value <= target {
            "met".to_owned()
        } else {
            format!("short by {:.0} %", (value / target - 1.0) * 100.0)
        }
    };
    let boot_ms = median(|boot| boot.ready_ms - boot.wrap_key_wait_ms);
    let resident_mib = median(|boot| boot.resident_kib as f64 / 1024.0);
    println!("\nmedians of {} starts", stage.boots.len());
    println!(
        "  boot to ready without the wrap key   {boot_ms:6.0} ms   (target 300 ms: {})",
        met(boot_ms, 300.0)
    );
    println!(
        "  making the wrap key                  {:6.0} ms",
        median(|b| b.wrap_key_generation_ms)
    );
    println!(
        "  resident memory, idle                {resident_mib:6.1} MiB  (target 40 MiB: {})",
        met(resident_mib, 40.0)
    );
    println!(
        "\nall {} steps held in {:.1} s",
        steps.done,
        steps.start.elapsed().as_secs_f64()
    );
}

#[expect(clippy::print_stdout, reason = "printing is what a demo is for")]
async fn wait(stage: &Stage, mesh: &mesh::Mesh) {
    let enclaveid = fixture::binary("enclaveid");
    let enclaveid = enclaveid.display();
    let sockets = stage.pod_a.sockets();
    let sockets = sockets.display();
    println!("\neverything keeps running; try in another terminal:");
    println!("  {enclaveid} status --sockets {sockets}");
    println!("  {enclaveid} rotate --sockets {sockets}");
    println!("  {enclaveid} evidence --sockets {sockets} --out /tmp/evidence");
    println!("  curl http://127.0.0.1:{}/", mesh.egress_port());
    if let Some(agent) = &stage.agent_a {
        println!("  ls -l {}", agent.volume().display());
    }
    println!("Ctrl-C ends it.");
    // A failure to listen for the signal ends the demo at once, which is what the signal does.
    let _ = tokio::signal::ctrl_c().await;
}

/// A client command of the local API.
fn client(pod: &Pod, subcommand: &str) -> Command {
    let mut command = Command::new(fixture::binary("enclaveid"));
    command
        .args(subcommand.split(' '))
        .arg("--sockets")
        .arg(pod.sockets());
    command
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command
}

/// Longest time that anything in the demo is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
