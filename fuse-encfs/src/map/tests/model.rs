//! Core: random operations on the map and on a plain one.

use proptest::prelude::*;

use super::*;

type Plain = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Clone)]
enum Step {
    Put(u16, usize),
    Remove(u16),
    Fill {
        from: u16,
        count: u16,
        len: usize,
    },
    Clear {
        from: u16,
        count: u16,
    },
    /// A transaction that is dropped.
    Drop(Vec<(u16, Option<usize>)>),
    Snapshot,
    /// Writes the snapshot if there is one; the sink fails after so many nodes.
    Write {
        patience: Option<usize>,
    },
    Evacuate {
        oldest: usize,
        limit: usize,
    },
    Restart {
        cache_len_max: usize,
    },
}

const KEYS: u16 = 300;

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![3 => 0..200_usize, 1 => 200..4200_usize];
    let change = (0..KEYS, prop::option::of(len()));
    prop_oneof![
        4 => (0..KEYS, len()).prop_map(|(n, len)| Step::Put(n, len)),
        4 => (0..KEYS).prop_map(Step::Remove),
        3 => (0..KEYS, 1..120_u16, len())
            .prop_map(|(from, count, len)| Step::Fill { from, count, len }),
        2 => (0..KEYS, 1..120_u16).prop_map(|(from, count)| Step::Clear { from, count }),
        1 => prop::collection::vec(change, 1..20).prop_map(Step::Drop),
        3 => Just(Step::Snapshot),
        3 => prop::option::weighted(0.2, 0..10_usize)
            .prop_map(|patience| Step::Write { patience }),
        1 => (1..4_usize, 1..12_usize)
            .prop_map(|(oldest, limit)| Step::Evacuate { oldest, limit }),
        1 => prop_oneof![Just(0), Just(50 << 10), Just(1 << 20)]
            .prop_map(|cache_len_max| Step::Restart { cache_len_max }),
    ]
}

/// What the model knows.
struct Both {
    world: World,
    map: Map,
    plain: Plain,
    /// A snapshot that is not written yet, and what it holds.
    begun: Option<(Map, Plain)>,
    /// The last that was written.
    written: Option<((NodePointer, u8), Plain)>,
    /// Distinguishes values.
    count: u8,
}

impl Both {
    fn value(&mut self, len: usize) -> Vec<u8> {
        self.count = self.count.wrapping_add(1);
        vec![self.count; len]
    }

    fn put(&mut self, n: u16, len: usize) {
        let value = self.value(len);
        let was = self.map.put(&self.world.nodes, &key(n), &value).unwrap();
        assert_eq!(was, self.plain.insert(key(n), value).is_some());
    }

    fn remove(&mut self, n: u16) {
        let was = self.map.remove(&self.world.nodes, &key(n)).unwrap();
        assert_eq!(was, self.plain.remove(&key(n)).is_some());
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Put(n, len) => self.put(*n, *len),
            Step::Remove(n) => self.remove(*n),
            Step::Fill { from, count, len } => {
                (*from..from + count).for_each(|n| self.put(n, *len));
            }
            Step::Clear { from, count } => (*from..from + count).for_each(|n| self.remove(n)),
            Step::Drop(changes) => {
                let mut transaction = self.map.clone();
                for (n, len) in changes {
                    let nodes = &self.world.nodes;
                    match len {
                        Some(len) => transaction.put(nodes, &key(*n), &vec![0; *len]),
                        None => transaction.remove(nodes, &key(*n)),
                    }
                    .unwrap();
                }
            }
            Step::Snapshot => {
                // The earlier one was written, or is given up.
                self.begun = Some((self.map.snapshot(), self.plain.clone()));
                let freed = self.map.take_freed();
                self.world.subtract(freed);
            }
            Step::Write { patience } => self.write(*patience),
            Step::Evacuate { oldest, limit } => {
                let doomed = self.world.segments.keys().take(*oldest).copied().collect();
                let nodes = &self.world.nodes;
                let count = self.map.evacuate(nodes, &doomed, *limit).unwrap();
                assert!(count <= *limit);
                if count < *limit {
                    assert_eq!(self.map.evacuate(nodes, &doomed, *limit).unwrap(), 0);
                }
            }
            Step::Restart { cache_len_max } => self.restart(*cache_len_max),
        }
    }

    fn write(&mut self, patience: Option<usize>) {
        let Some((snapshot, plain)) = self.begun.take() else {
            return;
        };
        self.world.patience = patience.unwrap_or(usize::MAX);
        let Ok(root) = self.world.write(&snapshot) else {
            return;
        };
        self.map.settle();
        self.world.assert_exact(&snapshot);
        assert!(
            all(&snapshot, &self.world.nodes) == plain,
            "a snapshot that was written"
        );
        self.written = Some((root, plain));
    }

    /// Goes on with what was written last.
    fn restart(&mut self, cache_len_max: usize) {
        let Some((root, plain)) = self.written.clone() else {
            return;
        };
        self.world.restart(cache_len_max);
        self.begun = None;
        self.map = Map::stored(root.0, root.1);
        self.plain = plain;
        let live = &mut self.world.live;
        live.clear();
        let see = &mut |pointer: &NodePointer, _| {
            live.insert((pointer.segment, pointer.offset), *pointer);
        };
        self.map.pointers(&self.world.nodes, see).unwrap();
    }

    fn compare(&self) {
        let nodes = &self.world.nodes;
        assert!(all(&self.map, nodes) == self.plain, "forwards");
        let mut expected = self.plain.iter().rev();
        let mut same = true;
        self.map
            .scan_back(nodes, &[0xff; 4], &mut |key, value| {
                same &= expected
                    .next()
                    .is_some_and(|(k, v)| (k, v) == (&key.to_vec(), &value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(same && expected.next().is_none(), "backwards");
        for n in (0..KEYS).step_by(37) {
            assert!(value_of(&self.map, nodes, &key(n)).as_ref() == self.plain.get(&key(n)));
            let (mut after, mut before) = (None, None);
            self.map
                .scan(nodes, &key(n), &mut |key, _| {
                    after = Some(key.to_vec());
                    ControlFlow::Break(())
                })
                .unwrap();
            self.map
                .scan_back(nodes, &key(n), &mut |key, _| {
                    before = Some(key.to_vec());
                    ControlFlow::Break(())
                })
                .unwrap();
            let first = self.plain.range(key(n)..).next();
            assert!(after.as_ref() == first.map(|(key, _)| key));
            let last = self.plain.range(..=key(n)).next_back();
            assert!(before.as_ref() == last.map(|(key, _)| key));
        }
        if let Some((snapshot, plain)) = &self.begun {
            assert!(
                all(snapshot, nodes) == *plain,
                "a snapshot while the map goes on"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_map_is_like_a_plain_one(steps in prop::collection::vec(step(), 1..60)) {
        let mut both = Both {
            world: World::new(100 << 10),
            map: Map::empty(),
            plain: Plain::new(),
            begun: None,
            written: None,
            count: 0,
        };
        for step in &steps {
            both.run(step);
            both.compare();
        }
        // An end that is always reached: written, read back by somebody else.
        both.run(&Step::Snapshot);
        both.run(&Step::Write { patience: None });
        let plain = both.plain.clone();
        both.run(&Step::Restart { cache_len_max: 0 });
        prop_assert!(both.plain == plain);
        both.compare();
    }
}
