//! Core: opened nodes, kept within a number of bytes.
//!
//! **Design.** Clock: a hit marks the node under a shared lock; who needs room passes over marked
//! nodes once. Shards keep threads apart. No lock is held over anything but memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use runtime::sync::RwLock;

use super::node::Node;
use crate::format::{NODE_LEN_MAX, NodePointer, SegmentId};

const SHARDS_MAX: usize = 16;
/// A shard has room for this many nodes of full length at least, if there is more than one.
const SHARD_NODES_MIN: usize = 32;

/// Clean nodes by address.
#[derive(Debug)]
pub(super) struct Cache {
    shards: Vec<RwLock<Shard>>,
    shard_len_max: usize,
}

type Address = (SegmentId, u64);

#[derive(Debug, Default)]
struct Shard {
    places: BTreeMap<Address, usize>,
    slots: Vec<Slot>,
    hand: usize,
    len: usize,
}

#[derive(Debug)]
struct Slot {
    address: Address,
    node: Arc<Node>,
    len: usize,
    used: AtomicBool,
}

impl Cache {
    /// A cache of `len_max` bytes.
    pub(super) fn new(len_max: usize) -> Self {
        let shards = (len_max / (SHARD_NODES_MIN * NODE_LEN_MAX)).clamp(1, SHARDS_MAX);
        Self {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            shard_len_max: len_max / shards,
        }
    }

    /// The node at `pointer`.
    pub(super) fn get(&self, pointer: &NodePointer) -> Option<Arc<Node>> {
        let address = (pointer.segment, pointer.offset);
        let shard = self.shard(address)?.read();
        let slot = shard.slots.get(*shard.places.get(&address)?)?;
        // Length and salt belong to the pointer as much as the address does.
        if slot.node.written.get() != Some(pointer) {
            return None;
        }
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&slot.node))
    }

    /// Keeps a node that has an address and holds no child in memory.
    pub(super) fn put(&self, node: Arc<Node>) {
        let Some(pointer) = node.written.get() else {
            return;
        };
        let address = (pointer.segment, pointer.offset);
        let len = node.memory_len();
        let Some(shard) = self.shard(address).filter(|_| len <= self.shard_len_max) else {
            return;
        };
        let slot = Slot {
            address,
            node,
            len,
            used: AtomicBool::new(false),
        };
        // What is displaced is dropped after the lock.
        let _displaced = shard.write().put(slot, self.shard_len_max);
    }

    /// Drops the nodes of a segment.
    pub(super) fn remove_segment(&self, id: SegmentId) {
        for shard in &self.shards {
            let mut shard = shard.write();
            let of_segment = shard.places.range((id, 0)..=(id, u64::MAX));
            let addresses: Vec<_> = of_segment.map(|(address, _)| *address).collect();
            for address in addresses {
                if let Some(place) = shard.places.get(&address).copied() {
                    shard.remove(place);
                }
            }
        }
    }

    /// Bytes of all nodes.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len).sum()
    }

    fn shard(&self, (segment, offset): Address) -> Option<&RwLock<Shard>> {
        // Fibonacci hashing: neighbours in a segment spread over all shards.
        let mixed = (u64::from(segment.0) ^ (offset >> 4)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let at = usize::try_from(mixed >> 40).unwrap_or(0) % self.shards.len();
        self.shards.get(at)
    }
}

impl Shard {
    fn put(&mut self, slot: Slot, len_max: usize) -> Vec<Slot> {
        let mut displaced = Vec::new();
        if let Some(place) = self.places.get(&slot.address).copied() {
            displaced.extend(self.remove(place));
        }
        while self.len + slot.len > len_max {
            match self.evict() {
                Some(evicted) => displaced.push(evicted),
                None => break,
            }
        }
        self.places.insert(slot.address, self.slots.len());
        self.len += slot.len;
        self.slots.push(slot);
        displaced
    }

    fn evict(&mut self) -> Option<Slot> {
        // Two rounds: the first may but clear every mark.
        for _ in 0..=2 * self.slots.len() {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = self.slots.get_mut(self.hand)?;
            if !std::mem::take(slot.used.get_mut()) {
                return self.remove(self.hand);
            }
            self.hand += 1;
        }
        None
    }

    fn remove(&mut self, place: usize) -> Option<Slot> {
        if place >= self.slots.len() {
            return None;
        }
        let removed = self.slots.swap_remove(place);
        self.places.remove(&removed.address);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(moved.address, place);
        }
        self.len -= removed.len;
        Some(removed)
    }
}
