//! Core: changes to the map, made durable in groups.
//!
//! **Design.** A change is an operation: it is applied to a clone of the tables, which then takes
//! their place, and put behind the pending ones. A commit takes all that is pending and writes it
//! to the log. Who wants something durable first leads; who comes meanwhile waits, and mostly finds
//! his change durable already.
//!
//! **Invariants.** An extent is named by an operation only when the bytes that it points to are
//! flushed, or lie in the same frame of the log. The tables are at each moment what the pending
//! operations make of the committed ones.
//!
//! **Locks**, in this order: `cleaner`, `checkpointing`, `deleting`, `growing`, `log`, `changes`,
//! `tables`, those inside of [`DataWriter`]. Who looks at the tables takes a clone and holds none of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use runtime::sync::{Mutex, RwLock, RwLockReadGuard};

use crate::anchor::AnchorKeeper;
use crate::crypto::{Head, VolumeKeys};
use crate::error::{CommitError, FsError};
use crate::format::{
    Extent, Ino, NodeSegment, Op, PendingOps, SegNew, SegmentId, SegmentKind, SegmentRef,
};
use crate::log::{Log, NextSegment, Position};
use crate::segment::{
    DataWriter, Pin, ReadError, Record, Reserved, Segment, SegmentCache, SegmentWriter, Slot, lane,
    make_object,
};
use crate::space::{Held, Need, Reserve};
use crate::store::{Appendable, Lease, ObjectName, Space, StoreError};
use crate::superblock::Superblock;
use crate::tables::{ApplyError, SegmentEntry, Tables};

use freeze::Gate;

mod checkpoint;
mod clean;
mod commit;
mod freeze;
mod rekey;

/// Full commits that may be pending before who makes changes must make them durable himself.
const PENDING_MAX: usize = 4;
/// Bytes of log after which a checkpoint is due.
const CHECKPOINT_EVERY: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Bytes of changed nodes after which a checkpoint is due.
const DIRTY_MAX: usize = if cfg!(test) { 256 << 10 } else { 48 << 20 };
/// Bytes of a data segment that this version makes: small enough that one is soon wholly dead.
const DATA_SEGMENT_LEN: u64 = if cfg!(test) { 2 << 20 } else { 64 << 20 };
/// It is at most this part of the store.
const DATA_SEGMENT_PART: u64 = 32;

/// A volume that is open for writing.
#[derive(Debug)]
pub(crate) struct Journal {
    store: Arc<dyn Appendable>,
    keys: Arc<VolumeKeys>,
    lease: Box<dyn Lease>,
    tables: RwLock<Tables>,
    changes: Mutex<Changes>,
    log: Mutex<Committer>,
    checkpointing: Mutex<checkpoint::Checkpointer>,
    cleaner: Mutex<clean::Cleaner>,
    /// Held by who makes a new data segment.
    growing: Mutex<()>,
    /// Held for writing by who deletes segments, for reading by who needs what older tables name
    /// for longer than a lookup takes: else it would look as if the store had lost it.
    deleting: RwLock<()>,
    data: DataWriter,
    cache: SegmentCache,
    reserve: Reserve,
    /// Number of the last change that is durable.
    durable: AtomicU64,
    /// A failure that cannot be mended: nothing is changed or acknowledged any more.
    failed: Arc<AtomicBool>,
    /// What remembers outside of the store how far the volume is; `None` while it is made.
    keeper: Option<AnchorKeeper>,
    gate: Gate,
}

/// Changes that are not committed yet.
#[derive(Debug, Default)]
struct Changes {
    pending: VecDeque<PendingOps>,
    /// Number of the last change.
    submitted: u64,
    /// Files whose contents must be in the map before these changes are committed: had they taken
    /// the place of others, a crash would leave neither the old contents nor the new. With the
    /// number of the last change that wants them.
    owed: BTreeMap<Ino, u64>,
}

/// What only who commits touches.
#[derive(Debug)]
struct Committer {
    log: Log,
    superblock: Superblock,
    /// Bytes of log since the last checkpoint.
    log_bytes: u64,
    /// Number of the last change that is in the log.
    appended: u64,
    /// The segment that the log goes on in, when it was made ahead.
    next: Option<(NextSegment, Pin)>,
}

