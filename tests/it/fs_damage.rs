//! Core: a byte is changed on the store of a volume that was cleanly unmounted. Each class of what
//! a mount and a read consume has its outcome; wrong data or zeros are never one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use enclaveid_tests::fixture::Mount;

use crate::fs_mount::Scene;

/// The error of a read of what is not authentic.
const EBADMSG: i32 = 74;

/// What a test file must show: its bytes, or nothing at all.
type Contents = BTreeMap<String, Vec<u8>>;

/// What came of a mount and a read of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Intact,
    /// As intact, with the event that one superblock slot is damaged.
    Warned,
    ReadError,
    Refused,
}

fn contents() -> Contents {
    let file = |i: usize| {
        let bytes: Vec<u8> = (0..i * 5000)
            .map(|at| ((at + i * 17) % 251) as u8 + 1)
            .collect();
        (format!("file-{i}"), bytes)
    };
    (0..6).map(file).collect()
}

fn closed_volume() -> Option<(Scene, BTreeMap<PathBuf, Vec<u8>>)> {
    let scene = Scene::new()?;
    let mount = scene.mount();
    for (name, bytes) in contents() {
        fs::write(mount.path().join(name), bytes).unwrap();
    }
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");
    let read = |entry: io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    let objects = fs::read_dir(scene.store()).unwrap().map(read);
    let objects = objects
        .filter(|(path, _)| !path.ends_with("lock"))
        .collect();
    Some((scene, objects))
}

/// Puts `objects` on the store and nothing else.
fn restore(store: &Path, objects: &BTreeMap<PathBuf, Vec<u8>>) {
    fs::remove_dir_all(store).unwrap();
    fs::create_dir(store).unwrap();
    for (path, bytes) in objects {
        fs::write(path, bytes).unwrap();
    }
}

#[track_caller]
fn outcome(scene: &Scene, what: &str) -> Outcome {
    let mount = match Mount::start(&scene.store(), &scene.mountpoint(), &scene.key(), &[]).unwrap()
    {
        Ok(mount) => mount,
        Err(end) => {
            assert_eq!(end.code, Some(46), "{what}: {end}");
            assert!(
                end.log.contains("error_code=\"fs.tampered\""),
                "{what}: {end}"
            );
            return Outcome::Refused;
        }
    };
    let mut errors = 0;
    for (name, want) in contents() {
        match fs::read(mount.path().join(&name)) {
            Ok(got) => assert!(got == want, "{what}: {name} shows other bytes"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(EBADMSG), "{what}: {name}: {e}");
                errors += 1;
            }
        }
    }
    if errors > 0 {
        assert!(
            mount.wait_for_log("error_code=\"fs.tampered\""),
            "{what}: no event"
        );
        return Outcome::ReadError;
    }
    let log = mount.log();
    assert!(
        !log.contains("fs.tampered"),
        "{what}: an event without an error"
    );
    if log.contains("fs.superblock_damaged") {
        Outcome::Warned
    } else {
        Outcome::Intact
    }
}

/// Flips a byte at each of `places` of an object in turn.
fn flips(
    scene: &Scene,
    objects: &BTreeMap<PathBuf, Vec<u8>>,
    path: &Path,
    places: impl Iterator<Item = usize>,
) -> Vec<(usize, Outcome)> {
    let flip = |at: usize| {
        let mut bent = objects.clone();
        bent.get_mut(path).unwrap()[at] ^= 0x20;
        restore(&scene.store(), &bent);
        (at, outcome(scene, &format!("{} at {at}", path.display())))
    };
    places.map(flip).collect()
}

/// Bytes of an object up to the last that is not zero: the log is made longer than what is in it.
fn used(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1)
}

/// The objects of one kind, which the first letter of their names tells.
fn of_kind(objects: &BTreeMap<PathBuf, Vec<u8>>, kind: char) -> Vec<PathBuf> {
    let is_kind = |path: &&PathBuf| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(kind)
    };
    objects.keys().filter(is_kind).cloned().collect()
}

#[test]
fn fuse_a_byte_of_one_superblock_slot_is_a_warning() {
    let Some((scene, objects)) = closed_volume() else {
        return;
    };
    for path in of_kind(&objects, 's') {
        let len = objects[&path].len();
        for (at, got) in flips(&scene, &objects, &path, (0..len).step_by(67)) {
            assert_eq!(got, Outcome::Warned, "{} at {at}", path.display());
        }
        let mut gone = objects.clone();
        gone.remove(&path).unwrap();
        restore(&scene.store(), &gone);
        assert_eq!(outcome(&scene, "a slot is gone"), Outcome::Warned);
    }
    let mut both = objects.clone();
    for path in of_kind(&objects, 's') {
        both.get_mut(&path).unwrap()[400] ^= 1;
    }
    restore(&scene.store(), &both);
    assert_eq!(outcome(&scene, "both slots"), Outcome::Refused);
}

