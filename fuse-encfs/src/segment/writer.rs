//! Core: slots of a segment, each sealed once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Segment;
use crate::crypto::{Entropy, SealError, SegmentSealer};
use crate::format::{
    Extent, NodePointer, SALT_LEN, SEGMENT_BEGIN, SEGMENT_LEN_MAX, TAG_LEN, record_chunks,
    stored_len,
};

/// Gives out the offsets of one new segment.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    segment: Arc<Segment>,
    next: AtomicU64,
    end: u64,
}

/// An address that nothing was sealed at yet, and that only sealing consumes.
#[derive(Debug)]
pub(crate) struct Slot {
    segment: Arc<Segment>,
    offset: u64,
    len: usize,
}

/// Sealed bytes and where they belong.
#[derive(Debug)]
pub(crate) struct Sealed<P> {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// The authenticated pointer to them.
    pub(crate) pointer: P,
}

impl SegmentWriter {
    /// A writer of a segment that was just made, of `capacity` bytes.
    pub(crate) fn new(segment: Arc<Segment>, capacity: u64) -> Self {
        let end = capacity.min(SEGMENT_LEN_MAX);
        Self {
            segment,
            next: AtomicU64::new(SEGMENT_BEGIN),
            end,
        }
    }

    /// The segment.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Bytes that were given out, the header's included.
    pub(crate) fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// A slot for a record of `len` bytes of data; `None` when the segment is full.
    pub(crate) fn reserve_record(&self, len: u32) -> Option<Slot> {
        self.reserve(u64::from(stored_len(len)?), len as usize)
    }

    /// A slot for a node of `len` bytes; `None` when the segment is full.
    pub(crate) fn reserve_node(&self, len: usize) -> Option<Slot> {
        self.reserve((len + TAG_LEN) as u64, len)
    }

    fn reserve(&self, stored: u64, len: usize) -> Option<Slot> {
        // Units begin on 16 bytes: chunks and nodes are padded to 64 and a tag has 16.
        let stored = stored.next_multiple_of(16);
        let bump = |next: u64| next.checked_add(stored).filter(|after| *after <= self.end);
        let offset = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, bump)
            .ok()?;
        Some(Slot {
            segment: Arc::clone(&self.segment),
            offset,
            len,
        })
    }
}

impl Slot {
    /// Seals `data` as a record. The salt is drawn here, after the data is complete in memory
    /// that nobody else writes to.
    pub(crate) fn seal_record(
        self,
        entropy: &Entropy,
        data: &[u8],
    ) -> Result<Sealed<Extent>, SealError> {
        let salt: [u8; SALT_LEN] = entropy.draw()?;
        let len = u32::try_from(data.len())
            .ok()
            .filter(|len| *len as usize == self.len);
        let len = len.ok_or(SealError::Cipher)?;
        let extent = Extent::of_record(self.segment.id, self.offset, len, salt);
        let pointer = extent.ok_or(SealError::Cipher)?;
        let mut bytes = vec![0; stored_len(len).ok_or(SealError::Cipher)? as usize];

        seal_chunks(&self.segment.sealer, &pointer, data, &mut bytes)?;
        Ok(Sealed {
            segment: self.segment,
            offset: self.offset,
            bytes,
            pointer,
        })
    }

    /// Seals a node.
    pub(crate) fn seal_node(
        self,
        entropy: &Entropy,
        plaintext: &[u8],
    ) -> Result<Sealed<NodePointer>, SealError> {
        let salt: [u8; SALT_LEN] = entropy.draw()?;
        let len = u32::try_from(plaintext.len())
            .ok()
            .filter(|len| *len as usize == self.len);
        let len = len.ok_or(SealError::Cipher)?;
        let mut bytes = vec![0; plaintext.len() + TAG_LEN];
        self.segment
            .sealer
            .seal(self.offset, &salt, plaintext, &mut bytes)?;
        let pointer = NodePointer {
            segment: self.segment.id,
            offset: self.offset,
            len,
            salt,
        };
        Ok(Sealed {
            segment: self.segment,
            offset: self.offset,
            bytes,
            pointer,
        })
    }
}

/// Seals the chunks of a new record behind one another into `out`, the last one padded.
///
/// Only for who has the record's addresses for himself and gives them away by it: a slot, or a
/// plan of the log.
pub(crate) fn seal_chunks(
    sealer: &SegmentSealer,
    record: &Extent,
    data: &[u8],
    out: &mut [u8],
) -> Result<(), SealError> {
    let (mut data, mut out) = (data, out);
    let mut padded = [0; 1 << crate::format::CHUNK_SHIFT];
    for chunk in record_chunks(record.offset, record.sealed, record.shift) {
        let len = chunk.len as usize;
        let (unit, further) = out
            .split_at_mut_checked(len + TAG_LEN)
            .ok_or(SealError::Cipher)?;
        out = further;
        if let Some((plaintext, rest)) = data.split_at_checked(len) {
            sealer.seal(chunk.offset, &record.salt, plaintext, unit)?;
            data = rest;
        } else {
            let plaintext = padded.get_mut(..len).ok_or(SealError::Cipher)?;
            let filled = plaintext.get_mut(..data.len()).ok_or(SealError::Cipher)?;
            filled.copy_from_slice(data);
            sealer.seal(chunk.offset, &record.salt, plaintext, unit)?;
            data = &[];
        }
    }
    Ok(())
}
