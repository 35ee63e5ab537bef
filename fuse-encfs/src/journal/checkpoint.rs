//! Core: writing the tree, and what may be deleted then.
//!
//! Order: the log is flushed up to `as_of`; the nodes are written and flushed; CHECKPOINT is
//! appended and flushed; the superblock names it. The map is cloned at the very boundary of commit
//! `as_of`; whatever changes while its nodes are written is replayed behind it. Nobody waits for a
//! checkpoint but who wants one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{CHECKPOINT_EVERY, Committer, DIRTY_MAX, Journal, NodeUsage, Retained};
use crate::anchor::{AnchorKeeper, HeldPairs};
use crate::error::{CommitError, FsError};
use crate::format::{
    Checkpoint, CheckpointAddress, Counters, NodePointer, NodeSegment, Op, PendingOps, SegmentId,
    SegmentKind, TAG_LEN,
};
use crate::log::Position;
use crate::map::{self, Map, NodeSink};
use crate::segment::{ReadError, SegmentWriter};
use crate::store::ObjectName;
use crate::superblock::WriteSuperblockError;
use crate::tables::{SegmentEntry, Tables};

/// Bytes of a node segment that this version makes.
const NODE_SEGMENT_LEN: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Bytes of garbage in node segments that are always tolerated.
const NODE_SLACK: u64 = if cfg!(test) { 64 << 10 } else { 32 << 20 };
/// Nodes that one checkpoint writes anew for the sake of their segments.
const REFRESHED_MAX: usize = 2048;
/// How long a checkpoint waits for who reads what it would delete.
const DELETE_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of sealed nodes that are kept until they are flushed.
const UNFLUSHED_MAX: usize = if cfg!(test) { 64 << 10 } else { 16 << 20 };
/// Nodes whose bytes are collected before one write.
const BATCH_LEN: usize = 1 << 20;

/// What only who writes a checkpoint touches.
#[derive(Debug)]
pub(super) struct Checkpointer {
    /// The newest checkpoint.
    newest: Retained,
    /// Node segments that its tree lies in, with how many bytes.
    usage: NodeUsage,
    /// The segment that nodes go into.
    current: Option<SegmentWriter>,
    /// Sealed nodes that are not known to be durable. The map may point to them already, so a
    /// checkpoint that failed leaves them to the next.
    batches: Vec<Batch>,
}

/// Sealed nodes that lie one behind the other.
#[derive(Debug)]
struct Batch {
    name: ObjectName,
    offset: u64,
    bytes: Vec<u8>,
    is_written: bool,
}

/// The state at a commit.
struct Snapshot {
    position: Position,
    map: Map,
    counters: Counters,
    dead: BTreeSet<SegmentId>,
}

impl Checkpointer {
    pub(super) fn new(newest: Retained, nodes: Vec<NodeSegment>) -> Self {
        Self {
            newest,
            usage: nodes.into_iter().map(|node| (node.id, node)).collect(),
            current: None,
            batches: Vec::new(),
        }
    }

    /// Lets nodes go into another segment from now on.
    pub(super) fn end_segment(&mut self) {
        self.current = None;
    }

    /// Bytes of nodes that lie under another master key than that of epoch `newest`.
    pub(super) fn stale_nodes(&self, newest: u32) -> u64 {
        let stale = self
            .usage
            .values()
            .filter(|n| n.segment.vmk_epoch != newest);
        stale.map(|node| node.live).sum()
    }

    pub(super) fn replay_from(&self) -> crate::format::SegmentRef {
        self.newest.replay_from
    }
}