/// What a retained checkpoint needs, and what it did not need any more.
#[derive(Debug)]
pub(crate) struct Retained {
    /// Node segments that its tree lies in.
    pub(crate) nodes: BTreeSet<SegmentId>,
    /// Data and log segments without live bytes.
    pub(crate) dead: BTreeSet<SegmentId>,
    /// The log segment that replay begins in.
    pub(crate) replay_from: SegmentRef,
}

/// What a journal starts from.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) tables: Tables,
    pub(crate) log: Log,
    pub(crate) superblock: Superblock,
    /// The node segments of the checkpoint that the superblock names.
    pub(crate) nodes: Vec<NodeSegment>,
    /// That checkpoint.
    pub(crate) newest: Retained,
    /// Set when nothing may be changed any more.
    pub(crate) failed: Arc<AtomicBool>,
    pub(crate) keeper: Option<AnchorKeeper>,
}

/// A change to be: operations, and what must hold for them.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) ops: Vec<Op>,
    /// A file whose contents must be in the map before this is committed.
    pub(crate) owes: Option<Ino>,
}

impl From<Vec<Op>> for Change {
    fn from(ops: Vec<Op>) -> Self {
        Self { ops, owes: None }
    }
}

impl Journal {
    /// A journal over a store whose lease is held.
    pub(crate) fn new(
        store: Arc<dyn Appendable>,
        keys: Arc<VolumeKeys>,
        lease: Box<dyn Lease>,
        start: Start,
    ) -> Self {
        let committer = Committer {
            log: start.log,
            superblock: start.superblock,
            log_bytes: 0,
            appended: 0,
            next: None,
        };
        let reserve = Reserve::new(Arc::clone(&store));
        reserve.note_tree(start.nodes.iter().map(|node| node.live).sum());
        let checkpointer = checkpoint::Checkpointer::new(start.newest, start.nodes);
        Self {
            reserve,
            store,
            keys,
            lease,
            tables: RwLock::new(start.tables),
            changes: Mutex::new(Changes::default()),
            log: Mutex::new(committer),
            checkpointing: Mutex::new(checkpointer),
            cleaner: Mutex::default(),
            growing: Mutex::new(()),
            deleting: RwLock::new(()),
            data: DataWriter::default(),
            cache: SegmentCache::default(),
            durable: AtomicU64::new(0),
            failed: start.failed,
            keeper: start.keeper,
            gate: Gate::default(),
        }
    }

    /// The tables as they are now.
    pub(crate) fn tables(&self) -> Tables {
        self.tables.read().clone()
    }

    /// Space of the volume: all of it, and what may still be used.
    pub(crate) fn space(&self) -> Result<Space, StoreError> {
        self.reserve.space(self.held())
    }

    /// Admits a change. What frees space is not asked: the reserve is for that.
    pub(crate) fn admit(&self, need: Need) -> Result<(), FsError> {
        self.reserve.take(need, self.held())
    }

    /// How much may be used.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Whether a checkpoint would show that the volume holds less than it looks.
    pub(crate) fn is_size_vague(&self) -> bool {
        self.reserve.is_limited() && self.held().changed > 0
    }

    fn held(&self) -> Held {
        let tables = self.tables.read();
        let counters = tables.counters();
        Held {
            live: counters.live,
            promised: counters.unwritten,
            changed: tables.map().0.dirty_len() as u64,
        }
    }

    /// Tells who waits for the volume that it is about to be closed.
    pub(crate) fn announce_end(&self) {
        self.lease.announce_end();
    }

    /// Changes the volume by the operations that `build` makes from its state, all of them or
    /// none, and gives what `after` sees in the state then.
    pub(crate) fn change<T, C: Into<Change>>(
        &self,
        build: impl FnOnce(&Tables) -> Result<C, FsError>,
        after: impl FnOnce(&Tables) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        if self.has_failed() {
            return Err(FsError::ReadOnly);
        }
        let mut changes = self.changes.lock();
        let mut tables = self.tables();
        let change = build(&tables)?.into();
        for op in &change.ops {
            tables.apply(op).map_err(|e| self.not_applied(e))?;
        }
        let out = after(&tables)?;
        if !change.ops.is_empty() {
            changes.push(&change);
            *self.tables.write() = tables;
        }
        // Debts are for who holds no inode's lock: they are paid by the next who commits.
        let is_due = changes.is_much() && changes.owed.is_empty();
        drop(changes);
        if is_due {
            self.commit_submitted()?;
        }
        Ok(out)
    }

    /// Whether so much is pending that it should be committed soon.
    pub(crate) fn is_behind(&self) -> bool {
        self.changes.lock().is_much()
    }

