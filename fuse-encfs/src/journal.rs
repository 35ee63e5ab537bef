//! Core: changes to the map, made durable in groups.
//!
//! **Design.** A change is an operation: it is applied to the tables and put behind the pending
//! ones under one short lock. A commit takes all that is pending, flushes the data that it may
//! point to, and then writes and flushes the log. Who wants something durable first leads; who
//! comes meanwhile waits for the log's lock and mostly finds his change durable already.
//!
//! **Locks**, in this order: `growing`, `log`, `live`, those inside of [`DataWriter`]. None but
//! `growing` and `log` is held while the store works.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use runtime::sync::{Mutex, RwLock, RwLockReadGuard};

use crate::crypto::{Head, VolumeKeys};
use crate::error::{CommitError, FsError};
use crate::format::{Extent, Op, PendingOps, SegNew, SegmentId, SegmentKind, SegmentRef};
use crate::log::Log;
use crate::segment::{
    DataWriter, Pin, ReadError, Segment, SegmentCache, SegmentWriter, Slot, WriteError,
};
use crate::space::Reserve;
use crate::store::{Appendable, Lease, ObjectName, Space, StoreError};
use crate::superblock::Superblock;
use crate::tables::{Inconsistent, SegmentEntry, Tables};

mod checkpoint;

/// Full commits that may be pending before who makes changes must make them durable himself.
const PENDING_MAX: usize = 4;
/// Bytes of log after which a checkpoint is due.
const CHECKPOINT_EVERY: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Bytes of a data segment that this version makes: small enough that one is soon wholly dead.
const DATA_SEGMENT_LEN: u64 = if cfg!(test) { 2 << 20 } else { 64 << 20 };

/// A volume that is open for writing.
#[derive(Debug)]
pub(crate) struct Journal {
    store: Arc<dyn Appendable>,
    keys: Arc<VolumeKeys>,
    lease: Box<dyn Lease>,
    live: RwLock<Live>,
    log: Mutex<Committer>,
    /// Held by who makes a new data segment.
    growing: Mutex<()>,
    data: DataWriter,
    cache: SegmentCache,
    reserve: Reserve,
    /// Number of the last change that is durable.
    durable: AtomicU64,
    /// A failure that cannot be mended: nothing is changed or acknowledged any more.
    failed: AtomicBool,
}

/// The tables with the changes that are not committed yet.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) tables: Tables,
    pending: VecDeque<PendingOps>,
    /// Number of the last change.
    submitted: u64,
}

