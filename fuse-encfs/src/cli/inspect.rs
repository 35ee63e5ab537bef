//! Edge: looking at a store.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use keys::VolumeId;
use serde::Serialize;

use super::Failure;
use super::fsck::open_offline;
use super::key::Key;
use crate::error::OpenError;
use crate::inspect::{Inside, Outside, inside, outside};

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Directory that holds the volume.
    store: PathBuf,
    /// File with the key. Without a key only what anybody can see is shown.
    #[arg(long, value_name = "FILE", conflicts_with = "key_fd")]
    key_file: Option<PathBuf>,
    /// Open file descriptor with the key.
    #[arg(long, value_name = "N")]
    key_fd: Option<u32>,
    /// Id that the volume must have: 32 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Seen {
    /// Not authenticated.
    outside: Outside,
    /// Authenticated; without the key there is none.
    inside: Option<Inside>,
}

/// Shows a store, and with the key the volume in it.
pub(super) fn inspect(args: &Inspect) -> Result<(), Failure> {
    let outside = outside(&args.store)?;
    let has_key = args.key_file.is_some() || args.key_fd.is_some();
    let inside = if has_key {
        let key = Key {
            key_file: args.key_file.clone(),
            key_fd: args.key_fd,
        };
        let volume = open_offline(&args.store, &key, args.volume_id)?;
        Some(inside(&volume).map_err(OpenError::from)?)
    } else {
        None
    };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &Seen { outside, inside }).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    show_outside(&mut out, &outside)?;
    if let Some(inside) = &inside {
        show_inside(&mut out, inside)?;
    }
    Ok(())
}

fn show_outside(out: &mut dyn Write, seen: &Outside) -> io::Result<()> {
    for slot in &seen.slots {
        write!(out, "superblock slot {}  ", slot.slot)?;
        let Some(volume) = &slot.volume else {
            writeln!(out, "{}", slot.wrong.as_deref().unwrap_or("unknown"))?;
            continue;
        };
        let number = |n: Option<u32>| n.map_or_else(|| "none".into(), |n| n.to_string());
        let (key, master) = (number(slot.key_epoch), number(slot.master_key_epoch));
        write!(
            out,
            "volume {volume}, key epoch {key}, master key epoch {master}"
        )?;
        if let Some(older) = slot.older_master_key_epoch {
            write!(out, ", being re-encrypted from {older}")?;
        }
        if slot.has_recovery_copy {
            write!(out, ", with a recovery copy")?;
        }
        writeln!(out)?;
    }
    for (kind, count) in &seen.objects {
        writeln!(
            out,
            "{kind:<17}  {} objects, {} bytes",
            count.count, count.bytes
        )?;
    }
    writeln!(
        out,
        "store              {} bytes, {} free",
        seen.store_bytes, seen.free_bytes
    )
}

fn show_inside(out: &mut dyn Write, seen: &Inside) -> io::Result<()> {
    let [a, b] = seen
        .generations
        .map(|g| g.map_or_else(|| "none".into(), |g| g.to_string()));
    writeln!(out, "generations        {a}, {b}")?;
    if !seen.label.is_empty() {
        writeln!(out, "label              {}", seen.label)?;
    }
    writeln!(out, "head               {} {}", seen.seq, seen.head)?;
    writeln!(out, "durable            {}", seen.durable_seq)?;
    writeln!(
        out,
        "checkpoint         {}, of the state after {}",
        seen.checkpoint_seq, seen.checkpoint_as_of
    )?;
    writeln!(
        out,
        "log                epoch {}, {}",
        seen.log_epoch,
        seen.log_segments.join(" ")
    )?;
    writeln!(
        out,
        "tree               {} levels, {} bytes",
        seen.tree_levels, seen.tree_bytes
    )?;
    writeln!(
        out,
        "inodes             {}, the next is {}",
        seen.inodes, seen.next_inode
    )?;
    writeln!(
        out,
        "contents           {} bytes, {} promised",
        seen.live_bytes, seen.promised_bytes
    )?;
    let unknown = seen.unknown;
    writeln!(
        out,
        "unknown            {} objects, {} bytes",
        unknown.count, unknown.bytes
    )?;
    for segment in &seen.segments {
        let len = segment
            .len_bytes
            .map_or_else(|| "no object".into(), |len| format!("{len} bytes"));
        writeln!(
            out,
            "segment {:<9}  {} {len}, {} live, master key epoch {}",
            segment.number, segment.object, segment.live_bytes, segment.master_key_epoch
        )?;
    }
    Ok(())
}