    /// Whether there are changes to commit.
    pub(crate) fn is_pending(&self) -> bool {
        !self.changes.lock().pending.is_empty()
    }

    /// Number of the last change so far.
    pub(crate) fn submitted(&self) -> u64 {
        self.changes.lock().submitted
    }

    /// Files whose contents must be in the map before what is pending is committed, each with the
    /// change that wants them. They stay owed until [`Journal::settle_debt`]: whoever commits
    /// meanwhile must wait for them too.
    pub(crate) fn owed(&self) -> BTreeMap<Ino, u64> {
        self.changes.lock().owed.clone()
    }

    /// The contents that a file had at change number `number` or later are in the map.
    pub(crate) fn settle_debt(&self, ino: Ino, number: u64) {
        let mut changes = self.changes.lock();
        if changes
            .owed
            .get(&ino)
            .is_some_and(|wanted| *wanted <= number)
        {
            changes.owed.remove(&ino);
        }
    }

    /// Writes contents of a file into a data segment. They are part of the file only once they
    /// are flushed and an operation says so; until then the record keeps their segment.
    pub(crate) fn write_record(
        &self,
        ino: Ino,
        data: &[u8],
    ) -> Result<(Extent, Arc<Record>), FsError> {
        let len = u32::try_from(data.len()).map_err(|_| FsError::TooLarge)?;
        self.write_record_in(lane(ino, len), data)
    }

    fn write_record_in(&self, lane: usize, data: &[u8]) -> Result<(Extent, Arc<Record>), FsError> {
        let len = u32::try_from(data.len()).map_err(|_| FsError::TooLarge)?;
        let slot = match self.data.reserve(lane, len) {
            Some(slot) => slot,
            None => self.grow(lane, len)?,
        };
        let _open = self.gate.pass();
        let written = self
            .data
            .write(&*self.store, self.keys.entropy(), slot, data)?;
        if self.data.is_behind() {
            // Who needs these bytes durable meets the failure himself, and can mend it.
            let _ = self.data.flush_most(&*self.store);
        }
        Ok(written)
    }

    /// Makes a record durable.
    pub(crate) fn flush_record(&self, record: &Record) -> Result<(), StoreError> {
        record.flush(&*self.store)
    }

    /// Log segments that a replay may still read, and the current one.
    fn log_segments(&self) -> Vec<SegmentRef> {
        let from = self.checkpointing.lock().replay_from();
        self.log.lock().log.segments_since(from).to_vec()
    }

    /// Where contents go.
    pub(crate) fn data(&self) -> &DataWriter {
        &self.data
    }

    /// The segment of an entry of the map, for reading.
    pub(crate) fn segment(&self, id: SegmentId, entry: SegmentEntry) -> Arc<Segment> {
        self.cache.get(&self.keys, id, entry)
    }

    /// Reads part of an extent.
    pub(crate) fn read_extent(
        &self,
        segment: &Segment,
        extent: &Extent,
        from: u32,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        segment.read(&*self.store, extent, from, out, scratch)
    }

