//! Core: the map against a plain one, over many generations; and against a store that lies.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use keys::VolumeMasterKey;

use super::{ITEM_LEN_MAX, KEY_LEN_MAX, Map, NodeSink, Nodes, write};
use crate::crypto::{EpochKeys, VolumeKeys};
use crate::format::{
    NameKey, NodePointer, SEGMENT_BEGIN, SegmentId, SegmentKind, SegmentRef, SegmentUid, TAG_LEN,
};
use crate::segment::{ReadError, Segment, SegmentWriter};
use crate::store::memory::MemoryStore;
use crate::store::{Appendable, ObjectName, Store};
use crate::tables::SegmentEntry;
use crate::testing::{ID, aead};

mod damage;
mod model;
mod threads;

/// Bytes of a segment here: a few nodes.
const SEGMENT_LEN: u64 = 200 << 10;

/// A store for nodes, and what lies in it by what the sink was told and the map has said.
struct World {
    store: Arc<MemoryStore>,
    keys: Arc<VolumeKeys>,
    nodes: Arc<Nodes>,
    writer: Option<SegmentWriter>,
    segments: BTreeMap<SegmentId, SegmentRef>,
    live: BTreeMap<(SegmentId, u64), NodePointer>,
    /// Nodes that the sink takes before it fails.
    patience: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct OutOfPatience;

impl World {
    fn new(cache_len_max: usize) -> Self {
        let vmk = VolumeMasterKey::take_from(&mut [7; 32]).unwrap();
        let newest = EpochKeys::new(&vmk, 1, ID).unwrap();
        let keys = Arc::new(VolumeKeys::new(aead(), newest, None, NameKey([0; 16])));
        let store = Arc::new(MemoryStore::default());
        Self {
            nodes: Nodes::new(store.clone(), keys.clone(), cache_len_max).into(),
            store,
            keys,
            writer: None,
            segments: BTreeMap::new(),
            live: BTreeMap::new(),
            patience: usize::MAX,
        }
    }

    /// Forgets everything that is only in memory.
    fn restart(&mut self, cache_len_max: usize) {
        self.nodes = Nodes::new(self.store.clone(), self.keys.clone(), cache_len_max).into();
        for (id, segment) in &self.segments {
            self.nodes.add_segment(*id, *segment);
        }
    }

    /// Begins a new segment with the next node.
    fn roll(&mut self) {
        self.writer = None;
    }

    fn name(&self, id: SegmentId) -> ObjectName {
        ObjectName::Segment(SegmentKind::Node, self.segments[&id].uid)
    }

    fn begin_segment(&mut self) -> SegmentWriter {
        let n = u32::try_from(self.segments.len()).unwrap();
        let mut uid = [0xab; 16];
        uid[..4].copy_from_slice(&n.to_le_bytes());
        let segment = SegmentRef {
            uid: SegmentUid(uid),
            vmk_epoch: 1,
        };
        self.segments.insert(SegmentId(n), segment);
        self.nodes.add_segment(SegmentId(n), segment);
        self.store
            .create(self.name(SegmentId(n)), SEGMENT_LEN)
            .unwrap();
        let entry = SegmentEntry {
            kind: SegmentKind::Node,
            segment,
            live: 0,
        };
        let segment = Segment::new(&self.keys, SegmentId(n), entry);
        SegmentWriter::new(Arc::new(segment), SEGMENT_LEN)
    }

    fn subtract(&mut self, freed: Vec<NodePointer>) {
        for pointer in freed {
            let was = self.live.remove(&(pointer.segment, pointer.offset));
            assert_eq!(was, Some(pointer), "freed twice, or never written");
        }
    }

    /// Writes `map` as a checkpoint does, and lets go of what was written.
    fn checkpoint(&mut self, map: &mut Map) -> (NodePointer, u8) {
        let snapshot = map.snapshot();
        let freed = map.take_freed();
        self.subtract(freed);
        let root = self.write(&snapshot).unwrap();
        map.settle();
        self.assert_exact(&snapshot);
        root
    }

