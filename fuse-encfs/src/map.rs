//! Core: what a volume holds, as one ordered map from keys to values.
//!
//! **Design.** A B+tree of nodes of variable length that are never changed once somebody else
//! holds them. To clone a map is to clone a pointer: a transaction is a clone that is changed and
//! then installed or dropped, a reader keeps a clone as long as it likes, and a checkpoint writes
//! one while the map goes on. Nodes that a segment holds are known by their pointers alone and come
//! through a bounded cache; nodes that are not written yet are held in memory.
//!
//! **Generations.** [`Map::snapshot`] ends a generation: what the snapshot holds is copied when it
//! is changed afterwards, and noted as freed. A segment's live bytes are then exactly what was
//! written to it less what was freed.
//!
//! **Invariants.** A transaction does not outlive the generation it was cloned in. One snapshot is
//! written at a time, [`Map::settle`] follows it, and nobody writes an older one any more. A node
//! that was read is checked against its parent: level, order, and range of keys.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::format::{NODE_ENTRY_LEN, NODE_HEADER_LEN, NODE_LEN_MAX, NodePointer, SegmentId};
use crate::segment::ReadError;

mod cache;
mod change;
mod entries;
mod freed;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod node;
mod nodes;
mod path;
#[cfg(test)]
mod tests;
mod walk;
mod write;

use change::{Changes, Editor, Target};
use freed::Freed;
use node::{Bounds, Link, Node};
pub(crate) use nodes::Nodes;
use path::{Aim, Path};
pub(crate) use walk::Scrubbed;
#[allow(unused_imports, reason = "the checkpoint is going to use it")]
pub(crate) use write::{NodeSink, write};

/// Bytes of a key and its value together at most: a node has room for three such items.
pub(crate) const ITEM_LEN_MAX: usize = (NODE_LEN_MAX - NODE_HEADER_LEN) / 3 - NODE_ENTRY_LEN;
/// Bytes of a key at most: an inner node has room for 29 separators.
pub(crate) const KEY_LEN_MAX: usize = 540;

/// An ordered map of which clones are cheap.
#[derive(Clone)]
pub(crate) struct Map {
    root: Link,
    level: u8,
    changes: Changes,
    /// What was freed up to the last snapshot.
    freed: Freed,
}

/// Whether to go on.
type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

impl Map {
    /// A map without any item.
    pub(crate) fn empty() -> Self {
        let changes = Changes {
            epoch: 1,
            freed: Freed::default(),
            dirty_len: NODE_HEADER_LEN,
        };
        Self {
            root: Link::Resident(Node::empty(changes.epoch).into()),
            level: 0,
            changes,
            freed: Freed::default(),
        }
    }

    /// The map that was written with this root.
    pub(crate) fn stored(root: NodePointer, level: u8) -> Self {
        let mut map = Self::empty();
        (map.root, map.level, map.changes.dirty_len) = (Link::Stored(root), level, 0);
        map
    }

