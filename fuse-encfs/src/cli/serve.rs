//! Edge: mounting, in this process or in one that goes on in the background.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::mpsc;
use std::{panic, thread};

use runtime::locked;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, Mount, control};
use crate::exit::Exit;
use crate::mount::{Mounted, attach};
use crate::superblock::Unlock;
use crate::sys;
use crate::volume::{Opening, Volume, claimed_volume_id};

/// What the process in the background says once the volume is mounted.
const READY: &str = "ready";

/// Why a served mount ends.
enum End {
    Signal,
    Unmounted,
}

/// Starts this program once more, to go on in the background, and waits until it has mounted.
pub(super) fn background(args: &Mount, arguments: &[OsString]) -> Result<(), Failure> {
    // Before anything is started: a wrong option is a matter of this process.
    args.mount_options()?;
    let stdin = if args.key.key_fd == Some(0) {
        Stdio::inherit()
    } else {
        Stdio::null()
    };
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments.iter().skip(1))
        .arg("--background")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said.trim_end() == READY {
        return Ok(());
    }
    let code = child
        .wait()?
        .code()
        .and_then(|code| u8::try_from(code).ok());
    Err(Failure::Background(
        code.filter(|code| *code != 0).unwrap_or(Exit::Bug.code()),
    ))
}

/// Mounts, and serves until the mount ends or a signal ends it.
pub(super) fn foreground(args: &Mount) -> Result<(), Failure> {
    let options = args.mount_options()?;
    end_with_any_thread();
    // First of all, so that no signal finds the process without a handler.
    let signals = Signals::new([SIGTERM, SIGINT])?;
    lock_memory_that_can_be_swapped();
    let kek = args.key.read()?;
    let expected = match args.volume_id {
        Some(id) => id,
        None => claimed_volume_id(&args.store)?,
    };
    let freshness = args
        .freshness
        .freshness(&args.runtime, expected, &args.store)?;
    let opening = Opening {
        unlock: Unlock::from(&kek),
        freshness: &freshness,
    };
    let volume = Volume::open_with(&args.store, &opening, expected)?;
    drop(kek);
    volume.obey(&options);
    let control = control::serve(
        args.control.as_deref(),
        &args.runtime,
        expected,
        &args.directory,
        volume.controlled(),
    );
    let control = match control {
        Ok(control) => control,
        Err(e) => {
            volume.close().unwrap_or_default();
            return Err(e);
        }
    };
    let mounted = match mount(args, volume, &options) {
        Ok(mounted) => mounted,
        Err(failed) => {
            let (volume, e) = *failed;
            // What recovery wrote is durable already; this only gives the store free in order.
            volume.map_or(Ok(()), Volume::close).unwrap_or_default();
            return Err(e);
        }
    };
    if args.background {
        go_to_background(args.log_file.as_deref())?;
    }
    tracing::info!(threads = args.threads, "mounted");
    let end = wait_for_end(&mounted, signals)?;
    tracing::info!(by = end.word(), "unmounting");
    // First: a frozen volume would not take what the kernel has still to write.
    drop(control);
    Ok(mounted.unmount()?)
}

/// Ciphers keep what they compute from keys in memory of their own. Keys are locked in any case.
fn lock_memory_that_can_be_swapped() {
    if !locked::swap_is_on() {
        return;
    }
    if let Err(e) = locked::lock_process() {
        tracing::warn!(
            error_code = "fs.keys_unlocked",
            "what ciphers compute from keys may be swapped to a disk: {e}"
        );
    }
}

/// Lets a panic of any thread end the process. A mount with a thread less would leave a request
/// unanswered for ever, and in the end all of them; a server that is dead can be started anew.
/// Not only for what nobody has thought of: fuser 0.18 panics at a time of about -2^63 seconds.
fn end_with_any_thread() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        process::abort();
    }));
}

fn mount(
    args: &Mount,
    volume: Volume,
    options: &crate::mount::MountOptions,
) -> Result<Mounted, Box<(Option<Volume>, Failure)>> {
    let directory = match args.directory.canonicalize() {
        Ok(directory) => directory,
        // A dead mount: attaching detaches it.
        Err(_) => args.directory.clone(),
    };
    let fd = match attach(&directory, options) {
        Ok(fd) => fd,
        Err(e) => return Err(Box::new((Some(volume), e.into()))),
    };
    Mounted::serve(volume, fd, &directory, args.threads.into()).map_err(|e| {
        // The mount is there but nobody serves it.
        let _ = sys::detach(&directory);
        Box::new((None, e.into()))
    })
}

fn wait_for_end(mounted: &Mounted, mut signals: Signals) -> io::Result<End> {
    let (tell, ended) = mpsc::channel();
    let (by_signal, watch) = (tell.clone(), mounted.watch());
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                // Nobody listens any more when the mount has ended already.
                let _ = by_signal.send(End::Signal);
            }
        })?;
    thread::Builder::new().name("watch".into()).spawn(move || {
        watch.wait();
        let _ = tell.send(End::Unmounted);
    })?;
    ended.recv().map_err(io::Error::other)
}

/// Says that the volume is mounted and lets go of whatever belongs to who started this process.
fn go_to_background(log_file: Option<&Path>) -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let open_log = |path| OpenOptions::new().create(true).append(true).open(path);
    let log: Option<File> = log_file.map(open_log).transpose()?;
    sys::new_session()?;
    std::env::set_current_dir("/")?;
    writeln!(io::stdout(), "{READY}")?;
    io::stdout().flush()?;
    sys::redirect_stdout(&null)?;
    match log {
        Some(log) => sys::redirect_stderr(&log),
        // A pipe would keep its reader waiting for as long as the volume is mounted.
        None if is_file("/proc/self/fd/2") => Ok(()),
        None => sys::redirect_stderr(&null),
    }
}

fn is_file(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Unmounted => "umount",
        }
    }
}
