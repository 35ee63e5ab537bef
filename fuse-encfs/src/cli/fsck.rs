//! Edge: checking a volume.

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use keys::VolumeId;
use serde::Serialize;

use super::progress::Progress;
use super::{Failure, Key};
use crate::error::OpenError;
use crate::exit::Exit;
use crate::fsck::{Dropped, HurtFile, Report, check, names, reclaim, repair};
use crate::offline::Offline;
use crate::superblock::{Unlock, UnlockWith};
use crate::transfer::TransferError;
use crate::volume::{Volume, claimed_volume_id};

/// All that was wrong was mended.
const MENDED: u8 = 1;
/// Something is wrong and was left.
const LEFT: u8 = 4;
/// The check could not be made.
pub(super) const NOT_CHECKED: u8 = 8;
/// Wrong usage.
const USAGE: u8 = 16;
/// Ended by a signal.
const CANCELLED: u8 = 32;

#[derive(Debug, Args)]
pub(super) struct Fsck {
    /// Directory that holds the volume.
    store: PathBuf,
    #[command(flatten)]
    key: Key,
    /// Id that the volume must have: 32 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
    /// Drop what is lost: lost bytes of files become holes, which read as zeros, and lost
    /// attributes go. Each is told. What is lost with nodes of the tree is left.
    #[arg(long)]
    repair: bool,
    /// Delete objects that are not the volume's, if nothing else is wrong. They may be of a newer
    /// state, if the store shows an old one.
    #[arg(long)]
    reclaim: bool,
    /// Print one JSON object.
    #[arg(long, conflicts_with = "repair")]
    json: bool,
}

/// What wrong usage of the program ends with, which is a code of its own for this command.
pub(super) fn usage_code(arguments: &[OsString]) -> u8 {
    let mut words = arguments.iter().skip(1);
    if words.any(|word| word == "fsck") {
        USAGE
    } else {
        Exit::Usage.code()
    }
}

/// Checks a volume and says what is wrong.
pub(super) fn fsck(args: &Fsck) -> Result<(), Failure> {
    let unchecked = |e| Failure::Unchecked(Box::new(e));
    let mut report = examine(args).map_err(unchecked)?;
    let mut is_mended = false;
    if args.repair && !report.is_clean() && !report.is_cancelled {
        show(&report).map_err(|e| unchecked(e.into()))?;
        mend(args, &report).map_err(unchecked)?;
        report = examine(args).map_err(unchecked)?;
        is_mended = report.is_clean();
    }
    let shown = if args.json {
        show_json(&report)
    } else {
        show(&report)
    };
    shown.map_err(|e| Failure::Unchecked(Box::new(e.into())))?;
    match exit_code(&report) {
        0 if is_mended => Err(Failure::Checked(MENDED)),
        0 => Ok(()),
        code => Err(Failure::Checked(code)),
    }
}

fn exit_code(report: &Report) -> u8 {
    if report.is_cancelled {
        CANCELLED
    } else if report.is_clean() {
        Exit::Ok.code()
    } else {
        LEFT
    }
}

fn examine(args: &Fsck) -> Result<Report, Failure> {
    let volume = open_offline(&args.store, &args.key, args.volume_id)?;
    let mut progress = Progress::new("checking")?;
    let report = check(&volume, &mut |at| progress.tell(at.done, at.total));
    progress.end();
    let mut report = report.map_err(OpenError::from)?;
    if args.reclaim && report.is_clean() && !report.is_cancelled {
        let (objects, bytes) = reclaim(&volume).map_err(OpenError::from)?;
        writeln!(
            io::stderr(),
            "{objects} objects of {bytes} bytes were deleted"
        )?;
        report.unknown = (0, 0);
    }
    Ok(report)
}

/// Drops what is lost, and says what. A mount alone writes both superblock slots anew.
fn mend(args: &Fsck, report: &Report) -> Result<(), Failure> {
    let kek = args.key.read()?;
    let expected = match args.volume_id {
        Some(id) => id,
        None => claimed_volume_id(&args.store)?,
    };
    let volume = Volume::open(&args.store, kek, expected)?;
    let dropped = repair(volume.fs(), &report.hurt);
    volume.close().map_err(TransferError::from)?;
    for file in dropped.map_err(Failure::Repair)? {
        writeln!(io::stdout(), "{}", sentence_of(&file))?;
    }
    Ok(())
}

fn sentence_of(file: &Dropped) -> String {
    let paths: Vec<String> = file.paths.iter().map(|path| names::shown(path)).collect();
    let ranges: Vec<String> = file.ranges.iter().map(range).collect();
    let values: Vec<String> = file.values.iter().map(|name| names::shown(name)).collect();
    let mut what = Vec::new();
    if !ranges.is_empty() {
        what.push(format!("bytes {} are a hole now", ranges.join(", ")));
    }
    if !values.is_empty() {
        what.push(format!("attributes {} are removed", values.join(", ")));
    }
    let name = if paths.is_empty() {
        names::number(file.ino)
    } else {
        paths.join(" = ")
    };
    format!("mended {name}: {}", what.join(", "))
}

