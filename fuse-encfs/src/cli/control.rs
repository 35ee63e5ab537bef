//! Edge: the commands that talk to a mounted volume, and the socket that they talk to.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use keys::{VolumeId, VolumeKek};

use super::freshness::RuntimeDirectory;
use super::{Failure, Key};
use crate::control::client::{Client, ClientError, without_touching};
use crate::control::protocol::{FREEZE_SECONDS_MAX, Reply, Request};
use crate::control::{About, ControlSocket, Controlled, Figure, Figures, Happening, socket_path};

/// Which mounted volume.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Directory that the volume is mounted on, or the one that holds it.
    #[arg(required_unless_present = "control", conflicts_with = "control")]
    volume: Option<PathBuf>,
    /// Control socket of the mount, as given to mount --control.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

#[derive(Debug, Args)]
pub(super) struct Stats {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object; sizes are bytes, times are seconds.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Freeze {
    #[command(flatten)]
    target: Target,
    /// Seconds after which the volume goes on by itself.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(FREEZE_SECONDS_MAX)))]
    seconds: u32,
}

#[derive(Debug, Args)]
pub(super) struct Rekey {
    #[command(flatten)]
    target: Target,
    /// File with the new key, in the form of --key-file of mount.
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_fd")]
    new_key_file: Option<PathBuf>,
    /// Open file descriptor with the new key.
    #[arg(long, value_name = "N")]
    new_key_fd: Option<u32>,
    /// Epoch of the new key; by default the one after the present one.
    #[arg(long, value_name = "N")]
    new_key_epoch: Option<u32>,
    /// Draw a new master key too, and seal everything anew under it.
    #[arg(long)]
    reseal: bool,
}

/// The control socket of a mount that is about to be made. `None` when the default place cannot be
/// used: one that was asked for must be.
pub(super) fn serve(
    control: Option<&Path>,
    runtime: &RuntimeDirectory,
    volume: VolumeId,
    mountpoint: &Path,
    controlled: Arc<dyn Controlled>,
) -> Result<Option<ControlSocket>, Failure> {
    // One that does not exist is refused by the mount itself.
    let mountpoint = without_touching(mountpoint).unwrap_or_else(|_| mountpoint.to_path_buf());
    let about = About {
        volume: volume.to_string(),
        mountpoint: mountpoint.to_string_lossy().into_owned(),
        pid: std::process::id(),
    };
    let is_asked_for = control.is_some() || runtime.runtime_dir.is_some();
    let path = match control {
        Some(path) => std::path::absolute(path)?,
        None => std::path::absolute(socket_path(runtime.path(), volume))?,
    };
    match ControlSocket::serve(&path, about, controlled) {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if is_asked_for => Err(Failure::Socket(e)),
        Err(e) => {
            tracing::warn!(
                error_code = "fs.control_unavailable",
                "the mount has no control socket: {}",
                super::Chain(&e)
            );
            Ok(None)
        }
    }
}

pub(super) fn stats(args: &Stats) -> Result<(), Failure> {
    let Reply::Stats(figures) = args.target.call(&Request::Stats {}, None)? else {
        return Err(unexpected());
    };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &figures).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", table(&figures))?;
    }
    Ok(())
}

pub(super) fn freeze(args: &Freeze) -> Result<(), Failure> {
    let seconds = args.seconds;
    args.target.done(&Request::Freeze { seconds }, None)
}

pub(super) fn thaw(target: &Target) -> Result<(), Failure> {
    target.done(&Request::Thaw {}, None)
}

pub(super) fn scrub(target: &Target) -> Result<(), Failure> {
    let Reply::Scrubbed(found) = target.call(&Request::Scrub {}, None)? else {
        return Err(unexpected());
    };
    if found.damaged_files > 0 {
        return Err(Failure::Damaged(found.damaged_files));
    }
    if found.complete {
        writeln!(
            io::stdout(),
            "{} checked, no damage",
            size(found.checked_bytes)
        )?;
        Ok(())
    } else {
        Err(unexpected())
    }
}

pub(super) fn rekey(args: &Rekey) -> Result<(), Failure> {
    let has_key = args.new_key_file.is_some() || args.new_key_fd.is_some();
    if !has_key {
        let message = "give the new key with --new-key-file or --new-key-fd; with --reseal it can be \
                       the present one";
        return Err(Failure::Usage(message.into()));
    }
    let key = Key {
        key_file: args.new_key_file.clone(),
        key_fd: args.new_key_fd,
    };
    let kek = has_key.then(|| key.read()).transpose()?;
    let request = Request::Rekey {
        key_follows: has_key,
        kek_epoch: args.new_key_epoch,
        reseal: args.reseal,
    };
    args.target.done(&request, kek.as_ref())
}

impl Target {
    fn call(&self, request: &Request, key: Option<&VolumeKek>) -> Result<Reply, Failure> {
        let client = match (&self.control, &self.volume) {
            (Some(path), _) => Client::connect(path)?,
            (None, Some(volume)) => Client::find(self.runtime.path(), volume)?,
            (None, None) => return Err(Failure::Usage("name a volume".into())),
        };
        let shows = io::stderr().is_terminal();
        let mut width = 0;
        let reply = client.call(request, key, &mut |happening| {
            // What cannot be shown is in the result too.
            let _ = show(&happening, shows, &mut width);
        });
        if width > 0 {
            let _ = writeln!(io::stderr());
        }
        Ok(reply?)
    }

