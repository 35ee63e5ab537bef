//! Core: addresses are written once, and the checkpoint before is kept whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::format::Ino;
use crate::fs::{Fs, RenameRule, SetAttr};
use crate::store::Store;
use crate::store::memory::{Call, Dice, MemoryStore};
use crate::superblock;
use crate::testing::{
    CACHED, DIRECTORY, FILE, ID, ROOT_USER, Shown, aead, kek, new_store, open, pattern, walk,
};

type Tree = BTreeMap<String, Shown>;

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
            fs.sync().unwrap();
            return true;
        }
        _ => {
            if dice.roll(3) == 0 {
                fs.checkpoint().unwrap();
                return true;
            }
        }
    }
    false
}

/// Runs a workload over several mounts, and gives the calls that the store saw.
fn run(seed: u64, mounts: u64, steps_each: u64) -> Vec<Call> {
    let store = new_store();
    let mut dice = Dice(seed);
    for mount in 0..mounts {
        let volume = open(&store).unwrap();
        for i in 0..steps_each {
            step(volume.fs(), mount * 1000 + i, &mut dice);
        }
        volume.close().unwrap();
    }
    store.calls()
}

#[track_caller]
fn mount(store: &Arc<MemoryStore>, what: &str) -> Tree {
    let volume = open(store).unwrap_or_else(|e| panic!("{what}: {e}"));
    volume.fs().journal().tables().check().unwrap();
    walk(volume.fs())
}

#[test]
fn no_address_is_written_with_other_bytes() {
    let calls = run(11, 3, 40);
    let mut seen: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for call in &calls {
        if let Call::Write(name, at, bytes) = call
            && bytes.iter().any(|byte| *byte != 0)
        {
            // Zeros are no frame: a log segment is made of them.
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
                volume.fs().sync().unwrap();
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
