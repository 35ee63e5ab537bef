//! Core: agents as processes: started in a mount namespace of their own, watched through their
//! log, ended with SIGTERM.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::deployment::{DeploymentError, Pod};
use crate::fixture::Watchdog;

/// Time for a start or a stop; a machine under load takes a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that is running. Dropping it kills it, and its mounts go with its namespace.
#[derive(Debug)]
pub struct RunningAgent {
    child: Child,
    log: watch::Receiver<Vec<String>>,
    pod: Pod,
    watchdog: Option<Watchdog>,
}

/// How an agent ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code, or none when a signal ended it.
    pub code: Option<i32>,
    /// All of its log.
    pub log: String,
}

impl RunningAgent {
    /// Starts the pod's agent and returns when it says that it is ready.
    pub async fn start(pod: &Pod, key_id: &str) -> Result<Self, DeploymentError> {
        let mut agent = Self::spawn(pod, &["--key-id", key_id])?;
        if agent.wait_for(" ready ready_after_ms").await.is_some() {
            return Ok(agent);
        }
        let ended = agent.wait().await?;
        let program = format!("agent of {}", pod.name);
        Err(DeploymentError::Program {
            program,
            code: ended.code,
            stderr: ended.log,
        })
    }

    /// Starts the pod's agent with more arguments, and returns at once.
    pub fn spawn(pod: &Pod, arguments: &[&str]) -> Result<Self, DeploymentError> {
        let agent = pod.command("agent");
        let agent = agent.as_std();
        // In a namespace of its own, so that no mount outlives the process, however it ends.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .arg(agent.get_program())
            .args(agent.get_args())
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let log = child
            .stderr
            .take()
            .map(collect)
            .unwrap_or_else(|| watch::channel(vec![]).1);
        let pid = child.id().and_then(pid_of);
        let watchdog = pid.map(|pid| Watchdog::start(pid, &pod.mountpoint()));
        Ok(Self {
            child,
            log,
            pod: pod.clone(),
            watchdog,
        })
    }

    /// The pod that this agent runs in.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Lets the agent run for as long as it likes.
    pub fn unguard(&mut self) {
        self.watchdog = None;
    }

    /// Process id; `unshare` became the agent.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Resident memory in KiB, as the kernel counts it now.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// `path` as it looks from inside of the agent's mount namespace.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.pid().unwrap_or_default());
        let relative = path.strip_prefix("/").unwrap_or(path);
        Path::new(&root).join(relative)
    }

    /// The mounted volume.
    pub fn volume(&self) -> PathBuf {
        self.inside(&self.pod.mountpoint())
    }

    /// The first line of the log that contains `text`; `None` when the agent ends without one.
    pub async fn wait_for(&mut self, text: &str) -> Option<String> {
        let found = |log: &Vec<String>| log.iter().any(|line| line.contains(text));
        let waited = tokio::time::timeout(PATIENCE, self.log.wait_for(found)).await;
        let log = waited.ok()?.ok()?;
        log.iter().find(|line| line.contains(text)).cloned()
    }

    /// What the agent has logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// Asks the agent to stop, and waits for it.
    pub async fn terminate(self) -> Result<Ended, DeploymentError> {
        self.signal(Signal::TERM)?;
        self.wait().await
    }

    /// Ends the agent as a crash would.
    pub async fn kill(self) -> Result<Ended, DeploymentError> {
        self.signal(Signal::KILL)?;
        self.wait().await
    }

    /// Waits for the agent to end by itself.
    pub async fn wait(mut self) -> Result<Ended, DeploymentError> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status: ExitStatus =
            ended.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        // The log ends when the pipe does.
        while self.log.changed().await.is_ok() {}
        Ok(Ended {
            code: status.code(),
            log: self.log(),
        })
    }

    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match self.pid().and_then(pid_of) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for RunningAgent {
    #[expect(clippy::print_stderr, reason = "shown with the failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the agent of {}:\n{}", self.pod.name, self.log());
        }
    }
}

fn pid_of(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// Collects lines until the pipe closes.
fn collect(pipe: tokio::process::ChildStderr) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    tokio::spawn(async move {
        let mut lines = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            sender.send_modify(|log| log.push(line));
        }
    });
    receiver
}
