//! Core: where nodes are read from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use runtime::sync::RwLock;

use super::cache::Cache;
use super::node::{Bounds, LEVEL_MAX, Link, Node};
use crate::crypto::VolumeKeys;
use crate::format::{NodePointer, SegmentId, SegmentKind, SegmentRef};
use crate::segment::{ReadError, Segment};
use crate::store::Store;
use crate::tables::SegmentEntry;

/// The store, the keys, and a bounded cache of opened nodes.
pub(crate) struct Nodes {
    store: Arc<dyn Store>,
    keys: Arc<VolumeKeys>,
    segments: RwLock<BTreeMap<SegmentId, Arc<Segment>>>,
    cache: Cache,
    /// Reads of nodes that are not what was written.
    tampered: AtomicU64,
}

impl Nodes {
    /// No segment is known yet. `cache_len_max` is in bytes.
    pub(crate) fn new(store: Arc<dyn Store>, keys: Arc<VolumeKeys>, cache_len_max: usize) -> Self {
        Self {
            store,
            keys,
            segments: RwLock::default(),
            cache: Cache::new(cache_len_max),
            tampered: AtomicU64::new(0),
        }
    }

    /// Makes a node segment known, from the table of a CHECKPOINT or newly made.
    pub(crate) fn add_segment(&self, id: SegmentId, segment: SegmentRef) {
        let entry = SegmentEntry {
            kind: SegmentKind::Node,
            segment,
            live: 0,
        };
        let segment = Arc::new(Segment::new(&self.keys, id, entry));
        self.segments.write().insert(id, segment);
    }

    /// Forgets a segment and the nodes of it.
    pub(crate) fn remove_segment(&self, id: SegmentId) {
        self.segments.write().remove(&id);
        self.cache.remove_segment(id);
    }

    /// Bytes of the nodes in the cache.
    pub(crate) fn cached_len(&self) -> usize {
        self.cache.len()
    }

    /// How often a node was needed that is not what was written.
    pub(crate) fn tampered(&self) -> u64 {
        self.tampered.load(Ordering::Relaxed)
    }

    /// The node of a link, which must be of `level` and within `bounds`.
    pub(super) fn follow<'a>(
        &self,
        link: &Link,
        level: u8,
        bounds: impl FnOnce() -> Bounds<'a>,
    ) -> Result<Arc<Node>, ReadError> {
        match link {
            Link::Resident(node) => Ok(Arc::clone(node)),
            Link::Stored(pointer) => self.load(pointer, level, bounds),
        }
    }

    /// The node at `pointer`, which must be of `level` and within `bounds`.
    pub(super) fn load<'a>(
        &self,
        pointer: &NodePointer,
        level: u8,
        bounds: impl FnOnce() -> Bounds<'a>,
    ) -> Result<Arc<Node>, ReadError> {
        match self.cached(pointer) {
            Some(node) if node.level == level => Ok(node),
            Some(_) => Err(ReadError::Tampered),
            None => self.read(pointer, level, bounds()),
        }
    }

    /// The node at `pointer`, if it is at hand.
    pub(super) fn cached(&self, pointer: &NodePointer) -> Option<Arc<Node>> {
        self.cache.get(pointer)
    }

    /// Keeps a node that has an address and holds no child in memory.
    pub(super) fn keep(&self, node: Arc<Node>) {
        self.cache.put(node);
    }

    /// Two readers that miss at once both read: no lock is held over the store.
    fn read(
        &self,
        pointer: &NodePointer,
        level: u8,
        bounds: Bounds<'_>,
    ) -> Result<Arc<Node>, ReadError> {
        let read = self.read_past_cache(pointer, level, bounds);
        let node = read.inspect_err(|e| self.report(pointer, e))?;
        self.cache.put(Arc::clone(&node));
        Ok(node)
    }

    fn report(&self, pointer: &NodePointer, e: &ReadError) {
        if matches!(e, ReadError::Tampered) {
            self.tampered.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                segment = pointer.segment.0,
                offset = pointer.offset,
                error_code = "fs.tampered",
                "a node of the tree is not what was written"
            );
        }
    }

    /// The node at `pointer` as it is on the store.
    pub(super) fn read_past_cache(
        &self,
        pointer: &NodePointer,
        level: u8,
        bounds: Bounds<'_>,
    ) -> Result<Arc<Node>, ReadError> {
        if level > LEVEL_MAX {
            return Err(ReadError::Tampered);
        }
        let segment = self.segments.read().get(&pointer.segment).cloned();
        let segment = segment.ok_or(ReadError::Tampered)?;
        let plaintext = segment.read_node(&*self.store, pointer)?;
        Node::parse(&plaintext, pointer, level, bounds).map(Arc::new)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nodes({} bytes cached)", self.cached_len())
    }
}
