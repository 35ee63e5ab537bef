//! Core: a volume whose log fails, rolls and is made ahead, with a crash behind every call.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the cases that it means"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::format::{Ino, SegmentKind};
use crate::store::memory::{Call, Crash, MemoryStore};
use crate::store::{ObjectName, StoreError};
use crate::tables::SegmentEntry;
use crate::testing::{Shown, new_store, open, pattern, put_file, walk};
use crate::volume::Volume;

type Tree = BTreeMap<String, Shown>;

fn is_log(name: ObjectName) -> bool {
    matches!(name, ObjectName::Segment(SegmentKind::Log, _))
}

/// Lets two flushes of the log segment that is flushed next fail: the second one ends it.
fn break_log(store: &MemoryStore) {
    let (mut broken, mut left) = (None, 2);
    store.fail(move |call| match call {
        Call::Sync(name) if is_log(*name) && left > 0 => {
            let hit = *broken.get_or_insert(*name) == *name;
            left -= u32::from(hit);
            hit.then(|| StoreError::Io(std::io::ErrorKind::Other.into()))
        }
        _ => None,
    });
}

/// Makes files one by one, each durable before the next, and says how many calls there were by
/// then and what the tree was.
fn work(
    store: &Arc<MemoryStore>,
    before: impl Fn(u64, &MemoryStore, &Volume),
) -> Vec<(usize, Tree)> {
    let volume = open(store).unwrap();
    let mut steps = vec![(store.calls().len(), walk(volume.fs()))];
    for i in 0..8 {
        before(i, store, &volume);
        let ino = put_file(volume.fs(), &format!("f{i}"), &pattern(i, 3000));
        volume.fs().fsync(ino).unwrap();
        store.mend();
        steps.push((store.calls().len(), walk(volume.fs())));
    }
    assert!(!volume.stats().read_only);
    steps
}

/// Mounts what a crash behind each call leaves, and checks that it shows a file more than was
/// acknowledged at most.
fn check_crashes(store: &Arc<MemoryStore>, steps: &[(usize, Tree)], seen: impl Fn(&Volume, usize)) {
    let calls = store.calls();
    for at in steps[0].0..=calls.len() {
        for crash in [Crash::Daemon, Crash::Power(at as u64)] {
            let crashed = Arc::new(MemoryStore::after(&calls[..at], crash));
            let volume = open(&crashed).unwrap_or_else(|e| panic!("call {at}, {crash:?}: {e}"));
            let tree = walk(volume.fs());
            let done = steps.iter().rposition(|(calls, _)| *calls <= at).unwrap();
            let least = &steps[done].1;
            let contains = least
                .iter()
                .all(|(path, shown)| tree.get(path) == Some(shown));
            assert!(contains, "call {at}, {crash:?}: step {done} is gone");
            assert!(tree.len() <= least.len() + 1, "call {at}, {crash:?}");
            seen(&volume, at);
        }
    }
}

#[test]
fn a_log_that_fails_twice_goes_on_in_another_segment() {
    let store = new_store();
    let steps = work(&store, |i, store, _| {
        if i % 4 == 1 {
            break_log(store);
        }
    });
    check_crashes(&store, &steps, |_, _| {});
    assert_eq!(walk(open(&store).unwrap().fs()), steps.last().unwrap().1);
}

#[test]
fn a_checkpoint_is_found_where_it_was_sealed_anew() {
    let store = new_store();
    let volume = open(&store).unwrap();
    put_file(volume.fs(), "a", &pattern(1, 3000));
    // The flush of CHECKPOINT is the last but one of the log that a checkpoint makes.
    let before = store.calls().len();
    volume.fs().checkpoint().unwrap();
    let is_log_sync = |call: &&Call| matches!(call, Call::Sync(name) if is_log(*name));
    let flushes = store.calls()[before..].iter().filter(is_log_sync).count();
    put_file(volume.fs(), "b", &pattern(2, 3000));
    for nth in 0..flushes {
        let mut n = 0;
        let mut broken = None;
        store.fail(move |call| match call {
            Call::Sync(name) if is_log(*name) => {
                n += 1;
                let hit = n > nth && *broken.get_or_insert(*name) == *name;
                hit.then(|| StoreError::Io(std::io::ErrorKind::Other.into()))
            }
            _ => None,
        });
        put_file(volume.fs(), &format!("c{nth}"), b"more");
        crate::testing::checkpoint(volume.fs()).unwrap();
        store.mend();
        let tree = walk(volume.fs());
        let crashed = Arc::new(MemoryStore::after(&store.calls(), Crash::Power(1)));
        assert_eq!(walk(open(&crashed).unwrap().fs()), tree, "flush {nth}");
    }
}

/// A segment that was made ahead, or whose making was interrupted anywhere, is known to whoever
/// mounts later, and goes.
#[test]
fn a_segment_that_was_made_ahead_and_not_used_does_not_stay() {
    let store = new_store();
    let steps = work(&store, |i, _, volume| {
        if i > 1 {
            volume.fs().journal().prepare_log().unwrap();
        }
    });
    check_crashes(&store, &steps, |volume, at| {
        let known = |volume: &Volume| {
            let tables = volume.fs().journal().tables();
            let mut names = BTreeSet::new();
            tables
                .segments(|_, e| {
                    names.insert(ObjectName::Segment(e.kind, e.segment.uid));
                })
                .unwrap();
            names
        };
        let crashed = MemoryStore::after(&store.calls()[..at], Crash::Daemon);
        let of_log = |name: &ObjectName| is_log(*name);
        let strangers: Vec<_> = crashed.objects().into_keys().filter(of_log).collect();
        let known_now = known(volume);
        assert!(
            strangers.iter().all(|name| known_now.contains(name)),
            "call {at}: an object that the map does not know"
        );
        for i in 0..3 {
            put_file(volume.fs(), &format!("g{i}"), b"x");
            volume.fs().checkpoint().unwrap();
        }
        // Those that hold contents of files stay until these are moved.
        let mut left = 0;
        let see =
            |_, e: SegmentEntry| left += usize::from(e.kind == SegmentKind::Log && e.live == 0);
        volume.fs().journal().tables().segments(see).unwrap();
        assert!(left <= 3, "call {at}: {left} log segments are left");
    });
}

/// Neither a failure nor a segment made ahead is seen by who uses the volume.
#[test]
fn a_volume_on_a_store_that_often_fails_is_as_any_other() {
    let store = new_store();
    let steps = work(&store, |i, store, volume| {
        volume.fs().journal().prepare_log().unwrap();
        if i % 2 == 0 {
            break_log(store);
        }
        if i == 6 {
            volume.fs().unlink(Ino::ROOT, b"f3").unwrap();
        }
    });
    let after = Arc::new(MemoryStore::after(&store.calls(), Crash::Power(9)));
    assert_eq!(walk(open(&after).unwrap().fs()), steps.last().unwrap().1);
}
