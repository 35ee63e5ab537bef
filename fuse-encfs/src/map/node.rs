//! Core: a node in memory.

use std::sync::{Arc, OnceLock};

use super::entries::{Entries, NO_POINTER};
use crate::format::{NODE_LEN_MAX, NodePointer, Reader};
use crate::segment::ReadError;

/// Levels of a tree at most. A level is added only by a full root, of 29 children at least.
pub(super) const LEVEL_MAX: u8 = 8;
/// A node shorter than this looks for a neighbour to become one with.
const SMALL_LEN: usize = NODE_LEN_MAX / 4;
/// Memory of a node besides its entries.
const OVERHEAD_LEN: usize = 160;

/// A node: clean when some segment holds it, dirty before.
///
/// INVARIANT: a node that has an address is not changed, and neither is what lies below it.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// 0 is a leaf.
    pub(super) level: u8,
    /// The generation of the map that made it; 0 when it was read from the store.
    pub(super) epoch: u64,
    /// Its address, once it has one.
    pub(super) written: OnceLock<NodePointer>,
    /// Items of a leaf; separators and pointers of an inner node. A separator is greater than
    /// every key left of it and not greater than any key of its child.
    pub(super) entries: Entries,
    /// Children that are held in memory, whose pointers in `entries` are void. Empty when there
    /// are none.
    resident: Vec<Option<Arc<Node>>>,
    /// Where the last entry was added.
    last_insert: Option<usize>,
}

/// A node below another, or the root.
#[derive(Debug, Clone)]
pub(super) enum Link {
    /// Held in memory.
    Resident(Arc<Node>),
    /// In a segment.
    Stored(NodePointer),
}

/// Within what the keys of a node must lie.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds<'a> {
    /// The smallest key allowed.
    pub(super) from: Option<&'a [u8]>,
    /// The smallest key that is too great.
    pub(super) to: Option<&'a [u8]>,
}

/// What a split leaves over: the separator of the second part, and that part.
pub(super) type Split = (Vec<u8>, Node);

impl Node {
    /// An empty leaf.
    pub(super) fn empty(epoch: u64) -> Self {
        Self {
            level: 0,
            epoch,
            written: OnceLock::new(),
            entries: Entries::default(),
            resident: Vec::new(),
            last_insert: None,
        }
    }

    /// A root above two nodes.
    pub(super) fn above(left: Arc<Node>, separator: &[u8], right: Node) -> Self {
        let mut root = Self {
            level: left.level.saturating_add(1),
            ..Self::empty(left.epoch)
        };
        root.insert_child(0, &[], left);
        root.insert_child(1, separator, Arc::new(right));
        root
    }

    /// Parses the plaintext of the node that `pointer` leads to, which must be of `level` and
    /// within `bounds`.
    pub(super) fn parse(
        plaintext: &[u8],
        pointer: &NodePointer,
        level: u8,
        bounds: Bounds<'_>,
    ) -> Result<Self, ReadError> {
        let entries = Entries::parse(plaintext, level).map_err(|_| ReadError::Tampered)?;
        let is_root = bounds.from.is_none();
        let ordered = match entries.ends() {
            Some((first, last)) => {
                bounds.from.is_none_or(|from| from <= first) && bounds.to.is_none_or(|to| last < to)
            }
            // Only a map without any item has an empty node.
            None => is_root && level == 0,
        };
        if !ordered {
            return Err(ReadError::Tampered);
        }
        let node = Self {
            level,
            written: OnceLock::from(*pointer),
            entries,
            ..Self::empty(0)
        };
        if level > 0 {
            (0..node.count()).try_for_each(|i| node.pointer(i).map(|_| ()))?;
        }
        Ok(node)
    }

    /// Entries.
    pub(super) fn count(&self) -> usize {
        self.entries.count()
    }

    /// Bytes, without padding.
    pub(super) fn len(&self) -> usize {
        self.entries.node_len()
    }

    /// Bytes of memory.
    pub(super) fn memory_len(&self) -> usize {
        OVERHEAD_LEN + self.entries.memory_len() + 8 * self.resident.capacity()
    }

    /// Whether it should become one with a neighbour.
    pub(super) fn is_small(&self) -> bool {
        self.len() < SMALL_LEN
    }

    /// Whether it and `right` make up one node with room left.
    pub(super) fn fits_with(&self, right: &Self) -> bool {
        self.len() + right.len() <= NODE_LEN_MAX / 2
    }

    /// The child that `key` belongs to.
    pub(super) fn route(&self, key: &[u8]) -> usize {
        match self.entries.search(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        }
    }

    /// What the keys of child `i` lie within, when those of this node lie within `bounds`.
    pub(super) fn bounds_of<'a>(&'a self, i: usize, bounds: Bounds<'a>) -> Bounds<'a> {
        bounds.of_child(&self.entries, i)
    }

    /// Child `i`, if it is held in memory.
    pub(super) fn resident(&self, i: usize) -> Option<&Arc<Self>> {
        self.resident.get(i)?.as_ref()
    }

    /// The address of child `i`, which is not held in memory.
    pub(super) fn pointer(&self, i: usize) -> Result<NodePointer, ReadError> {
        let mut r = Reader::new(self.entries.value(i), "node pointer");
        let pointer = NodePointer::parse(&mut r).and_then(|pointer| r.end().map(|()| pointer));
        pointer.map_err(|_| ReadError::Tampered)
    }

    /// Child `i`.
    pub(super) fn child(&self, i: usize) -> Result<Link, ReadError> {
        match self.resident(i) {
            Some(child) => Ok(Link::Resident(Arc::clone(child))),
            None => self.pointer(i).map(Link::Stored),
        }
    }