#[test]
fn fuse_a_byte_of_contents_is_an_error_of_the_read() {
    let Some((scene, objects)) = closed_volume() else {
        return;
    };
    let mut flipped = 0;
    for path in of_kind(&objects, 'd') {
        // All behind the beginning, which no mount reads, is contents.
        let places = (4096..used(&objects[&path])).step_by(4099);
        for (at, got) in flips(&scene, &objects, &path, places) {
            assert_eq!(got, Outcome::ReadError, "{} at {at}", path.display());
            flipped += 1;
        }
    }
    let len: usize = contents().values().map(Vec::len).sum();
    assert!(flipped >= len / 4099, "{flipped}");
}

#[test]
fn fuse_a_byte_of_the_tree_or_the_log_refuses_the_mount() {
    let Some((scene, objects)) = closed_volume() else {
        return;
    };
    for (kind, whole) in [('n', true), ('l', false)] {
        let mut consumed = 0;
        for path in of_kind(&objects, kind) {
            let len = used(&objects[&path]);
            let step = (len.saturating_sub(4096) / 64).max(31);
            // The last byte as well.
            let places = (4096..len - 1).step_by(step).chain([len - 1]);
            let outcomes = flips(&scene, &objects, &path, places);
            let refused = outcomes
                .iter()
                .filter(|(_, got)| *got == Outcome::Refused)
                .count();
            let intact = outcomes
                .iter()
                .filter(|(_, got)| *got == Outcome::Intact)
                .count();
            assert_eq!(refused + intact, outcomes.len(), "{outcomes:?}");
            if refused == 0 {
                // It belongs to the checkpoint before.
                continue;
            }
            consumed += 1;
            if whole {
                assert_eq!(intact, 0, "{outcomes:?}");
            } else {
                // Its OPEN, and all from some commit on to the very end.
                assert_eq!(outcomes[0].1, Outcome::Refused);
                assert_eq!(outcomes.last().unwrap().1, Outcome::Refused, "{outcomes:?}");
            }
        }
        assert_eq!(consumed, 1, "{kind}");
    }
}

#[test]
fn fuse_a_segment_that_is_gone_or_cut_is_never_an_empty_one() {
    let Some((scene, objects)) = closed_volume() else {
        return;
    };
    let mut outcomes: BTreeMap<(char, Outcome), u32> = BTreeMap::new();
    for kind in ['d', 'l', 'n'] {
        for path in of_kind(&objects, kind) {
            let mut gone = objects.clone();
            gone.remove(&path);
            let mut cut = objects.clone();
            let bytes = cut.get_mut(&path).unwrap();
            bytes.truncate(used(bytes) - 100);
            for (bent, what) in [(gone, "gone"), (cut, "cut")] {
                restore(&scene.store(), &bent);
                let got = outcome(&scene, &format!("{} {what}", path.display()));
                *outcomes.entry((kind, got)).or_default() += 1;
            }
        }
    }
    // Every data segment has contents in it; of the others some are of the checkpoint before.
    let data = u32::try_from(of_kind(&objects, 'd').len()).unwrap();
    assert_eq!(outcomes[&('d', Outcome::ReadError)], 2 * data);
    assert_eq!(outcomes[&('l', Outcome::Refused)], 2);
    assert_eq!(outcomes[&('n', Outcome::Refused)], 2);
    assert_eq!(outcomes.get(&('d', Outcome::Intact)), None);
}

/// After a crash, damage in the end of the log looks like what the crash itself may leave: the
/// state before it is shown, with an event.
#[test]
fn fuse_a_damaged_end_of_the_log_after_a_crash_is_a_tear() {
    let Some(scene) = Scene::new() else { return };
    let mount = scene.mount();
    let sync = |name: &str| {
        fs::write(mount.path().join(name), name).unwrap();
        fs::File::open(mount.path().join(name))
            .unwrap()
            .sync_all()
            .unwrap();
    };
    sync("first");
    let log_len = |path: &PathBuf| used(&fs::read(path).unwrap());
    let logs = || {
        let paths = fs::read_dir(scene.store())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let is_log = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('l');
        paths
            .filter(is_log)
            .map(|path| (log_len(&path), path))
            .collect::<BTreeSet<_>>()
    };
    let before = logs();
    sync("last");
    // The log that grew.
    let after = logs();
    let (_, log) = after.difference(&before).next().unwrap();
    let (begin, _) = before.iter().find(|(_, path)| path == log).unwrap();
    mount.end_by(rustix::process::Signal::KILL).unwrap();

    let mut bytes = fs::read(log).unwrap();
    bytes[begin + 100] ^= 1;
    fs::write(log, bytes).unwrap();
    let mount = scene.mount();
    assert!(mount.wait_for_log("error_code=\"fs.torn_tail\""));
    assert_eq!(fs::read(mount.path().join("first")).unwrap(), b"first");
    assert!(!mount.path().join("last").exists());
}
