//! Core: whatever somebody does to the store, a volume shows what was written or an error.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the cases that it means"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::OpenError;
use crate::format::{Ino, SEGMENT_BEGIN, SegmentKind};
use crate::store::ObjectName;
use crate::store::memory::{Call, MemoryStore};
use crate::testing::{Shown, new_store, open, pattern, put_file, walk};

type Objects = BTreeMap<ObjectName, Vec<u8>>;
type Tree = BTreeMap<String, Shown>;

/// A store after a clean unmount, and what was in it.
fn closed_volume() -> (Objects, Tree) {
    let store = new_store();
    let volume = open(&store).unwrap();
    for i in 0..5 {
        put_file(
            volume.fs(),
            &format!("f{i}"),
            &pattern(i, 3000 * usize::try_from(i).unwrap()),
        );
    }
    volume.fs().journal().checkpoint().unwrap();
    put_file(volume.fs(), "last", &pattern(9, 5000));
    volume.fs().unlink(Ino::ROOT, b"f1").unwrap();
    let tree = walk(volume.fs());
    volume.close().unwrap();
    (store.objects(), tree)
}

/// What came of opening a damaged store and reading all of it.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// All is as it was.
    Intact,
    /// The mount was refused as tampered with.
    Refused,
    /// Some files give errors, all others are as they were.
    ReadErrors,
}

#[track_caller]
fn outcome(objects: Objects, tree: &Tree, what: &str) -> Outcome {
    match open(&Arc::new(MemoryStore::of(objects))) {
        Err(OpenError::Tampered { .. }) => Outcome::Refused,
        Err(e) => panic!("{what}: {e}"),
        Ok(volume) => {
            let mut found = walk(volume.fs());
            assert!(found.keys().eq(tree.keys()), "{what}: {:?}", found.keys());
            let before = found.len();
            found.retain(|path, shown| {
                let damaged = shown.bytes.starts_with(b"error: the store does not hold");
                assert!(
                    damaged || *shown == tree[path],
                    "{what}: {path} shows something else"
                );
                !damaged
            });
            if found.len() < before {
                assert!(volume.stats().auth_failures > 0);
                Outcome::ReadErrors
            } else {
                Outcome::Intact
            }
        }
    }
}

fn kind_of(name: ObjectName) -> Option<SegmentKind> {
    match name {
        ObjectName::Segment(kind, _) => Some(kind),
        ObjectName::Superblock(_) => None,
    }
}

/// Flips bytes all over an object and says what came of each.
fn flip(objects: &Objects, tree: &Tree, name: ObjectName, step: usize) -> Vec<(usize, Outcome)> {
    let flipped = |at: usize| {
        let mut bent = objects.clone();
        bent.get_mut(&name).unwrap()[at] ^= 0x10;
        (at, outcome(bent, tree, &format!("{name} at {at}")))
    };
    (0..objects[&name].len())
        .step_by(step)
        .map(flipped)
        .collect()
}

#[test]
fn a_flipped_byte_in_one_superblock_slot_changes_nothing() {
    let (objects, tree) = closed_volume();
    for slot in [0, 1] {
        for (at, got) in flip(&objects, &tree, ObjectName::Superblock(slot), 7) {
            assert_eq!(got, Outcome::Intact, "slot {slot} at {at}");
        }
        let mut gone = objects.clone();
        gone.remove(&ObjectName::Superblock(slot)).unwrap();
        assert_eq!(outcome(gone, &tree, "a slot is gone"), Outcome::Intact);
        let mut cut = objects.clone();
        cut.get_mut(&ObjectName::Superblock(slot))
            .unwrap()
            .truncate(100);
        assert_eq!(outcome(cut, &tree, "a slot is cut"), Outcome::Intact);
    }
    let mut both = objects;
    for slot in [0, 1] {
        both.get_mut(&ObjectName::Superblock(slot)).unwrap()[300] ^= 1;
    }
    assert_eq!(outcome(both, &tree, "both slots"), Outcome::Refused);
}

#[test]
fn a_flipped_byte_in_a_chunk_is_an_error_of_its_file_alone() {
    let (objects, tree) = closed_volume();
    let data = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Data));
    let (mut errors, mut unread) = (0, 0);
    for name in data {
        for (at, got) in flip(&objects, &tree, *name, 61) {
            match got {
                Outcome::ReadErrors => errors += 1,
                // The beginning, and the chunks of the file that was removed.
                Outcome::Intact => unread += 1,
                Outcome::Refused => panic!("{name} at {at}: a chunk must not stop the mount"),
            }
        }
    }
    assert!(
        errors > 300 && unread < 200,
        "{errors} errors, {unread} not read"
    );
}

#[test]
fn a_flipped_byte_in_a_node_stops_the_mount() {
    let (objects, tree) = closed_volume();
    let nodes = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Node));
    let mut refusing = 0;
    for name in nodes {
        let behind = usize::try_from(SEGMENT_BEGIN).unwrap();
        let outcomes = flip(&objects, &tree, *name, 3);
        let (_, node): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(at, _)| *at < behind);
        let refused = node
            .iter()
            .filter(|(_, got)| *got == Outcome::Refused)
            .count();
        // The tree of the checkpoint before is not read.
        assert!(
            refused == 0 || refused == node.len(),
            "{name}: {refused} of {}",
            node.len()
        );
        refusing += usize::from(refused > 0);
    }
    assert_eq!(refusing, 1);
}

