//! Edge: what each subcommand does, from parsed arguments to an exit code.

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::EvidenceAnswer;
use crate::broker::{self, Broker};
use crate::catalogue::{self, Exit};
use crate::cli::VolumeCommand;
use crate::cli::{AgentArgs, Cli, ClientArgs, Command, ConfigArgs, EvidenceCommand, FetchArgs};
use crate::client;
use crate::config::{Config, ConfigError};
use crate::run::{self, RunError};
use crate::stages::BootStages;
use crate::telemetry::{self, Chain};
use crate::{hex, verify};

/// Time for blocking calls to end after everything else has.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(2);

/// Why a command failed: its code decides the exit code.
#[derive(Debug)]
struct Failure {
    code: &'static str,
    message: String,
}

impl Failure {
    fn new(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            code,
            message: Chain(error).to_string(),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::new(error.code(), &error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let mut failure = Self::new(error.code(), &error);
        if let ConfigError::Problems(problems) = &error {
            for problem in problems {
                // Writing to a String cannot fail.
                let _ = write!(failure.message, "\n  {problem}");
            }
        }
        failure
    }
}

/// Runs the command and returns the exit code.
pub fn run(cli: Cli) -> u8 {
    let start = Instant::now();
    let outcome = match cli.command {
        Command::Agent(args) => agent(&args, start),
        Command::CreateSecrets(args) => create_secrets(&args),
        Command::Volume(VolumeCommand::Init(args)) => volume_init(&args),
        Command::Status(args) => print_route(&args, "api.sock", Method::GET, "/v1/status"),
        Command::Rotate(args) => print_route(&args, "admin.sock", Method::POST, "/v1/rotate"),
        Command::Healthcheck(args) => healthcheck(&args),
        Command::Evidence(args) => match args.command {
            Some(EvidenceCommand::Verify(args)) => return verify::run(&args),
            None => fetch_evidence(&args.fetch),
        },
        Command::Broker => broker::serve().map_err(|error| Failure::new("mount.broker", &error)),
    };
    match outcome {
        Ok(()) => 0,
        Err(failure) => report(&failure),
    }
}

/// The one place where a failure that ends the process is logged.
fn report(failure: &Failure) -> u8 {
    let entry = catalogue::find(failure.code);
    let mut stderr = std::io::stderr().lock();
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(stderr, "enclaveid: {}: {}", failure.code, failure.message);
    let _ = writeln!(stderr, "hint: {}", entry.hint);
    entry.exit.code()
}

fn load(args: &ConfigArgs) -> Result<Config, Failure> {
    Ok(Config::load(&args.config, &args.overrides())?)
}

fn agent(args: &AgentArgs, start: Instant) -> Result<(), Failure> {
    let config = load(&args.config)?;
    if args.check_config {
        return print_line("the configuration is in order");
    }
    // Before the first thread and the first secret: the broker stays privileged.
    let broker = config.volume.as_ref().map(|_| Broker::start()).transpose();
    let broker = broker.map_err(RunError::Broker)?;
    let stages = Arc::new(BootStages::since(start));
    block_on(&args.config, config, |config| async move {
        let shutdown = termination().map_err(RunError::Signals)?;
        run::agent(config, broker, stages, shutdown).await
    })
}

fn create_secrets(args: &ConfigArgs) -> Result<(), Failure> {
    let config = load(args)?;
    let key_id = block_on(args, config, run::create_secrets)?;
    print_line(&key_id)
}

fn volume_init(args: &ConfigArgs) -> Result<(), Failure> {
    let config = load(args)?;
    block_on(args, config, run::volume_init)
}

/// Starts the log, then runs `work` on a runtime to its end.
fn block_on<T, F>(
    args: &ConfigArgs,
    config: Config,
    work: impl FnOnce(Config) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, RunError>>,
{
    telemetry::start(config.log_level, args.log_format);
    let runtime = runtime()?;
    let done = runtime.block_on(work(config));
    // A blocking call that the host never answers must not keep the process from ending.
    runtime.shutdown_timeout(SHUTDOWN_TIME_MAX);
    Ok(done?)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("agent")
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::new("bug.runtime", &error))
}

/// Completes with the first SIGTERM or SIGINT.
fn termination() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn call(
    sockets: &Path,
    socket: &str,
    method: Method,
    route: &str,
    body: Option<&serde_json::Value>,
) -> Result<hyper::body::Bytes, Failure> {
    let socket = sockets.join(socket);
    let answer = client::call(&socket, method, route, body);
    runtime()?
        .block_on(answer)
        .map_err(|error| Failure::new("client.failed", &error))
}

fn print_route(
    args: &ClientArgs,
    socket: &str,
    method: Method,
    route: &str,
) -> Result<(), Failure> {
    let answer = call(&args.sockets, socket, method, route, None)?;
    let answer: serde_json::Value =
        serde_json::from_slice(&answer).map_err(|error| Failure::new("client.failed", &error))?;
    print_line(&format!("{answer:#}"))
}

fn healthcheck(args: &ClientArgs) -> Result<(), Failure> {
    call(&args.sockets, "api.sock", Method::GET, "/readyz", None).map(|_| ())
}

fn fetch_evidence(args: &FetchArgs) -> Result<(), Failure> {
    let nonce = match &args.nonce {
        Some(nonce) => nonce.clone(),
        None => {
            let mut nonce = [0; 32];
            openssl::rand::rand_bytes(&mut nonce)
                .map_err(|error| Failure::new("unlock.random", &error))?;
            hex::encode(&nonce)
        }
    };
    let question = json!({"nonce": nonce, "audience": args.audience});
    let answer = call(
        args.sockets(),
        "api.sock",
        Method::POST,
        "/v1/evidence",
        Some(&question),
    )?;
    let Some(dir) = &args.out else {
        return print_line(&String::from_utf8_lossy(&answer));
    };
    let malformed =
        |error: &(dyn std::error::Error + 'static)| Failure::new("client.failed", error);
    let answer: EvidenceAnswer =
        serde_json::from_slice(&answer).map_err(|error| malformed(&error))?;
    let bound_to = &answer.binding;
    if hex::decode(&bound_to.nonce) != hex::decode(&nonce) || bound_to.audience != args.audience {
        return Err(Failure {
            code: "client.stale_evidence",
            message: "the evidence answers another question than ours".to_owned(),
        });
    }
    let report = STANDARD
        .decode(&answer.report)
        .map_err(|error| malformed(&error))?;
    let binding = serde_json::to_vec_pretty(&answer.binding).map_err(|error| malformed(&error))?;
    let files: [(&str, &[u8]); 4] = [
        ("report.bin", &report),
        ("vcek.pem", answer.vcek.as_bytes()),
        ("chain.pem", answer.chain.as_bytes()),
        ("binding.json", &binding),
    ];
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        files
            .iter()
            .try_for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes))
    });
    written.map_err(|error| Failure::new("client.output", &error))
}

fn print_line(text: &str) -> Result<(), Failure> {
    let printed = writeln!(std::io::stdout().lock(), "{text}");
    printed.map_err(|error| Failure::new("client.output", &error))
}

/// The exit code of a wrong command line.
pub fn usage_exit() -> u8 {
    Exit::Usage.code()
}