    /// While the guard lives, nothing is deleted that tables which are taken meanwhile name.
    pub(crate) fn keep(&self) -> RwLockReadGuard<'_, ()> {
        self.deleting.read()
    }

    /// Whether a failure has made the volume read-only.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Makes the volume read-only after a failure that cannot be mended.
    pub(crate) fn fail(&self, cause: &(dyn std::error::Error + 'static)) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            let source = cause.source().map(ToString::to_string);
            tracing::error!(
                error_code = "fs.read_only",
                %cause,
                source,
                "the volume is read-only from now on: what was changed last may not be durable"
            );
        }
    }

    fn not_applied(&self, e: ApplyError) -> FsError {
        match e {
            ApplyError::Inconsistent(e) => {
                self.fail(&e);
                FsError::Failed("a change does not fit the volume")
            }
            ApplyError::Read(e) => e.into(),
        }
    }

    fn still_writable(&self) -> Result<(), CommitError> {
        if self.has_failed() {
            Err(CommitError::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Lets the anchors know how far the log is durable, before anybody else is told.
    fn remember(&self, durable: Position) {
        if let Some(keeper) = &self.keeper {
            keeper.durable(durable.seq, durable.head.0);
        }
    }

    /// With a strict anchor, waits until it knows of all that is durable.
    pub(crate) fn wait_anchored(&self) -> Result<(), CommitError> {
        let Some(keeper) = &self.keeper else {
            return Ok(());
        };
        let seq = self.log.lock().log.durable_seq();
        keeper.wait(seq).map_err(|_| CommitError::NotAnchored)
    }

    /// The anchors of the volume.
    pub(crate) fn keeper(&self) -> Option<&AnchorKeeper> {
        self.keeper.as_ref()
    }

    /// Makes a new data segment the current one of a lane, unless somebody else just did, and
    /// gives a slot in it.
    fn grow(&self, lane: usize, len: u32) -> Result<(Slot, Reserved), FsError> {
        let _growing = self.growing.lock();
        if let Some(slot) = self.data.reserve(lane, len) {
            return Ok(slot);
        }
        // On a small store the one that is written must not be most of it: it cannot be cleaned.
        let segment_len = self.reserve.at_most(DATA_SEGMENT_LEN, DATA_SEGMENT_PART);
        let segment_len = segment_len.max(u64::from(len).saturating_mul(2));
        let (segment, _pin) = self.announce_object(SegmentKind::Data, segment_len)?;
        self.data
            .begin(lane, SegmentWriter::new(segment, segment_len));
        self.data.reserve(lane, len).ok_or(FsError::TooLarge)
    }

    /// Announces a segment of data or nodes, and makes its object.
    fn announce_object(
        &self,
        kind: SegmentKind,
        len: u64,
    ) -> Result<(Arc<Segment>, Pin), CommitError> {
        let (id, segment, pin) = self.announce(&mut self.committer(), kind)?;
        let _open = self.gate.pass();
        make_object(&*self.store, &self.keys, (kind, id, segment), len)?;
        let entry = SegmentEntry {
            kind,
            segment,
            live: 0,
        };
        Ok((self.segment(id, entry), pin))
    }

    /// Logs that a segment is about to be made, durably, so that a crash leaves no object that
    /// nobody knows. The pin keeps it from being taken for dead until it is in use.
    fn announce(
        &self,
        committer: &mut Committer,
        kind: SegmentKind,
    ) -> Result<(SegmentId, SegmentRef, Pin), CommitError> {
        self.still_writable()?;
        let head: Head = committer.log.position().head;
        let segment = self.keys.new_segment(&head)?;
        let (op, id, pin) = {
            let _changes = self.changes.lock();
            let mut tables = self.tables();
            let id = tables.counters().next_segment;
            let op = Op::SegNew(SegNew { id, kind, segment });
            tables.apply(&op)?;
            // Before anybody can see it: as yet it looks dead.
            let pin = self.data.pin(id);
            *self.tables.write() = tables;
            (op, id, pin)
        };
        // Ahead of what is pending, which has nothing to do with it and may have debts.
        self.append(committer, &PendingOps::of(&op), None)?;
        if !self.flush(committer)? {
            self.reopen(committer)?;
        }
        Ok((id, segment, pin))
    }

    fn delete(&self, id: SegmentId, entry: SegmentEntry) -> Result<(), CommitError> {
        self.lease.revalidate()?;
        match self
            .store
            .delete(ObjectName::Segment(entry.kind, entry.segment.uid))
        {
            Ok(()) | Err(StoreError::Absent) => {}
            Err(e) => return Err(e.into()),
        }
        self.cache.remove(id);
        self.tables().map().1.remove_segment(id);
        let mut changes = self.changes.lock();
        let mut tables = self.tables();
        let op = Op::SegDrop(id);
        tables.apply(&op).inspect_err(|e| self.fail(e))?;
        changes.push(&vec![op].into());
        *self.tables.write() = tables;
        Ok(())
    }
}

impl Changes {
    /// Puts operations that were applied behind the pending ones, into one commit.
    fn push(&mut self, change: &Change) {
        if self.pending.back().is_none_or(PendingOps::is_full) {
            self.pending.push_back(PendingOps::default());
        }
        self.submitted += 1;
        if let Some(last) = self.pending.back_mut() {
            change.ops.iter().for_each(|op| last.push(op));
        }
        self.owed
            .extend(change.owes.map(|ino| (ino, self.submitted)));
    }

    fn is_much(&self) -> bool {
        self.pending.len() > PENDING_MAX
    }

    fn take(&mut self) -> (VecDeque<PendingOps>, u64) {
        (std::mem::take(&mut self.pending), self.submitted)
    }
}

/// Node segments by number, as a checkpoint's table has them.
type NodeUsage = BTreeMap<SegmentId, NodeSegment>;
