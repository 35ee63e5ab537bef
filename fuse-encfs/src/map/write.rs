//! Core: giving dirty nodes addresses, and letting go of them afterwards.

use std::sync::{Arc, OnceLock};

use super::node::{Bounds, Link, Node};
use super::{Map, Nodes};
use crate::format::NodePointer;

/// Takes the plaintext of nodes, to be sealed at new addresses.
pub(crate) trait NodeSink {
    /// Why it cannot.
    type Error;
    /// Seals a node and says where.
    fn put(&mut self, plaintext: &[u8]) -> Result<NodePointer, Self::Error>;
}

/// Writes every node of the snapshot that no segment holds yet, children first; returns the
/// root's pointer and level.
///
/// After an error, nodes that the sink took keep their addresses; to write the same snapshot again
/// goes on with the rest. One snapshot is written at a time.
pub(crate) fn write<S: NodeSink>(
    snapshot: &Map,
    nodes: &Nodes,
    sink: &mut S,
) -> Result<(NodePointer, u8), S::Error> {
    let root = match &snapshot.root {
        Link::Resident(root) => write_node(root, nodes, sink)?,
        Link::Stored(pointer) => *pointer,
    };
    Ok((root, snapshot.level))
}

/// Recurses as deep as the tree is high.
fn write_node<S: NodeSink>(
    node: &Arc<Node>,
    nodes: &Nodes,
    sink: &mut S,
) -> Result<NodePointer, S::Error> {
    if let Some(pointer) = node.written.get() {
        return Ok(*pointer);
    }
    let mut clean = Arc::clone(node);
    if node.has_residents() {
        for child in (0..node.count()).filter_map(|at| node.resident(at)) {
            write_node(child, nodes, sink)?;
        }
        Arc::make_mut(&mut clean).release_written();
    }
    let pointer = sink.put(&clean.entries.encode(clean.level))?;
    let pointer = *node.written.get_or_init(|| pointer);
    if !Arc::ptr_eq(&clean, node) {
        Arc::make_mut(&mut clean).written = OnceLock::from(pointer);
    }
    nodes.keep(clean);
    Ok(pointer)
}

/// Lets go of every node that has an address; returns the bytes of those that have none.
pub(super) fn settle(link: &mut Link) -> usize {
    let Link::Resident(root) = link else {
        return 0;
    };
    if let Some(pointer) = root.written.get() {
        *link = Link::Stored(*pointer);
        return 0;
    }
    settle_below(root)
}

fn settle_below(node: &mut Arc<Node>) -> usize {
    let mut dirty_len = node.len();
    if node.has_residents() {
        let node = Arc::make_mut(node);
        node.release_written();
        for at in 0..node.count() {
            if let Some((child, _)) = node.child_mut(at, Bounds::default()) {
                dirty_len += settle_below(child);
            }
        }
    }
    dirty_len
}
