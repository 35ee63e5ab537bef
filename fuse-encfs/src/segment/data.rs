//! Core: writing the contents of files into data segments, and flushing them.
//!
//! **Invariants.** The sealed bytes of a record are kept until a flush of its segment succeeded,
//! so that nothing is lost when one fails: they are written again as they are, once, and if that
//! fails too whoever holds the record can open and seal it anew elsewhere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use runtime::sync::{Mutex, RwLock};

use super::ReadError;
use super::writer::{Sealed, SegmentWriter, Slot};
use crate::crypto::{Entropy, SealError};
use crate::format::{Extent, Ino, SegmentId};
use crate::store::{Appendable, StoreError};

/// Segments that are written at once: by inode, so that what is written to a file in one go lies
/// together, and apart by whether it is much.
const LANES: usize = 4;
/// The lane of what was moved: it is likely to stay.
pub(crate) const CLEANER_LANE: usize = LANES;
/// A record of this many bytes is part of a stream.
const STREAM_LEN: u32 = 64 << 10;
/// Sealed bytes that are kept until they are flushed, before who writes must flush them himself.
const RETAINED_MAX: usize = 64 << 20;

/// Where the contents of files go.
#[derive(Debug, Default)]
pub(crate) struct DataWriter {
    lanes: [RwLock<Option<Arc<OpenSegment>>>; LANES + 1],
    /// Segments that are current no more, of which records may still be unflushed.
    ended: Mutex<Vec<Weak<OpenSegment>>>,
    retained: Arc<AtomicUsize>,
    pins: Arc<Pins>,
}

/// A data segment that this mount writes.
#[derive(Debug)]
struct OpenSegment {
    writer: SegmentWriter,
    /// Records that are written but not known to be durable, as sealed, by their offset.
    records: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Held while a flush runs, so that who comes later knows its outcome.
    flushing: Mutex<()>,
    failed: AtomicBool,
    /// Bytes of these records, and of those of all segments.
    unflushed: AtomicUsize,
    retained: Arc<AtomicUsize>,
}

/// A record that this mount has written. Keeps its segment from being taken for dead.
#[derive(Debug)]
pub(crate) struct Record {
    segment: Arc<OpenSegment>,
    offset: u64,
    _pin: Pin,
}

/// Segments that hold records which no operation names yet, with how many.
#[derive(Debug, Default)]
struct Pins(Mutex<BTreeMap<SegmentId, u32>>);

/// Keeps a segment from being taken for dead.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    id: SegmentId,
}

/// Where a slot that was reserved lies.
#[derive(Debug)]
pub(crate) struct Reserved {
    segment: Arc<OpenSegment>,
    pin: Pin,
    lane: usize,
}

