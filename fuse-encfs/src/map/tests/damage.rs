//! Core: nodes that are not what was written, or not what a map may hold.

use super::*;
use crate::format::NodeBuilder;

/// A map on the store, and all of its pointers.
fn stored() -> (World, Map, Vec<(NodePointer, u8)>) {
    let mut world = World::new(0);
    let mut map = filled(&world.nodes, 20_000, |n| n);
    let (root, level) = world.checkpoint(&mut map);
    assert_eq!(level, 1);
    let mut pointers = Vec::new();
    map.pointers(&world.nodes, &mut |pointer, level| {
        pointers.push((*pointer, level));
    })
    .unwrap();
    assert_eq!(pointers[0].0, root);
    (world, Map::stored(root, level), pointers)
}

/// Keys of which the value can be read, and how many can not.
fn readable(world: &World, map: &Map) -> (usize, usize) {
    let mut counts = (0, 0);
    for n in (0..20_000).step_by(10) {
        match map.get(&world.nodes, &short_key(n), |_| ()) {
            Ok(Some(())) => counts.0 += 1,
            Ok(None) => panic!("an item is silently gone"),
            Err(ReadError::Tampered) => counts.1 += 1,
            Err(e) => panic!("{e}"),
        }
    }
    counts
}

#[track_caller]
fn check_damage(damage: impl Fn(&World, &[(NodePointer, u8)], &mut BTreeMap<ObjectName, Vec<u8>>)) {
    let (mut world, map, pointers) = stored();
    assert_eq!(readable(&world, &map), (2000, 0));
    let mut objects = world.store.objects();
    damage(&world, &pointers, &mut objects);
    world.store = Arc::new(MemoryStore::of(objects));
    world.restart(1 << 20);
    let (good, bad) = readable(&world, &map);
    assert!(bad > 0, "the damage is noticed");
    assert!(good > 1500, "other nodes go on working: {good}");
    let walked = map.pointers(&world.nodes, &mut |_, _| ());
    assert!(walked.is_ok(), "only leaves are hurt");
}

fn bytes_of<'a>(
    world: &World,
    pointer: &NodePointer,
    objects: &'a mut BTreeMap<ObjectName, Vec<u8>>,
) -> &'a mut [u8] {
    let object = objects.get_mut(&world.name(pointer.segment)).unwrap();
    let at = usize::try_from(pointer.offset).unwrap();
    &mut object[at..at + pointer.len as usize + TAG_LEN]
}

#[test]
fn a_flipped_bit_hurts_one_leaf() {
    for at in [0, 100, 16_000] {
        check_damage(|world, pointers, objects| {
            let node = bytes_of(world, &pointers[5].0, objects);
            let at = at % node.len();
            node[at] ^= 0x10;
        });
    }
}

#[test]
fn swapped_leaves_are_not_taken_for_each_other() {
    check_damage(|world, pointers, objects| {
        let (a, b) = (&pointers[5].0, &pointers[6].0);
        assert_eq!(a.len, b.len);
        let of_a = bytes_of(world, a, objects).to_vec();
        let of_b = bytes_of(world, b, objects).to_vec();
        bytes_of(world, a, objects).copy_from_slice(&of_b);
        bytes_of(world, b, objects).copy_from_slice(&of_a);
    });
}

#[test]
fn a_short_segment_hurts_its_end_and_a_missing_one_its_nodes() {
    check_damage(|world, pointers, objects| {
        let object = objects.get_mut(&world.name(pointers[3].0.segment)).unwrap();
        object.truncate(object.len() - 1);
    });
    check_damage(|world, pointers, objects| {
        objects.remove(&world.name(pointers[3].0.segment)).unwrap();
    });
}

#[test]
fn a_root_that_is_gone_is_an_error_of_every_call() {
    let (mut world, mut map, pointers) = stored();
    let mut objects = world.store.objects();
    bytes_of(&world, &pointers[0].0, &mut objects)[0] ^= 1;
    world.store = Arc::new(MemoryStore::of(objects));
    world.restart(0);
    let nodes = &world.nodes;
    let doomed = world.segments.keys().copied().collect();
    let mut results = vec![
        map.contains(nodes, b"x").map(drop),
        map.scan(nodes, b"x", &mut |_, _| ControlFlow::Continue(())),
        map.scan_back(nodes, b"x", &mut |_, _| ControlFlow::Continue(())),
        map.pointers(nodes, &mut |_, _| ()),
    ];
    results.push(map.put(nodes, b"x", b"y").map(drop));
    results.push(map.remove(nodes, b"x").map(drop));
    results.push(map.evacuate(nodes, &doomed, 1).map(drop));
    for result in results {
        assert!(matches!(result, Err(ReadError::Tampered)), "{result:?}");
    }
    assert_eq!(map.dirty_len(), 0);
}