/// Takes a volume that nobody has mounted, to read it.
pub(super) fn open_offline(
    store: &Path,
    key: &Key,
    expected: Option<VolumeId>,
) -> Result<Offline, Failure> {
    let kek = key.read()?;
    let expected = match expected {
        Some(id) => id,
        None => claimed_volume_id(store)?,
    };
    let unlock = Unlock {
        read_only: true,
        ..UnlockWith::Kek {
            kek: &kek,
            epoch: None,
        }
        .into()
    };
    Ok(Offline::open(store, unlock, expected)?)
}

fn show(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (slot, what) in &report.slots {
        writeln!(out, "superblock slot {slot} {what}")?;
    }
    if let Some(why) = &report.lacking {
        writeln!(out, "{why}")?;
    }
    if report.lost_nodes > 0 {
        writeln!(out, "{} nodes of the tree are lost", report.lost_nodes)?;
    }
    for (first, last) in &report.lost_inodes {
        let (first, last) = (names::number(*first), names::number(*last));
        writeln!(out, "lost nodes held something of inodes {first} to {last}")?;
    }
    for what in &report.accounts {
        writeln!(out, "{what}")?;
    }
    for file in &report.hurt {
        writeln!(out, "{}", sentence(file))?;
    }
    if report.unknown.0 > 0 {
        let (objects, bytes) = report.unknown;
        writeln!(
            out,
            "{objects} objects of {bytes} bytes are not the volume's"
        )?;
    }
    let state = match (report.is_cancelled, report.is_clean()) {
        (true, _) => "not all was checked",
        (false, true) => "clean",
        (false, false) => "hurt",
    };
    writeln!(
        out,
        "{state}: {} files, {} nodes, {} bytes checked",
        report.files, report.nodes, report.bytes
    )
}

/// A hurt file in one line.
fn sentence(file: &HurtFile) -> String {
    let paths: Vec<String> = file.paths.iter().map(|path| names::shown(path)).collect();
    let name = if paths.is_empty() {
        names::number(file.ino)
    } else {
        paths.join(" = ")
    };
    let wrongs: Vec<&str> = file.wrongs.iter().map(|wrong| wrong.word()).collect();
    let ranges: Vec<String> = file.ranges.iter().map(range).collect();
    let bytes = if ranges.is_empty() {
        String::new()
    } else {
        format!(": bytes {}", ranges.join(", "))
    };
    format!("{name}: {}{bytes}", wrongs.join(", "))
}

/// From the first byte up to the last, as people count.
fn range(range: &Range<u64>) -> String {
    format!("{}-{}", range.start, range.end.saturating_sub(1))
}

#[derive(Serialize)]
struct Shown<'a> {
    clean: bool,
    complete: bool,
    files: u64,
    nodes: u64,
    lost_nodes: u64,
    checked_bytes: u64,
    unknown_objects: u64,
    unknown_bytes: u64,
    /// First and last inode of which something was in a lost node.
    lost_inodes: Vec<(u64, u64)>,
    /// What is wrong with the volume as a whole.
    volume: Vec<String>,
    hurt: Vec<ShownFile<'a>>,
}

#[derive(Serialize)]
struct ShownFile<'a> {
    inode: u64,
    paths: Vec<String>,
    wrong: Vec<&'a str>,
    /// First byte, and the one behind the last.
    ranges: Vec<(u64, u64)>,
}

fn show_json(report: &Report) -> io::Result<()> {
    let slots = report.slots.iter();
    let slots = slots.map(|(slot, what)| format!("superblock slot {slot} {what}"));
    let accounts = report.accounts.iter().map(ToString::to_string);
    let file = |file: &HurtFile| ShownFile {
        inode: file.ino.0,
        paths: file.paths.iter().map(|path| names::shown(path)).collect(),
        wrong: file.wrongs.iter().map(|wrong| wrong.code()).collect(),
        ranges: file.ranges.iter().map(|r| (r.start, r.end)).collect(),
    };
    let shown = Shown {
        clean: report.is_clean(),
        complete: !report.is_cancelled,
        files: report.files,
        nodes: report.nodes,
        lost_nodes: report.lost_nodes,
        lost_inodes: report.lost_inodes.iter().map(|(a, b)| (a.0, b.0)).collect(),
        checked_bytes: report.bytes,
        unknown_objects: report.unknown.0,
        unknown_bytes: report.unknown.1,
        volume: slots
            .chain(report.lacking.clone())
            .chain(accounts)
            .collect(),
        hurt: report.hurt.iter().map(file).collect(),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &shown)?;
    writeln!(out)
}