    fn write(&mut self, snapshot: &Map) -> Result<(NodePointer, u8), OutOfPatience> {
        let nodes = Arc::clone(&self.nodes);
        write(snapshot, &nodes, self)
    }

    /// What is live in the segments is what the map points to.
    fn assert_exact(&self, map: &Map) {
        let mut pointed = BTreeMap::new();
        map.pointers(&self.nodes, &mut |pointer, _| {
            pointed.insert((pointer.segment, pointer.offset), *pointer);
        })
        .unwrap();
        assert_eq!(pointed, self.live);
    }
}

impl NodeSink for World {
    type Error = OutOfPatience;

    fn put(&mut self, plaintext: &[u8]) -> Result<NodePointer, OutOfPatience> {
        self.patience = self.patience.checked_sub(1).ok_or(OutOfPatience)?;
        loop {
            let writer = match self.writer.take() {
                Some(writer) => writer,
                None => self.begin_segment(),
            };
            let Some(slot) = writer.reserve_node(plaintext.len()) else {
                continue;
            };
            let sealed = slot.seal_node(self.keys.entropy(), plaintext).unwrap();
            let name = writer.segment().name;
            self.store
                .write_at(name, sealed.offset, &sealed.bytes)
                .unwrap();
            let pointer = sealed.pointer;
            let at = (pointer.segment, pointer.offset);
            assert!(self.live.insert(at, pointer).is_none());
            self.writer = Some(writer);
            return Ok(pointer);
        }
    }
}

/// A key that makes long separators, so that few items make a deep tree.
fn key(n: u16) -> Vec<u8> {
    let mut key = vec![b'k'; 500];
    key.extend(n.to_be_bytes());
    key
}

/// A short key, as most are.
fn short_key(n: u32) -> [u8; 9] {
    let mut key = [1; 9];
    key[5..].copy_from_slice(&n.to_be_bytes());
    key
}

fn value_of(map: &Map, nodes: &Nodes, key: &[u8]) -> Option<Vec<u8>> {
    map.get(nodes, key, <[u8]>::to_vec).unwrap()
}

fn all(map: &Map, nodes: &Nodes) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut items = BTreeMap::new();
    map.scan(nodes, &[], &mut |key, value| {
        items.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    items
}

/// A map of `count` short keys, put in the order that `order` makes of 0 to `count`.
fn filled(nodes: &Nodes, count: u32, order: impl Fn(u32) -> u32) -> Map {
    let mut map = Map::empty();
    for n in 0..count {
        let n = order(n);
        map.put(nodes, &short_key(n), &[n.to_le_bytes(); 8].concat())
            .unwrap();
    }
    map
}

fn leaf_lens(map: &Map, nodes: &Nodes) -> Vec<usize> {
    let mut lens = Vec::new();
    map.pointers(nodes, &mut |pointer, level| {
        if level == 0 {
            lens.push(pointer.len as usize);
        }
    })
    .unwrap();
    lens
}

#[test]
fn ascending_keys_leave_full_nodes_and_shuffled_ones_half_full_ones() {
    for (factor, mean_min) in [(1_u32, 16_000), (48_271, 9_000)] {
        let mut world = World::new(1 << 20);
        let mut map = filled(&world.nodes, 30_011, |n| {
            u32::try_from(u64::from(n) * u64::from(factor) % 30_011).unwrap()
        });
        world.checkpoint(&mut map);
        let lens = leaf_lens(&map, &world.nodes);
        let mean = lens.iter().sum::<usize>() / lens.len();
        assert!(mean > mean_min, "{mean} bytes a leaf");
    }
}

#[test]
fn keys_that_ascend_in_the_midst_leave_full_nodes() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 1000, |n| n * 1_000_000);
    for n in 0..30_000 {
        map.put(&world.nodes, &short_key(500_000_001 + n), &[9; 32])
            .unwrap();
    }
    world.checkpoint(&mut map);
    let lens = leaf_lens(&map, &world.nodes);
    let mean = lens.iter().sum::<usize>() / lens.len();
    assert!(mean > 15_500, "{mean} bytes a leaf");
}

