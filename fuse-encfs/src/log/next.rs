//! Core: making the objects of log segments, before they are needed.
//!
//! A segment is written with zeros first: flushing a write into what is there already does not
//! make the storage change its own metadata, which costs more than the flush itself. A zero where
//! a frame could begin means that none was written.
//!
//! **Nothing leaks.** Who has a segment made ahead first commits a SegNew that names it, durably,
//! and then makes the object. After a crash the map knows the segment, no extent points into it
//! and no OPEN of the path names it: it is dead, and goes like any other dead segment, its object
//! being there or not. The only object that nobody knows is the first log segment of a mount that
//! died before its superblock was written.

use crate::crypto::VolumeKeys;
use crate::format::{SEGMENT_BEGIN, SegmentId, SegmentKind, SegmentRef};
use crate::segment::{MakeError, make_object};
use crate::store::{Appendable, ObjectName, StoreError};

/// Bytes of a log segment at most; the store is told so when it is made.
pub(super) const LOG_LEN_MAX: u64 = 64 << 20;
/// Bytes that the first log segment of a mount is made with: a mount waits for them.
pub(super) const FIRST_LEN: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };
/// Bytes of the second one, and of those after it. A test build has short segments, here and
/// elsewhere, so that every test meets their ends.
const SECOND_LEN: u64 = if cfg!(test) { 12 << 10 } else { 16 << 20 };
const FURTHER_LEN: u64 = if cfg!(test) { 16 << 10 } else { LOG_LEN_MAX };
/// Zeros that are written in one call, and bytes that are flushed together: few, because a
/// filesystem may let every other flush wait for them.
const PIECE: u64 = 1 << 20;
const FLUSH_EVERY: u64 = 4 << 20;

/// A log segment whose object is durable and in which nothing was sealed yet. Beginning it
/// consumes it.
#[derive(Debug)]
pub(crate) struct NextSegment {
    pub(super) id: SegmentId,
    pub(super) segment: SegmentRef,
    /// Bytes that hold zeros so far.
    pub(super) len: u64,
}

impl NextSegment {
    /// Makes the object of a segment that was drawn for the log, `len` bytes of zeros. Blocking,
    /// for as long as the store takes to write them; needs no lock of the log. It is shorter when
    /// the store is full before its end.
    pub(crate) fn make(
        store: &dyn Appendable,
        keys: &VolumeKeys,
        (id, segment): (SegmentId, SegmentRef),
        len: u64,
    ) -> Result<Self, MakeError> {
        let name = ObjectName::Segment(SegmentKind::Log, segment.uid);
        let len = len.min(LOG_LEN_MAX);
        make_object(store, keys, (SegmentKind::Log, id, segment), LOG_LEN_MAX)?;
        let zeros = vec![0; usize::try_from(PIECE.min(len)).unwrap_or(0)];
        let mut at = SEGMENT_BEGIN;
        let mut flushed = at;
        while at < len {
            let piece = usize::try_from(len - at).map_or(zeros.len(), |left| left.min(zeros.len()));
            let piece = zeros.get(..piece).unwrap_or(&zeros);
            match store.write_at(name, at, piece) {
                Err(StoreError::Full) if at >= FIRST_LEN => break,
                written => written?,
            }
            at += piece.len() as u64;
            if at - flushed >= FLUSH_EVERY {
                store.sync(name)?;
                flushed = at;
            }
        }
        store.sync(name)?;
        let len = len.min(at.max(SEGMENT_BEGIN));
        Ok(Self { id, segment, len })
    }
}

/// Bytes of the segment after one of `len`.
pub(super) fn len_after(len: u64) -> u64 {
    if len < SECOND_LEN {
        SECOND_LEN
    } else {
        FURTHER_LEN
    }
}