    /// A copy to change, of another generation.
    pub(super) fn copy(&self, epoch: u64) -> Self {
        Self {
            epoch,
            written: OnceLock::new(),
            ..self.clone()
        }
    }

    /// Sets an item of a leaf; says whether the key was there.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Option<Split> {
        match self.entries.search(key) {
            Ok(i) => {
                self.entries.set_value(i, value);
                self.split(None)
            }
            Err(i) => {
                self.entries.insert(i, key, value);
                self.split(Some(i))
            }
        }
    }

    /// Adds the second part of child `i - 1`.
    pub(super) fn put_child(&mut self, i: usize, separator: &[u8], child: Node) -> Option<Split> {
        self.insert_child(i, separator, Arc::new(child));
        self.split(Some(i))
    }

    /// Child `i`, if it is held in memory, and what its keys lie within.
    pub(super) fn child_mut<'a>(
        &'a mut self,
        i: usize,
        bounds: Bounds<'a>,
    ) -> Option<(&'a mut Arc<Self>, Bounds<'a>)> {
        let child = self.resident.get_mut(i)?.as_mut()?;
        Some((child, bounds.of_child(&self.entries, i)))
    }

    /// Holds child `i` in memory.
    pub(super) fn hold(&mut self, i: usize, child: Arc<Self>) {
        self.resident.resize(self.entries.count(), None);
        self.resident[i] = Some(child);
    }

    /// Whether any child is held in memory.
    pub(super) fn has_residents(&self) -> bool {
        self.resident.iter().any(Option::is_some)
    }

    /// Lets go of the children that have an address.
    pub(super) fn release_written(&mut self) {
        let mut value = Vec::with_capacity(NodePointer::LEN);
        for (i, slot) in self.resident.iter_mut().enumerate() {
            if let Some(pointer) = slot.as_ref().and_then(|child| child.written.get()) {
                value.clear();
                pointer.put(&mut value);
                self.entries.set_value(i, &value);
                *slot = None;
            }
        }
        if !self.has_residents() {
            self.resident = Vec::new();
        }
    }

    /// Lowers the first separator to `key`, if it is greater.
    pub(super) fn reach(&mut self, key: &[u8]) {
        if self.entries.ends().is_some_and(|(first, _)| key < first) {
            self.entries.set_key(0, key);
        }
    }

    /// Removes child `i`.
    pub(super) fn remove_child(&mut self, i: usize) -> Option<Arc<Self>> {
        self.entries.remove(i);
        (i < self.resident.len())
            .then(|| self.resident.remove(i))
            .flatten()
    }

    /// Adds all of `right`, the next node of the same level.
    pub(super) fn append(&mut self, right: &Self) {
        if !(self.resident.is_empty() && right.resident.is_empty()) {
            self.resident.resize(self.entries.count(), None);
            self.resident.extend(right.resident.iter().cloned());
        }
        self.entries.append(&right.entries);
        if !self.resident.is_empty() {
            self.resident.resize(self.entries.count(), None);
        }
    }

    fn insert_child(&mut self, i: usize, separator: &[u8], child: Arc<Self>) {
        self.resident.resize(self.entries.count(), None);
        self.entries.insert(i, separator, &NO_POINTER);
        self.resident.insert(i, Some(child));
    }

    /// Splits what became too long by an entry that was added at `inserted`, or that grew.
    pub(super) fn split(&mut self, inserted: Option<usize>) -> Option<Split> {
        let before = std::mem::replace(&mut self.last_insert, inserted);
        if self.len() <= NODE_LEN_MAX {
            return None;
        }
        let at = self.split_point(inserted, before);
        let entries = self.entries.split_off(at);
        let resident = if at < self.resident.len() {
            self.resident.split_off(at)
        } else {
            Vec::new()
        };
        let right = Self {
            level: self.level,
            entries,
            resident,
            last_insert: inserted.and_then(|i| i.checked_sub(at)),
            ..Self::empty(self.epoch)
        };
        let separator = match (self.entries.ends(), right.entries.ends()) {
            (Some((_, left)), Some((key, _))) if self.level == 0 => shortest_between(left, key),
            (_, ends) => ends.map_or(&[] as &[u8], |(key, _)| key),
        };
        Some((separator.to_vec(), right))
    }

    /// Keys that come in ascending order leave full nodes behind; others leave halves.
    fn split_point(&self, inserted: Option<usize>, before: Option<usize>) -> usize {
        let last = self.count() - 1;
        let fits = |at: usize| {
            let left = self.entries.len_before(at);
            let all = self.entries.len_before(last + 1);
            let room = NODE_LEN_MAX - (self.len() - all);
            left <= room && all - left <= room
        };
        let ascending = match inserted {
            Some(i) if i == last => Some(i),
            Some(i) if before.is_some_and(|before| before + 1 == i) => {
                [i + 1, i].into_iter().find(|at| *at > 0 && fits(*at))
            }
            _ => None,
        };
        ascending.unwrap_or_else(|| self.entries.middle())
    }
}

impl Link {
    /// The address, if there is one.
    pub(super) fn pointer(&self) -> Option<&NodePointer> {
        match self {
            Self::Resident(node) => node.written.get(),
            Self::Stored(pointer) => Some(pointer),
        }
    }
}

impl<'a> Bounds<'a> {
    /// What the keys of child `i` lie within.
    fn of_child(self, separators: &'a Entries, i: usize) -> Self {
        let next = i + 1;
        Self {
            from: Some(separators.key(i)),
            to: if next < separators.count() {
                Some(separators.key(next))
            } else {
                self.to
            },
        }
    }
}

/// The shortest key that is greater than `left` and not greater than `right`.
fn shortest_between<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    let same = left.iter().zip(right).take_while(|(l, r)| l == r).count();
    right.get(..=same).unwrap_or(right)
}
