//! Core: where a range of a file lies in a segment.

use super::codec::{Malformed, Reader};
use super::{
    CHUNK_PAD, CHUNK_SHIFT, SALT_LEN, SEGMENT_BEGIN, SEGMENT_LEN_MAX, SegmentId, TAG_LEN,
    TAG_LEN_U32,
};

const WHAT: &str = "extent";
const SHIFT_MAX: u8 = 16;
const U24_MAX: u32 = (1 << 24) - 1;

/// A run of bytes inside one record. The logical start is the key it is stored under.
///
/// Its first byte is byte `head` of the chunk at `offset`; from that chunk on the record has
/// `sealed` bytes of plaintext, padding included. Cutting an extent changes `live` at its end and
/// skips whole chunks at its front; `sealed` names the lengths that were sealed and never changes
/// otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Segment of the record.
    pub(crate) segment: SegmentId,
    /// First ciphertext byte of the first covered chunk.
    pub(crate) offset: u64,
    /// Bytes of the file that it covers.
    pub(crate) live: u32,
    /// Where in the first chunk it begins.
    pub(crate) head: u16,
    /// Sealed plaintext bytes from the first covered chunk to the record's end.
    pub(crate) sealed: u32,
    /// Chunks of the record have `1 << shift` bytes.
    pub(crate) shift: u8,
    /// Salt of the record.
    pub(crate) salt: [u8; SALT_LEN],
}

/// What the map has for a range of a file. A range that it has nothing for is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// Bytes of a record.
    Data(Extent),
    /// So many bytes that read as zeros, and for which space was promised.
    Unwritten(u64),
}

/// One chunk of a record, and which part of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkAt {
    /// First ciphertext byte, in the segment.
    pub(crate) offset: u64,
    /// Plaintext bytes that were sealed, padding included.
    pub(crate) len: u32,
}

impl ChunkAt {
    /// Bytes that it takes in the segment.
    pub(crate) fn stored(self) -> u64 {
        u64::from(self.len).saturating_add(TAG_LEN as u64)
    }
}

/// Plaintext bytes of a record of `len` bytes of data, padding included.
pub(crate) fn padded_len(len: u32) -> Option<u32> {
    len.checked_next_multiple_of(CHUNK_PAD)
}

/// Bytes that a record of `len` bytes of data takes in its segment.
pub(crate) fn stored_len(len: u32) -> Option<u32> {
    let padded = padded_len(len)?;
    let chunks = padded.checked_add((1 << CHUNK_SHIFT) - 1)? >> CHUNK_SHIFT;
    padded.checked_add(chunks.checked_mul(TAG_LEN_U32)?)
}

/// The chunks of a record of `sealed` bytes whose first begins at `offset`.
pub(crate) fn record_chunks(
    offset: u64,
    sealed: u32,
    shift: u8,
) -> impl Iterator<Item = ChunkAt> + Clone {
    (0..sealed.div_ceil(chunk_len(shift))).map(move |i| chunk_at(offset, sealed, shift, i))
}

fn chunk_len(shift: u8) -> u32 {
    1_u32.checked_shl(u32::from(shift)).unwrap_or(u32::MAX)
}

fn chunk_at(offset: u64, sealed: u32, shift: u8, i: u32) -> ChunkAt {
    let chunk = chunk_len(shift);
    let stride = u64::from(chunk).saturating_add(TAG_LEN as u64);
    ChunkAt {
        offset: offset.saturating_add(u64::from(i).saturating_mul(stride)),
        len: sealed.saturating_sub(i.saturating_mul(chunk)).min(chunk),
    }
}

impl Mapped {
    /// Bytes of the file that it covers.
    pub(crate) fn live(&self) -> u64 {
        match self {
            Self::Data(extent) => u64::from(extent.live),
            Self::Unwritten(len) => *len,
        }
    }

    /// What is left when the first `n` bytes are cut off; `None` when that is nothing.
    #[must_use]
    pub(crate) fn skip(self, n: u64) -> Option<Self> {
        match self {
            Self::Data(extent) => extent.skip(u32::try_from(n).ok()?).map(Self::Data),
            Self::Unwritten(len) => len
                .checked_sub(n)
                .filter(|left| *left > 0)
                .map(Self::Unwritten),
        }
    }

    /// What is left when only the first `n` bytes are kept; `None` when that is nothing.
    #[must_use]
    pub(crate) fn keep(self, n: u64) -> Option<Self> {
        match self {
            Self::Data(extent) => extent
                .keep(u32::try_from(n).unwrap_or(u32::MAX))
                .map(Self::Data),
            Self::Unwritten(len) => Some(len.min(n))
                .filter(|left| *left > 0)
                .map(Self::Unwritten),
        }
    }

