//! Core: what a store takes: little when little is in it, and little more than what lives once
//! most was removed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use enclaveid_tests::fixture::{Dice, Rounds};
use runtime::sync::{Condvar, Mutex};

use crate::fs_mount::Scene;

/// Bytes that a suite writes, in files of 1 KiB to 4 MiB.
const WRITTEN: u64 = 1 << 30;
const LEN_MIN_LOG: usize = 10;
const LEN_MAX_LOG: usize = 22;
/// Of five files one stays.
const KEPT_OF: usize = 5;
/// Bytes that a store at rest takes at most besides 1.6 times what lives.
const SPARE: u64 = 192 << 20;
/// Bytes that the store of a volume takes at most into which little was written.
const SMALL: u64 = 32 << 20;
/// Time that the cleaner has.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file: its name and contents follow from the seed.
struct Kept {
    seed: u64,
    len: usize,
}

#[test]
fn fuse_load_a_store_settles_at_what_lives_and_a_little() {
    let Some(scene) = Scene::new() else { return };
    let Some(mut round) = Rounds::of("space").next() else {
        return;
    };
    let mount = scene.mount();
    let (kept, doomed) = fill(&mount.path(), &mut round.dice);
    let live: u64 = kept.iter().map(|file| file.len as u64).sum();
    mount.shell("sync -f .").unwrap();
    for file in &doomed {
        fs::remove_file(mount.path().join(file.name())).unwrap();
    }
    let bound = live + live * 6 / 10 + SPARE;
    let filled = stored(&scene.store());
    assert!(filled > bound, "{filled} bytes: nothing to clean");
    wait_until_at_most(bound, &scene.store());
    check(&kept, &mount.path());
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");

    let mount = scene.mount();
    check(&kept, &mount.path());
    wait_until_at_most(bound, &scene.store());
    for file in &kept {
        fs::remove_file(mount.path().join(file.name())).unwrap();
    }
    wait_until_at_most(SPARE, &scene.store());
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");
}

#[test]
fn fuse_load_the_store_of_a_small_volume_is_small() {
    let Some(scene) = Scene::new() else { return };
    for _ in 0..3 {
        let mount = scene.mount();
        let small =
            "for i in 1 2 3 4 5 6 7 8; do head -c 9000 /dev/urandom > file-$i; sync file-$i; done";
        let output = mount.shell(small).unwrap();
        assert!(output.status.success(), "{output:?}");
        let taken = stored(&scene.store());
        assert!(taken <= SMALL, "{taken} bytes");
        let end = mount.unmount().unwrap();
        assert_eq!(end.code, Some(0), "{end}");
    }
}

/// Files, those that stay and those that go.
fn fill(root: &Path, dice: &mut Dice) -> (Vec<Kept>, Vec<Kept>) {
    let (mut kept, mut doomed, mut written) = (Vec::new(), Vec::new(), 0);
    while written < WRITTEN {
        let log = LEN_MIN_LOG + dice.roll(LEN_MAX_LOG - LEN_MIN_LOG);
        let file = Kept {
            seed: dice.draw(),
            len: (1 << log) + dice.roll(1 << log),
        };
        written += file.len as u64;
        fs::write(root.join(file.name()), file.contents()).unwrap();
        if dice.roll(KEPT_OF) == 0 {
            kept.push(file);
        } else {
            doomed.push(file);
        }
    }
    (kept, doomed)
}

#[track_caller]
fn check(kept: &[Kept], root: &Path) {
    assert_eq!(fs::read_dir(root).unwrap().count(), kept.len());
    for file in kept {
        let read = fs::read(root.join(file.name())).unwrap();
        assert!(read == file.contents(), "{}", file.name());
    }
}

impl Kept {
    fn name(&self) -> String {
        format!("{:016x}", self.seed)
    }

    fn contents(&self) -> Vec<u8> {
        let mut dice = Dice::new(self.seed);
        let words = self.len.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| dice.draw().to_le_bytes()).collect();
        bytes.truncate(self.len);
        bytes
    }
}

/// Bytes that the objects of a store take on the disk.
pub(super) fn stored(store: &Path) -> u64 {
    let entries = fs::read_dir(store).unwrap();
    // What is deleted meanwhile takes nothing.
    let taken = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512));
    taken.sum()
}

/// Returns once the store takes no more than `bound`; panics when it does not within the time that
/// the cleaner has.
#[track_caller]
pub(super) fn wait_until_at_most(bound: u64, store: &Path) {
    let (nobody, never) = (Mutex::new(()), Condvar::new());
    let until = Instant::now() + PATIENCE;
    let mut taken = stored(store);
    while taken > bound {
        assert!(Instant::now() < until, "{taken} bytes, not {bound}");
        never.wait_for(&mut nobody.lock(), Duration::from_millis(200));
        taken = stored(store);
    }
}