#[test]
fn a_map_that_is_emptied_has_one_node_again() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 5000, |n| n);
    world.checkpoint(&mut map);
    for n in 0..5000 {
        assert!(map.remove(&world.nodes, &short_key(n)).unwrap());
    }
    assert!(!map.remove(&world.nodes, &short_key(0)).unwrap());
    let (root, level) = world.checkpoint(&mut map);
    assert_eq!((world.live.len(), root.len, level), (1, 64, 0));
    assert!(all(&Map::stored(root, level), &world.nodes).is_empty());
}

#[test]
fn nodes_of_which_little_is_left_become_one() {
    let mut world = World::new(8 << 20);
    let mut map = filled(&world.nodes, 30_000, |n| n);
    world.checkpoint(&mut map);
    let before = world.live.len();
    for n in (0..30_000).filter(|n| n % 10 != 0) {
        map.remove(&world.nodes, &short_key(n)).unwrap();
    }
    world.checkpoint(&mut map);
    let after = world.live.len();
    assert!(after * 3 < before, "{after} of {before}");
    assert_eq!(all(&map, &world.nodes).len(), 3000);
}

#[test]
fn the_largest_items_fit() {
    let mut world = World::new(1 << 20);
    let mut map = Map::empty();
    for n in 0..200_u16 {
        let mut key = vec![b'x'; KEY_LEN_MAX];
        key[KEY_LEN_MAX - 2..].copy_from_slice(&n.wrapping_mul(77).to_be_bytes());
        let value = vec![1; ITEM_LEN_MAX - KEY_LEN_MAX];
        map.put(&world.nodes, &key, &value).unwrap();
    }
    world.checkpoint(&mut map);
    assert_eq!(all(&map, &world.nodes).len(), 200);
}

#[test]
fn the_cache_keeps_to_its_bound() {
    for len_max in [0, 40 << 10, 300 << 10, 1 << 20] {
        let mut world = World::new(len_max);
        let mut map = filled(&world.nodes, 20_000, |n| n);
        world.checkpoint(&mut map);
        for n in 0..20_000 {
            let got = value_of(&map, &world.nodes, &short_key(n * 7 % 20_000));
            assert!(got.is_some());
            assert!(n % 1000 != 0 || world.nodes.cached_len() <= len_max);
        }
        if len_max > 0 {
            assert!(world.nodes.cached_len() > len_max / 3, "it is used");
        }
    }
}

#[test]
fn a_settled_map_holds_no_node_in_memory() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 10_000, |n| n);
    assert!(map.dirty_len() > 10_000 * 40);
    world.checkpoint(&mut map);
    assert_eq!(map.dirty_len(), 0);
    map.put(&world.nodes, &short_key(5), b"changed").unwrap();
    let of_one_path = map.dirty_len();
    assert!(
        of_one_path > 16 << 10 && of_one_path < 48 << 10,
        "{of_one_path}"
    );
    // Nothing changes by putting what is there.
    let before = world.checkpoint(&mut map);
    map.put(&world.nodes, &short_key(5), b"changed").unwrap();
    assert_eq!((map.dirty_len(), world.checkpoint(&mut map)), (0, before));
}

#[test]
fn a_removed_segment_leaves_the_cache() {
    let mut world = World::new(4 << 20);
    let mut map = filled(&world.nodes, 20_000, |n| n);
    world.checkpoint(&mut map);
    all(&map, &world.nodes);
    assert!(world.nodes.cached_len() > 0);
    for id in world.segments.keys() {
        world.nodes.remove_segment(*id);
    }
    assert_eq!(world.nodes.cached_len(), 0);
    let read = map.get(&world.nodes, &short_key(1), |_| ());
    assert!(matches!(read, Err(ReadError::Tampered)));
}