impl Journal {
    /// Whether so much was changed since the last checkpoint that replay would be long, or that
    /// it takes much memory.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        self.log.lock().log_bytes >= CHECKPOINT_EVERY
            || self.tables.read().map().0.dirty_len() >= DIRTY_MAX
    }

    /// Bytes of log since the last checkpoint.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.log.lock().log_bytes
    }

    /// Whether so much of the tree is in memory alone that who adds to it should write it first.
    pub(crate) fn is_overfull(&self) -> bool {
        self.tables.read().map().0.dirty_len() >= 2 * DIRTY_MAX
    }

    /// Commits everything, writes a checkpoint and deletes the segments that no retained
    /// checkpoint needs. An error before the log was touched leaves the volume as it was. Gives
    /// false, and does nothing, when contents of files are owed first.
    pub(crate) fn checkpoint(&self) -> Result<bool, CommitError> {
        let mut checkpointer = self.checkpointing.lock();
        self.refresh_nodes(&checkpointer)?;
        let Some(snapshot) = self.snapshot()? else {
            return Ok(false);
        };
        let (root, root_level) = self.write_nodes(&mut checkpointer, &snapshot)?;
        self.reserve
            .note_tree(checkpointer.usage.values().map(|node| node.live).sum());
        let mut checkpoint = Checkpoint {
            as_of: snapshot.position.seq,
            head: snapshot.position.head.0,
            next: snapshot.position.next,
            root,
            root_level,
            nodes: checkpointer.usage.values().copied().collect(),
            counters: snapshot.counters,
            anchored: Vec::new(),
        };
        let retained = Retained {
            nodes: checkpointer.usage.keys().copied().collect(),
            dead: snapshot.dead,
            replay_from: snapshot.position.next.segment,
        };
        let mut committer = self.committer();
        let newest = self.append_checkpoint(&mut committer, &mut checkpoint)?;
        committer.superblock.name_checkpoint(newest);
        let previous = std::mem::replace(&mut checkpointer.newest, retained);
        let durable_seq = committer.log.durable_seq();
        self.write_superblock(&mut committer, durable_seq)?;
        let replayed = committer.log.segments_since(previous.replay_from).to_vec();
        drop(committer);
        self.delete_dead(&checkpointer, &previous, &replayed)?;
        Ok(true)
    }

    /// Last of all, once nothing changes the volume any more: commits what the last checkpoint's
    /// deletions left to log, and lets the superblock vouch for it.
    pub(crate) fn finish(&self) -> Result<(), CommitError> {
        let mut committer = self.committer();
        self.append_pending(&mut committer)?;
        if !self.flush(&committer)? {
            self.reopen(&mut committer)?;
        }
        let durable_seq = committer.log.durable_seq();
        self.write_superblock(&mut committer, durable_seq)?;
        // Whoever comes later must not be told that his change was taken.
        self.failed.store(true, Ordering::Release);
        drop(committer);
        if let Some(Err(e)) = self.keeper.as_ref().map(AnchorKeeper::close) {
            tracing::warn!(
                error_code = "fs.not_anchored",
                "{e}: the next mount is judged by an older one"
            );
        }
        Ok(())
    }

    /// Whether deleting segments could make room. Ends current ones that could be among them.
    pub(crate) fn has_dead_data(&self) -> Result<bool, FsError> {
        let tables = self.tables();
        let is_dead = |id| matches!(tables.segment(id), Ok(Some(entry)) if entry.live == 0);
        self.data.end(is_dead);
        let mut found = false;
        for id in self.dead_segments(&tables)? {
            found |= tables.segment(id)?.is_some_and(SegmentEntry::is_data);
        }
        Ok(found)
    }

    /// Lets nodes of the emptiest node segments be written anew, when these hold more garbage than
    /// they should, and those of segments whose master key is being replaced.
    fn refresh_nodes(&self, checkpointer: &Checkpointer) -> Result<(), CommitError> {
        let current = checkpointer.current.as_ref().map(|w| w.segment().id);
        let (mut stored, mut live, mut full) = (0, 0, Vec::new());
        for node in checkpointer
            .usage
            .values()
            .filter(|n| Some(n.id) != current)
        {
            let name = ObjectName::Segment(SegmentKind::Node, node.segment.uid);
            let len = self.store.len(name)?;
            stored += len;
            live += node.live;
            full.push((node, len));
        }
        full.sort_by_key(|(node, len)| node.live.saturating_mul(1000) / (*len).max(1));
        let mut excess = stored.saturating_sub(live + live / 2 + NODE_SLACK);
        let mut doomed = BTreeSet::new();
        for (node, len) in full {
            if excess > 0 || node.segment.vmk_epoch != self.keys.vmk_epoch() {
                doomed.insert(node.id);
            }
            excess = excess.saturating_sub(len.saturating_sub(node.live));
        }
        if doomed.is_empty() {
            return Ok(());
        }
        let _changes = self.changes.lock();
        let mut tables = self.tables();
        let nodes = Arc::clone(tables.map().1);
        tables.map_mut().evacuate(&nodes, &doomed, REFRESHED_MAX)?;
        *self.tables.write() = tables;
        Ok(())
    }

    /// The state at a commit that is durable; `None` when contents of files are owed first.
    fn snapshot(&self) -> Result<Option<Snapshot>, CommitError> {
        let mut committer = self.committer();
        loop {
            self.ready_log(&mut committer)?;
            let (batches, upto, map, counters, tables) = {
                let mut changes = self.changes.lock();
                if !changes.owed.is_empty() {
                    return Ok(None);
                }
                let (batches, upto) = changes.take();
                let mut tables = self.tables.write();
                let map = tables.map_mut().snapshot();
                (batches, upto, map, tables.counters(), tables.clone())
            };
            self.append_batches(&mut committer, &batches, upto)?;
            if !self.flush(&committer)? {
                // What rides in the log has moved, and the map with it.
                self.reopen(&mut committer)?;
                continue;
            }
            committer.log_bytes = 0;
            let position = committer.log.position();
            drop(committer);
            return Ok(Some(Snapshot {
                position,
                map,
                counters,
                dead: self.dead_segments(&tables)?,
            }));
        }
    }

    /// Data and log segments without live bytes, which cannot get any more.
    fn dead_segments(&self, tables: &Tables) -> Result<BTreeSet<SegmentId>, ReadError> {
        let mut dead = BTreeSet::new();
        tables.segments(|id, entry| {
            // In this order: what is not current any more gets no new pins.
            let in_use = self.data.is_current(id) || self.data.is_pinned(id);
            if entry.kind != SegmentKind::Node && entry.live == 0 && !in_use {
                dead.insert(id);
            }
        })?;
        Ok(dead)
    }

    /// Writes and flushes the nodes that no segment holds yet, and counts anew what each segment
    /// holds.
    fn write_nodes(
        &self,
        checkpointer: &mut Checkpointer,
        snapshot: &Snapshot,
    ) -> Result<(NodePointer, u8), CommitError> {
        let nodes = Arc::clone(self.tables.read().map().1);
        let mut sink = NodeWriter {
            journal: self,
            checkpointer,
        };
        let root = map::write(&snapshot.map, &nodes, &mut sink)?;
        let _open = self.gate.pass();
        sink.flush()?;
        let freed = {
            let _changes = self.changes.lock();
            let mut tables = self.tables.write();
            let map = tables.map_mut();
            map.settle();
            map.take_freed()
        };
        for pointer in freed {
            if let Some(node) = checkpointer.usage.get_mut(&pointer.segment) {
                node.live = node.live.saturating_sub(stored(&pointer));
            }
        }
        checkpointer.usage.retain(|_, node| node.live > 0);
        Ok(root)
    }

    fn append_checkpoint(
        &self,
        committer: &mut Committer,
        checkpoint: &mut Checkpoint,
    ) -> Result<CheckpointAddress, CommitError> {
        self.ready_log(committer)?;
        // What the anchors may hold: older than the tree it could not be met in a replay.
        let held = self.keeper.as_ref().map(AnchorKeeper::pairs);
        checkpoint.anchored = held.as_ref().map_or_else(Vec::new, HeldPairs::to_vec);
        let op = Op::Checkpoint(Box::new(checkpoint.clone()));
        let appended = self.append(committer, &PendingOps::of(&op), None);
        drop(held);
        let appended = self.make_durable(committer, appended?)?;
        Ok(CheckpointAddress {
            segment: appended.place.segment,
            offset: appended.place.offset,
            seq: appended.seq,
        })
    }

    /// Lets both superblock slots name the current log segment, and `durable_seq` in it.
    pub(super) fn write_superblock(
        &self,
        committer: &mut Committer,
        durable_seq: u64,
    ) -> Result<(), CommitError> {
        let Committer {
            log, superblock, ..
        } = committer;
        superblock.name_log(log.current(), durable_seq);
        superblock
            .write(&*self.store, &self.keys, &*self.lease)
            .map_err(|e| match e {
                WriteSuperblockError::Seal(e) => e.into(),
                WriteSuperblockError::Store(e) => e.into(),
            })
    }

    /// Deletes what was dead in the checkpoint before already, so that neither of the two that
    /// are retained needs it, nor a replay from them.
    fn delete_dead(
        &self,
        checkpointer: &Checkpointer,
        previous: &Retained,
        replayed: &[crate::format::SegmentRef],
    ) -> Result<(), CommitError> {
        let Some(_deleting) = self.deleting.try_write_for(DELETE_PATIENCE) else {
            // They are still dead at the next checkpoint.
            return Ok(());
        };
        let newest = &checkpointer.newest;
        let current = checkpointer.current.as_ref().map(|w| w.segment().id);
        let mut doomed = Vec::new();
        self.tables().segments(|id, entry| {
            let was_dead = previous.dead.contains(&id) && newest.dead.contains(&id);
            let is_doomed = match entry.kind {
                SegmentKind::Data => was_dead,
                SegmentKind::Log => was_dead && !replayed.contains(&entry.segment),
                SegmentKind::Node => {
                    !newest.nodes.contains(&id)
                        && !previous.nodes.contains(&id)
                        && current != Some(id)
                }
            };
            if is_doomed {
                doomed.push((id, entry));
            }
        })?;
        doomed
            .into_iter()
            .try_for_each(|(id, entry)| self.delete(id, entry))
    }
}