#[test]
fn a_store_that_fails_is_no_tampering_and_changes_nothing() {
    let (world, mut map, pointers) = stored();
    world.store.fail_reads(world.name(pointers[5].0.segment));
    let nodes = &world.nodes;
    let mut failed = 0;
    for n in (0..20_000).step_by(100) {
        let key = short_key(n);
        if let Err(e) = map.put(nodes, &key, b"new") {
            assert!(matches!(e, ReadError::Store(_)));
            assert!(matches!(map.remove(nodes, &key), Err(ReadError::Store(_))));
            failed += 1;
        }
    }
    assert!(failed > 0 && failed < 200, "{failed}");
    world.store.mend();
    let items = all(&map, nodes);
    assert_eq!(items.len(), 20_000);
    assert_eq!(
        items.values().filter(|value| *value == b"new").count(),
        200 - failed
    );
}

#[test]
fn a_damaged_node_does_not_stop_the_evacuation_of_others() {
    let (mut world, mut map, pointers) = stored();
    let mut objects = world.store.objects();
    bytes_of(&world, &pointers[1].0, &mut objects)[0] ^= 1;
    world.store = Arc::new(MemoryStore::of(objects));
    world.restart(0);
    let doomed: BTreeSet<_> = world.segments.keys().copied().collect();
    let mut evacuated = 0;
    let last = loop {
        match map.evacuate(&world.nodes, &doomed, 5) {
            Ok(0) => break None,
            Ok(count) => evacuated += count,
            Err(e) => break Some(e),
        }
    };
    assert!(matches!(last, Some(ReadError::Tampered)));
    assert_eq!(evacuated, pointers.len() - 1);
}

/// Seals a tree of two levels: a root with `separators` above leaves with these keys.
#[track_caller]
fn check_forged(root_level: u8, leaf_level: u8, leaves: &[(&str, &[&str])], expected: bool) {
    let mut world = World::new(1 << 20);
    let mut root = NodeBuilder::new(root_level);
    for (separator, keys) in leaves {
        let mut leaf = NodeBuilder::new(leaf_level);
        keys.iter()
            .for_each(|key| assert!(leaf.push(key.as_bytes(), b"v")));
        let mut pointer = Vec::new();
        let (_, plaintext) = leaf.finish();
        world.put(&plaintext).unwrap().put(&mut pointer);
        assert!(root.push(separator.as_bytes(), &pointer));
    }
    let (_, plaintext) = root.finish();
    let map = Map::stored(world.put(&plaintext).unwrap(), 1);
    let scanned = map.scan(&world.nodes, b"", &mut |_, _| ControlFlow::Continue(()));
    assert_eq!(scanned.is_ok(), expected, "{leaves:?}");
    if let Err(e) = scanned {
        assert!(matches!(e, ReadError::Tampered));
    }
}

#[test]
fn keys_outside_of_what_the_parent_says_are_refused() {
    check_forged(1, 0, &[("", &["a", "b"]), ("c", &["c", "d"])], true);
    check_forged(1, 0, &[("a", &["b"]), ("c", &["d"])], true);
    check_forged(1, 0, &[("", &["a", "c"]), ("c", &["c", "d"])], false);
    check_forged(1, 0, &[("", &["a", "d"]), ("c", &["c", "d"])], false);
    check_forged(1, 0, &[("b", &["a"]), ("c", &["c"])], false);
    check_forged(1, 0, &[("", &["a"]), ("d", &["c"])], false);
    check_forged(1, 0, &[("", &["a"]), ("c", &[])], false);
    check_forged(1, 0, &[("", &["a"]), ("", &["c"])], false);
    check_forged(1, 0, &[("", &["b", "a"])], false);
}

#[test]
fn a_node_of_another_level_is_refused() {
    check_forged(1, 1, &[("", &["a"])], false);
    check_forged(2, 0, &[("", &["a"])], false);
    check_forged(0, 0, &[("", &["a"])], false);
}

#[test]
fn an_inner_node_without_children_or_with_no_pointer_is_refused() {
    check_forged(1, 0, &[], false);
    for value in [
        &b""[..],
        &[0; NodePointer::LEN],
        &[0xff; NodePointer::LEN + 1],
    ] {
        let mut world = World::new(0);
        let mut root = NodeBuilder::new(1);
        assert!(root.push(b"", value));
        let (_, plaintext) = root.finish();
        let map = Map::stored(world.put(&plaintext).unwrap(), 1);
        let read = map.contains(&world.nodes, b"a");
        assert!(matches!(read, Err(ReadError::Tampered)));
    }
}

#[test]
fn a_tree_that_is_too_high_is_refused() {
    let mut world = World::new(0);
    let (_, plaintext) = NodeBuilder::new(9).finish();
    let map = Map::stored(world.put(&plaintext).unwrap(), 9);
    let read = map.contains(&world.nodes, b"a");
    assert!(matches!(read, Err(ReadError::Tampered)));
}

