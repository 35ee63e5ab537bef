//! Core: the way from the root to an item, and on to its neighbours.

use std::ops::Deref;
use std::sync::Arc;

use super::node::{Bounds, Link, Node};
use super::{Map, Nodes};
use crate::segment::ReadError;

/// Where to go down to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Aim<'k> {
    First,
    Key(&'k [u8]),
    Last,
}

/// A node of each level, from the root down to a leaf.
pub(super) struct Path<'a> {
    nodes: &'a Nodes,
    steps: Vec<Step<'a>>,
}

struct Step<'a> {
    node: Held<'a>,
    /// The child that was taken.
    at: usize,
}

/// A node that the map holds, or that was taken from the cache: all nodes below are as well then.
enum Held<'a> {
    Loaded(Arc<Node>),
    Resident(&'a Node),
}

impl<'a> Path<'a> {
    /// The way to the leaf that `aim` belongs to.
    pub(super) fn to(map: &'a Map, nodes: &'a Nodes, aim: Aim<'_>) -> Result<Self, ReadError> {
        let root = match &map.root {
            Link::Resident(root) => Held::Resident(root),
            Link::Stored(pointer) => {
                Held::Loaded(nodes.load(pointer, map.level, Bounds::default)?)
            }
        };
        let mut steps = Vec::with_capacity(usize::from(map.level) + 1);
        steps.push(Step { node: root, at: 0 });
        let mut path = Self { nodes, steps };
        path.descend(aim)?;
        Ok(path)
    }

    /// The leaf, until there is none any more.
    pub(super) fn leaf(&self) -> Option<&Node> {
        self.steps.last().map(|step| &*step.node)
    }

    /// Goes to the next leaf; false when there is none.
    pub(super) fn next(&mut self) -> Result<bool, ReadError> {
        self.turn(Aim::First, |step| {
            Some(step.at + 1).filter(|at| *at < step.node.count())
        })
    }

    /// Goes to the leaf before; false when there is none.
    pub(super) fn back(&mut self) -> Result<bool, ReadError> {
        self.turn(Aim::Last, |step| step.at.checked_sub(1))
    }

    fn turn(
        &mut self,
        aim: Aim<'_>,
        aside: impl Fn(&Step<'a>) -> Option<usize>,
    ) -> Result<bool, ReadError> {
        self.steps.pop();
        while let Some(step) = self.steps.last_mut() {
            if let Some(at) = aside(step) {
                step.at = at;
                self.enter()?;
                self.descend(aim)?;
                return Ok(true);
            }
            self.steps.pop();
        }
        Ok(false)
    }

    fn descend(&mut self, aim: Aim<'_>) -> Result<(), ReadError> {
        while let Some(step) = self.steps.last_mut() {
            if step.node.level == 0 {
                break;
            }
            step.at = match aim {
                Aim::First => 0,
                Aim::Key(key) => step.node.route(key),
                Aim::Last => step.node.count().saturating_sub(1),
            };
            self.enter()?;
        }
        Ok(())
    }

    /// Goes down to the child that the last step names.
    fn enter(&mut self) -> Result<(), ReadError> {
        let step = self.steps.last().ok_or(ReadError::Tampered)?;
        let level = step.node.level.checked_sub(1).ok_or(ReadError::Tampered)?;
        let held = match &step.node {
            Held::Resident(node) => node.resident(step.at).map(|child| Held::Resident(child)),
            Held::Loaded(_) => None,
        };
        let node = match held {
            Some(held) => held,
            None => {
                let child = step.node.child(step.at)?;
                Held::Loaded(self.nodes.follow(&child, level, || self.bounds())?)
            }
        };
        self.steps.push(Step { node, at: 0 });
        Ok(())
    }

    /// What the keys of the child lie within that the last step names.
    fn bounds(&self) -> Bounds<'_> {
        self.steps.iter().fold(Bounds::default(), |bounds, step| {
            step.node.bounds_of(step.at, bounds)
        })
    }
}

impl Deref for Held<'_> {
    type Target = Node;

    fn deref(&self) -> &Node {
        match self {
            Self::Loaded(node) => node,
            Self::Resident(node) => node,
        }
    }
}
