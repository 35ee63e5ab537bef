//! Core: the tree that a checkpoint writes and a mount loads.
//!
//! Written bottom up, level by level, and loaded top down, level by level: no recursion. All of
//! it is written anew by each checkpoint; its nodes are sealed at write-once addresses as data is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crypto::{SealError, VolumeKeys};
use crate::format::{
    Checkpoint, NODE_LEN_MAX, NodeBuilder, NodePointer, Reader, SEGMENT_BEGIN, SegmentId,
    SegmentKind, TAG_LEN, parse_node,
};
use crate::schema::{self, Leaf};
use crate::segment::{ReadError, Segment, SegmentWriter};
use crate::store::{Appendable, Store, StoreError};
use crate::tables::{SegmentEntry, Tables};

/// Bytes of a node segment that this version makes.
pub(crate) const NODE_SEGMENT_LEN: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// The same without the beginning that no node lies in and the end that none may fit.
#[expect(clippy::cast_possible_truncation, reason = "a constant that fits")]
const ROOM: usize = (NODE_SEGMENT_LEN - SEGMENT_BEGIN) as usize - NODE_LEN_MAX - TAG_LEN;
/// Levels of a tree at most: 2^40 nodes even when each has but 32 children.
const LEVEL_MAX: u8 = 8;
/// Nodes whose bytes are collected before one write.
const BATCH_LEN: usize = 1 << 20;

/// A tree that was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) root: NodePointer,
    pub(crate) root_level: u8,
    /// Bytes of nodes in each segment, in the order that the segments were given.
    pub(crate) live: Vec<u64>,
}

/// Why a tree was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// Sealing failed.
    #[error("a node cannot be sealed")]
    Seal(#[from] SealError),
    /// The store failed.
    #[error("a node cannot be written to the store")]
    Store(#[from] StoreError),
    /// There are more nodes than were planned for; a bug.
    #[error("the tree does not fit the segments planned for it")]
    Unplanned,
}

/// How many segments the tree of these leaves needs at most.
pub(crate) fn segments_needed(leaves: &[Leaf]) -> usize {
    let bytes: usize = leaves
        .iter()
        .map(|(_, plaintext)| plaintext.len() + TAG_LEN)
        .sum();
    // An entry of an inner node has at most 42 bytes, and a node of them at least 380 children;
    // headers, tags and padding of all levels are within the rest.
    let inner = if leaves.len() > 1 {
        leaves.len() * 64 + 1024
    } else {
        0
    };
    (bytes + inner).div_ceil(ROOM)
}

/// Writes the tree of `leaves` into new segments and flushes them.
pub(crate) fn write(
    store: &dyn Appendable,
    keys: &VolumeKeys,
    leaves: Vec<Leaf>,
    segments: &[Arc<Segment>],
) -> Result<Written, TreeError> {
    let mut nodes = NodeWriter::new(store, keys, segments);
    let mut level = 0;
    let mut below = nodes.write_all(leaves)?;
    while below.len() > 1 {
        level += 1;
        below = nodes.write_all(parents(level, &below))?;
    }
    nodes.finish()?;
    let (_, root) = below.pop().ok_or(TreeError::Unplanned)?;
    Ok(Written {
        root,
        root_level: level,
        live: nodes.live,
    })
}

/// Loads the tree of a checkpoint into `tables`.
pub(crate) fn load(
    store: &dyn Store,
    keys: &VolumeKeys,
    checkpoint: &Checkpoint,
    tables: &mut Tables,
) -> Result<(), ReadError> {
    let segments: BTreeMap<SegmentId, Segment> = checkpoint
        .nodes
        .iter()
        .map(|node| {
            let entry = SegmentEntry {
                kind: SegmentKind::Node,
                segment: node.segment,
            };
            (node.id, Segment::new(keys, node.id, entry))
        })
        .collect();
    let read = |pointer: &NodePointer| {
        segments
            .get(&pointer.segment)
            .ok_or(ReadError::Tampered)?
            .read_node(store, pointer)
    };
    if checkpoint.root_level > LEVEL_MAX {
        return Err(ReadError::Tampered);
    }
    let mut pointers = vec![(None, checkpoint.root)];
    for level in (1..=checkpoint.root_level).rev() {
        let mut below = Vec::new();
        for (first_key, pointer) in &pointers {
            let node = read(pointer)?;
            let entries = parse_node(&node, level).map_err(|_| ReadError::Tampered)?;
            begins_with(&entries, first_key.as_deref())?;
            for (key, value) in entries {
                let mut r = Reader::new(value, "node pointer");
                let child = NodePointer::parse(&mut r).map_err(|_| ReadError::Tampered)?;
                r.end().map_err(|_| ReadError::Tampered)?;
                below.push((Some(key.to_vec()), child));
            }
        }
        pointers = below;
    }
    for (first_key, pointer) in &pointers {
        let node = read(pointer)?;
        let entries = parse_node(&node, 0).map_err(|_| ReadError::Tampered)?;
        begins_with(&entries, first_key.as_deref())?;
        for (key, value) in entries {
            schema::load(tables, key, value).map_err(|_| ReadError::Tampered)?;
        }
    }
    tables.set_counters(checkpoint.counters);
    Ok(())
}

fn begins_with(entries: &[(&[u8], &[u8])], first_key: Option<&[u8]>) -> Result<(), ReadError> {
    let first = entries
        .first()
        .map(|(key, _)| *key)
        .ok_or(ReadError::Tampered)?;
    if first_key.is_none_or(|key| key == first) {
        Ok(())
    } else {
        Err(ReadError::Tampered)
    }
}

fn parents(level: u8, below: &[(Vec<u8>, NodePointer)]) -> Vec<Leaf> {
    let mut done = Vec::new();
    let mut current = NodeBuilder::new(level);
    for (key, pointer) in below {
        let mut value = Vec::with_capacity(NodePointer::LEN);
        pointer.put(&mut value);
        if !current.push(key, &value) {
            done.push(std::mem::replace(&mut current, NodeBuilder::new(level)).finish());
            current.push(key, &value);
        }
    }
    done.push(current.finish());
    done
}

/// Seals nodes one behind the other and writes them in large pieces.
struct NodeWriter<'a> {
    store: &'a dyn Appendable,
    keys: &'a VolumeKeys,
    segments: Vec<SegmentWriter>,
    at: usize,
    live: Vec<u64>,
    batch: Vec<u8>,
    batch_offset: u64,
}

