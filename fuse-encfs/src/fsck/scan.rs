//! Core: reading a map around what cannot be read of it.

use std::ops::{ControlFlow, Range};

use super::audit::Read;
use crate::format::{Extent, Ino, NodePointer, SegmentId, TAG_LEN};
use crate::schema;
use crate::segment::ReadError;
use crate::tables::Tables;

/// Is shown an item. It says to end early.
type See<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A node that cannot be read, and the keys that are lost with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) pointer: NodePointer,
    /// 0 is a leaf.
    pub(crate) level: u8,
    /// The smallest key that can have been behind it.
    pub(crate) from: Vec<u8>,
    /// The smallest key greater than all that can have been behind it.
    pub(crate) to: Option<Vec<u8>>,
    /// Whether the store failed to answer: it may answer again.
    pub(crate) is_unanswered: bool,
}

/// What was seen of a tree's nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// In the order of their keys.
    pub(crate) lost: Vec<Lost>,
}

/// What cannot be read of an extent.
#[derive(Debug, Default)]
pub(super) struct Unread {
    pub(super) ranges: Vec<Range<u64>>,
    /// Whether the store failed to answer for some of it.
    pub(super) is_unanswered: bool,
}

/// Reads every node of a map that has an address from the store.
pub(crate) fn nodes(
    tables: &Tables,
    watch: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Nodes, ReadError> {
    let (map, source) = tables.map();
    let mut found = Nodes::default();
    map.scrub(source, &mut |node| {
        let stored = u64::from(node.pointer.len) + TAG_LEN as u64;
        found.count += 1;
        found.bytes += stored;
        if let Err(e) = node.state {
            found.lost.push(Lost {
                pointer: node.pointer,
                level: node.level,
                from: node.from.to_vec(),
                to: node.to.map(<[u8]>::to_vec),
                is_unanswered: matches!(e, ReadError::Store(_)),
            });
        }
        watch(stored)
    })?;
    Ok(found)
}

/// Shows all items that can be read, ascending, until `see` breaks.
pub(crate) fn items(tables: &Tables, lost: &[Lost], see: See<'_>) -> Result<(), ReadError> {
    items_from(tables, lost, Vec::new(), see)
}

/// Shows the items from a key on, as [`items`] does.
pub(crate) fn items_from(
    tables: &Tables,
    lost: &[Lost],
    mut at: Vec<u8>,
    see: See<'_>,
) -> Result<(), ReadError> {
    let (map, source) = tables.map();
    loop {
        let from = at.clone();
        let seen = map.scan(source, &from, &mut |key, value| {
            at.clear();
            at.extend(key);
            see(key, value)
        });
        let Err(e) = seen else {
            return Ok(());
        };
        let is_ahead = |lost: &&Lost| lost.to.as_ref().is_none_or(|to| *to > at);
        match lost.iter().find(is_ahead) {
            None => return Err(e),
            Some(Lost { to: None, .. }) => return Ok(()),
            Some(Lost { to: Some(to), .. }) => at.clone_from(to),
        }
    }
}

/// Reads an extent that begins at `start` of its file, and says what of it does not open.
pub(super) fn unread(extent: &Extent, start: u64, read: Read<'_>) -> Unread {
    let mut buffer = vec![0; extent.live as usize];
    let mut unread = Unread::default();
    if read(extent, 0, &mut buffer).is_ok() {
        return unread;
    }
    let chunk = 1_u32.checked_shl(extent.shift.into()).unwrap_or(u32::MAX);
    let (mut from, mut len) = (0, chunk.saturating_sub(extent.head.into()));
    while from < extent.live {
        let to = from.saturating_add(len.max(1)).min(extent.live);
        let out = buffer.get_mut(..(to - from) as usize).unwrap_or_default();
        if let Err(e) = read(extent, from, out) {
            unread.is_unanswered |= matches!(e, ReadError::Store(_));
            let range = start + u64::from(from)..start + u64::from(to);
            add_range(&mut unread.ranges, range);
        }
        (from, len) = (to, chunk);
    }
    unread
}

/// Adds a range behind those that are there.
pub(super) fn add_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut().filter(|last| last.end == range.start) {
        Some(last) => last.end = range.end,
        None => ranges.push(range),
    }
}

impl Lost {
    /// Which offsets of a map lie behind the node.
    pub(super) fn offsets(&self, map: Ino) -> Option<Range<u64>> {
        let (first, last) = (
            schema::extent_key(map, 0),
            schema::extent_key(map, u64::MAX),
        );
        let is_apart = self.from.as_slice() > last.as_slice()
            || self
                .to
                .as_ref()
                .is_some_and(|to| to.as_slice() <= first.as_slice());
        if is_apart {
            return None;
        }
        let start = offset_in(&self.from, &first).unwrap_or(0);
        let end = self.to.as_ref().and_then(|to| offset_in(to, &first));
        Some(start..end.unwrap_or(u64::MAX)).filter(|range| !range.is_empty())
    }

    /// First and last number of the inodes that may have been behind the node.
    pub(crate) fn inodes(&self) -> Option<(Ino, Ino)> {
        let first = number_in(&self.from).unwrap_or(0);
        let end = self.to.as_ref().and_then(|to| number_in(to));
        let is_of_inodes = self.from.as_slice() < schema::segment_key(SegmentId(0)).as_slice();
        is_of_inodes.then_some((Ino(first.max(1)), Ino(end.unwrap_or(u64::MAX))))
    }

    /// Whether names of a directory may have been behind the node.
    pub(super) fn may_have_names_of(&self, dir: Ino) -> bool {
        let (first, end) = (schema::entry_key(dir, 0), schema::extent_key(dir, 0));
        self.from.as_slice() < end.as_slice()
            && self
                .to
                .as_ref()
                .is_none_or(|to| to.as_slice() > first.as_slice())
    }
}

/// The inode number in a key, which may have lost bytes at its end; `None` for a key of no inode.
fn number_in(key: &[u8]) -> Option<u64> {
    let number = key.strip_prefix(schema::record_key(Ino(0)).get(..1)?)?;
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(number) {
        *to = *from;
    }
    Some(u64::from_be_bytes(bytes))
}

/// The offset that a key of the map of `first` has, which may have lost bytes at its end; `None`
/// for a key of something else.
fn offset_in(key: &[u8], first: &[u8; 18]) -> Option<u64> {
    let (prefix, _) = first.split_at_checked(10)?;
    let offset = key.strip_prefix(prefix)?;
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(offset) {
        *to = *from;
    }
    Some(u64::from_be_bytes(bytes))
}
