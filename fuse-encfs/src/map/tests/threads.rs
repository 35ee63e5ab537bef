//! Core: readers of clones while the map changes and is written.

use std::sync::atomic::{AtomicBool, Ordering};

use runtime::sync::RwLock;

use super::*;

const ITEMS: u32 = 1500;

/// All values of a map are the same number in every state that is installed.
fn assert_uniform(map: &Map, nodes: &Nodes) -> u64 {
    let (mut first, mut count) = (None, 0);
    map.scan(nodes, &[], &mut |_, value| {
        let number = u64::from_le_bytes(value.try_into().unwrap());
        assert_eq!(
            *first.get_or_insert(number),
            number,
            "a state that never was"
        );
        count += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(count, ITEMS);
    first.unwrap()
}

fn set_all(map: &Map, nodes: &Nodes, number: u64) -> Map {
    let mut next = map.clone();
    for n in 0..ITEMS {
        next.put(nodes, &short_key(n), &number.to_le_bytes())
            .unwrap();
    }
    next
}

#[test]
fn readers_see_installed_states_only_while_the_map_is_changed_written_and_settled() {
    let mut world = World::new(60 << 10);
    let nodes = Arc::clone(&world.nodes);
    let current = RwLock::new(set_all(&Map::empty(), &nodes, 0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let map = current.read().clone();
                    let number = assert_uniform(&map, &nodes);
                    assert!(number >= last, "an older state");
                    last = number;
                }
            });
        }
        for round in 0..8 {
            let snapshot = current.write().snapshot();
            let next = set_all(&current.read(), &nodes, round * 2 + 1);
            *current.write() = next;
            let (current, nodes) = (&current, &nodes);
            let changer = scope.spawn(move || {
                let next = set_all(&current.read(), nodes, round * 2 + 2);
                *current.write() = next;
            });
            let (root, level) = world.write(&snapshot).unwrap();
            changer.join().unwrap();
            current.write().settle();
            let written = Map::stored(root, level);
            assert_eq!(assert_uniform(&written, nodes), round * 2);
        }
        done.store(true, Ordering::Relaxed);
    });
}
