//! Core: changing nodes: copying what is shared or sealed, splitting and merging.

use std::sync::Arc;

use super::Nodes;
use super::freed::Freed;
use super::node::{Bounds, Link, Node, Split};
use crate::segment::ReadError;

/// What a map notes while it changes.
#[derive(Clone)]
pub(super) struct Changes {
    /// The generation that changes belong to.
    pub(super) epoch: u64,
    /// Nodes that were in the last snapshot and are not in the map any more.
    pub(super) freed: Freed,
    /// Bytes of dirty nodes.
    pub(super) dirty_len: usize,
}

/// Changes one map.
pub(super) struct Editor<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) changes: &'a mut Changes,
}

/// A node: a key that leads to it, and its level.
pub(super) type Target = (Vec<u8>, u8);

impl Changes {
    /// Makes a node one that may be changed: of this generation, and held by nobody else.
    pub(super) fn own<'n>(&mut self, node: &'n mut Arc<Node>) -> &'n mut Node {
        if self.is_past(node) {
            let copy = node.copy(self.epoch);
            self.dirty_len += copy.len();
            let past = std::mem::replace(node, Arc::new(copy));
            self.freed.push(past);
        }
        Arc::make_mut(node)
    }

    /// Notes that a node is not in the map any more.
    pub(super) fn free(&mut self, node: Arc<Node>) {
        if self.is_past(&node) {
            self.freed.push(node);
        } else {
            self.dirty_len = self.dirty_len.saturating_sub(node.len());
        }
    }

    fn is_past(&self, node: &Node) -> bool {
        node.epoch != self.epoch || node.written.get().is_some()
    }

    fn resized(&mut self, before: usize, after: usize) {
        self.dirty_len = (self.dirty_len + after).saturating_sub(before);
    }
}

impl Editor<'_> {
    /// The root, to be changed.
    pub(super) fn own_root<'n>(
        &mut self,
        root: &'n mut Link,
        level: u8,
    ) -> Result<&'n mut Arc<Node>, ReadError> {
        if let Link::Stored(pointer) = root {
            *root = Link::Resident(self.nodes.load(pointer, level, Bounds::default)?);
        }
        match root {
            Link::Resident(node) => {
                self.changes.own(node);
                Ok(node)
            }
            Link::Stored(_) => Err(ReadError::Tampered),
        }
    }

    /// Sets an item below `node`, which is owned.
    pub(super) fn put(
        &mut self,
        node: &mut Node,
        bounds: Bounds<'_>,
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<Split>, ReadError> {
        let before = node.len();
        let split = if node.level == 0 {
            node.put(key, value)
        } else {
            node.reach(key);
            let at = node.route(key);
            let (child, within) = self.own_child(node, at, bounds)?;
            match self.put(child, within, key, value)? {
                Some((separator, right)) => node.put_child(at + 1, &separator, right),
                None => node.split(None),
            }
        };
        let right = split.as_ref().map_or(0, |(_, right)| right.len());
        self.changes.resized(before, node.len() + right);
        Ok(split)
    }

    /// Removes an item below `node`, which is owned. Reads all that it needs before it changes
    /// anything.
    pub(super) fn remove(
        &mut self,
        node: &mut Node,
        bounds: Bounds<'_>,
        key: &[u8],
    ) -> Result<(), ReadError> {
        let before = node.len();
        if node.level == 0 {
            if let Ok(at) = node.entries.search(key) {
                node.entries.remove(at);
            }
        } else {
            let at = node.route(key);
            let (child, within) = self.own_child(node, at, bounds)?;
            self.remove(child, within, key)?;
            self.tidy(node, at);
        }
        self.changes.resized(before, node.len());
        Ok(())
    }

    /// Makes the node of `target`, which lies below `node` or is it, dirty.
    pub(super) fn dirty(
        &mut self,
        node: &mut Node,
        bounds: Bounds<'_>,
        target: &Target,
    ) -> Result<(), ReadError> {
        let (key, level) = target;
        if node.level > *level {
            let at = node.route(key);
            let (child, within) = self.own_child(node, at, bounds)?;
            self.dirty(child, within, target)?;
        }
        Ok(())
    }

    fn own_child<'n>(
        &mut self,
        node: &'n mut Node,
        at: usize,
        bounds: Bounds<'n>,
    ) -> Result<(&'n mut Node, Bounds<'n>), ReadError> {
        let level = node.level.checked_sub(1).ok_or(ReadError::Tampered)?;
        if node.resident(at).is_none() {
            let pointer = node.pointer(at)?;
            let within = || node.bounds_of(at, bounds);
            let child = self.nodes.load(&pointer, level, within)?;
            node.hold(at, child);
        }
        let (child, within) = node.child_mut(at, bounds).ok_or(ReadError::Tampered)?;
        Ok((self.changes.own(child), within))
    }

    /// Removes child `at` if it is empty, or makes it one with a neighbour if both are small.
    fn tidy(&mut self, node: &mut Node, at: usize) {
        let Some(child) = node.resident(at) else {
            return;
        };
        if child.count() == 0 {
            if let Some(child) = node.remove_child(at) {
                self.changes.free(child);
            }
        } else if child.is_small() {
            let pairs = [at.checked_sub(1), Some(at)];
            for left in pairs.into_iter().flatten() {
                if self.merge(node, left) {
                    break;
                }
            }
        }
    }

    /// Makes children `left` and `left + 1` one, if they fit and no store has to be asked.
    fn merge(&mut self, node: &mut Node, left: usize) -> bool {
        let pair = (self.at_hand(node, left), self.at_hand(node, left + 1));
        let (Some(first), Some(second)) = pair else {
            return false;
        };
        if !first.fits_with(&second) {
            return false;
        }
        if node.resident(left).is_none() {
            node.hold(left, first);
        } else {
            // Held twice it would be copied.
            drop(first);
        }
        let Some((child, _)) = node.child_mut(left, Bounds::default()) else {
            return false;
        };
        let child = self.changes.own(child);
        let before = child.len();
        child.append(&second);
        self.changes.resized(before, child.len());
        drop(node.remove_child(left + 1));
        self.changes.free(second);
        true
    }

    fn at_hand(&self, node: &Node, at: usize) -> Option<Arc<Node>> {
        if at >= node.count() {
            return None;
        }
        match node.child(at).ok()? {
            Link::Resident(child) => Some(child),
            Link::Stored(pointer) => {
                let child = self.nodes.cached(&pointer)?;
                (Some(child.level) == node.level.checked_sub(1)).then_some(child)
            }
        }
    }
}
