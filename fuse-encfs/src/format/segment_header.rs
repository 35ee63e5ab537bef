//! Core: what stands in front of a segment's units, for tools that look at a store.
//!
//! A mount never reads it: what a segment is says the pointer to it. It fills the segment up to its
//! first unit, and no byte of it is unauthenticated.

use keys::VolumeId;

use super::codec::{Malformed, Reader};
use super::op::SegmentRef;
use super::{FORMAT_VERSION, SEGMENT_BEGIN, SegmentId, SegmentKind, TAG_LEN};

const MAGIC: [u8; 8] = *b"encfs1sg";
const CLEAR_LEN: usize = 8 + 4 + 4 + 16 + SegmentRef::LEN + 4 + 8;
/// Bytes of a header.
pub(crate) const SEGMENT_HEADER_LEN: usize = 4096;
const BODY_LEN: usize = SEGMENT_HEADER_LEN - CLEAR_LEN - 32 - TAG_LEN;

/// The clear part, which is the AAD of the sealed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Whose segment it is.
    pub(crate) volume: VolumeId,
    /// What its units are.
    pub(crate) kind: SegmentKind,
    /// Its name, and the VMK epoch that its keys are derived from.
    pub(crate) segment: SegmentRef,
    /// Its number in the map.
    pub(crate) id: SegmentId,
}

/// The sealed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentBirth {
    /// When the segment was made: seconds since 1970 by the clock of the guest.
    pub(crate) created: i64,
}

impl SegmentHeader {
    /// The encoded clear part.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_LEN);
        out.extend(MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([self.kind.code(), 0, 0, 0]);
        out.extend(self.volume.0);
        self.segment.put(&mut out);
        out.extend(self.id.0.to_le_bytes());
        out.extend([0; 8]);
        out
    }

    /// Splits a header and parses its clear part. Gives the clear part's bytes, which are the AAD,
    /// and the sealed body too.
    pub(crate) fn parse(header: &[u8]) -> Result<(Self, &[u8], &[u8]), Malformed> {
        let mut whole = Reader::new(header, "segment header");
        let clear = whole.bytes(CLEAR_LEN)?;
        let sealed = whole.bytes(BODY_LEN.saturating_add(32 + TAG_LEN))?;
        whole.end()?;
        let mut r = Reader::new(clear, "segment header");
        let known = r.array()? == MAGIC && r.u32()? == FORMAT_VERSION;
        let [kind, zeros @ ..] = r.array::<4>()?;
        let kind = SegmentKind::from_code(kind).filter(|_| known && zeros == [0; 3]);
        let kind = kind.ok_or_else(|| r.malformed())?;
        let parsed = Self {
            kind,
            volume: VolumeId(r.array()?),
            segment: SegmentRef::parse(&mut r)?,
            id: SegmentId(r.u32()?),
        };
        r.end_padded()?;
        Ok((parsed, clear, sealed))
    }
}

impl SegmentBirth {
    /// The encoded body.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BODY_LEN);
        out.extend(self.created.to_le_bytes());
        out.resize(BODY_LEN, 0);
        out
    }

    /// Parses an opened body.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes, "segment header");
        let created = i64::from_le_bytes(r.array()?);
        r.end_padded()?;
        Ok(Self { created })
    }
}

const _: () = assert!(CLEAR_LEN == 64 && SEGMENT_HEADER_LEN as u64 == SEGMENT_BEGIN);
