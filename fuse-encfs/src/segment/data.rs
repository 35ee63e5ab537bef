//! Core: writing the contents of files into data segments, and flushing them.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use runtime::sync::{Mutex, RwLock};

use super::writer::{Sealed, SegmentWriter, Slot};
use crate::crypto::{Entropy, SealError};
use crate::format::{Extent, SegmentId};
use crate::store::{Appendable, ObjectName, StoreError};

/// Sealed bytes that are kept until they are flushed, before who writes must flush them himself.
const RETAINED_MAX: usize = 16 << 20;

/// Where the contents of files go.
#[derive(Debug, Default)]
pub(crate) struct DataWriter {
    current: RwLock<Option<Arc<SegmentWriter>>>,
    /// Records that are written but not known to be durable, with the bytes as sealed: a flush
    /// that fails may have dropped them, and nothing else could write them again.
    retained: Mutex<Retained>,
    /// Held while a flush runs, so that who comes later knows its outcome.
    flushing: Mutex<()>,
    failed: AtomicBool,
    pins: Arc<Pins>,
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

#[derive(Debug, Default)]
struct Retained {
    records: Vec<Record>,
    bytes: usize,
}

#[derive(Debug)]
struct Record {
    name: ObjectName,
    offset: u64,
    bytes: Vec<u8>,
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

impl DataWriter {
    /// A slot in the current segment; `None` when there is no segment or it is full.
    pub(crate) fn reserve(&self, len: u32) -> Option<(Slot, Pin)> {
        // Pinned under the lock: once a segment is not current any more, its pins only go.
        let current = self.current.read();
        let writer = current.as_ref()?;
        let slot = writer.reserve_record(len)?;
        Some((slot, self.pin(writer.segment().id)))
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
    pub(crate) fn begin(&self, writer: SegmentWriter) {
        *self.current.write() = Some(Arc::new(writer));
    }

    /// Ends the current segment, so that it can be reclaimed once it is dead.
    pub(crate) fn end(&self) {
        *self.current.write() = None;
    }

    /// The current segment.
    pub(crate) fn current(&self) -> Option<SegmentId> {
        self.current
            .read()
            .as_ref()
            .map(|writer| writer.segment().id)
    }

    /// Seals `data` into `slot` and writes it; durable only after a flush.
    pub(crate) fn write(
        &self,
        store: &dyn Appendable,
        entropy: &Entropy,
        slot: Slot,
        data: &[u8],
    ) -> Result<Extent, WriteError> {
        let Sealed {
            segment,
            offset,
            bytes,
            pointer,
        } = slot.seal_record(entropy, data)?;
        if let Err(first) = store.write_at(segment.name, offset, &bytes) {
            tracing::warn!(error = %first, "a write to the store failed; trying it once more");
            // The same bytes at the same place, once: never others.
            store.write_at(segment.name, offset, &bytes).map_err(|e| {
                if !matches!(e, StoreError::Full) {
                    self.abandon(segment.id);
                }
                WriteError::Store(e)
            })?;
        }
        self.retain(Record {
            name: segment.name,
            offset,
            bytes,
        });
        Ok(pointer)
    }

    /// Whether so much is unflushed that who writes should flush.
    pub(crate) fn is_behind(&self) -> bool {
        self.retained.lock().bytes > RETAINED_MAX
    }

    /// Makes durable all that was written before the call. After a failure that writing the same
    /// bytes again did not mend, every further flush fails: what was to be durable is not.
    pub(crate) fn flush(&self, store: &dyn Appendable) -> Result<(), StoreError> {
        let _flushing = self.flushing.lock();
        let Retained { records, .. } = mem::take(&mut *self.retained.lock());
        if self.failed.load(Ordering::Acquire) {
            return Err(StoreError::Io(std::io::ErrorKind::Other.into()));
        }
        let mut names: Vec<ObjectName> = records.iter().map(|record| record.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            if let Err(first) = store.sync(name) {
                tracing::warn!(error = %first, "a flush failed; writing the same bytes again");
                let again = records.iter().filter(|record| record.name == name);
                let written = rewrite(store, again).and_then(|()| store.sync(name));
                if let Err(e) = written {
                    self.failed.store(true, Ordering::Release);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn abandon(&self, id: SegmentId) {
        let mut current = self.current.write();
        if current
            .as_ref()
            .is_some_and(|writer| writer.segment().id == id)
        {
            *current = None;
        }
    }

    fn retain(&self, record: Record) {
        let mut retained = self.retained.lock();
        retained.bytes += record.bytes.len();
        retained.records.push(record);
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

fn rewrite<'a>(
    store: &dyn Appendable,
    mut records: impl Iterator<Item = &'a Record>,
) -> Result<(), StoreError> {
    records.try_for_each(|record| store.write_at(record.name, record.offset, &record.bytes))
}
