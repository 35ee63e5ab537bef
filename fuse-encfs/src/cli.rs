//! Edge: the command line.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use keys::VolumeId;
use tracing::Level;

use crate::error::OpenError;
use crate::exit::Exit;
use crate::mount::{MountError, MountOptions, UnmountError};
use crate::volume::{init, random_volume_id};

mod key;
mod serve;

const EXIT_CODES: &str = "\
Exit codes:
   0  done; for mount: unmounted, or ended by SIGTERM or SIGINT, with everything committed
  45  the mount, or the store under it, failed
  46  the store does not hold what was written to it
  48  the key is not the volume's
  49  the volume is in use
  50  no volume there, another volume, a newer format; for init: the store is not empty
  51  the store is full
  64  wrong usage
  65  the key is malformed or cannot be read
  70  a bug";

/// An encrypted, authenticated filesystem in a directory that nobody has to trust.
///
/// Whoever has the directory sees neither contents nor names nor the tree, and whatever they
/// change, exchange, cut off or bring back, a file shows what was last written to it or an error.
#[derive(Debug, Parser)]
#[command(name = "fuse-encfs", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Which events are logged to standard error.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: String,
    /// Log one JSON object a line instead of text.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new, empty volume
    ///
    /// Makes the directory STORE when it is absent and refuses one that holds anything. Without
    /// --volume-id an id is drawn and printed.
    Init(Init),
    /// Mount a volume
    ///
    /// Returns when the volume is mounted and goes on in the background, or stays with
    /// --foreground. Unmount with umount(8); SIGTERM and SIGINT unmount too. All data are durable
    /// when the program has ended, which may be a moment after umount(8) has.
    ///
    /// Example:
    ///   fuse-encfs init /srv/store --key-file key
    ///   fuse-encfs mount /srv/store /mnt --key-file key
    #[command(verbatim_doc_comment)]
    Mount(Mount),
}

#[derive(Debug, Args)]
struct Init {
    /// Directory that holds the volume.
    store: PathBuf,
    #[command(flatten)]
    key: Key,
    /// Id of the volume: 32 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
}

#[derive(Debug, Args)]
struct Mount {
    /// Directory that holds the volume.
    store: PathBuf,
    /// Directory to mount it on.
    directory: PathBuf,
    #[command(flatten)]
    key: Key,
    /// Id that the volume must have: 32 hexadecimal digits. Without it whoever has the store can
    /// exchange two volumes of one key.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
    /// Stay, and end when the volume is unmounted.
    #[arg(long, short)]
    foreground: bool,
    /// Mount options: allow_other, ro, noexec, noatime, fsname=NAME. Permissions are always
    /// checked by the kernel; nosuid and nodev always hold.
    #[arg(short, value_name = "OPTION,...", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Threads that serve the mount.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// In the background, append log lines to this file. Without it they go on to standard error
    /// if that is a file, and nowhere otherwise.
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    log_file: Option<PathBuf>,
    /// Set by the program itself for the process that goes on in the background.
    #[arg(long, hide = true)]
    background: bool,
}

/// Where the key is read from: exactly 32 bytes, or 64 hexadecimal digits and at most one newline.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Key {
    /// File with the key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Open file descriptor with the key.
    #[arg(long, value_name = "N")]
    key_fd: Option<u32>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    #[error(transparent)]
    Key(#[from] key::KeyError),
    #[error("{0}")]
    Usage(String),
    #[error("the system refused")]
    System(#[from] io::Error),
    /// The process in the background failed and has said why.
    #[error("the volume was not mounted")]
    Background(u8),
}

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing is left to say when standard error is closed.
            let _ = e.print();
            return exit(if e.use_stderr() {
                Exit::Usage.code()
            } else {
                Exit::Ok.code()
            });
        }
    };
    log_to_stderr(&cli);
    let done = match &cli.command {
        Command::Init(args) => make(args),
        Command::Mount(args) if args.foreground || args.background => serve::foreground(args),
        Command::Mount(args) => serve::background(args),
    };
    match done {
        Ok(()) => exit(Exit::Ok.code()),
        Err(Failure::Background(code)) => exit(code),
        Err(e) => {
            tracing::error!(error_code = e.code(), "{}", Chain(&e));
            exit(e.exit_code())
        }
    }
}

fn make(args: &Init) -> Result<(), Failure> {
    let kek = args.key.read()?;
    let volume = match args.volume_id {
        Some(volume) => volume,
        None => random_volume_id()?,
    };
    init(&args.store, &kek, volume)?;
    if args.volume_id.is_none() {
        writeln!(io::stdout(), "{volume}")?;
    }
    Ok(())
}

impl Mount {
    fn mount_options(&self) -> Result<MountOptions, Failure> {
        let list = self.options.join(",");
        list.parse()
            .map_err(|e: crate::mount::UnknownOption| Failure::Usage(e.to_string()))
    }
}

impl Failure {
    fn code(&self) -> &'static str {
        match self {
            Self::Background(_) => "fs.background",
            Self::Key(_) => "fs.bad_key",
            Self::Mount(e) => e.code(),
            Self::Open(e) => e.code(),
            Self::System(_) => "fs.system",
            Self::Unmount(e) => e.code(),
            Self::Usage(_) => "fs.usage",
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Background(code) => *code,
            Self::Key(_) => Exit::Malformed.code(),
            Self::Mount(e) => e.exit_code(),
            Self::Open(e) => e.exit_code(),
            Self::System(_) => Exit::MountFailed.code(),
            Self::Unmount(e) => e.exit_code(),
            Self::Usage(_) => Exit::Usage.code(),
        }
    }
}

/// An error with its causes, for one line of a log.
struct Chain<'a>(&'a dyn Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}

fn log_to_stderr(cli: &Cli) {
    let level = match cli.log_level.as_str() {
        "error" => Level::ERROR,
        "warn" => Level::WARN,
        "debug" => Level::DEBUG,
        "trace" => Level::TRACE,
        _ => Level::INFO,
    };
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level);
    let log = log.with_ansi(false).with_target(false);
    if cli.log_json {
        log.json().init();
    } else {
        log.init();
    }
}

fn exit(code: u8) -> ExitCode {
    ExitCode::from(code)
}

/// The arguments of this process for the one in the background.
fn arguments_for_background() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(1).chain(["--background".into()])
}
