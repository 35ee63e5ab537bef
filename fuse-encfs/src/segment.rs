//! Core: segments, and the units in them.
//!
//! **Invariants.** An address, a segment and an offset in it, names one ciphertext for ever:
//! [`SegmentWriter`] gives out each offset once, as a [`Slot`], and sealing consumes the slot. A
//! slot that is dropped unsealed is a gap for ever. No segment of an earlier mount is written on.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::sync::RwLock;

use crate::crypto::{NotAuthentic, SealError, SegmentSealer, VolumeKeys};
use crate::format::{
    Extent, NodePointer, SegmentBirth, SegmentHeader, SegmentId, SegmentKind, SegmentRef, TAG_LEN,
};
use crate::store::{Appendable, ObjectName, Store, StoreError};
use crate::sys;
use crate::tables::SegmentEntry;

mod data;
mod writer;

pub(crate) use data::{CLEANER_LANE, DataWriter, Pin, Record, Reserved, WriteError, lane};
pub(crate) use writer::{SegmentWriter, Slot, seal_chunks};

/// Segments whose keys are kept prepared.
const CACHED_MAX: usize = 4096;

/// A segment whose units can be opened.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) name: ObjectName,
    sealer: SegmentSealer,
}

/// Why a unit cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The store does not hold what was sealed there: altered, cut off or missing.
    #[error("a unit is not what was sealed")]
    Tampered,
    /// The store failed.
    #[error("a unit cannot be read from the store")]
    Store(#[source] StoreError),
}

