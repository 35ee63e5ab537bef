//! Edge: the command line.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use keys::VolumeId;
use runtime::listener::SocketError;
use runtime::locked;
use tracing::Level;

use crate::anchor::{AnchorError, forget_guest_anchor, guest_anchor_path};
use crate::control::client::ClientError;
use crate::crypto::OwnerKeyError;
use crate::error::{FsError, OpenError};
use crate::exit::Exit;
use crate::mount::{self, MountError, MountOptions, UnknownOption, UnmountError};
use crate::transfer::TransferError;
use crate::volume::{init, init_with_owner, random_volume_id};

mod control;
mod freshness;
mod fsck;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod helper;
mod inspect;
mod key;
mod progress;
mod recover;
mod serve;
mod transfer;

use key::Key;

const EXIT_CODES: &str = "\
Exit codes of all commands but fsck, which follows fsck(8):
   0  done; for mount: unmounted, or ended by SIGTERM or SIGINT, with everything committed
   4  export, import: done, but not all is the same on the other side; standard error says what
  45  the mount, or the store under it, failed; no mounted volume answers; thaw: not frozen any more
  46  the store does not hold what was written to it, or shows an old copy; scrub: files are hurt
  48  the key is not the volume's
  49  the volume is in use, or frozen by somebody else
  50  no volume there, another volume, a newer format; for init: the store is not empty
  51  the store is full
  64  wrong usage
  65  a key is malformed or cannot be read
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
    /// Go on where the system refuses to lock keys in memory: they may then be swapped to a disk.
    #[arg(long, global = true)]
    permit_unlocked_keys: bool,
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
    Mount(Box<Mount>),
    /// Show figures of a mounted volume
    Stats(control::Stats),
    /// Hold changes to a mounted volume back, to copy its store
    ///
    /// Returns once everything is durable and a checkpoint is written. Until thaw, or until the
    /// time of --for is over, nothing changes in the store: reads go on, changes wait.
    ///
    /// Example:
    ///   fuse-encfs freeze /mnt --for 600 && cp -a /srv/store /backup; fuse-encfs thaw /mnt
    #[command(verbatim_doc_comment)]
    Freeze(control::Freeze),
    /// Let changes to a frozen volume go on
    ///
    /// Fails with 45 when the volume was not frozen any more: then a copy that was made meanwhile
    /// may be torn, and is to be made anew.
    Thaw(control::Target),
    /// Read all of a mounted volume and name the files that are hurt
    ///
    /// Prints one path a line, and ends with 46 if there is any.
    Scrub(control::Target),
    /// Replace the key of a mounted volume
    ///
    /// A new key alone protects what is written from then on: whoever has the old key and an old
    /// copy of the store can read that copy. With --reseal all data are sealed anew, which takes
    /// as long as copying them; it goes on in the background when this program is ended.
    Rekey(control::Rekey),
    /// Check a volume that is not mounted, and name the files that are hurt
    ///
    /// Reads and authenticates everything. Prints one line for each thing that is wrong, with the
    /// path of the file; in a path, bytes that are not printable text are \xNN.
    ///
    /// Ends as fsck(8) says: 0 nothing is wrong; 1 all was mended; 4 something is wrong and was
    /// left; 8 the check could not be made, also when the volume is in use; 16 wrong usage; 32
    /// ended by a signal.
    Fsck(fsck::Fsck),
    /// Show what a store consists of
    ///
    /// Without a key: superblock slots and objects, as anybody sees them who has the store. With
    /// the key also the log, the tree, counters, and how much of each segment is in use.
    Inspect(inspect::Inspect),
    /// Take all files out of a volume that is not mounted
    ///
    /// Modes, owners, times to the nanosecond, extended attributes, hard links and holes go along.
    /// Every byte is authenticated: a file that is hurt is left out and named, and then the program
    /// ends with 4. In an archive holes are zeros; sockets are left out.
    ///
    /// Example:
    ///   fuse-encfs export /srv/store - --key-file key | tar --xattrs --xattrs-include='*' -xf -
    #[command(verbatim_doc_comment)]
    Export(transfer::Take),
    /// Bring files into a volume that is not mounted
    ///
    /// What is in the volume stays: directories of the same name are merged, any other name that
    /// is taken ends the import. Ends with 4 if --verify finds a difference.
    Import(transfer::Bring),
    /// Show the copy of a volume's master key that only its owner can read
    ///
    /// The owner opens it where the private key is, and nobody has to trust this program for it:
    ///   openssl pkeyutl -decrypt -inkey owner.key -in COPY -out volume-master.key \
    ///     -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256
    #[command(verbatim_doc_comment)]
    RecoveryCopy(recover::RecoveryCopy),
    /// Give a volume a new key with its master key, when all other keys are lost
    Recover(recover::Recover),
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
    #[command(flatten)]
    runtime: freshness::RuntimeDirectory,
    /// Encrypt a copy of the volume's master key to this public key: PEM, RSA, 3072 to 4096 bits.
    /// See the command recovery-copy.
    #[arg(long, value_name = "FILE")]
    recovery_key: Option<PathBuf>,
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
    #[command(flatten)]
    freshness: freshness::FreshnessArgs,
    #[command(flatten)]
    runtime: freshness::RuntimeDirectory,
    /// Control socket of the mount, for stats, freeze, scrub and others. By default VOLUME-ID.sock
    /// in the directory of --runtime-dir.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Stay, and end when the volume is unmounted.
    #[arg(long, short)]
    foreground: bool,
    /// Mount options: allow_other, ro, noexec, noatime, relatime (as if nothing is said),
    /// size_limit=BYTES, fsname=NAME (instead of STORE, what /proc/mounts shows). Permissions are always
    /// checked by the kernel; nosuid and nodev always hold.
    #[arg(short, value_name = "OPTION,...", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Bytes that the volume may hold, metadata included: a number, or one with K, M, G or T behind
    /// it. Also an option: -o size_limit=BYTES. Without it the store's space is the limit.
    #[arg(long, value_name = "BYTES")]
    size_limit: Option<String>,
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
    #[error("the directory of what the guest remembers cannot be used")]
    Anchor(#[source] AnchorError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the control socket cannot be made")]
    Socket(#[source] SocketError),
    #[error("{0} files are hurt")]
    Damaged(u64),
    #[error(transparent)]
    Owner(#[from] OwnerKeyError),
    #[error("{0}")]
    Usage(String),
    #[error("the system refused")]
    System(#[from] io::Error),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("what is lost cannot be dropped")]
    Repair(#[source] FsError),
    /// A check was made, and has said what is wrong.
    #[error("the volume was checked")]
    Checked(u8),
    /// A check was not made.
    #[error("the volume cannot be checked")]
    Unchecked(#[source] Box<Failure>),
    /// The process in the background failed and has said why.
    #[error("the volume was not mounted")]
    Background(u8),
}

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments
        .first()
        .is_some_and(|name| helper::is_helper(name))
    {
        match helper::call(arguments) {
            Some(helper::Call::Run(as_program)) => arguments = as_program,
            Some(helper::Call::Remount { on, options }) => return remount(&on, &options),
            Some(helper::Call::Fake) => return exit(Exit::Ok.code()),
            None => {
                let _ = writeln!(
                    io::stderr(),
                    "usage: mount -t fuse.fuse-encfs STORE DIRECTORY -o key_file=FILE,..."
                );
                return exit(Exit::Usage.code());
            }
        }
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing is left to say when standard error is closed.
            let _ = e.print();
            return exit(if e.use_stderr() {
                fsck::usage_code(&arguments)
            } else {
                Exit::Ok.code()
            });
        }
    };
    log_to_stderr(&cli);
    // Before there is a key in this process.
    if let Err(e) = locked::forbid_dumps() {
        tracing::error!(
            error_code = "fs.system",
            "core dumps cannot be forbidden: {e}"
        );
        return exit(Exit::Bug.code());
    }
    if cli.permit_unlocked_keys {
        locked::permit_unlocked();
    }
    let done = match &cli.command {
        Command::Init(args) => make(args),
        Command::Mount(args) if args.foreground || args.background => serve::foreground(args),
        Command::Mount(args) => serve::background(args, &arguments),
        Command::Fsck(args) => fsck::fsck(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Export(args) => transfer::take_out(args),
        Command::Import(args) => transfer::bring_in(args),
        Command::Stats(args) => control::stats(args),
        Command::Freeze(args) => control::freeze(args),
        Command::Thaw(target) => control::thaw(target),
        Command::Scrub(target) => control::scrub(target),
        Command::Rekey(args) => control::rekey(args),
        Command::Recover(args) => recover::recover(args),
        Command::RecoveryCopy(args) => recover::show_copy(args),
    };
    match done {
        Ok(()) => exit(Exit::Ok.code()),
        Err(Failure::Background(code) | Failure::Checked(code)) => exit(code),
        Err(e) => {
            tracing::error!(error_code = e.code(), "{}", Chain(&e));
            exit(e.exit_code())
        }
    }
}

/// Changes what a mount refuses. For mount(8), so it says what is wrong in words.
fn remount(on: &OsStr, options: &OsStr) -> ExitCode {
    let options = options.to_str().unwrap_or("\u{fffd}").parse();
    let done = options
        .map_err(Failure::from)
        .and_then(|options| Ok(mount::change(Path::new(on), &options)?));
    match done {
        Ok(()) => exit(Exit::Ok.code()),
        Err(e) => {
            let _ = writeln!(io::stderr(), "{}", Chain(&e));
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
    match &args.recovery_key {
        Some(path) => init_with_owner(&args.store, &kek, volume, &recover::read_owner(path)?)?,
        None => init(&args.store, &kek, volume)?,
    }
    // What was remembered of another volume of that id at that place is no history of this one.
    forget_guest_anchor(&guest_anchor_path(
        args.runtime.path(),
        volume,
        &args.store,
    )?)?;
    if args.volume_id.is_none() {
        writeln!(io::stdout(), "{volume}")?;
    }
    Ok(())
}

impl Mount {
    fn mount_options(&self) -> Result<MountOptions, Failure> {
        let mut options: MountOptions = self.options.join(",").parse()?;
        let given = || self.store.to_str().map(str::to_owned);
        options.source = options.source.or_else(given);
        if let Some(size) = &self.size_limit {
            let size = mount::parse_size(size)
                .ok_or_else(|| Failure::Usage(format!("`{size}` is not a number of bytes")))?;
            options.size_limit = Some(size);
        }
        Ok(options)
    }
}

impl From<UnknownOption> for Failure {
    fn from(e: UnknownOption) -> Self {
        Self::Usage(e.to_string())
    }
}

impl Failure {
    fn code(&self) -> &str {
        match self {
            Self::Anchor(e) => e.code(),
            Self::Background(_) => "fs.background",
            Self::Checked(_) => "fs.damage_found",
            Self::Client(e) => e.code(),
            Self::Damaged(_) => "fs.damage_found",
            Self::Key(_) => "fs.bad_key",
            Self::Mount(e) => e.code(),
            Self::Open(e) => e.code(),
            Self::Repair(_) => "fs.not_repaired",
            Self::Socket(e) => e.code(),
            Self::Owner(_) => "fs.bad_recovery_key",
            Self::System(_) => "fs.system",
            Self::Transfer(e) => e.code(),
            Self::Unchecked(e) => e.code(),
            Self::Unmount(e) => e.code(),
            Self::Usage(_) => "fs.usage",
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Anchor(e) => e.exit().code(),
            Self::Background(code) | Self::Checked(code) => *code,
            Self::Client(e) => e.exit_code(),
            Self::Damaged(_) => Exit::Tampered.code(),
            Self::Key(_) | Self::Owner(_) => Exit::Malformed.code(),
            Self::Mount(e) => e.exit_code(),
            Self::Open(e) => e.exit_code(),
            Self::Socket(SocketError::InUse { .. }) => Exit::VolumeInUse.code(),
            Self::Repair(_) | Self::Socket(_) | Self::System(_) => Exit::MountFailed.code(),
            Self::Transfer(e) => e.exit_code(),
            Self::Unchecked(_) => fsck::NOT_CHECKED,
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
