//! Core: whatever a crash leaves, a mount shows a committed state, and never less than was
//! acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::format::Ino;
use crate::fs::{Fs, RenameRule, SetAttr};
use crate::store::Store;
use crate::store::memory::{Call, Crash, Dice, MemoryStore};
use crate::superblock;
use crate::testing::{
    CACHED, DIRECTORY, FILE, ID, ROOT_USER, Shown, aead, kek, new_store, open, pattern, walk,
};

type Tree = BTreeMap<String, Shown>;

/// A workload as it went: what the tree was after each step, and what the store had seen by then.
struct History {
    calls: Vec<Call>,
    /// Calls so far, whether the step was acknowledged as durable, and the tree.
    steps: Vec<(usize, bool, Tree)>,
    /// Calls of making the volume, which are not crashed.
    begin: usize,
}

/// One step of the workload, and whether it ends with an acknowledgement.
fn step(fs: &Fs, i: u64, dice: &mut Dice) -> bool {
    let name = |n: u64| format!("f{n}");
    let pick = dice.roll(4);
    match dice.roll(8) {
        0 | 1 => {
            let len = usize::try_from(dice.roll(12_000)).unwrap();
            // One call of the kernel a step, so that each state in between is known.
            match fs.lookup(Ino::ROOT, name(pick).as_bytes()) {
                Ok(attr) => {
                    fs.write(attr.ino, dice.roll(5000), &pattern(i, len), CACHED)
                        .unwrap();
                }
                Err(_) => {
                    fs.make(Ino::ROOT, name(pick).as_bytes(), &FILE, ROOT_USER)
                        .unwrap();
                }
            }
        }
        2 => {
            let _ = fs.unlink(Ino::ROOT, name(pick).as_bytes());
        }
        3 => {
            let to = name(dice.roll(4));
            let from = (Ino::ROOT, name(pick));
            let _ = fs.rename(
                (from.0, from.1.as_bytes()),
                (Ino::ROOT, to.as_bytes()),
                RenameRule::Replace,
            );
        }
        4 => {
            let _ = fs.make(
                Ino::ROOT,
                format!("d{pick}").as_bytes(),
                &DIRECTORY,
                ROOT_USER,
            );
        }
        5 => {
            if let Ok(attr) = fs.lookup(Ino::ROOT, name(pick).as_bytes()) {
                let size = SetAttr {
                    size: Some(dice.roll(9000)),
                    ..SetAttr::default()
                };
                fs.setattr(attr.ino, size, ROOT_USER).unwrap();
            }
        }
        6 => {
            fs.fsync(Ino::ROOT).unwrap();
            fs.journal().commit_all().unwrap();
            return true;
        }
        _ => {
            if dice.roll(3) == 0 {
                fs.journal().checkpoint().unwrap();
                return true;
            }
        }
    }
    false
}

/// Runs a workload over several mounts, the last of which is not closed.
fn run(seed: u64, mounts: u64, steps_each: u64) -> History {
    let store = new_store();
    let begin = store.calls().len();
    let mut dice = Dice(seed);
    let mut steps = vec![(begin, true, Tree::new())];
    for mount in 0..mounts {
        let volume = open(&store).unwrap();
        for i in 0..steps_each {
            let acknowledged = step(volume.fs(), mount * 1000 + i, &mut dice);
            steps.push((store.calls().len(), acknowledged, walk(volume.fs())));
        }
        if mount + 1 < mounts {
            // What is not reaped yet is seen by nobody.
            volume.close().unwrap();
            let tree = steps.last().unwrap().2.clone();
            steps.push((store.calls().len(), true, tree));
        }
    }
    History {
        calls: store.calls(),
        steps,
        begin,
    }
}

impl History {
    /// Checks that `tree`, found after a crash behind call `at`, is a state that it may be.
    #[track_caller]
    fn check(&self, at: usize, tree: &Tree, what: &str) {
        let newest_acknowledged = self
            .steps
            .iter()
            .rposition(|(calls, ack, _)| *ack && *calls <= at);
        let first = newest_acknowledged.unwrap_or(0);
        // A step that the crash interrupted may be in or not.
        let last = self.steps.iter().position(|(calls, ..)| *calls > at);
        let last = last.unwrap_or(self.steps.len() - 1);
        let allowed = &self.steps[first..=last];
        assert!(
            allowed.iter().any(|(_, _, state)| state == tree),
            "{what} behind call {at}: {:?} is none of the states {first} to {last}",
            tree.iter()
                .map(|(path, shown)| (path, shown.bytes.len()))
                .collect::<Vec<_>>(),
        );
    }
}

