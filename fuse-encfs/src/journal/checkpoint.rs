//! Core: writing the tree, and what may be deleted then.
//!
//! Order: the log is flushed up to `as_of`; the nodes are written and flushed; CHECKPOINT is
//! appended and flushed; the superblock names it. The tables are copied into leaves under their
//! lock at the very boundary of commit `as_of`; whatever changes while the nodes are written is
//! replayed behind it. Commits wait meanwhile, changes and reads do not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CHECKPOINT_EVERY, Committer, Journal, Retained};
use crate::error::CommitError;
use crate::format::{
    Checkpoint, CheckpointAddress, Counters, NodeSegment, Op, PendingOps, SegmentId, SegmentKind,
};
use crate::log::Position;
use crate::schema::{self, Leaf};
use crate::segment::Segment;
use crate::superblock::WriteSuperblockError;
use crate::tables::{SegmentEntry, Tables};
use crate::tree;

/// The state at a commit.
struct Snapshot {
    position: Position,
    leaves: Vec<Leaf>,
    counters: Counters,
    dead: BTreeSet<SegmentId>,
}

impl Journal {
    /// Writes a checkpoint if so much was logged since the last one that replay would be long.
    pub(crate) fn checkpoint_if_due(&self) -> Result<(), CommitError> {
        let due = self.log.lock().log_bytes >= CHECKPOINT_EVERY;
        if due { self.checkpoint() } else { Ok(()) }
    }

    /// Commits everything, writes a checkpoint and deletes the segments that no retained
    /// checkpoint needs. An error before the log was touched leaves the volume as it was.
    pub(crate) fn checkpoint(&self) -> Result<(), CommitError> {
        let mut committer = self.log.lock();
        self.still_writable()?;
        if committer.log.is_long() {
            self.roll(&mut committer)?;
        }
        let snapshot = self.snapshot(&mut committer)?;
        let segments = self.announce_nodes(&mut committer, &snapshot.leaves)?;
        for segment in &segments {
            self.store.create(segment.name, tree::NODE_SEGMENT_LEN)?;
        }
        let written = tree::write(&*self.store, &self.keys, snapshot.leaves, &segments)?;
        self.reserve.note_tree(written.live.iter().sum());

        let nodes = self.node_table(&segments, &written.live);
        let op = Op::Checkpoint(Box::new(Checkpoint {
            as_of: snapshot.position.seq,
            head: snapshot.position.head.0,
            next: snapshot.position.next,
            root: written.root,
            root_level: written.root_level,
            nodes,
            counters: snapshot.counters,
            anchored: Vec::new(),
        }));
        let newest = self
            .append_checkpoint(&mut committer, &op)
            .inspect_err(|e| self.fail(e))?;
        committer.superblock.name_checkpoint(newest);
        let retained = Retained {
            nodes: segments.iter().map(|segment| segment.id).collect(),
            dead: snapshot.dead,
            replay_from: snapshot.position.next.segment,
        };
        let previous = std::mem::replace(&mut committer.newest, retained);
        self.write_superblock(&mut committer)?;
        self.delete_dead(&committer, &previous)
    }