    /// Appends the encoded value: an extent, or a length in eight bytes.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(extent) => extent.put(out),
            Self::Unwritten(len) => out.extend(len.to_le_bytes()),
        }
    }

    /// Parses a value of the map.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(value, WHAT);
        let mapped = if value.len() == 8 {
            let len = r.u64()?;
            if len == 0 {
                return Err(r.malformed());
            }
            Self::Unwritten(len)
        } else {
            Self::Data(Extent::parse(&mut r)?)
        };
        r.end()?;
        Ok(mapped)
    }
}

impl Extent {
    /// Encoded bytes.
    pub(crate) const LEN: usize = 26;

    /// The extent of a whole new record; `None` when a bound is exceeded.
    pub(crate) fn of_record(
        segment: SegmentId,
        offset: u64,
        len: u32,
        salt: [u8; SALT_LEN],
    ) -> Option<Self> {
        let sealed = padded_len(len).filter(|sealed| *sealed <= U24_MAX)?;
        Some(Self {
            segment,
            offset,
            live: len,
            head: 0,
            sealed,
            shift: CHUNK_SHIFT,
            salt,
        })
    }

    /// The chunks that hold bytes `from..to` of this extent, and how far into the first of them
    /// the range begins.
    pub(crate) fn chunks(
        &self,
        from: u32,
        to: u32,
    ) -> (impl Iterator<Item = ChunkAt> + Clone, u32) {
        let begin = from.saturating_add(u32::from(self.head));
        let end = to.saturating_add(u32::from(self.head));
        let chunk = chunk_len(self.shift);
        let first = begin.checked_div(chunk).unwrap_or(0);
        let Self {
            offset,
            sealed,
            shift,
            ..
        } = *self;
        let chunks = (first..end.div_ceil(chunk)).map(move |i| chunk_at(offset, sealed, shift, i));
        (chunks, begin.saturating_sub(first.saturating_mul(chunk)))
    }

    /// What is left when the first `n` bytes are cut off; `None` when that is nothing.
    #[must_use]
    pub(crate) fn skip(self, n: u32) -> Option<Self> {
        let live = self.live.checked_sub(n).filter(|live| *live > 0)?;
        let begin = u32::from(self.head).checked_add(n)?;
        let chunk = chunk_len(self.shift);
        let chunks = begin.checked_div(chunk)?;
        let skipped = chunks.checked_mul(chunk)?;
        let stride = u64::from(chunk).checked_add(TAG_LEN as u64)?;
        Some(Self {
            offset: self
                .offset
                .checked_add(u64::from(chunks).checked_mul(stride)?)?,
            live,
            head: u16::try_from(begin.checked_sub(skipped)?).ok()?,
            sealed: self.sealed.checked_sub(skipped)?,
            ..self
        })
    }

    /// What is left when only the first `n` bytes are kept; `None` when that is nothing.
    #[must_use]
    pub(crate) fn keep(self, n: u32) -> Option<Self> {
        let live = self.live.min(n);
        (live > 0).then_some(Self { live, ..self })
    }

    /// This and `next` as one, when they are neighbours in one record.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let live = self.live.checked_add(next.live)?;
        let whole = Self { live, ..*self };
        let fits = whole.is_sound() && whole.skip(self.live).as_ref() == Some(next);
        fits.then_some(whole)
    }

    /// Appends the encoded extent.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.segment.0.to_le_bytes());
        out.extend(self.offset.to_le_bytes().iter().take(5));
        out.extend(self.live.to_le_bytes().iter().take(3));
        out.extend(self.head.to_le_bytes());
        out.extend(self.sealed.to_le_bytes().iter().take(3));
        out.push(self.shift);
        out.extend(self.salt);
    }

    /// Parses an encoded extent and checks that its numbers fit each other.
    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let extent = Self {
            segment: SegmentId(r.u32()?),
            offset: r.u40()?,
            live: r.u24()?,
            head: r.u16()?,
            sealed: r.u24()?,
            shift: r.u8()?,
            salt: r.array()?,
        };
        if extent.is_sound() {
            Ok(extent)
        } else {
            Err(Malformed(WHAT))
        }
    }

    fn is_sound(&self) -> bool {
        let covered = u32::from(self.head).saturating_add(self.live);
        (CHUNK_SHIFT..=SHIFT_MAX).contains(&self.shift)
            && self.live > 0
            && u32::from(self.head) < chunk_len(self.shift)
            && covered <= self.sealed
            && self.sealed.is_multiple_of(CHUNK_PAD)
            && self.offset.is_multiple_of(16)
            && self.offset >= SEGMENT_BEGIN
            && self.end().is_some_and(|end| end <= SEGMENT_LEN_MAX)
    }

    /// The segment offset behind the record's last byte.
    pub(crate) fn end(&self) -> Option<u64> {
        let tags = u64::from(self.sealed.div_ceil(chunk_len(self.shift)));
        let stored = u64::from(self.sealed).checked_add(tags.checked_mul(TAG_LEN as u64)?)?;
        self.offset.checked_add(stored)
    }
}