    fn done(&self, request: &Request, key: Option<&VolumeKek>) -> Result<(), Failure> {
        match self.call(request, key)? {
            Reply::Done {} => Ok(()),
            Reply::About(_)
            | Reply::Failed(_)
            | Reply::Happening(_)
            | Reply::Scrubbed(_)
            | Reply::Stats(_) => Err(unexpected()),
        }
    }
}

/// Progress goes to a terminal alone and over itself, hurt files to standard output.
fn show(happening: &Happening, shows: bool, width: &mut usize) -> io::Result<()> {
    match happening {
        Happening::Damaged { file } => {
            // A name can hold what a terminal would obey.
            writeln!(io::stdout(), "{}", file.escape_debug())
        }
        Happening::Progress { .. } if !shows => Ok(()),
        Happening::Progress {
            done_bytes,
            total_bytes,
        } => {
            let share = 100 * u128::from(*done_bytes) / u128::from(*total_bytes).max(1);
            let text = format!("{share:3} % of {}", size(*total_bytes));
            *width = text.len().max(*width);
            write!(io::stderr(), "\r{text:<0$}", *width)
        }
    }
}

/// Figures for people, one a line.
fn table(figures: &Figures) -> String {
    let rows: Vec<(&str, String)> = figures.iter().map(|(name, f)| row(name, f)).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line =
        |(name, value): &(&str, String)| format!("{:<width$}  {value}\n", name.replace('_', " "));
    rows.iter().map(line).collect()
}

/// A figure without its unit's name, with its unit.
fn row<'a>(name: &'a str, figure: &Figure) -> (&'a str, String) {
    match figure {
        Figure::Count(count) => {
            if let Some(what) = name.strip_suffix("_bytes") {
                (what, size(*count))
            } else if let Some(what) = name.strip_suffix("_seconds") {
                (what, time(*count))
            } else {
                (name, count.to_string())
            }
        }
        Figure::Flag(true) => (name, "yes".into()),
        Figure::Flag(false) => (name, "no".into()),
        Figure::Text(text) => (name, text.escape_debug().to_string()),
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = larger;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

fn time(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3_600);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{hours} h {} min", minutes % 60),
    }
}

fn unexpected() -> Failure {
    let e = io::Error::new(
        io::ErrorKind::InvalidData,
        "another answer than to this request",
    );
    Failure::Client(ClientError::Silent(e))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::*;

    #[track_caller]
    fn check(name: &str, figure: &Figure, want: &str) {
        let (name, value) = row(name, figure);
        assert_eq!(format!("{name}: {value}"), want);
    }

    #[track_caller]
    fn check_arguments(line: &str, parses: bool) {
        let parsed = Cli::try_parse_from(line.split(' '));
        assert_eq!(parsed.is_ok(), parses, "{line}: {parsed:?}");
    }

    #[test]
    fn a_volume_is_named_in_one_way() {
        check_arguments("fuse-encfs stats /mnt", true);
        check_arguments("fuse-encfs stats --json --control /s", true);
        check_arguments("fuse-encfs stats", false);
        check_arguments("fuse-encfs thaw /mnt --control /s", false);
        check_arguments("fuse-encfs freeze /mnt --for 3600", true);
        check_arguments("fuse-encfs freeze /mnt --for 3601", false);
        check_arguments("fuse-encfs freeze /mnt --for 0", false);
        let rekey = "fuse-encfs rekey /mnt --new-key-file k";
        check_arguments(&format!("{rekey} --reseal --new-key-epoch 2"), true);
        check_arguments(&format!("{rekey} --new-key-fd 3"), false);
    }

    #[test]
    fn figures_are_shown_with_their_units() {
        check("read_bytes", &Figure::Count(0), "read: 0 B");
        check("read_bytes", &Figure::Count(1_023), "read: 1023 B");
        check("read_bytes", &Figure::Count(1_024), "read: 1.0 KiB");
        check("read_bytes", &Figure::Count(1_048_575), "read: 1023.9 KiB");
        check("read_bytes", &Figure::Count(5 << 29), "read: 2.5 GiB");
        check("read_bytes", &Figure::Count(u64::MAX), "read: 15.9 EiB");
        check("open_seconds", &Figure::Count(59), "open: 59 s");
        check("open_seconds", &Figure::Count(61), "open: 1 min 1 s");
        check("open_seconds", &Figure::Count(90_060), "open: 25 h 1 min");
        check("auth_failures", &Figure::Count(3), "auth_failures: 3");
        check("read_only", &Figure::Flag(true), "read_only: yes");
        check(
            "anchor",
            &Figure::Text("a\u{1b}".into()),
            r"anchor: a\u{1b}",
        );
    }

    #[test]
    fn a_table_is_aligned() {
        let figures = Figures::from([
            ("auth_failures".into(), Figure::Count(3)),
            ("read_bytes".into(), Figure::Count(5)),
        ]);
        assert_eq!(table(&figures), "auth failures  3\nread           5 B\n");
    }
}