/// Why contents were not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Sealing failed.
    #[error("the data cannot be sealed")]
    Seal(#[from] SealError),
    /// The store refused, twice.
    #[error("the data cannot be written to the store")]
    Store(#[source] StoreError),
}

/// The lane of a record of `len` bytes of an inode.
pub(crate) fn lane(ino: Ino, len: u32) -> usize {
    let half = LANES / 2;
    let by_inode = usize::try_from(ino.0 % half as u64).unwrap_or(0);
    by_inode + if len < STREAM_LEN { 0 } else { half }
}

impl DataWriter {
    /// A slot in the current segment of a lane; `None` when there is none or it is full.
    pub(crate) fn reserve(&self, lane: usize, len: u32) -> Option<(Slot, Reserved)> {
        // Pinned under the lock: once a segment is not current any more, its pins only go.
        let current = self.lanes.get(lane)?.read();
        let segment = current.as_ref()?;
        let slot = segment.writer.reserve_record(len)?;
        let pin = self.pin(segment.id());
        let segment = Arc::clone(segment);
        Some((slot, Reserved { segment, pin, lane }))
    }

    /// Pins a segment.
    pub(crate) fn pin(&self, id: SegmentId) -> Pin {
        Pin::new(&self.pins, id)
    }

    /// Whether a record of the segment may still be named by an operation to come.
    pub(crate) fn is_pinned(&self, id: SegmentId) -> bool {
        self.pins.0.lock().contains_key(&id)
    }

    /// Goes on in a new segment.
    pub(crate) fn begin(&self, lane: usize, writer: SegmentWriter) {
        let segment = OpenSegment {
            writer,
            records: Mutex::new(BTreeMap::new()),
            flushing: Mutex::new(()),
            failed: AtomicBool::new(false),
            unflushed: AtomicUsize::new(0),
            retained: Arc::clone(&self.retained),
        };
        if let Some(current) = self.lanes.get(lane) {
            let before = current.write().replace(Arc::new(segment));
            self.note_ended(before);
        }
    }

    /// Ends the current segments for which `is_over` holds, so that they can be reclaimed.
    pub(crate) fn end(&self, is_over: impl Fn(SegmentId) -> bool) {
        for lane in &self.lanes {
            let mut current = lane.write();
            if current
                .as_ref()
                .is_some_and(|segment| is_over(segment.id()))
            {
                self.note_ended(current.take());
            }
        }
    }

    /// The current segments, with how far each is used.
    pub(crate) fn current(&self) -> Vec<(SegmentId, u64)> {
        let used = |segment: &Arc<OpenSegment>| (segment.id(), segment.writer.used());
        self.lanes
            .iter()
            .filter_map(|lane| lane.read().as_ref().map(used))
            .collect()
    }

    /// Whether a segment is a current one.
    pub(crate) fn is_current(&self, id: SegmentId) -> bool {
        let is = |segment: &Arc<OpenSegment>| segment.id() == id;
        self.lanes
            .iter()
            .any(|lane| lane.read().as_ref().is_some_and(is))
    }

    /// Seals `data` into `slot` and writes it; durable only after a flush.
    pub(crate) fn write(
        &self,
        store: &dyn Appendable,
        entropy: &Entropy,
        (slot, reserved): (Slot, Reserved),
        data: &[u8],
    ) -> Result<(Extent, Arc<Record>), WriteError> {
        let Sealed {
            segment: target,
            offset,
            bytes,
            pointer,
        } = slot.seal_record(entropy, data)?;
        let Reserved { segment, pin, lane } = reserved;
        if let Err(first) = store.write_at(target.name, offset, &bytes) {
            tracing::warn!(error = %first, "a write to the store failed; trying it once more");
            // The same bytes at the same place, once: never others.
            store.write_at(target.name, offset, &bytes).map_err(|e| {
                if !matches!(e, StoreError::Full) {
                    self.abandon(lane, &segment);
                }
                WriteError::Store(e)
            })?;
        }
        segment.retain(offset, bytes);
        let record = Record {
            segment,
            offset,
            _pin: pin,
        };
        Ok((pointer, Arc::new(record)))
    }

    /// Whether so much is unflushed that who writes should flush.
    pub(crate) fn is_behind(&self) -> bool {
        self.retained.load(Ordering::Relaxed) > RETAINED_MAX
    }

    /// Flushes the segment that has most to flush.
    pub(crate) fn flush_most(&self, store: &dyn Appendable) -> Result<(), StoreError> {
        let mut segments: Vec<Arc<OpenSegment>> = Vec::new();
        self.ended.lock().retain(|ended| match ended.upgrade() {
            Some(segment) if segment.unflushed() > 0 => {
                segments.push(segment);
                true
            }
            _ => false,
        });
        segments.extend(self.lanes.iter().filter_map(|lane| lane.read().clone()));
        let most = segments.iter().max_by_key(|segment| segment.unflushed());
        most.map_or(Ok(()), |segment| segment.flush(store))
    }

    fn note_ended(&self, segment: Option<Arc<OpenSegment>>) {
        if let Some(segment) = segment {
            let mut ended = self.ended.lock();
            ended.retain(|ended| ended.upgrade().is_some_and(|s| s.unflushed() > 0));
            ended.push(Arc::downgrade(&segment));
        }
    }

    fn abandon(&self, lane: usize, segment: &Arc<OpenSegment>) {
        let Some(lane) = self.lanes.get(lane) else {
            return;
        };
        let mut current = lane.write();
        if current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, segment))
        {
            self.note_ended(current.take());
        }
    }
}

