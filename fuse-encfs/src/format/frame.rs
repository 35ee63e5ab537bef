//! Core: the clear head of a log frame.
//!
//! It is the only thing of a volume, besides the clear part of the superblock, that is parsed
//! before it is authenticated: it tells how much to read. It is then part of the commit's AAD.

use super::codec::{Malformed, Reader};
use super::{COMMIT_LEN_MAX, INLINE_LEN_MAX, TAG_LEN_U32};

const MAGIC: [u8; 8] = *b"encfs1fr";
const RESERVED: usize = 44;
/// Bytes that sealing a commit adds: a salt of 32 and a tag.
const SEALING: u32 = 32 + TAG_LEN_U32;
const HEAD_LEN: u32 = 64;

/// Bytes of the head.
pub(crate) const FRAME_HEAD_LEN: usize = HEAD_LEN as usize;

/// What a frame consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Bytes of the sealed commit, which follows the head.
    pub(crate) sealed_len: u32,
    /// Bytes of inline chunks, which follow the sealed commit.
    pub(crate) inline_len: u32,
    /// Bytes of the whole frame on the store, a multiple of the log's alignment.
    pub(crate) frame_len: u32,
}

impl FrameHead {
    /// The head of a frame with a sealed commit and inline chunks of these lengths; `None` when a
    /// bound is exceeded.
    pub(crate) fn new(sealed_len: u32, inline_len: u32, alignment: u16) -> Option<Self> {
        let body = HEAD_LEN.checked_add(sealed_len)?.checked_add(inline_len)?;
        let frame_len = body.checked_next_multiple_of(u32::from(alignment))?;
        let bounded = sealed_len.checked_sub(SEALING)? <= COMMIT_LEN_MAX;
        let head = Self {
            sealed_len,
            inline_len,
            frame_len,
        };
        (bounded && inline_len <= INLINE_LEN_MAX).then_some(head)
    }

    /// The encoded head.
    pub(crate) fn bytes(&self) -> [u8; FRAME_HEAD_LEN] {
        let mut out = [0; FRAME_HEAD_LEN];
        let fields = [self.sealed_len, self.inline_len, self.frame_len];
        let encoded = MAGIC
            .into_iter()
            .chain(fields.iter().flat_map(|f| f.to_le_bytes()));
        for (to, from) in out.iter_mut().zip(encoded) {
            *to = from;
        }
        out
    }

    /// Parses a head, whose numbers must fit each other.
    pub(crate) fn parse(bytes: &[u8; FRAME_HEAD_LEN], alignment: u16) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes, "frame head");
        let magic: [u8; 8] = r.array()?;
        let (sealed_len, inline_len, frame_len) = (r.u32()?, r.u32()?, r.u32()?);
        let reserved: [u8; RESERVED] = r.array()?;
        let head = Self::new(sealed_len, inline_len, alignment).ok_or_else(|| r.malformed())?;
        if magic == MAGIC && head.frame_len == frame_len && reserved == [0; RESERVED] {
            Ok(head)
        } else {
            Err(r.malformed())
        }
    }

    /// Where the inline chunks begin, from the frame's first byte.
    pub(crate) fn inline_begin(&self) -> u64 {
        (FRAME_HEAD_LEN as u64).saturating_add(u64::from(self.sealed_len))
    }
}

/// How long a commit of `len` bytes is padded, so that head and sealed commit together fill whole
/// alignment units: no byte of a frame without inline chunks is then outside of the AEAD.
pub(crate) fn padded_commit_len(len: u32, alignment: u16) -> Option<u32> {
    let around = HEAD_LEN.checked_add(SEALING)?;
    let whole = len
        .checked_add(around)?
        .checked_next_multiple_of(u32::from(alignment))?;
    whole.checked_sub(around)
}