/// Why the object of a segment was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    /// Sealing its header failed.
    #[error("the header of a segment cannot be sealed")]
    Seal(#[from] SealError),
    /// The store failed.
    #[error("a segment cannot be made in the store")]
    Store(#[from] StoreError),
}

/// Prepared segments by number.
#[derive(Debug, Default)]
pub(crate) struct SegmentCache {
    open: RwLock<BTreeMap<SegmentId, Arc<Segment>>>,
}

impl Segment {
    /// Derives the segment's key.
    pub(crate) fn new(keys: &VolumeKeys, id: SegmentId, entry: SegmentEntry) -> Self {
        let name = ObjectName::Segment(entry.kind, entry.segment.uid);
        Self {
            id,
            name,
            sealer: keys.segment(entry.kind, entry.segment),
        }
    }

    /// Reads bytes `from..to` of `extent` into `out`, which has room for just them. Whole chunks
    /// are opened straight into it. `scratch` is overwritten.
    pub(crate) fn read(
        &self,
        store: &dyn Store,
        extent: &Extent,
        from: u32,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let to = u32::try_from(out.len())
            .ok()
            .and_then(|len| from.checked_add(len));
        let to = to
            .filter(|to| *to <= extent.live)
            .ok_or(ReadError::Tampered)?;
        let (chunks, _) = extent.chunks(from, to);
        let Some(first) = chunks.clone().next() else {
            return Ok(());
        };
        let stored: u64 = chunks.map(|chunk| chunk.stored()).sum();
        let sealed = fetch(store, self.name, first.offset, stored, scratch)?;
        self.open(extent, from, sealed, out)
    }

    /// Opens bytes of `extent` from `from` on into `out`, out of the chunks that hold them.
    pub(crate) fn open(
        &self,
        extent: &Extent,
        from: u32,
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let to = u32::try_from(out.len())
            .ok()
            .and_then(|len| from.checked_add(len));
        let (chunks, mut skip) = extent.chunks(from, to.ok_or(ReadError::Tampered)?);
        let (mut sealed, mut out) = (sealed, out);
        let mut partial = [0; 1 << crate::format::CHUNK_SHIFT];
        for chunk in chunks {
            let len = chunk.len as usize;
            let (unit, rest) = sealed
                .split_at_checked(len + TAG_LEN)
                .ok_or(ReadError::Tampered)?;
            sealed = rest;
            let wanted = len.saturating_sub(skip as usize).min(out.len());
            let (here, further) = out.split_at_mut(wanted);
            out = further;
            if skip == 0 && wanted == len {
                self.sealer.open(chunk.offset, &extent.salt, unit, here)?;
            } else {
                let mut large = Vec::new();
                let opened = match partial.get_mut(..len) {
                    Some(opened) => opened,
                    None => {
                        large.resize(len, 0);
                        &mut large
                    }
                };
                self.sealer.open(chunk.offset, &extent.salt, unit, opened)?;
                let begin = skip as usize;
                let part = opened
                    .get(begin..begin + wanted)
                    .ok_or(ReadError::Tampered)?;
                here.copy_from_slice(part);
            }
            skip = 0;
        }
        Ok(())
    }

    /// Reads a node.
    pub(crate) fn read_node(
        &self,
        store: &dyn Store,
        pointer: &NodePointer,
    ) -> Result<Vec<u8>, ReadError> {
        let mut scratch = Vec::new();
        let stored = u64::from(pointer.len) + TAG_LEN as u64;
        let sealed = fetch(store, self.name, pointer.offset, stored, &mut scratch)?;
        let mut plaintext = vec![0; pointer.len as usize];
        self.sealer
            .open(pointer.offset, &pointer.salt, sealed, &mut plaintext)?;
        Ok(plaintext)
    }
}

impl SegmentCache {
    /// The segment of an entry of the map, prepared.
    pub(crate) fn get(
        &self,
        keys: &VolumeKeys,
        id: SegmentId,
        entry: SegmentEntry,
    ) -> Arc<Segment> {
        if let Some(segment) = self.open.read().get(&id) {
            return Arc::clone(segment);
        }
        let segment = Arc::new(Segment::new(keys, id, entry));
        let mut open = self.open.write();
        if open.len() >= CACHED_MAX {
            open.clear();
        }
        Arc::clone(open.entry(id).or_insert(segment))
    }

    /// Forgets a segment that was deleted.
    pub(crate) fn remove(&self, id: SegmentId) {
        self.open.write().remove(&id);
    }
}

/// Makes the object of a segment, with a header that tells tools what it is.
pub(crate) fn make_object(
    store: &dyn Appendable,
    keys: &VolumeKeys,
    (kind, id, segment): (SegmentKind, SegmentId, SegmentRef),
    expected_len: u64,
) -> Result<(), MakeError> {
    let name = ObjectName::Segment(kind, segment.uid);
    let header = SegmentHeader {
        volume: keys.volume(),
        kind,
        segment,
        id,
    };
    let (created, _) = sys::time_of_day();
    let header = keys.seal_header(&header, SegmentBirth { created })?;
    store.create(name, expected_len)?;
    Ok(store.write_at(name, 0, &header)?)
}

impl From<NotAuthentic> for ReadError {
    fn from(NotAuthentic: NotAuthentic) -> Self {
        Self::Tampered
    }
}

impl From<StoreError> for ReadError {
    /// An object that an authenticated pointer names and that is gone or cut short was tampered
    /// with: the filesystem deletes nothing that is still pointed to.
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Absent | StoreError::NotAnObject => Self::Tampered,
            StoreError::Busy
            | StoreError::Changed
            | StoreError::Exists
            | StoreError::Full
            | StoreError::Io(_)
            | StoreError::LeaseLost
            | StoreError::Malformed(_)
            | StoreError::NotEmpty
            | StoreError::TooSmall => Self::Store(e),
        }
    }
}

fn fetch<'a>(
    store: &dyn Store,
    name: ObjectName,
    offset: u64,
    len: u64,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], ReadError> {
    let len = usize::try_from(len).map_err(|_| ReadError::Tampered)?;
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    let buffer = scratch.get_mut(..len).ok_or(ReadError::Tampered)?;
    if store.get(name, offset, buffer)? < len {
        return Err(ReadError::Tampered);
    }
    Ok(buffer)
}
