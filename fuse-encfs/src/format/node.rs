//! Core: a node of the tree, and the pointer to one.

use super::codec::{Malformed, Reader};
use super::{CHUNK_PAD, NODE_LEN_MAX, SALT_LEN, SEGMENT_BEGIN, SEGMENT_LEN_MAX, SegmentId};

const WHAT: &str = "node";
/// Bytes before the entries of a node.
pub(crate) const NODE_HEADER_LEN: usize = 8;
/// Bytes before the key of an entry.
pub(crate) const NODE_ENTRY_LEN: usize = 4;
const HEADER_LEN: usize = NODE_HEADER_LEN;
const ENTRY_LEN: usize = NODE_ENTRY_LEN;

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
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct NodeBuilder {
    level: u8,
    count: u16,
    body: Vec<u8>,
    first_key: Vec<u8>,
}

/// Entries of a node: keys and values.
#[cfg(any(test, fuzzing))]
pub(crate) type NodeEntries<'a> = Vec<(&'a [u8], &'a [u8])>;

/// The entries of a node as they lie in its plaintext, one behind the other.
#[derive(Debug)]
pub(crate) struct NodeBody<'a> {
    /// Where each entry begins in `bytes`.
    pub(crate) begins: Vec<u16>,
    /// All entries: length of the key, length of the value, key, value.
    pub(crate) bytes: &'a [u8],
}

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

#[cfg(test)]
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

    /// The first key and the node's plaintext, padded.
    pub(crate) fn finish(self) -> (Vec<u8>, Vec<u8>) {
        let out = encode_node(self.level, self.count, &self.body);
        (self.first_key, out)
    }
}

/// The plaintext of a node of `count` entries, padded.
pub(crate) fn encode_node(level: u8, count: u16, body: &[u8]) -> Vec<u8> {
    let len = HEADER_LEN.saturating_add(body.len());
    let mut out = Vec::with_capacity(len.next_multiple_of(CHUNK_PAD as usize));
    out.extend([level, 0]);
    out.extend(count.to_le_bytes());
    out.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(body);
    out.resize(len.next_multiple_of(CHUNK_PAD as usize), 0);
    out
}

/// Parses a node's plaintext, whose level must be `level`, up to its entries, whose keys ascend.
pub(crate) fn parse_node_body(bytes: &[u8], level: u8) -> Result<NodeBody<'_>, Malformed> {
    if bytes.len() > NODE_LEN_MAX {
        return Err(Malformed(WHAT));
    }
    let mut r = Reader::new(bytes, WHAT);
    let (got_level, zero, count) = (r.u8()?, r.u8()?, r.u16()?);
    let body_len = usize::try_from(r.u32()?).map_err(|_| Malformed(WHAT))?;
    let body_bytes = r.bytes(body_len)?;
    r.end_padded()?;
    if got_level != level || zero != 0 || usize::from(count) > body_len / ENTRY_LEN {
        return Err(Malformed(WHAT));
    }
    let mut body = Reader::new(body_bytes, WHAT);
    let mut begins = Vec::with_capacity(usize::from(count));
    let (mut begin, mut before) = (0_usize, None);
    for _ in 0..count {
        let (key_len, value_len) = (usize::from(body.u16()?), usize::from(body.u16()?));
        let key = body.bytes(key_len)?;
        body.bytes(value_len)?;
        if before.is_some_and(|before| before >= key) {
            return Err(Malformed(WHAT));
        }
        before = Some(key);
        begins.push(u16::try_from(begin).map_err(|_| Malformed(WHAT))?);
        let entry = ENTRY_LEN.saturating_add(key_len).saturating_add(value_len);
        begin = begin.saturating_add(entry);
    }
    body.end()?;
    Ok(NodeBody {
        begins,
        bytes: body_bytes,
    })
}

/// Parses a node's plaintext, whose level must be `level`.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_node(bytes: &[u8], level: u8) -> Result<NodeEntries<'_>, Malformed> {
    let parsed = parse_node_body(bytes, level)?;
    let mut body = Reader::new(parsed.bytes, WHAT);
    let mut entries = NodeEntries::with_capacity(parsed.begins.len());
    for _ in &parsed.begins {
        let (key_len, value_len) = (body.u16()?, body.u16()?);
        let key = body.bytes(usize::from(key_len))?;
        entries.push((key, body.bytes(usize::from(value_len))?));
    }
    Ok(entries)
}
