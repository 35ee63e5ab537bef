//! Core: full stores, limits and promises.

use std::path::Path;
use std::sync::Arc;

use super::{read_all, with_fs};
use crate::error::FsError;
use crate::format::Ino;
use crate::fs::{Fs, Policy, RenameRule, SetAttr};
use crate::store::memory::MemoryStore;
use crate::store::{self, Appendable};
use crate::testing::{
    CACHED, DIRECTORY, FILE, ID, ROOT_USER, aead, check_consistent, kek, pattern, put_file, walk,
};
use crate::volume::{Volume, init_on};
use crate::xattr::SetRule;

const MIB: u64 = 1 << 20;
const MIB_LEN: usize = 1 << 20;
const CHUNK: usize = 100_000;

fn limited(size: u64) -> Policy {
    Policy {
        size_max: Some(size),
        ..Policy::default()
    }
}

fn made(store: Arc<dyn Appendable>) -> Volume {
    init_on(Arc::clone(&store), &aead(), &kek(), ID).unwrap();
    opened(store)
}

fn opened(store: Arc<dyn Appendable>) -> Volume {
    Volume::open_on(store, &aead(), &kek(), ID).unwrap()
}

/// Writes to the end of a file until there is no room, and gives how many bytes it has then.
fn fill(fs: &Fs, ino: Ino) -> u64 {
    let mut len = fs.getattr(ino).unwrap().size;
    loop {
        match fs.write(ino, len, &pattern(len, CHUNK), CACHED) {
            Ok(_) => len += CHUNK as u64,
            Err(FsError::Full) => return len,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Lets what is dead be deleted, as time would.
fn settle(fs: &Fs) {
    for _ in 0..4 {
        fs.journal().clean(64 * MIB).unwrap();
        fs.sync().unwrap();
        fs.checkpoint().unwrap();
    }
}

#[test]
fn a_limit_is_the_size_of_the_volume_and_holds_over_mounts() {
    let store = Arc::new(MemoryStore::default());
    let volume = made(store.clone());
    let fs = volume.fs();
    fs.obey(limited(8 * MIB));
    let empty = fs.statistics().unwrap();
    assert_eq!(empty.total, 8 * MIB);
    assert!(empty.free > 8 * MIB - 64 * 1024 && empty.free < 8 * MIB);

    let ino = put_file(fs, "a", b"");
    let full = fill(fs, ino);
    assert!(full <= 8 * MIB && full > 8 * MIB - MIB / 2, "{full}");
    assert!(fs.statistics().unwrap().free < 2 * CHUNK as u64);
    let other = fs
        .make(Ino::ROOT, b"b", &FILE, ROOT_USER)
        .map(|made| made.ino);
    let room = other.and_then(|other| fs.allocate(other, 0..MIB, true));
    assert!(matches!(room, Err(FsError::Full)));

    for round in 0..30 {
        fs.write(ino, 0, &pattern(round, MIB_LEN), CACHED).unwrap();
    }
    fs.sync().unwrap();
    let mut bytes = vec![0; MIB_LEN];
    fs.read(ino, 0, &mut bytes).unwrap();
    assert!(
        bytes == pattern(29, MIB_LEN),
        "what is there can be overwritten"
    );

    volume.close().unwrap();
    let volume = opened(store);
    let fs = volume.fs();
    assert!(
        fs.statistics().unwrap().total > 8 * MIB,
        "it is the mount's"
    );
    fs.obey(limited(8 * MIB));
    assert!(matches!(
        fs.write(ino, full, &pattern(1, CHUNK), CACHED),
        Err(FsError::Full)
    ));
    fs.unlink(Ino::ROOT, b"a").unwrap();
    let again = put_file(fs, "c", b"");
    assert!(
        fill(fs, again) > full - MIB / 4,
        "what was removed makes room at once"
    );
}

#[test]
fn many_small_files_reach_a_limit_too() {
    with_fs(|fs| {
        fs.obey(limited(MIB));
        let made = (0..5000).find_map(|i| {
            let ino = match fs.make(Ino::ROOT, format!("f{i}").as_bytes(), &FILE, ROOT_USER) {
                Ok(made) => made.ino,
                Err(e) => return Some((i, e)),
            };
            fs.write(ino, 0, &pattern(i, 1000), CACHED)
                .err()
                .map(|e| (i, e))
        });
        let (count, e) = made.unwrap();
        assert!(matches!(e, FsError::Full), "{count}: {e}");
        assert!((100..1100).contains(&count), "{count}");
    });
}

#[test]
fn what_was_promised_is_kept_for_its_file() {
    let volume = made(Arc::new(MemoryStore::with_capacity(64 * MIB)));
    let fs = volume.fs();
    let ino = put_file(fs, "promised", b"");
    let before = fs.statistics().unwrap().free;
    fs.allocate(ino, 0..8 * MIB, false).unwrap();
    let after = fs.statistics().unwrap().free;
    assert!(
        before - after >= 8 * MIB && before - after < 9 * MIB,
        "{before} {after}"
    );
    assert_eq!(fs.getattr(ino).unwrap().blocks, 8 * MIB / 512);

    let other = put_file(fs, "other", b"");
    fill(fs, other);
    let too_much = fs.allocate(ino, 0..16 * MIB, false);
    assert!(matches!(too_much, Err(FsError::Full)));
    fs.allocate(ino, 0..8 * MIB, false).unwrap();
    let contents = pattern(7, 8 * MIB_LEN);
    for (n, part) in contents.chunks(CHUNK).enumerate() {
        fs.write(ino, (n * CHUNK) as u64, part, CACHED).unwrap();
    }
    fs.fsync(ino).unwrap();
    assert!(read_all(fs, ino) == contents);
    check_consistent(fs);
}

/// Each call works or says that there is no room, on a store that is full most of the time. What
/// worked is there after a crash, all of it can be removed, and then there is room again.
#[track_caller]
fn check_full_store(open_store: impl Fn() -> Arc<dyn Appendable>, prepared: Volume) {
    let mut volume = prepared;
    let ino = put_file(volume.fs(), "measure", b"");
    let room = fill(volume.fs(), ino);
    volume.fs().unlink(Ino::ROOT, b"measure").unwrap();
    volume.fs().forget(ino, 1);
    settle(volume.fs());
    // Most of it is taken without a byte that has to be read again.
    let ballast = put_file(volume.fs(), "ballast", b"");
    volume
        .fs()
        .allocate(ballast, 0..room - room / 4, false)
        .unwrap();

    let mut refused = 0;
    for round in 0..2 {
        let fs = volume.fs();
        for step in 0..400 {
            match crowd(fs, round * 10_000 + step) {
                Ok(()) => {}
                Err(FsError::Full) => refused += 1,
                Err(FsError::NoEntry | FsError::Exists | FsError::NoAttribute) => {}
                Err(e) => panic!("step {step} of round {round}: {e:?}"),
            }
        }
        check_consistent(fs);
        fs.sync().unwrap();
        let before = walk(fs);
        drop(volume);
        volume = opened(open_store());
        assert!(
            walk(volume.fs()) == before,
            "after a crash of round {round}"
        );
        check_consistent(volume.fs());
    }
    assert!(refused > 20, "it was full: {refused}");

    let fs = volume.fs();
    for name in walk(fs).keys() {
        fs.unlink(Ino::ROOT, &name.as_bytes()[1..]).unwrap();
    }
    settle(fs);
    let ino = put_file(fs, "measure", b"");
    let again = fill(fs, ino);
    assert!(again > room - room / 10, "{again} of {room}");
    volume.close().unwrap();
}

/// Something that mostly needs room.
fn crowd(fs: &Fs, step: u64) -> Result<(), FsError> {
    let n = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let (name, other) = (format!("f{}", n % 40), format!("f{}", n / 40 % 40));
    let (name, other) = (name.as_bytes(), other.as_bytes());
    let find = || {
        fs.lookup(Ino::ROOT, name)
            .inspect(|found| fs.forget(found.ino, 1))
    };
    let at = n % 977 * 1000;
    match n / 7 % 12 {
        0..=4 => {
            let made = fs.make(Ino::ROOT, name, &FILE, ROOT_USER);
            let ino = match made {
                Ok(made) => {
                    fs.forget(made.ino, 1);
                    made.ino
                }
                Err(FsError::Exists) => find()?.ino,
                Err(e) => return Err(e),
            };
            let len = usize::try_from(n % 7 * 120_000).unwrap();
            fs.write(ino, at, &pattern(step, len), CACHED).map(|_| ())
        }
        5 => fs.fsync(find()?.ino).or(Err(FsError::Failed("fsync"))),
        6 => fs.unlink(Ino::ROOT, name),
        7 => {
            let size = SetAttr {
                size: Some(at / 2),
                ..SetAttr::default()
            };
            fs.setattr(find()?.ino, size, ROOT_USER).map(|_| ())
        }
        8 => fs.rename((Ino::ROOT, name), (Ino::ROOT, other), RenameRule::Replace),
        9 => fs.set_xattr(
            find()?.ino,
            b"user.a",
            &pattern(step, 5000),
            SetRule::Any,
            ROOT_USER,
        ),
        10 => fs.allocate(find()?.ino, at..at + 300_000, step.is_multiple_of(2)),
        _ => fs.tick().map_err(FsError::from),
    }
}

#[test]
fn a_full_store_in_memory_stays_usable() {
    let store = Arc::new(MemoryStore::with_capacity(40 * MIB));
    let volume = made(store.clone());
    check_full_store(move || store.clone(), volume);
}

#[test]
fn a_full_block_store_stays_usable() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("image");
    let volume = made(store::open_or_make(&path, Some(64 * MIB)).unwrap());
    let open = |path: &Path| store::open(path).unwrap();
    check_full_store(move || open(&path), volume);
}

#[test]
fn a_full_store_says_so_to_who_makes_names_and_lets_him_remove_some() {
    let volume = made(Arc::new(MemoryStore::with_capacity(24 * MIB)));
    let fs = volume.fs();
    let ino = put_file(fs, "big", b"");
    fill(fs, ino);
    let refused = (0..100_000).find_map(|i| {
        fs.make(Ino::ROOT, format!("d{i}").as_bytes(), &DIRECTORY, ROOT_USER)
            .err()
    });
    assert!(matches!(refused, Some(FsError::Full)));
    fs.sync().unwrap();
    fs.unlink(Ino::ROOT, b"big").unwrap();
    fs.forget(ino, 1);
    settle(fs);
    fs.make(Ino::ROOT, b"more", &DIRECTORY, ROOT_USER).unwrap();
    check_consistent(fs);
}