/// What only who commits touches.
#[derive(Debug)]
struct Committer {
    log: Log,
    superblock: Superblock,
    /// Bytes of log since the last checkpoint.
    log_bytes: u64,
    /// The newest checkpoint.
    newest: Retained,
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
    /// The checkpoint that the superblock names.
    pub(crate) newest: Retained,
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
            newest: start.newest,
        };
        let live = Live {
            tables: start.tables,
            pending: VecDeque::new(),
            submitted: 0,
        };
        Self {
            reserve: Reserve::new(Arc::clone(&store)),
            store,
            keys,
            lease,
            live: RwLock::new(live),
            log: Mutex::new(committer),
            growing: Mutex::new(()),
            data: DataWriter::default(),
            cache: SegmentCache::default(),
            durable: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// The tables, to look at. Held shortly: a change waits for it.
    pub(crate) fn tables(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read()
    }

    /// Space of the store: all of it, and what may still be used.
    pub(crate) fn space(&self) -> Result<Space, StoreError> {
        self.reserve.space()
    }

    /// Admits a change that needs about `bytes` more of the store. What frees space is not asked:
    /// the reserve is for that. When none is left, dead segments are deleted at once.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), FsError> {
        match self.reserve.take(bytes) {
            Err(FsError::Full) if self.has_dead_data() => {
                // A segment goes once it was dead in two checkpoints.
                self.checkpoint()?;
                self.checkpoint()?;
                self.reserve.take(bytes)
            }
            taken => taken,
        }
    }

    /// Tells who waits for the volume that it is about to be closed.
    pub(crate) fn announce_end(&self) {
        self.lease.announce_end();
    }

    /// Changes the volume by the operations that `build` makes from its state, all of them or
    /// none, and gives what `after` sees in the state then.
    pub(crate) fn change<T>(
        &self,
        build: impl FnOnce(&Tables) -> Result<Vec<Op>, FsError>,
        after: impl FnOnce(&Tables) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        if self.has_failed() {
            return Err(FsError::ReadOnly);
        }
        let mut live = self.live.write();
        let ops = build(&live.tables)?;
        live.submit(&ops).map_err(|e| {
            self.fail(&e);
            FsError::Failed("a change does not fit the volume")
        })?;
        let out = after(&live.tables)?;
        let is_much = live.pending.len() > PENDING_MAX;
        drop(live);
        if is_much {
            self.commit_all()?;
        }
        Ok(out)
    }

    /// Makes change number `wanted` durable, with all before it.
    pub(crate) fn commit(&self, wanted: u64) -> Result<(), CommitError> {
        if self.durable.load(Ordering::Acquire) >= wanted {
            return self.still_writable();
        }
        let mut committer = self.log.lock();
        if self.durable.load(Ordering::Acquire) >= wanted {
            return self.still_writable();
        }
        self.commit_pending(&mut committer)
    }

    /// Makes every change so far durable.
    pub(crate) fn commit_all(&self) -> Result<(), CommitError> {
        let submitted = self.live.read().submitted;
        self.commit(submitted)
    }

    /// Writes contents of a file into a data segment. They are part of the file only once an
    /// operation says so; until then the pin keeps their segment.
    pub(crate) fn write_data(&self, data: &[u8]) -> Result<(Extent, Pin), FsError> {
        let len = u32::try_from(data.len()).map_err(|_| FsError::TooLarge)?;
        let (slot, pin) = match self.data.reserve(len) {
            Some(slot) => slot,
            None => self.grow(len)?,
        };
        let extent = self
            .data
            .write(&*self.store, self.keys.entropy(), slot, data)?;
        if self.data.is_behind() {
            self.flush_data()?;
        }
        Ok((extent, pin))
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

    /// Whether a failure has made the volume read-only.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn still_writable(&self) -> Result<(), CommitError> {
        if self.has_failed() {
            Err(CommitError::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Commits all that is pending. A failure here cannot be mended: what was to be durable may
    /// not be, and the log's end is unknown.
    fn commit_pending(&self, committer: &mut Committer) -> Result<(), CommitError> {
        self.still_writable()?;
        if committer.log.is_long() {
            self.roll(committer)?;
        }
        let (batches, upto) = self.live.write().take_pending();
        self.append(committer, batches, upto)
    }

    fn append(
        &self,
        committer: &mut Committer,
        batches: VecDeque<PendingOps>,
        upto: u64,
    ) -> Result<(), CommitError> {
        self.append_batches(committer, batches)
            .inspect_err(|e| self.fail(e))?;
        self.durable.store(upto, Ordering::Release);
        Ok(())
    }

    fn append_batches(
        &self,
        committer: &mut Committer,
        batches: VecDeque<PendingOps>,
    ) -> Result<(), CommitError> {
        if batches.is_empty() {
            return Ok(());
        }
        // Before the log: no commit may name data that could still be lost.
        self.data.flush(&*self.store).map_err(CommitError::Flush)?;
        for ops in batches {
            let begin = committer.log.append(&ops)?.offset;
            let end = committer.log.position().next.offset;
            committer.log_bytes += end.saturating_sub(begin);
        }
        committer.log.flush()?;
        Ok(())
    }

    fn roll(&self, committer: &mut Committer) -> Result<(), CommitError> {
        // Numbers are given out under the log's lock alone, so nobody else takes this one.
        let id = self.live.read().tables.counters().next_segment;
        let open = committer.log.roll(id).inspect_err(|e| self.fail(e))?;
        self.live
            .write()
            .tables
            .apply(&open, 0)
            .inspect_err(|e| self.fail(e))?;
        Ok(())
    }

    fn flush_data(&self) -> Result<(), FsError> {
        self.data.flush(&*self.store).map_err(|e| {
            self.fail(&e);
            FsError::Store(e)
        })
    }

    /// Makes a new data segment the current one, unless somebody else just did, and gives a slot
    /// in it.
    fn grow(&self, len: u32) -> Result<(Slot, Pin), FsError> {
        let _growing = self.growing.lock();
        if let Some(slot) = self.data.reserve(len) {
            return Ok(slot);
        }
        // Pinned from the moment that the map knows it: as yet it looks dead.
        let (segment, _pin) = self.announce(&mut self.log.lock(), SegmentKind::Data)?;
        self.store
            .create(segment.name, DATA_SEGMENT_LEN)
            .map_err(WriteError::Store)?;
        self.data
            .begin(SegmentWriter::new(segment, DATA_SEGMENT_LEN));
        self.data.reserve(len).ok_or(FsError::TooLarge)
    }

    /// Logs that a segment is about to be made, durably, so that a crash leaves no object that
    /// nobody knows. The pin keeps it from being taken for dead until it is in use.
    fn announce(
        &self,
        committer: &mut Committer,
        kind: SegmentKind,
    ) -> Result<(Arc<Segment>, Pin), CommitError> {
        let head: Head = committer.log.position().head;
        let segment = self.keys.new_segment(&head)?;
        let (id, pin) = {
            let mut live = self.live.write();
            let id = live.tables.counters().next_segment;
            let new = Op::SegNew(SegNew { id, kind, segment });
            live.submit(&[new]).inspect_err(|e| self.fail(e))?;
            (id, self.data.pin(id))
        };
        self.commit_pending(committer)?;
        Ok((self.segment(id, SegmentEntry { kind, segment }), pin))
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
        Ok(self
            .live
            .write()
            .submit(&[Op::SegDrop(id)])
            .inspect_err(|e| self.fail(e))?)
    }

    fn fail(&self, cause: &(dyn std::error::Error + 'static)) {
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
}

impl Live {
    /// Number of the last change.
    pub(crate) fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Applies operations and puts them behind the pending ones, into one commit.
    fn submit(&mut self, ops: &[Op]) -> Result<(), Inconsistent> {
        if ops.is_empty() {
            return Ok(());
        }
        if self.pending.back().is_none_or(PendingOps::is_full) {
            self.pending.push_back(PendingOps::default());
        }
        self.submitted += 1;
        for op in ops {
            self.tables.apply(op, self.submitted)?;
            if let Some(last) = self.pending.back_mut() {
                last.push(op);
            }
        }
        Ok(())
    }

    fn take_pending(&mut self) -> (VecDeque<PendingOps>, u64) {
        (std::mem::take(&mut self.pending), self.submitted)
    }
}
