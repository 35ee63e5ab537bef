//! Core: what a store says of its volume, with and without the key.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::error::OpenError;
use crate::format::{ClearPart, SUPERBLOCK_LEN, SegmentKind};
use crate::offline::Offline;
use crate::segment::ReadError;
use crate::store::{self, Appendable, ObjectName, StoreError};

/// Objects that are listed at once.
const LIST_LEN: usize = 4096;

/// What anybody can see who has the store. Nothing of it is authenticated.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outside {
    pub(crate) slots: Vec<Slot>,
    /// Objects by kind.
    pub(crate) objects: BTreeMap<&'static str, Count>,
    pub(crate) store_bytes: u64,
    pub(crate) free_bytes: u64,
    /// What frames of the log begin on multiples of, in this store.
    pub(crate) alignment_bytes: u16,
}

/// The clear part of a superblock slot.
#[derive(Debug, Serialize)]
pub(crate) struct Slot {
    pub(crate) slot: u8,
    /// What is wrong with it, if something is.
    pub(crate) wrong: Option<String>,
    pub(crate) volume: Option<String>,
    pub(crate) key_epoch: Option<u32>,
    pub(crate) master_key_epoch: Option<u32>,
    /// While the volume is re-encrypted.
    pub(crate) older_master_key_epoch: Option<u32>,
    pub(crate) has_recovery_copy: bool,
    /// Words of features: compatible, read-only compatible, incompatible.
    pub(crate) features: Option<[u64; 3]>,
}

/// How many of something, and of how many bytes.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Count {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

/// What the key shows, all of it authenticated.
#[derive(Debug, Serialize)]
pub(crate) struct Inside {
    /// Of each superblock slot.
    pub(crate) generations: [Option<u64>; 2],
    pub(crate) label: String,
    pub(crate) anchored_once: bool,
    pub(crate) master_key_epoch_min: u32,
    /// The last commit, and the chain's head after it.
    pub(crate) seq: u64,
    pub(crate) head: String,
    /// The newest commit that is known to have been flushed.
    pub(crate) durable_seq: u64,
    pub(crate) log_epoch: u64,
    /// Names of the log segments that a mount reads, oldest first.
    pub(crate) log_segments: Vec<String>,
    pub(crate) checkpoint_seq: u64,
    /// The commit whose state the checkpoint's tree holds.
    pub(crate) checkpoint_as_of: u64,
    pub(crate) tree_levels: u8,
    pub(crate) tree_bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) next_inode: u64,
    pub(crate) live_bytes: u64,
    pub(crate) promised_bytes: u64,
    pub(crate) segments: Vec<SegmentUse>,
    /// Objects that the volume does not know.
    pub(crate) unknown: Count,
}

/// A segment and how much of it is in use.
#[derive(Debug, Serialize)]
pub(crate) struct SegmentUse {
    pub(crate) number: u32,
    pub(crate) object: String,
    pub(crate) kind: &'static str,
    pub(crate) master_key_epoch: u32,
    /// Bytes of the object; `None` when there is none.
    pub(crate) len_bytes: Option<u64>,
    /// Bytes of files in it, or of nodes.
    pub(crate) live_bytes: u64,
}

/// Looks at the store at `path` from outside.
pub(crate) fn outside(path: &Path) -> Result<Outside, OpenError> {
    Ok(outside_of(&*store::open(path)?)?)
}

fn outside_of(store: &dyn Appendable) -> Result<Outside, StoreError> {
    let space = store.space()?;
    let mut seen = Outside {
        store_bytes: space.total,
        free_bytes: space.free,
        alignment_bytes: store.alignment(),
        ..Outside::default()
    };
    for slot in [0, 1] {
        seen.slots.push(slot_of(store, slot)?);
    }
    let mut after = None;
    loop {
        let names = store.list(after, LIST_LEN)?;
        let Some(last) = names.last() else {
            return Ok(seen);
        };
        after = Some(*last);
        for name in names {
            let count = seen.objects.entry(kind(name)).or_default();
            count.count += 1;
            // Gone since it was listed, it counts for nothing.
            let len = match store.len(name) {
                Err(StoreError::Absent) => 0,
                len => len?,
            };
            count.bytes = count.bytes.saturating_add(len);
        }
    }
}