/// Checks that exactly what a scrub says to be lost cannot be read, and returns how much is left.
fn left(world: &World, map: &Map) -> usize {
    let mut lost = Vec::new();
    map.scrub(&world.nodes, &mut |node| {
        if let Err(e) = node.state {
            assert!(matches!(e, ReadError::Tampered));
            lost.push((node.from.to_vec(), node.to.map(<[u8]>::to_vec)));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let is_lost = |key: &[u8]| {
        let within = |(from, to): &(Vec<u8>, Option<Vec<u8>>)| {
            from.as_slice() <= key && to.as_ref().is_none_or(|to| key < to.as_slice())
        };
        lost.iter().any(within)
    };
    let mut left = 0;
    for n in 0..20_000 {
        let key = short_key(n);
        let read = map.get(&world.nodes, &key, |value| {
            value == n.to_le_bytes().repeat(8)
        });
        if is_lost(&key) {
            assert!(matches!(read, Err(ReadError::Tampered)), "{n}");
        } else {
            assert_eq!(read.unwrap(), Some(true), "{n}");
            left += 1;
        }
    }
    left
}

#[test]
fn a_scrub_says_what_is_lost_and_all_else_is_read() {
    // None, a leaf, the first and the last leaf, all leaves but one, the root.
    let (_, _, pointers) = stored();
    let leaves = pointers.len() - 1;
    let cases = [
        (0..0, 20_000),
        (7..8, 19_000),
        (1..2, 19_000),
        (leaves..leaves + 1, 19_000),
        (2..leaves + 1, 100),
        (1..leaves + 1, 0),
        (0..1, 0),
    ];
    for (damaged, left_min) in cases {
        let (mut world, map, pointers) = stored();
        let mut objects = world.store.objects();
        for (pointer, _) in &pointers[damaged.clone()] {
            bytes_of(&world, pointer, &mut objects)[9] ^= 1;
        }
        world.store = Arc::new(MemoryStore::of(objects));
        world.restart(1 << 20);
        let left = left(&world, &map);
        assert!(left >= left_min, "{damaged:?}: {left}");
        assert_eq!(left == 20_000, damaged.is_empty());
    }
}

#[test]
fn a_scrub_reads_past_the_cache() {
    let (mut world, map, pointers) = stored();
    world.restart(8 << 20);
    assert_eq!(readable(&world, &map), (2000, 0));
    world.store.fail_reads(world.name(pointers[5].0.segment));
    assert_eq!(readable(&world, &map), (2000, 0), "all is in the cache");
    let mut failed = 0;
    map.scrub(&world.nodes, &mut |node| {
        failed += usize::from(matches!(node.state, Err(ReadError::Store(_))));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(failed > 0);
    let mut seen = 0;
    map.scrub(&world.nodes, &mut |_| {
        seen += 1;
        ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn an_inner_node_that_is_hurt_takes_only_its_leaves_along() {
    let mut world = World::new(0);
    let mut map = Map::empty();
    for n in 0..600 {
        map.put(&world.nodes, &key(n), &[1; 1500]).unwrap();
    }
    let (_, level) = world.checkpoint(&mut map);
    assert_eq!(level, 2);
    let mut inner = Vec::new();
    let mut see = |pointer: &NodePointer, level| inner.extend((level == 1).then_some(*pointer));
    map.pointers(&world.nodes, &mut see).unwrap();
    let mut objects = world.store.objects();
    bytes_of(&world, &inner[1], &mut objects)[40] ^= 1;
    world.store = Arc::new(MemoryStore::of(objects));
    world.restart(0);

    let mut seen = 0;
    let walked = map.pointers(&world.nodes, &mut |_, level| {
        seen += usize::from(level == 0);
    });
    assert!(
        matches!(walked, Err(ReadError::Tampered)) && seen > 20,
        "{seen}"
    );
    let mut hurt = Vec::new();
    map.scrub(&world.nodes, &mut |node| {
        if node.state.is_err() {
            let to = node.to.map(<[u8]>::to_vec);
            hurt.push((node.level, node.from.to_vec(), to));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let [(1, from, to)] = &hurt[..] else {
        panic!("one inner node is hurt: {hurt:?}");
    };
    let is_lost = |key: &Vec<u8>| key >= from && to.as_ref().is_none_or(|to| key < to);
    let mut lost = 0;
    for key in (0..600).map(key) {
        let read = map.contains(&world.nodes, &key);
        assert_eq!(is_lost(&key), matches!(read, Err(ReadError::Tampered)));
        lost += usize::from(read.is_err());
    }
    assert!(lost > 100 && lost < 500, "{lost}");
}

#[test]
fn a_pointer_with_another_salt_is_another_pointer() {
    let mut world = World::new(1 << 20);
    let mut map = filled(&world.nodes, 10, |n| n);
    let (mut root, level) = world.checkpoint(&mut map);
    assert!(map.contains(&world.nodes, &short_key(1)).unwrap());
    root.salt[0] ^= 1;
    let read = Map::stored(root, level).contains(&world.nodes, &short_key(1));
    assert!(matches!(read, Err(ReadError::Tampered)));
}