#[test]
fn a_flipped_byte_in_the_log_that_replay_reads_stops_the_mount() {
    let (objects, tree) = closed_volume();
    let logs: Vec<ObjectName> = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Log))
        .copied()
        .collect();
    let mut refusing = 0;
    for name in logs {
        let outcomes = flip(&objects, &tree, name, 13);
        let refused = outcomes
            .iter()
            .filter(|(_, got)| *got == Outcome::Refused)
            .count();
        if refused > 0 {
            refusing += 1;
            // From some place on everything is read: the commits behind as_of, to the very end.
            let behind = usize::try_from(SEGMENT_BEGIN).unwrap();
            let (last, _) = outcomes
                .iter()
                .rfind(|(_, got)| *got == Outcome::Intact)
                .unwrap();
            let tail = outcomes.iter().filter(|(at, _)| at > last).count();
            assert!(
                tail > 0,
                "{name}: nothing behind {last} of {} is read",
                objects[&name].len()
            );
            let open = outcomes
                .iter()
                .filter(|(at, _)| (behind..behind + 512).contains(at));
            assert!(
                open.clone().all(|(_, got)| *got == Outcome::Refused),
                "OPEN is read"
            );
        }
    }
    assert!(refusing > 0);
}

#[test]
fn a_missing_or_shortened_segment_is_tampering() {
    let (objects, tree) = closed_volume();
    let (mut refused, mut errors) = (0, 0);
    for name in objects.keys().filter(|name| kind_of(**name).is_some()) {
        let mut gone = objects.clone();
        gone.remove(name);
        let mut cut = objects.clone();
        let len = cut[name].len();
        cut.get_mut(name).unwrap().truncate(len - 600);
        for (bent, what) in [(gone, "gone"), (cut, "cut")] {
            match outcome(bent, &tree, &format!("{name} {what}")) {
                Outcome::Refused => refused += 1,
                Outcome::ReadErrors => errors += 1,
                // Of the checkpoint before.
                Outcome::Intact => {}
            }
        }
    }
    // The log's segments and the tree; and the data, whose last record is of a file that is there.
    assert!(
        refused >= 4 && refused % 2 == 0 && errors == 2,
        "{refused} {errors}"
    );
}

#[test]
fn chunks_and_segments_that_change_places_are_found() {
    let (objects, tree) = closed_volume();
    let data: Vec<ObjectName> = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Data))
        .copied()
        .collect();
    let begin = usize::try_from(SEGMENT_BEGIN).unwrap();
    let mut swapped = objects.clone();
    let bytes = swapped.get_mut(&data[0]).unwrap();
    let stride = 4096 + 16;
    let (a, b) = (begin + 3008 + 16, begin + 3008 + 16 + stride);
    let first = bytes[a..a + stride].to_vec();
    bytes.copy_within(b..b + stride, a);
    bytes[b..b + stride].copy_from_slice(&first);
    assert_eq!(outcome(swapped, &tree, "two chunks"), Outcome::ReadErrors);

    let nodes: Vec<&ObjectName> = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Node))
        .collect();
    let mut swapped = objects.clone();
    swapped.insert(*nodes[0], objects[nodes[1]].clone());
    swapped.insert(*nodes[1], objects[nodes[0]].clone());
    assert_eq!(outcome(swapped, &tree, "two trees"), Outcome::Refused);
}

#[test]
fn an_older_log_under_the_newest_superblock_is_refused() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let ino = put_file(volume.fs(), "a", b"old");
    volume.fs().fsync(ino).unwrap();
    let older = store.objects();
    volume
        .fs()
        .write(ino, 0, b"new", crate::testing::CACHED)
        .unwrap();
    let tree = walk(volume.fs());
    volume.close().unwrap();

    let mut mixed = store.objects();
    for (name, bytes) in older {
        if kind_of(name) == Some(SegmentKind::Log) {
            mixed.insert(name, bytes);
        }
    }
    assert_eq!(outcome(mixed, &tree, "older log"), Outcome::Refused);
}

/// A commit that was acknowledged is missing although later ones are there: no crash does that.
#[test]
fn a_durable_commit_taken_out_of_the_log_is_refused() {
    let store = new_store();
    let volume = open(&store).unwrap();
    // The log that this mount writes is the one that was made last.
    let made = store.calls().into_iter().rev().find_map(|call| match call {
        Call::Create(name) if kind_of(name) == Some(SegmentKind::Log) => Some(name),
        _ => None,
    });
    let name = made.unwrap();
    let log_len = || store.objects()[&name].len();
    let first = put_file(volume.fs(), "a", b"1");
    volume.fs().fsync(first).unwrap();
    let begin = log_len();
    let second = put_file(volume.fs(), "b", b"2");
    volume.fs().fsync(second).unwrap();
    let end = log_len();
    put_file(volume.fs(), "c", b"3");
    volume.fs().journal().commit_all().unwrap();
    drop(volume);

    let mut holed = store.objects();
    holed.get_mut(&name).unwrap()[begin..end].fill(0);
    let refused = open(&Arc::new(MemoryStore::of(holed))).unwrap_err();
    assert!(matches!(refused, OpenError::Tampered { .. }), "{refused}");

    // The same hole with nothing behind it looks like a crash, and is one as far as can be told.
    let mut torn = store.objects();
    torn.get_mut(&name).unwrap().truncate(begin);
    let volume = open(&Arc::new(MemoryStore::of(torn))).unwrap();
    assert_eq!(walk(volume.fs()).into_keys().collect::<Vec<_>>(), ["/a"]);
}
