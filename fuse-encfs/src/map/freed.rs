//! Core: the nodes that a map no longer uses.

use std::sync::Arc;

use super::node::Node;
use crate::format::NodePointer;

/// A list that is cheap to clone and to drop: a transaction that fails leaves no trace in it.
#[derive(Clone, Default)]
pub(super) struct Freed(Option<Arc<Link>>);

struct Link {
    one: One,
    next: Freed,
}

#[derive(Clone)]
enum One {
    At(NodePointer),
    /// Of a snapshot that is being written: its address will be known.
    Unwritten(Arc<Node>),
}

impl Freed {
    /// Adds a node of an earlier generation.
    pub(super) fn push(&mut self, node: Arc<Node>) {
        let one = match node.written.get() {
            Some(pointer) => One::At(*pointer),
            None => One::Unwritten(node),
        };
        self.push_one(one);
    }

    /// Adds all of `other`.
    pub(super) fn append(&mut self, other: Self) {
        if self.0.is_none() {
            *self = other;
            return;
        }
        let mut at = &other;
        while let Some(link) = &at.0 {
            self.push_one(link.one.clone());
            at = &link.next;
        }
    }

    /// The addresses. A node that never got one needs no mention.
    pub(super) fn pointers(&self) -> Vec<NodePointer> {
        let (mut at, mut out) = (self, Vec::new());
        while let Some(link) = &at.0 {
            match &link.one {
                One::At(pointer) => out.push(*pointer),
                One::Unwritten(node) => out.extend(node.written.get()),
            }
            at = &link.next;
        }
        out
    }

    fn push_one(&mut self, one: One) {
        let next = Self(self.0.take());
        self.0 = Some(Arc::new(Link { one, next }));
    }
}

impl Drop for Link {
    /// Iterates: a list of a million links would not drop on the stack.
    fn drop(&mut self) {
        let mut next = self.next.0.take();
        while let Some(mut link) = next.and_then(Arc::into_inner) {
            next = link.next.0.take();
        }
    }
}
