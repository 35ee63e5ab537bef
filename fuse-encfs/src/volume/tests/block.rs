//! Core: a volume lives on a block store as on any other.

use std::path::Path;

use crate::format::Ino;
use crate::store;
use crate::testing::{ID, aead, kek, pattern, put_file, walk};
use crate::volume::{Volume, init_on};

const LEN: u64 = 64 << 20;

fn open(path: &Path) -> Volume {
    Volume::open_on(store::open(path).unwrap(), &aead(), &kek(), ID).unwrap()
}

fn make(path: &Path) {
    init_on(
        store::open_or_make(path, Some(LEN)).unwrap(),
        &aead(),
        &kek(),
        ID,
    )
    .unwrap();
}

#[test]
fn a_volume_on_a_block_store_is_found_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("image");
    make(&path);
    let again = init_on(
        store::open_or_make(&path, None).unwrap(),
        &aead(),
        &kek(),
        ID,
    );
    assert_eq!(again.unwrap_err().code(), "fs.not_empty");
    let mut before = Default::default();
    for mount in 0..4_u64 {
        let volume = open(&path);
        assert_eq!(walk(volume.fs()), before, "mount {mount}");
        for n in 0..5 {
            let len = usize::try_from(mount * 30_000 + n * 77).unwrap();
            put_file(volume.fs(), &format!("{mount}-{n}"), &pattern(n, len));
        }
        before = walk(volume.fs());
        volume.close().unwrap();
    }
}

/// As after the death of the daemon at any of many moments: the device is copied as it is then.
#[test]
fn a_device_that_is_copied_at_any_moment_holds_what_was_acknowledged() {
    let parent = tempfile::tempdir().unwrap();
    let (path, copy) = (parent.path().join("image"), parent.path().join("copy"));
    make(&path);
    let volume = open(&path);
    for n in 0..12 {
        put_file(volume.fs(), &format!("{n}"), &pattern(n, 40_000));
        volume.fs().fsync(Ino::ROOT).unwrap();
        volume.fs().sync().unwrap();
        let acknowledged = walk(volume.fs());
        put_file(volume.fs(), &format!("{n}-late"), &pattern(n, 9000));
        std::fs::copy(&path, &copy).unwrap();
        let after = walk(open(&copy).fs());
        let lacks = acknowledged
            .iter()
            .find(|(name, shown)| after.get(*name) != Some(shown));
        assert_eq!(lacks.map(|(name, _)| name), None, "copy {n}");
    }
}

/// Nothing is ever left behind: mounts that come to nothing, and files that come and go, use the
/// same slots again.
#[test]
fn slots_do_not_run_out() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("image");
    make(&path);
    let mut free = Vec::new();
    for mount in 0..12 {
        let volume = open(&path);
        let fs = volume.fs();
        put_file(fs, "file", &pattern(mount, 1 << 20));
        fs.fsync(Ino::ROOT).unwrap();
        fs.unlink(Ino::ROOT, b"file").unwrap();
        volume.close().unwrap();
        free.push(store::open(&path).unwrap().space().unwrap().free);
    }
    let (early, late) = (free[5], free[11]);
    assert!(late + (1 << 20) >= early, "free after each mount: {free:?}");
}
