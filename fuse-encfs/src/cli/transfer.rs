//! Edge: taking trees out of volumes and bringing them in.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use keys::VolumeId;

use super::Failure;
use super::fsck::open_offline;
use super::key::Key;
use super::progress::Progress;
use crate::fsck::names;
use crate::transfer::directory::{NewTree, Tree};
use crate::transfer::import::{Import, Prints, differing};
use crate::transfer::tar::{Reader, Writer};
use crate::transfer::{TransferError, Transferred, export};
use crate::volume::{Volume, claimed_volume_id};

/// Not all of it was transferred.
const NOT_ALL: u8 = 4;
const BUFFER_LEN: usize = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct Take {
    /// Directory that holds the volume.
    store: PathBuf,
    /// Where the tree goes: a new or empty directory, a new file whose name ends in .tar, or - for
    /// an archive on standard output.
    target: PathBuf,
    #[command(flatten)]
    key: Key,
    /// Id that the volume must have: 32 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
}

#[derive(Debug, Args)]
pub(super) struct Bring {
    /// What is brought in: a directory, a file with an archive of tar(1), or - for an archive on
    /// standard input.
    source: PathBuf,
    /// Directory that holds the volume.
    store: PathBuf,
    #[command(flatten)]
    key: Key,
    /// Id that the volume must have: 32 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
    /// Read everything back in the end, and compare.
    #[arg(long)]
    verify: bool,
}

/// Takes the whole tree of a volume out.
pub(super) fn take_out(args: &Take) -> Result<(), Failure> {
    let volume = open_offline(&args.store, &args.key, args.volume_id)?;
    let mut progress = Progress::new("exporting")?;
    let mut tell = |at: crate::fsck::Progress| progress.tell(at.done, at.total);
    let done = if is_stream(&args.target) {
        let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_LEN, io::stdout()));
        with_sockets(export(&volume, &mut writer, &mut tell), &mut writer)?
    } else if args.target.extension().is_some_and(|end| end == "tar") {
        let file = File::create_new(&args.target)?;
        let keep = file.try_clone()?;
        let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_LEN, file));
        let done = with_sockets(export(&volume, &mut writer, &mut tell), &mut writer)?;
        keep.sync_all()?;
        done
    } else {
        let mut tree = NewTree::new(&args.target)?;
        let mut done = export(&volume, &mut tree, &mut tell)?;
        done.left_out.append(&mut tree.not_kept);
        done
    };
    progress.end();
    if volume.state().lacking.is_some() {
        say("the volume is hurt: this is not its newest state")?;
        return finish(&done, true);
    }
    finish(&done, false)
}

/// Brings a tree into a volume.
pub(super) fn bring_in(args: &Bring) -> Result<(), Failure> {
    let kek = args.key.read()?;
    let expected = match args.volume_id {
        Some(id) => id,
        None => claimed_volume_id(&args.store)?,
    };
    let volume = Volume::open(&args.store, kek, expected)?;
    let mut progress = Progress::new("importing")?;
    let brought = bring(args, &volume, &mut progress);
    // Whatever came of it, what is in the volume is brought to rest.
    volume.close().map_err(TransferError::from)?;
    let (done, prints) = brought?;
    let mut is_different = false;
    if let Some(prints) = prints {
        let volume = open_offline(&args.store, &args.key, Some(expected))?;
        let mut tell = |at: crate::fsck::Progress| progress.tell(at.done, at.total);
        for path in differing(&volume, prints, &mut tell)? {
            is_different = true;
            say(&format!(
                "{}: it is not what was brought in",
                names::shown(&path)
            ))?;
        }
    }
    progress.end();
    finish(&done, is_different)
}

fn bring(
    args: &Bring,
    volume: &Volume,
    progress: &mut Progress,
) -> Result<(Transferred, Option<Prints>), TransferError> {
    let mut tell =
        |at: crate::fsck::Progress| -> ControlFlow<()> { progress.tell(at.done, at.total) };
    let mut import = Import::new(volume.fs(), args.verify, &mut tell);
    if is_stream(&args.source) {
        import.archive(&mut reader(io::stdin()))?;
    } else if args.source.is_dir() {
        import.tree(&Tree::open(&args.source)?)?;
    } else {
        let file = File::open(&args.source);
        let path = args.source.as_os_str().as_encoded_bytes();
        import.archive(&mut reader(
            file.map_err(|e| TransferError::outside(path, e))?,
        ))?;
    }
    import.end()
}

fn reader<R: Read>(from: R) -> Reader<BufReader<R>> {
    Reader::new(BufReader::with_capacity(BUFFER_LEN, from))
}

fn with_sockets<W: Write>(
    done: Result<Transferred, TransferError>,
    writer: &mut Writer<W>,
) -> Result<Transferred, TransferError> {
    let mut done = done?;
    let sockets = std::mem::take(&mut writer.left_out).into_iter();
    done.left_out
        .extend(sockets.map(|path| (path, "an archive has no sockets")));
    Ok(done)
}

/// Says what was left out, and how it ended.
fn finish(done: &Transferred, is_hurt: bool) -> Result<(), Failure> {
    for (path, why) in &done.left_out {
        say(&format!("/{}: {why}", names::shown(path)))?;
    }
    say(&format!("{} files, {} bytes", done.files, done.bytes))?;
    if is_hurt || !done.left_out.is_empty() {
        return Err(Failure::Checked(NOT_ALL));
    }
    Ok(())
}

/// On standard error: standard output may be the archive.
fn say(line: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{line}")
}

fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}
