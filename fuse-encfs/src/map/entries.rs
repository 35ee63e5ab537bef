//! Core: the entries of a node, kept as the bytes that are sealed.

use crate::format::{
    Malformed, NODE_ENTRY_LEN, NODE_HEADER_LEN, NodePointer, encode_node, parse_node_body,
};

/// Bytes that a change makes room for beyond what it needs.
const SLACK_LEN: usize = 1024;

/// Keys and values in ascending order of the keys.
///
/// INVARIANT: `begins` are the beginnings of the entries in `body`, which follow one another
/// without a gap; the parser and the methods here see to it, so that no index is out of bounds.
#[derive(Debug, Default)]
pub(super) struct Entries {
    body: Vec<u8>,
    begins: Vec<u16>,
}

impl Entries {
    /// Parses the plaintext of a node.
    pub(super) fn parse(plaintext: &[u8], level: u8) -> Result<Self, Malformed> {
        let parsed = parse_node_body(plaintext, level)?;
        Ok(Self {
            body: parsed.bytes.to_vec(),
            begins: parsed.begins,
        })
    }

    /// The plaintext of a node with these entries.
    pub(super) fn encode(&self, level: u8) -> Vec<u8> {
        encode_node(level, u16_of(self.count()), &self.body)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.begins.len()
    }

    /// Bytes of a node with these entries, without padding.
    pub(super) fn node_len(&self) -> usize {
        NODE_HEADER_LEN + self.body.len()
    }

    /// Bytes of memory.
    pub(super) fn memory_len(&self) -> usize {
        self.body.capacity() + 2 * self.begins.capacity()
    }

    /// The key of entry `i`.
    pub(super) fn key(&self, i: usize) -> &[u8] {
        self.key_at(self.begins[i])
    }

    /// The value of entry `i`.
    pub(super) fn value(&self, i: usize) -> &[u8] {
        let (begin, end) = self.value_range(i);
        &self.body[begin..end]
    }

    /// The first key and the last.
    pub(super) fn ends(&self) -> Option<(&[u8], &[u8])> {
        Some((
            self.key_at(*self.begins.first()?),
            self.key_at(*self.begins.last()?),
        ))
    }

    /// Where `key` is, or where it would be.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.begins
            .binary_search_by(|begin| self.key_at(*begin).cmp(key))
    }

    /// Adds an entry in front of entry `i`.
    pub(super) fn insert(&mut self, i: usize, key: &[u8], value: &[u8]) {
        let begin = self.begin(i);
        self.begins.insert(i, u16_of(begin));
        self.resize(i, begin, (0, NODE_ENTRY_LEN + key.len() + value.len()));
        let lens = [u16_of(key.len()), u16_of(value.len())].map(u16::to_le_bytes);
        self.fill(begin, &[lens.as_flattened(), key, value]);
    }

    /// Replaces the value of entry `i`.
    pub(super) fn set_value(&mut self, i: usize, value: &[u8]) {
        let (begin, end) = self.value_range(i);
        self.resize(i, begin, (end - begin, value.len()));
        let at = usize::from(self.begins[i]) + 2;
        self.fill(at, &[&u16_of(value.len()).to_le_bytes()]);
        self.fill(begin, &[value]);
    }

    /// Replaces the key of entry `i`, which must not change the order.
    pub(super) fn set_key(&mut self, i: usize, key: &[u8]) {
        let at = usize::from(self.begins[i]);
        let len = self.key(i).len();
        self.resize(i, at + NODE_ENTRY_LEN, (len, key.len()));
        self.fill(at, &[&u16_of(key.len()).to_le_bytes()]);
        self.fill(at + NODE_ENTRY_LEN, &[key]);
    }

    /// Removes entry `i`.
    pub(super) fn remove(&mut self, i: usize) {
        let (begin, end) = (self.begin(i), self.begin(i + 1));
        self.resize(i, begin, (end - begin, 0));
        self.begins.remove(i);
    }

    /// Takes the entries from `i` on away.
    pub(super) fn split_off(&mut self, i: usize) -> Self {
        let begin = self.begin(i);
        let body = self.body.split_off(begin);
        let shifted = |at: &u16| u16_of(usize::from(*at) - begin);
        let begins = self.begins[i..].iter().map(shifted).collect();
        self.begins.truncate(i);
        Self { body, begins }
    }

    /// Adds the entries of `after`, whose keys are greater.
    pub(super) fn append(&mut self, after: &Self) {
        let len = self.body.len();
        let shifted = |at: &u16| u16_of(usize::from(*at) + len);
        self.begins.extend(after.begins.iter().map(shifted));
        self.body.extend(&after.body);
    }

    /// Where to split in two of about the same length: the first entry of the second part.
    pub(super) fn middle(&self) -> usize {
        let half = self.body.len() / 2;
        let first = self
            .begins
            .partition_point(|begin| usize::from(*begin) < half);
        first.clamp(1, self.count().max(2) - 1)
    }

    /// Bytes of the entries in front of entry `i`.
    pub(super) fn len_before(&self, i: usize) -> usize {
        self.begin(i)
    }

    fn begin(&self, i: usize) -> usize {
        self.begins
            .get(i)
            .map_or(self.body.len(), |begin| usize::from(*begin))
    }

    fn key_at(&self, begin: u16) -> &[u8] {
        let begin = usize::from(begin);
        let len = usize::from(u16::from_le_bytes([self.body[begin], self.body[begin + 1]]));
        &self.body[begin + NODE_ENTRY_LEN..begin + NODE_ENTRY_LEN + len]
    }

    fn value_range(&self, i: usize) -> (usize, usize) {
        let begin = usize::from(self.begins[i]) + NODE_ENTRY_LEN + self.key(i).len();
        (begin, self.begin(i + 1))
    }

    /// Makes `lens.0` bytes at `at`, which belong to entry `i`, to `lens.1`.
    fn resize(&mut self, i: usize, at: usize, lens: (usize, usize)) {
        let (old, new) = lens;
        let end = self.body.len();
        if new > old {
            let more = new - old;
            if self.body.capacity() - end < more {
                self.body.reserve_exact(more + SLACK_LEN);
            }
            self.body.resize(end + more, 0);
        }
        self.body.copy_within(at + old..end, at + new);
        self.body.truncate(end + new - old);
        for begin in &mut self.begins[i + 1..] {
            *begin = u16_of(usize::from(*begin) + new - old);
        }
    }

    fn fill(&mut self, at: usize, parts: &[&[u8]]) {
        let mut at = at;
        for part in parts {
            self.body[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }
}

impl Clone for Entries {
    /// A copy is made in order to be changed, so it gets some room.
    fn clone(&self) -> Self {
        let mut body = Vec::with_capacity(self.body.len() + SLACK_LEN);
        body.extend_from_slice(&self.body);
        let mut begins = Vec::with_capacity(self.begins.len() + 8);
        begins.extend_from_slice(&self.begins);
        Self { body, begins }
    }
}

/// Bytes of an encoded pointer whose node has no address yet.
pub(super) const NO_POINTER: [u8; NodePointer::LEN] = [0; NodePointer::LEN];

/// A node has at most 16 KiB, and an item more than that before it is split.
fn u16_of(n: usize) -> u16 {
    debug_assert!(
        n <= usize::from(u16::MAX),
        "a node is longer than it may be"
    );
    u16::try_from(n).unwrap_or(u16::MAX)
}