#[track_caller]
fn mount(store: &Arc<MemoryStore>, what: &str) -> Tree {
    let volume = open(store).unwrap_or_else(|e| panic!("{what}: {e}"));
    volume.fs().journal().tables().tables.check().unwrap();
    walk(volume.fs())
}

#[test]
fn every_prefix_of_the_calls_mounts_to_a_committed_state() {
    for seed in 0..3 {
        let history = run(seed, 3, 25);
        for at in history.begin..=history.calls.len() {
            for crash in [Crash::Daemon, Crash::Power(1), Crash::Power(2 + at as u64)] {
                let what = format!("seed {seed}, {crash:?}");
                let store = Arc::new(MemoryStore::after(&history.calls[..at], crash));
                history.check(at, &mount(&store, &what), &what);
            }
        }
    }
}

/// A daemon dies, its successor mounts and dies at any of its calls, by a power failure that also
/// takes what the first one had not flushed. What the first mount showed must stay.
#[test]
fn what_a_mount_after_a_crash_shows_survives_a_second_crash() {
    let history = run(7, 1, 30);
    let mut dice = Dice(7);
    for _ in 0..40 {
        let span = (history.calls.len() - history.begin) as u64;
        let at = history.begin + usize::try_from(dice.roll(span + 1)).unwrap();
        let first = Arc::new(MemoryStore::after(&history.calls[..at], Crash::Daemon));
        let shown = mount(&first, "first");
        history.check(at, &shown, "first");

        // All calls of the first life, then those of the second, none flushed but by a sync.
        let mut calls = history.calls[..at].to_vec();
        calls.extend(first.calls());
        for cut in at..=calls.len() {
            let second = MemoryStore::after(&calls[..cut], Crash::Power(cut as u64));
            let tree = mount(&Arc::new(second), "second");
            if cut == calls.len() {
                assert_eq!(tree, shown, "the first mount had answered already");
            } else {
                history.check(at, &tree, "second");
            }
        }
    }
}

/// Out of space or not, the calls never write to one address twice but with the same bytes.
#[test]
fn no_address_is_written_with_other_bytes() {
    let history = run(11, 3, 40);
    let mut seen: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for call in &history.calls {
        if let Call::Write(name, at, bytes) = call {
            let before = seen.insert((*name, *at), bytes.clone());
            assert!(
                before.is_none_or(|before| before == *bytes),
                "{name} at {at}"
            );
        }
    }
    let mut ends = BTreeMap::new();
    for ((name, at), bytes) in &seen {
        let end = ends.insert(*name, at + bytes.len() as u64);
        assert!(
            end.is_none_or(|end| end <= *at),
            "{name} at {at} overlaps what was before"
        );
    }
}

/// Two checkpoints are retained with all that a replay from either needs.
#[test]
fn the_checkpoint_before_still_leads_to_the_same_state() {
    let store = new_store();
    let mut dice = Dice(5);
    for mount in 0..6 {
        let volume = open(&store).unwrap();
        for i in 0..40 {
            if step(volume.fs(), mount * 1000 + i, &mut dice) {
                volume.fs().journal().commit_all().unwrap();
                let what = format!("mount {mount}, step {i}");
                assert_eq!(
                    walk_from_checkpoint_before(&store),
                    walk(volume.fs()),
                    "{what}"
                );
            }
        }
        let before = walk(volume.fs());
        volume.close().unwrap();
        assert_eq!(
            walk_from_checkpoint_before(&store),
            before,
            "unmount {mount}"
        );
    }
}

fn walk_from_checkpoint_before(store: &Arc<MemoryStore>) -> Tree {
    let copy = Arc::new(MemoryStore::of(store.objects()));
    let (mut superblock, keys) = superblock::read(&*copy, &aead(), &kek(), ID).unwrap();
    superblock.fall_back();
    let lease = copy.lease(Duration::ZERO).unwrap();
    superblock.write(&*copy, &keys, &*lease).unwrap();
    drop(lease);
    mount(&copy, "the checkpoint before")
}
