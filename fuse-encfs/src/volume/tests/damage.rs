//! Core: whatever somebody does to the store, a volume shows what was written or an error.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the cases that it means"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{FsError, OpenError};
use crate::format::{Ino, SEGMENT_BEGIN, SegmentKind};
use crate::store::ObjectName;
use crate::store::memory::{Call, MemoryStore};
use crate::testing::{
    CACHED, DIRECTORY, FILE, ROOT_USER, Shown, new_store, open, pattern, put_file, walk,
};

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
    // A later mount writes its nodes into a segment of its own.
    volume.close().unwrap();
    let volume = open(&store).unwrap();
    put_file(volume.fs(), "last", &pattern(9, 5000));
    volume.fs().unlink(Ino::ROOT, b"f1").unwrap();
    let tree = walk(volume.fs());
    volume.close().unwrap();
    let mut objects = store.objects();
    for (name, bytes) in &mut objects {
        if kind_of(*name) == Some(SegmentKind::Log) {
            bytes.truncate(written_len(bytes));
        }
    }
    (objects, tree)
}

/// Bytes of a log segment up to the end of the last frame in it, without what was made ahead.
fn written_len(log: &[u8]) -> usize {
    let last = log.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last + 1).next_multiple_of(512)
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
        errors > 300 && unread < errors,
        "{errors} errors, {unread} not read"
    );
}

#[test]
fn a_flipped_byte_in_the_only_node_stops_the_mount() {
    let (objects, tree) = closed_volume();
    let nodes = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Node));
    let mut refused = Vec::new();
    for name in nodes {
        for (at, got) in flip(&objects, &tree, *name, 3) {
            match got {
                Outcome::Refused => refused.push(at),
                // The beginning, and the tree of the checkpoint before.
                Outcome::Intact => {}
                Outcome::ReadErrors => {
                    panic!("{name} at {at}: a tree of one node is all or nothing")
                }
            }
        }
    }
    // All of one node, and nothing else.
    assert!(refused.len() > 200 && refused.windows(2).all(|w| w[1] == w[0] + 3));
}

/// A volume whose tree has several levels, and its files by directory and name.
fn many_files() -> (Objects, Vec<(String, String, Vec<u8>)>) {
    let store = new_store();
    let volume = open(&store).unwrap();
    let mut files = Vec::new();
    for d in 0..12 {
        let dir = format!("d{d}");
        let made = volume
            .fs()
            .make(Ino::ROOT, dir.as_bytes(), &DIRECTORY, ROOT_USER);
        let parent = made.unwrap().ino;
        for f in 0..40 {
            let name = format!("f{f}-{}", "n".repeat(120));
            let made = volume.fs().make(parent, name.as_bytes(), &FILE, ROOT_USER);
            let contents = pattern(d * 100 + f, 500);
            volume
                .fs()
                .write(made.unwrap().ino, 0, &contents, CACHED)
                .unwrap();
            files.push((dir.clone(), name, contents));
        }
    }
    volume.close().unwrap();
    (store.objects(), files)
}

#[test]
fn a_damaged_node_hurts_what_it_holds_and_nothing_else() {
    let (objects, files) = many_files();
    let nodes: Vec<ObjectName> = objects
        .keys()
        .filter(|name| kind_of(**name) == Some(SegmentKind::Node))
        .copied()
        .collect();
    let (mut refused, mut all, mut hurt, mut whole) = (0, 0, 0, 0);
    for name in nodes {
        for at in (4096..objects[&name].len()).step_by(3001) {
            let mut bent = objects.clone();
            bent.get_mut(&name).unwrap()[at] ^= 1;
            let volume = match open(&Arc::new(MemoryStore::of(bent))) {
                Ok(volume) => volume,
                Err(OpenError::Tampered { .. }) => {
                    refused += 1;
                    continue;
                }
                Err(e) => panic!("{name} at {at}: {e}"),
            };
            let (mut bad, mut good) = (0, 0);
            for (dir, file, contents) in &files {
                let fs = volume.fs();
                let read = fs.lookup(Ino::ROOT, dir.as_bytes()).and_then(|dir| {
                    let found = fs.lookup(dir.ino, file.as_bytes())?;
                    let mut bytes = vec![0xee; contents.len() + 1];
                    let got = fs.read(found.ino, 0, &mut bytes)?;
                    bytes.truncate(got);
                    Ok(bytes)
                });
                match read {
                    Ok(bytes) => {
                        assert_eq!(bytes, *contents, "{name} at {at}: {dir}/{file}");
                        good += 1;
                    }
                    Err(FsError::Tampered) => bad += 1,
                    Err(e) => panic!("{name} at {at}: {dir}/{file}: {e}"),
                }
            }
            if bad > good {
                // The node with the root directory's own entries.
                all += 1;
            } else if bad > 0 {
                hurt += 1;
            } else {
                whole += 1;
            }
        }
    }
    assert!(
        hurt > 5 && all <= 2 * 6,
        "{refused} refused, {all} all, {hurt} hurt, {whole} whole"
    );
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
    // The log's segments and the tree; and the data, whose last records are of files that are there.
    assert!(refused >= 4 && errors >= 2, "{refused} {errors}");
}

#[test]
fn chunks_and_segments_that_change_places_are_found() {
    let (objects, tree) = closed_volume();
    let store = new_store();
    let volume = open(&store).unwrap();
    put_file(volume.fs(), "a", &pattern(1, 20_000));
    let whole = walk(volume.fs());
    volume.close().unwrap();
    let mut swapped = store.objects();
    let data = swapped
        .iter_mut()
        .find(|(name, _)| kind_of(**name) == Some(SegmentKind::Data));
    let bytes = data.unwrap().1;
    // The first two chunks of its record.
    let (a, stride) = (usize::try_from(SEGMENT_BEGIN).unwrap(), 4096 + 16);
    let (first, second) = bytes[a..a + 2 * stride].split_at_mut(stride);
    first.swap_with_slice(second);
    assert_eq!(outcome(swapped, &whole, "two chunks"), Outcome::ReadErrors);

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
    volume.fs().write(ino, 0, b"new", CACHED).unwrap();
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
    let log_len = || written_len(&store.objects()[&name]);
    let first = put_file(volume.fs(), "a", b"1");
    volume.fs().fsync(first).unwrap();
    let begin = log_len();
    let second = put_file(volume.fs(), "b", b"2");
    volume.fs().fsync(second).unwrap();
    let end = log_len();
    put_file(volume.fs(), "c", b"3");
    volume.fs().sync().unwrap();
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