impl<'a> NodeWriter<'a> {
    fn new(store: &'a dyn Appendable, keys: &'a VolumeKeys, segments: &[Arc<Segment>]) -> Self {
        let writer = |segment: &Arc<Segment>| SegmentWriter::new(segment.clone(), NODE_SEGMENT_LEN);
        let segments: Vec<_> = segments.iter().map(writer).collect();
        let live = vec![0; segments.len()];
        Self {
            store,
            keys,
            segments,
            at: 0,
            live,
            batch: Vec::new(),
            batch_offset: 0,
        }
    }

    fn write_all(&mut self, nodes: Vec<Leaf>) -> Result<Vec<(Vec<u8>, NodePointer)>, TreeError> {
        let write = |(key, plaintext): Leaf| Ok((key, self.write(&plaintext)?));
        nodes.into_iter().map(write).collect()
    }

    fn write(&mut self, plaintext: &[u8]) -> Result<NodePointer, TreeError> {
        loop {
            let writer = self.segments.get(self.at).ok_or(TreeError::Unplanned)?;
            let Some(slot) = writer.reserve_node(plaintext.len()) else {
                self.put_batch()?;
                self.at += 1;
                continue;
            };
            let sealed = slot.seal_node(self.keys.entropy(), plaintext)?;
            if self.batch.is_empty() {
                self.batch_offset = sealed.offset;
            }
            self.batch.extend(&sealed.bytes);
            if let Some(live) = self.live.get_mut(self.at) {
                *live += sealed.bytes.len() as u64;
            }
            if self.batch.len() >= BATCH_LEN {
                self.put_batch()?;
            }
            return Ok(sealed.pointer);
        }
    }

    fn put_batch(&mut self) -> Result<(), TreeError> {
        let batch = std::mem::take(&mut self.batch);
        if let Some(writer) = self.segments.get(self.at).filter(|_| !batch.is_empty()) {
            self.store
                .write_at(writer.segment().name, self.batch_offset, &batch)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), TreeError> {
        self.put_batch()?;
        for writer in &self.segments {
            self.store.sync(writer.segment().name)?;
        }
        Ok(())
    }
}