/// Seals nodes one behind the other and writes them in large pieces.
struct NodeWriter<'a> {
    journal: &'a Journal,
    checkpointer: &'a mut Checkpointer,
}

impl NodeSink for NodeWriter<'_> {
    type Error = CommitError;

    fn put(&mut self, plaintext: &[u8]) -> Result<NodePointer, CommitError> {
        let kept = self
            .checkpointer
            .batches
            .iter()
            .map(|batch| batch.bytes.len());
        if kept.sum::<usize>() >= UNFLUSHED_MAX {
            // Before the node has a place: its failure leaves nothing behind that nobody knows.
            self.flush()?;
        }
        let current = self.checkpointer.current.as_ref();
        let slot = match current.and_then(|writer| writer.reserve_node(plaintext.len())) {
            Some(slot) => slot,
            None => {
                let writer = self.grow()?;
                let slot = writer.reserve_node(plaintext.len());
                slot.ok_or(CommitError::Bug("a node is longer than a segment"))?
            }
        };
        let sealed = slot.seal_node(self.journal.keys.entropy(), plaintext)?;
        let Checkpointer { usage, batches, .. } = &mut *self.checkpointer;
        if let Some(node) = usage.get_mut(&sealed.pointer.segment) {
            node.live += stored(&sealed.pointer);
        }
        let follows = |batch: &&mut Batch| {
            batch.name == sealed.segment.name
                && batch.offset + batch.bytes.len() as u64 == sealed.offset
                && batch.bytes.len() < BATCH_LEN
                && !batch.is_written
        };
        match batches.last_mut().filter(follows) {
            Some(batch) => batch.bytes.extend(&sealed.bytes),
            None => batches.push(Batch {
                name: sealed.segment.name,
                offset: sealed.offset,
                bytes: sealed.bytes,
                is_written: false,
            }),
        }
        Ok(sealed.pointer)
    }
}

