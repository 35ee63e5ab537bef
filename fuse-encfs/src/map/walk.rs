//! Core: walks over all nodes of a map.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::node::{Bounds, Link, Node};
use super::{Map, Nodes};
use crate::format::NodePointer;
use crate::segment::ReadError;

/// A node that was read from the store.
#[derive(Debug)]
pub(crate) struct Scrubbed<'a> {
    /// Where it is.
    pub(crate) pointer: NodePointer,
    /// 0 is a leaf.
    pub(crate) level: u8,
    /// The smallest key that can be behind it.
    pub(crate) from: &'a [u8],
    /// The smallest key that is greater than all that can be behind it.
    pub(crate) to: Option<&'a [u8]>,
    /// Whether it is what was written, and rightly placed in the tree.
    pub(crate) state: Result<(), ReadError>,
}

/// Says which node to go on below, if any.
type Enter<'a> = &'a mut dyn FnMut(&Link, u8, Bounds<'_>) -> ControlFlow<(), Option<Arc<Node>>>;

/// Calls `see` with every pointer to a node, its level and a key that leads to it. Goes on behind
/// what cannot be read, and returns the first such error.
pub(super) fn over_pointers(
    map: &Map,
    nodes: &Nodes,
    see: &mut dyn FnMut(&NodePointer, u8, &[u8]),
) -> Option<ReadError> {
    let mut failed = None;
    let mut enter = |link: &Link, level: u8, bounds: Bounds<'_>| {
        if let Some(pointer) = link.pointer() {
            see(pointer, level, bounds.from.unwrap_or_default());
        }
        if level == 0 {
            return ControlFlow::Continue(None);
        }
        match nodes.follow(link, level, || bounds) {
            Ok(node) => ControlFlow::Continue(Some(node)),
            Err(e) => {
                failed.get_or_insert(e);
                ControlFlow::Continue(None)
            }
        }
    };
    let walked = walk(&map.root, map.level, Bounds::default(), &mut enter);
    failed.or_else(|| walked.err())
}

/// Reads every node that has an address from the store, past the cache.
pub(super) fn scrub(
    map: &Map,
    nodes: &Nodes,
    see: &mut dyn FnMut(Scrubbed<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let mut enter = |link: &Link, level: u8, bounds: Bounds<'_>| {
        let held = match link {
            Link::Resident(node) => Some(Arc::clone(node)),
            Link::Stored(_) => None,
        };
        let Some(pointer) = link.pointer() else {
            return ControlFlow::Continue(held);
        };
        let (node, state) = match nodes.read_past_cache(pointer, level, bounds) {
            Ok(node) => (Some(node), Ok(())),
            Err(e) => (None, Err(e)),
        };
        see(Scrubbed {
            pointer: *pointer,
            level,
            from: bounds.from.unwrap_or_default(),
            to: bounds.to,
            state,
        })?;
        ControlFlow::Continue(held.or(node))
    };
    walk(&map.root, map.level, Bounds::default(), &mut enter).map(|_| ())
}

/// Recurses as deep as the tree is high.
fn walk(
    link: &Link,
    level: u8,
    bounds: Bounds<'_>,
    enter: Enter<'_>,
) -> Result<ControlFlow<()>, ReadError> {
    let node = match enter(link, level, bounds) {
        ControlFlow::Continue(Some(node)) => node,
        ControlFlow::Continue(None) => return Ok(ControlFlow::Continue(())),
        ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
    };
    let Some(below) = level.checked_sub(1) else {
        return Ok(ControlFlow::Continue(()));
    };
    for at in 0..node.count() {
        let within = node.bounds_of(at, bounds);
        if walk(&node.child(at)?, below, within, enter)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
