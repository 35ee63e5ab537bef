//! Core: a node of the tree, and the pointer to one.

use super::codec::{Malformed, Reader};
use super::{CHUNK_PAD, NODE_LEN_MAX, SALT_LEN, SEGMENT_BEGIN, SEGMENT_LEN_MAX, SegmentId};

const WHAT: &str = "node";
const HEADER_LEN: usize = 8;
const ENTRY_LEN: usize = 4;

/// The authenticated address of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodePointer {
    /// Segment, by the table of the CHECKPOINT.
    pub(crate) segment: SegmentId,
    /// First ciphertext byte.
    pub(crate) offset: u64,
    /// Plaintext bytes, padding included.
    pub(crate) len: u32,
    /// Salt of the node.
    pub(crate) salt: [u8; SALT_LEN],
}

/// Fills one node with entries in ascending order of their keys.
#[derive(Debug)]
pub(crate) struct NodeBuilder {
    level: u8,
    count: u16,
    body: Vec<u8>,
    first_key: Vec<u8>,
}

/// Entries of a node: keys and values.
pub(crate) type NodeEntries<'a> = Vec<(&'a [u8], &'a [u8])>;

impl NodePointer {
    /// Encoded bytes.
    pub(crate) const LEN: usize = 18;

    /// Appends the encoded pointer.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.segment.0.to_le_bytes());
        out.extend((self.offset >> 4).to_le_bytes().iter().take(4));
        out.extend((self.len >> 6).to_le_bytes().iter().take(2));
        out.extend(self.salt);
    }

    /// Parses an encoded pointer.
    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let pointer = Self {
            segment: SegmentId(r.u32()?),
            offset: u64::from(r.u32()?) << 4,
            len: u32::from(r.u16()?) << 6,
            salt: r.array()?,
        };
        let placed = (SEGMENT_BEGIN..SEGMENT_LEN_MAX).contains(&pointer.offset);
        let bounded = (1..=NODE_LEN_MAX).contains(&(pointer.len as usize));
        if placed && bounded {
            Ok(pointer)
        } else {
            Err(Malformed("node pointer"))
        }
    }
}

impl NodeBuilder {
    /// An empty node; level 0 is a leaf.
    pub(crate) fn new(level: u8) -> Self {
        Self {
            level,
            count: 0,
            body: Vec::new(),
            first_key: Vec::new(),
        }
    }

    /// Adds an entry and returns true, or returns false when it does not fit any more.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> bool {
        let entry = ENTRY_LEN
            .saturating_add(key.len())
            .saturating_add(value.len());
        let len = HEADER_LEN
            .saturating_add(self.body.len())
            .saturating_add(entry);
        let (Ok(key_len), Ok(value_len)) = (u16::try_from(key.len()), u16::try_from(value.len()))
        else {
            return false;
        };
        if len > NODE_LEN_MAX || self.count == u16::MAX {
            return false;
        }
        if self.count == 0 {
            self.first_key = key.to_vec();
        }
        self.body.extend(key_len.to_le_bytes());
        self.body.extend(value_len.to_le_bytes());
        self.body.extend(key);
        self.body.extend(value);
        self.count = self.count.saturating_add(1);
        true
    }

    /// Whether it has no entry.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first key and the node's plaintext, padded.
    pub(crate) fn finish(self) -> (Vec<u8>, Vec<u8>) {
        let mut out = Vec::with_capacity(NODE_LEN_MAX);
        out.extend([self.level, 0]);
        out.extend(self.count.to_le_bytes());
        out.extend(
            u32::try_from(self.body.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        out.extend(&self.body);
        out.resize(out.len().next_multiple_of(CHUNK_PAD as usize), 0);
        (self.first_key, out)
    }
}

/// Parses a node's plaintext, whose level must be `level`.
pub(crate) fn parse_node(bytes: &[u8], level: u8) -> Result<NodeEntries<'_>, Malformed> {
    let mut r = Reader::new(bytes, WHAT);
    let (got_level, zero, count) = (r.u8()?, r.u8()?, r.u16()?);
    let body_len = usize::try_from(r.u32()?).map_err(|_| Malformed(WHAT))?;
    let mut body = Reader::new(r.bytes(body_len)?, WHAT);
    r.end_padded()?;
    if got_level != level || zero != 0 {
        return Err(Malformed(WHAT));
    }
    let mut entries = NodeEntries::new();
    for _ in 0..count {
        let (key_len, value_len) = (body.u16()?, body.u16()?);
        let key = body.bytes(usize::from(key_len))?;
        let value = body.bytes(usize::from(value_len))?;
        if entries.last().is_some_and(|(before, _)| *before >= key) {
            return Err(Malformed(WHAT));
        }
        entries.push((key, value));
    }
    body.end()?;
    Ok(entries)
}