    /// Shows the value of `key` to `see`.
    pub(crate) fn get<T>(
        &self,
        nodes: &Nodes,
        key: &[u8],
        see: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, ReadError> {
        let path = Path::to(self, nodes, Aim::Key(key))?;
        let value = path.leaf().and_then(|leaf| {
            let at = leaf.entries.search(key).ok()?;
            Some(see(leaf.entries.value(at)))
        });
        Ok(value)
    }

    /// Whether there is an item of `key`.
    pub(crate) fn contains(&self, nodes: &Nodes, key: &[u8]) -> Result<bool, ReadError> {
        Ok(self.get(nodes, key, |_| ())?.is_some())
    }

    /// Visits the items with `from <= key`, ascending, until `visit` breaks.
    pub(crate) fn scan(
        &self,
        nodes: &Nodes,
        from: &[u8],
        visit: Visit<'_>,
    ) -> Result<(), ReadError> {
        let mut path = Path::to(self, nodes, Aim::Key(from))?;
        let first = path.leaf().map(|leaf| leaf.entries.search(from));
        let (Ok(mut at) | Err(mut at)) = first.unwrap_or(Ok(0));
        while let Some(leaf) = path.leaf() {
            for i in at..leaf.count() {
                if visit(leaf.entries.key(i), leaf.entries.value(i)).is_break() {
                    return Ok(());
                }
            }
            at = 0;
            path.next()?;
        }
        Ok(())
    }

    /// Visits the items with `key <= from`, descending, until `visit` breaks.
    pub(crate) fn scan_back(
        &self,
        nodes: &Nodes,
        from: &[u8],
        visit: Visit<'_>,
    ) -> Result<(), ReadError> {
        let mut path = Path::to(self, nodes, Aim::Key(from))?;
        let mut end = path.leaf().map(|leaf| match leaf.entries.search(from) {
            Ok(at) => at + 1,
            Err(at) => at,
        });
        while let Some(leaf) = path.leaf() {
            for i in (0..end.take().unwrap_or_else(|| leaf.count())).rev() {
                if visit(leaf.entries.key(i), leaf.entries.value(i)).is_break() {
                    return Ok(());
                }
            }
            path.back()?;
        }
        Ok(())
    }

    /// Sets a value; says whether the key was there. After an error the items are as before.
    ///
    /// # Panics
    ///
    /// If the item is longer than [`ITEM_LEN_MAX`] or its key longer than [`KEY_LEN_MAX`]: the
    /// schema's bounds rule it out, and no node could hold it.
    pub(crate) fn put(
        &mut self,
        nodes: &Nodes,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool, ReadError> {
        assert!(
            key.len() <= KEY_LEN_MAX && key.len() + value.len() <= ITEM_LEN_MAX,
            "an item is longer than the schema says"
        );
        let same = self.get(nodes, key, |before| before == value)?;
        if same == Some(true) {
            return Ok(true);
        }
        let mut editor = Editor {
            nodes,
            changes: &mut self.changes,
        };
        let root = editor.own_root(&mut self.root, self.level)?;
        let split = editor.put(Arc::make_mut(root), Bounds::default(), key, value)?;
        if let Some((separator, right)) = split {
            let above = Node::above(root.clone(), &separator, right);
            self.level = above.level;
            self.changes.dirty_len += above.len();
            self.root = Link::Resident(above.into());
        }
        Ok(same.is_some())
    }

    /// Removes an item; says whether it was there. After an error the items are as before.
    pub(crate) fn remove(&mut self, nodes: &Nodes, key: &[u8]) -> Result<bool, ReadError> {
        if !self.contains(nodes, key)? {
            return Ok(false);
        }
        let mut editor = Editor {
            nodes,
            changes: &mut self.changes,
        };
        let root = editor.own_root(&mut self.root, self.level)?;
        editor.remove(Arc::make_mut(root), Bounds::default(), key)?;
        self.lower_root()?;
        Ok(true)
    }

    /// Bytes of nodes that no segment holds yet, approximately.
    pub(crate) fn dirty_len(&self) -> usize {
        self.changes.dirty_len
    }

    /// Begins a new generation, and returns a clone of the map as it is, which is going to be
    /// written: changes from now on copy what it holds.
    pub(crate) fn snapshot(&mut self) -> Self {
        let freed = std::mem::take(&mut self.changes.freed);
        self.freed.append(freed);
        let mut snapshot = self.clone();
        snapshot.freed = Freed::default();
        self.changes.epoch += 1;
        snapshot
    }

    /// Lets go of every node that has an address, after a snapshot was written. Takes time in
    /// proportion to the nodes held in memory.
    pub(crate) fn settle(&mut self) {
        self.changes.dirty_len = write::settle(&mut self.root);
    }

    /// The addresses that were used by the snapshot before the last one, or by an earlier one of
    /// which nobody took them, and are not used by the last one.
    pub(crate) fn take_freed(&mut self) -> Vec<NodePointer> {
        std::mem::take(&mut self.freed).pointers()
    }

    /// Makes nodes dirty that lie in `doomed` segments, at most `limit` of them, and returns how
    /// many; 0 when there are none left. A node that cannot be read is passed over: it is an error
    /// only if nothing else was left to do.
    pub(crate) fn evacuate(
        &mut self,
        nodes: &Nodes,
        doomed: &BTreeSet<SegmentId>,
        limit: usize,
    ) -> Result<usize, ReadError> {
        let mut targets: Vec<Target> = Vec::new();
        let mut failed = walk::over_pointers(self, nodes, &mut |pointer, level, key| {
            if doomed.contains(&pointer.segment) {
                targets.push((key.to_vec(), level));
            }
        });
        let mut count = 0;
        for target in targets {
            if count == limit {
                break;
            }
            let mut editor = Editor {
                nodes,
                changes: &mut self.changes,
            };
            let done = editor
                .own_root(&mut self.root, self.level)
                .and_then(|root| editor.dirty(Arc::make_mut(root), Bounds::default(), &target));
            match done {
                Ok(()) => count += 1,
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        match failed {
            Some(e) if count == 0 => Err(e),
            _ => Ok(count),
        }
    }

    /// Calls `see` with every pointer to a node and the node's level, the root's included, inner
    /// nodes before what is below them. Goes on behind what cannot be read, and returns the first
    /// such error at the end.
    #[cfg(test)]
    pub(crate) fn pointers(
        &self,
        nodes: &Nodes,
        see: &mut dyn FnMut(&NodePointer, u8),
    ) -> Result<(), ReadError> {
        let failed = walk::over_pointers(self, nodes, &mut |pointer, level, _| see(pointer, level));
        failed.map_or(Ok(()), Err)
    }

    /// Reads every node that has an address from the store, past the cache, and shows it to `see`
    /// until that breaks. What is below a node that cannot be read is not seen.
    pub(crate) fn scrub(
        &self,
        nodes: &Nodes,
        see: &mut dyn FnMut(Scrubbed<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        walk::scrub(self, nodes, see)
    }

    /// A root with one child is not needed, and one with none is an empty leaf.
    fn lower_root(&mut self) -> Result<(), ReadError> {
        while let Link::Resident(root) = &self.root {
            let below = match (self.level.checked_sub(1), root.count()) {
                (Some(_), 0) => (Link::Resident(Node::empty(self.changes.epoch).into()), 0),
                (Some(level), 1) => (root.child(0)?, level),
                _ => break,
            };
            let root = std::mem::replace(&mut self.root, below.0);
            self.level = below.1;
            if let Link::Resident(root) = root {
                self.changes.free(root);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Map {
    /// Shows no item: they are names and contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Map(level {}, {} bytes dirty)",
            self.level,
            self.dirty_len()
        )
    }
}