impl OpenSegment {
    fn id(&self) -> SegmentId {
        self.writer.segment().id
    }

    fn unflushed(&self) -> usize {
        self.unflushed.load(Ordering::Relaxed)
    }

    fn retain(&self, offset: u64, bytes: Vec<u8>) {
        self.unflushed.fetch_add(bytes.len(), Ordering::Relaxed);
        self.retained.fetch_add(bytes.len(), Ordering::Relaxed);
        self.records.lock().insert(offset, bytes);
    }

    /// Makes durable all that was written before the call. After a failure that writing the same
    /// bytes again did not mend, the segment is of no more use: every further flush fails.
    fn flush(&self, store: &dyn Appendable) -> Result<(), StoreError> {
        let _flushing = self.flushing.lock();
        let written: Vec<u64> = self.records.lock().keys().copied().collect();
        if written.is_empty() {
            return Ok(());
        }
        if self.failed.load(Ordering::Acquire) {
            return Err(StoreError::Io(std::io::ErrorKind::Other.into()));
        }
        let name = self.writer.segment().name;
        if let Err(first) = store.sync(name) {
            tracing::warn!(error = %first, "a flush failed; writing the same bytes again");
            self.rewrite(store, &written)
                .and_then(|()| store.sync(name))
                .inspect_err(|_| self.failed.store(true, Ordering::Release))?;
        }
        let mut records = self.records.lock();
        for offset in written {
            if let Some(bytes) = records.remove(&offset) {
                self.unflushed.fetch_sub(bytes.len(), Ordering::Relaxed);
                self.retained.fetch_sub(bytes.len(), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn rewrite(&self, store: &dyn Appendable, written: &[u64]) -> Result<(), StoreError> {
        let name = self.writer.segment().name;
        for offset in written {
            let bytes = self.records.lock().get(offset).cloned().unwrap_or_default();
            store.write_at(name, *offset, &bytes)?;
        }
        Ok(())
    }
}

impl Drop for OpenSegment {
    fn drop(&mut self) {
        let left: usize = self.records.lock().values().map(Vec::len).sum();
        self.retained.fetch_sub(left, Ordering::Relaxed);
    }
}

impl Record {
    /// Whether it is durable.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.segment.records.lock().contains_key(&self.offset)
    }

    /// Makes it durable, with all that was written to its segment before.
    pub(crate) fn flush(&self, store: &dyn Appendable) -> Result<(), StoreError> {
        if self.is_flushed() {
            return Ok(());
        }
        self.segment.flush(store)
    }

    /// Whether it lies in the same segment as another.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment)
    }

    /// Sees to it that nothing more is written to its segment.
    pub(crate) fn abandon(&self, data: &DataWriter) {
        data.end(|id| id == self.segment.id());
    }

    /// Opens what is kept of it until it is durable: what `extent`, a part of it, covers.
    pub(crate) fn reopen(&self, extent: &Extent) -> Result<Vec<u8>, ReadError> {
        let records = self.segment.records.lock();
        let sealed = records.get(&self.offset).ok_or(ReadError::Tampered)?;
        let skipped = extent.offset.checked_sub(self.offset);
        let sealed = skipped
            .and_then(|skipped| sealed.get(usize::try_from(skipped).ok()?..))
            .ok_or(ReadError::Tampered)?;
        let mut out = vec![0; extent.live as usize];
        let segment = self.segment.writer.segment();
        segment.open(extent, 0, sealed, &mut out)?;
        Ok(out)
    }
}

impl Pin {
    fn new(pins: &Arc<Pins>, id: SegmentId) -> Self {
        *pins.0.lock().entry(id).or_default() += 1;
        Self {
            pins: Arc::clone(pins),
            id,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.id);
            }
        }
    }
}