impl NodeWriter<'_> {
    fn grow(&mut self) -> Result<&SegmentWriter, CommitError> {
        let (segment, _pin) = self
            .journal
            .announce_object(SegmentKind::Node, NODE_SEGMENT_LEN)?;
        let tables = self.journal.tables();
        let id = segment.id;
        let entry = tables.segment(id)?;
        let SegmentEntry { segment: names, .. } =
            entry.ok_or(CommitError::Bug("a new segment is unknown"))?;
        tables.map().1.add_segment(id, names);
        let node = NodeSegment {
            id,
            segment: names,
            live: 0,
        };
        self.checkpointer.usage.insert(id, node);
        let writer = SegmentWriter::new(segment, NODE_SEGMENT_LEN);
        Ok(self.checkpointer.current.insert(writer))
    }

    /// Writes and flushes all that is not durable yet.
    fn flush(&mut self) -> Result<(), CommitError> {
        let store = &self.journal.store;
        let batches = &mut self.checkpointer.batches;
        for batch in batches.iter_mut().filter(|batch| !batch.is_written) {
            store.write_at(batch.name, batch.offset, &batch.bytes)?;
            batch.is_written = true;
        }
        while let Some(name) = batches.last().map(|batch| batch.name) {
            if let Err(e) = store.sync(name) {
                // What was written may be gone from the system's cache.
                batches
                    .iter_mut()
                    .for_each(|batch| batch.is_written = false);
                return Err(e.into());
            }
            batches.retain(|batch| batch.name != name);
        }
        Ok(())
    }
}

fn stored(pointer: &NodePointer) -> u64 {
    u64::from(pointer.len) + TAG_LEN as u64
}