fn slot_of(store: &dyn Appendable, slot: u8) -> Result<Slot, StoreError> {
    let mut seen = Slot {
        slot,
        wrong: None,
        volume: None,
        key_epoch: None,
        master_key_epoch: None,
        older_master_key_epoch: None,
        has_recovery_copy: false,
        features: None,
    };
    let mut object = vec![0; SUPERBLOCK_LEN + 1];
    match store.get(ObjectName::Superblock(slot), 0, &mut object) {
        Ok(got) => object.truncate(got),
        Err(StoreError::Absent) => {
            seen.wrong = Some("it is missing".into());
            return Ok(seen);
        }
        Err(e) => return Err(e),
    }
    match ClearPart::parse(&object) {
        Ok((clear, ..)) => {
            seen.volume = Some(clear.volume.to_string());
            seen.key_epoch = Some(clear.kek_epoch);
            seen.master_key_epoch = Some(clear.vmk.epoch);
            seen.older_master_key_epoch = clear.older.map(|wrap| wrap.epoch);
            seen.has_recovery_copy = clear.recovery.is_some();
            seen.features = Some([clear.compat, clear.ro_compat, clear.incompat]);
        }
        Err(e) => seen.wrong = Some(e.to_string()),
    }
    Ok(seen)
}

/// Looks at a volume from inside.
pub(crate) fn inside(volume: &Offline) -> Result<Inside, ReadError> {
    let (body, state) = (volume.superblock().body(), volume.state());
    let (checkpoint, log) = (&state.recovered.checkpoint, &state.recovered.log);
    let counters = volume.tables().counters();
    let mut segments = Vec::new();
    volume
        .tables()
        .segments(|id, entry| segments.push((id, entry)))?;
    let mut used = Vec::new();
    for (id, entry) in segments {
        let name = ObjectName::Segment(entry.kind, entry.segment.uid);
        let len = match volume.store().len(name) {
            Ok(len) => Some(len),
            Err(StoreError::Absent) => None,
            Err(e) => return Err(ReadError::Store(e)),
        };
        let node = checkpoint.nodes.iter().find(|node| node.id == id);
        used.push(SegmentUse {
            number: id.0,
            object: name.to_string(),
            kind: kind(name),
            master_key_epoch: entry.segment.vmk_epoch,
            len_bytes: len,
            live_bytes: node.map_or(entry.live, |node| node.live),
        });
    }
    let mut unknown = Count::default();
    volume.objects(&mut |object| {
        if !object.is_known {
            unknown.count += 1;
            unknown.bytes = unknown.bytes.saturating_add(object.len);
        }
    })?;
    let label = body
        .label
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    Ok(Inside {
        generations: volume.slots().map(|slot| slot.generation),
        label: crate::fsck::names::shown(label),
        anchored_once: body.anchored_once,
        master_key_epoch_min: body.vmk_epoch_min,
        seq: log.position.seq,
        head: log
            .position
            .head
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        durable_seq: body.durable_seq,
        log_epoch: log.epoch,
        log_segments: log
            .path
            .iter()
            .map(|segment| format!("l{}", segment.uid))
            .collect(),
        checkpoint_seq: body.newest.seq,
        checkpoint_as_of: checkpoint.as_of,
        tree_levels: checkpoint.root_level + 1,
        tree_bytes: checkpoint.nodes.iter().map(|node| node.live).sum(),
        inodes: counters.files,
        next_inode: counters.next_ino.0,
        live_bytes: counters.live,
        promised_bytes: counters.unwritten,
        segments: used,
        unknown,
    })
}

fn kind(name: ObjectName) -> &'static str {
    match name {
        ObjectName::Segment(SegmentKind::Data, _) => "data",
        ObjectName::Segment(SegmentKind::Log, _) => "log",
        ObjectName::Segment(SegmentKind::Node, _) => "node",
        ObjectName::Superblock(_) => "superblock",
    }
}