    /// Last of all, once nothing changes the volume any more: commits what the last checkpoint's
    /// deletions left to log, and lets the superblock vouch for it.
    pub(crate) fn finish(&self) -> Result<(), CommitError> {
        let mut committer = self.log.lock();
        self.commit_pending(&mut committer)?;
        self.write_superblock(&mut committer)?;
        // Whoever comes later must not be told that his change was taken.
        self.failed.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether deleting segments could make room. Ends the current one if it could be among them.
    pub(super) fn has_dead_data(&self) -> bool {
        let live = self.live.read();
        if self
            .data
            .current()
            .is_some_and(|id| !live.tables.is_referenced(id))
        {
            self.data.end();
        }
        let dead = self.dead_segments(&live.tables);
        dead.iter()
            .any(|id| live.tables.segment(*id).is_some_and(SegmentEntry::is_data))
    }

    fn snapshot(&self, committer: &mut Committer) -> Result<Snapshot, CommitError> {
        let (batches, upto, leaves, counters, dead) = {
            let mut live = self.live.write();
            let (batches, upto) = live.take_pending();
            let dead = self.dead_segments(&live.tables);
            (
                batches,
                upto,
                schema::leaves(&live.tables),
                live.tables.counters(),
                dead,
            )
        };
        self.append(committer, batches, upto)?;
        committer.log_bytes = 0;
        Ok(Snapshot {
            position: committer.log.position(),
            leaves,
            counters,
            dead,
        })
    }

    /// Data and log segments without live bytes, which cannot get any more.
    fn dead_segments(&self, tables: &Tables) -> BTreeSet<SegmentId> {
        // In this order: what is not current any more gets no new pins.
        let current = self.data.current();
        let unused = tables.segments().filter(|(id, entry)| {
            let in_use = Some(*id) == current || self.data.is_pinned(*id);
            entry.kind != SegmentKind::Node && !in_use && !tables.is_referenced(*id)
        });
        unused.map(|(id, _)| id).collect()
    }

    fn announce_nodes(
        &self,
        committer: &mut Committer,
        leaves: &[Leaf],
    ) -> Result<Vec<Arc<Segment>>, CommitError> {
        let announce = |_| Ok(self.announce(committer, SegmentKind::Node)?.0);
        (0..tree::segments_needed(leaves)).map(announce).collect()
    }

    fn node_table(&self, segments: &[Arc<Segment>], live: &[u64]) -> Vec<NodeSegment> {
        let tables = &self.live.read().tables;
        let rows = segments.iter().zip(live).filter_map(|(segment, live)| {
            let entry = tables.segment(segment.id)?;
            Some(NodeSegment {
                id: segment.id,
                segment: entry.segment,
                live: *live,
            })
        });
        rows.collect()
    }

    fn append_checkpoint(
        &self,
        committer: &mut Committer,
        op: &Op,
    ) -> Result<CheckpointAddress, CommitError> {
        let place = committer.log.append(&PendingOps::of(op))?;
        committer.log.flush()?;
        let seq = committer.log.position().seq;
        Ok(CheckpointAddress {
            segment: place.segment,
            offset: place.offset,
            seq,
        })
    }

    fn write_superblock(&self, committer: &mut Committer) -> Result<(), CommitError> {
        let Committer {
            log, superblock, ..
        } = committer;
        superblock.name_log(log.current(), log.durable_seq());
        superblock
            .write(&*self.store, &self.keys, &*self.lease)
            .map_err(|e| match e {
                WriteSuperblockError::Seal(e) => e.into(),
                WriteSuperblockError::Store(e) => e.into(),
            })
    }

    /// Deletes what was dead in the checkpoint before already, so that neither of the two that
    /// are retained needs it, nor a replay from them.
    fn delete_dead(&self, committer: &Committer, previous: &Retained) -> Result<(), CommitError> {
        let newest = &committer.newest;
        let replayed = committer.log.segments_since(previous.replay_from);
        let is_doomed = |id: &SegmentId, entry: &SegmentEntry| {
            let was_dead = previous.dead.contains(id) && newest.dead.contains(id);
            match entry.kind {
                SegmentKind::Data => was_dead,
                SegmentKind::Log => was_dead && !replayed.contains(&entry.segment),
                SegmentKind::Node => !newest.nodes.contains(id) && !previous.nodes.contains(id),
            }
        };
        let doomed: Vec<(SegmentId, SegmentEntry)> = {
            let live = self.live.read();
            live.tables
                .segments()
                .filter(|(id, entry)| is_doomed(id, entry))
                .collect()
        };
        doomed
            .into_iter()
            .try_for_each(|(id, entry)| self.delete(id, entry))
    }
}