#[test]
fn doomed_segments_are_left_in_steps() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 30_000, |n| n);
    world.checkpoint(&mut map);
    let before = all(&map, &world.nodes);
    let doomed: BTreeSet<_> = world.segments.keys().copied().collect();
    world.roll();
    let mut steps = 0;
    while map.evacuate(&world.nodes, &doomed, 7).unwrap() > 0 {
        world.checkpoint(&mut map);
        steps += 1;
    }
    assert!(steps > 5);
    assert!(world.live.keys().all(|(id, _)| !doomed.contains(id)));
    for id in &doomed {
        world.nodes.remove_segment(*id);
    }
    assert!(all(&map, &world.nodes) == before);
}

#[test]
fn a_small_node_is_as_long_as_its_padding_needs() {
    let mut world = World::new(1 << 20);
    let mut map = Map::empty();
    map.put(&world.nodes, b"key", b"value").unwrap();
    let (root, level) = world.checkpoint(&mut map);
    assert_eq!((root.len, root.offset, level), (64, SEGMENT_BEGIN, 0));
    let stored = world.store.objects()[&world.name(root.segment)].len();
    assert_eq!(stored as u64, SEGMENT_BEGIN + 64 + TAG_LEN as u64);
}

#[test]
fn nodes_of_a_segment_that_was_not_flushed_are_written_again_from_memory() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 20_000, |n| n);
    world.checkpoint(&mut map);
    let kept: BTreeSet<_> = world.segments.keys().copied().collect();
    world.roll();
    for n in (0..20_000).step_by(500) {
        map.put(&world.nodes, &short_key(n), b"new").unwrap();
    }
    let before = all(&map, &world.nodes);
    let snapshot = map.snapshot();
    let freed = map.take_freed();
    world.subtract(freed);
    world.write(&snapshot).unwrap();
    let lost: BTreeSet<_> = world.segments.keys().copied().collect();
    let lost: BTreeSet<_> = lost.difference(&kept).copied().collect();
    for id in &lost {
        world.store.delete(world.name(*id)).unwrap();
        world.nodes.remove_segment(*id);
    }
    let count = map.evacuate(&world.nodes, &lost, usize::MAX).unwrap();
    assert!(count > 30, "{count}");
    world.roll();
    let (root, level) = world.checkpoint(&mut map);
    assert!(world.live.keys().all(|(id, _)| !lost.contains(id)));
    assert!(all(&Map::stored(root, level), &world.nodes) == before);
}

/// Thins a deep map out in twenty passes, each of them a generation of its own, so that nodes
/// become one with neighbours that are clean, dirty, above leaves or leaves.
#[track_caller]
fn check_thinning(len: usize, downwards: bool) {
    let mut world = World::new(4 << 20);
    let mut map = Map::empty();
    for n in 0..2000 {
        map.put(&world.nodes, &key(n), &vec![3; len]).unwrap();
    }
    world.checkpoint(&mut map);
    for pass in 1..20 {
        let mut doomed: Vec<_> = (pass..2000).step_by(20).collect();
        if downwards {
            doomed.reverse();
        }
        for n in doomed {
            assert!(map.remove(&world.nodes, &key(n)).unwrap());
        }
        world.checkpoint(&mut map);
        let left = (0..2000).filter(|n| n % 20 == 0 || n % 20 > pass);
        assert!(all(&map, &world.nodes).into_keys().eq(left.map(key)));
    }
}

#[test]
fn merging_with_clean_and_dirty_neighbours_keeps_the_account() {
    for len in [20, 400, 1800] {
        check_thinning(len, false);
        check_thinning(len, true);
    }
}

#[test]
fn what_was_freed_adds_up_until_it_is_taken() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 5000, |n| n);
    for n in 0..3 {
        let snapshot = map.snapshot();
        map.put(&world.nodes, &short_key(n * 2000), b"new").unwrap();
        world.write(&snapshot).unwrap();
        map.settle();
        assert!(map.dirty_len() > 16 << 10, "a leaf and the root");
    }
    let snapshot = map.snapshot();
    world.write(&snapshot).unwrap();
    let freed = map.take_freed();
    assert_eq!(freed.len(), 6);
    world.subtract(freed);
    world.assert_exact(&snapshot);
    assert!(map.take_freed().is_empty());
}
