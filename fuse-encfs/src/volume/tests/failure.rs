//! Core: a store that fails, is full, or is somebody else's.

use std::sync::Arc;

use keys::{VolumeId, VolumeKek};

use crate::crypto::{Aead, recorder::Recorder};
use crate::error::{FsError, OpenError};
use crate::format::{Ino, SegmentKind};
use crate::fs::Fs;
use crate::store::memory::{Call, Crash, MemoryStore};
use crate::store::{ObjectName, StoreError};
use crate::testing::{
    CACHED, FILE, ID, ROOT_USER, aead, kek, new_store, open, open_with, pattern, put_file, walk,
};
use crate::volume::{Volume, init_on};

fn failed() -> Option<StoreError> {
    Some(StoreError::Io(std::io::ErrorKind::Other.into()))
}

fn is_of(call: &Call, kind: SegmentKind) -> bool {
    let (Call::Create(name)
    | Call::Delete(name)
    | Call::Put(name, _)
    | Call::Sync(name)
    | Call::Write(name, ..)) = call;
    matches!(name, ObjectName::Segment(k, _) if *k == kind)
}

fn is_sync(call: &Call) -> bool {
    matches!(call, Call::Sync(_))
}

#[test]
fn a_flush_that_fails_once_loses_nothing() {
    for kind in [SegmentKind::Data, SegmentKind::Log] {
        let store = new_store();
        let volume = open(&store).unwrap();
        let ino = put_file(volume.fs(), "a", &pattern(1, 90_000));
        let mut left = 1;
        store.fail(move |call| {
            let hit = is_sync(call) && is_of(call, kind) && left > 0;
            left -= u32::from(hit);
            if hit { failed() } else { None }
        });
        volume.fs().fsync(ino).unwrap();
        store.mend();
        let before = walk(volume.fs());
        drop(volume);
        let after = Arc::new(MemoryStore::after(&store.calls(), Crash::Power(3)));
        assert_eq!(walk(open(&after).unwrap().fs()), before, "{kind:?}");
    }
}

#[test]
fn a_flush_that_fails_twice_makes_the_volume_read_only_and_acknowledges_nothing() {
    for kind in [SegmentKind::Data, SegmentKind::Log] {
        let store = new_store();
        let volume = open(&store).unwrap();
        let kept = put_file(volume.fs(), "kept", b"kept");
        volume.fs().fsync(kept).unwrap();
        let ino = put_file(volume.fs(), "lost", &pattern(1, 90_000));
        store.fail(move |call| {
            if is_sync(call) && is_of(call, kind) {
                failed()
            } else {
                None
            }
        });
        volume.fs().fsync(ino).unwrap_err();
        store.mend();

        let written = volume.fs().write(kept, 0, b"more", CACHED);
        assert!(matches!(written, Err(FsError::ReadOnly)), "{kind:?}");
        assert!(
            volume.fs().fsync(ino).is_err(),
            "a later fsync must not succeed either"
        );
        let mut bytes = [0; 4];
        assert_eq!(
            volume.fs().read(kept, 0, &mut bytes).unwrap(),
            4,
            "reads go on"
        );
        assert!(volume.stats().read_only);
        volume.close().unwrap_err();

        let volume = open(&store).unwrap();
        assert_eq!(walk(volume.fs())["/kept"].bytes, b"kept");
    }
}

#[test]
fn a_log_write_that_fails_once_is_written_again() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let ino = put_file(volume.fs(), "a", b"x");
    let mut left = 1;
    store.fail(move |call| {
        let hit = matches!(call, Call::Write(..)) && is_of(call, SegmentKind::Log) && left > 0;
        left -= u32::from(hit);
        if hit { failed() } else { None }
    });
    volume.fs().fsync(ino).unwrap();
    drop(volume);
    assert_eq!(walk(open(&store).unwrap().fs())["/a"].bytes, b"x");
}

#[test]
fn a_read_error_at_mount_is_no_tear() {
    let store = new_store();
    let volume = open(&store).unwrap();
    put_file(volume.fs(), "a", &pattern(1, 100));
    volume.close().unwrap();
    let mut missed = Vec::new();
    for name in store.objects().into_keys() {
        let copy = Arc::new(MemoryStore::of(store.objects()));
        copy.fail_reads(name);
        match open(&copy) {
            Err(OpenError::Store(_)) => {
                missed.push(name);
                assert!(
                    copy.calls().is_empty(),
                    "{name}: a failed mount writes nothing"
                );
            }
            Err(e) => panic!("{name}: {e}"),
            // Contents, and what belongs to the checkpoint before.
            Ok(volume) => drop(volume),
        }
        copy.mend();
        open(&copy).unwrap();
    }
    let kind = |name: &ObjectName| name.to_string().remove(0);
    let mut kinds: Vec<char> = missed.iter().map(kind).collect();
    kinds.dedup();
    assert_eq!(kinds, ['s', 'l', 'n'], "superblocks, log and tree");
}

/// Fills the store, then makes room: removals work on a full store, and their room comes back.
#[test]
fn a_full_store_refuses_what_grows_and_admits_what_frees() {
    let store = Arc::new(MemoryStore::with_capacity(24 << 20));
    init_on(store.clone(), &aead(), &kek(), ID).unwrap();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let fill = |fs: &Fs| {
        let mut written = 0_usize;
        for i in 0.. {
            let made = fs.make(Ino::ROOT, format!("f{i}").as_bytes(), &FILE, ROOT_USER);
            let done = made.and_then(|attr| fs.write(attr.ino, 0, &pattern(1, 1 << 18), CACHED));
            match done {
                Ok(_) => written += 1 << 18,
                Err(FsError::Full) => break,
                Err(e) => panic!("{e}"),
            }
        }
        fs.sync().unwrap();
        written
    };
    let clear = |fs: &Fs| {
        let names: Vec<String> = walk(fs).into_keys().collect();
        for name in names {
            fs.unlink(Ino::ROOT, &name.as_bytes()[1..]).unwrap();
        }
        let inodes = fs.journal().tables().orphans(Ino(0), 100).unwrap();
        inodes.into_iter().for_each(|ino| fs.forget(ino, 1000));
    };
    let first = fill(fs);
    assert!(first > 12 << 20, "only {first} bytes went in");
    clear(fs);
    let second = fill(fs);
    assert!(
        second > first / 2,
        "{second} bytes went in after {first} were removed"
    );
    assert!(!volume.stats().read_only);
    clear(fs);
    volume.close().unwrap();
    let volume = open(&store).unwrap();
    assert!(walk(volume.fs()).is_empty());
}

#[test]
fn objects_do_not_pile_up_over_mounts() {
    let store = new_store();
    let mut counts = Vec::new();
    for i in 0..6 {
        let volume = open(&store).unwrap();
        put_file(volume.fs(), &format!("f{i}"), b"small");
        if i > 0 {
            volume
                .fs()
                .unlink(Ino::ROOT, format!("f{}", i - 1).as_bytes())
                .unwrap();
        }
        volume.close().unwrap();
        counts.push(store.objects().len());
    }
    assert!(counts[5] <= counts[3], "{counts:?}");
}

#[test]
fn a_dead_segment_stays_until_it_was_dead_in_two_checkpoints() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let data = || {
        let of_data =
            |name: &&ObjectName| matches!(name, ObjectName::Segment(SegmentKind::Data, _));
        store.objects().keys().filter(of_data).count()
    };
    // More than a segment, so that the first is not written to any more.
    let ino = put_file(fs, "a", &pattern(1, 3 << 20));
    fs.checkpoint().unwrap();
    fs.unlink(Ino::ROOT, b"a").unwrap();
    fs.forget(ino, 1);
    let before = data();
    assert!(before > 1);
    fs.checkpoint().unwrap();
    assert_eq!(data(), before, "the checkpoint before still names them");
    fs.checkpoint().unwrap();
    assert_eq!(data(), 1, "only the current segment is left");
}

#[test]
fn the_wrong_key_volume_or_store_is_named() {
    #[track_caller]
    fn check(opened: Result<Volume, OpenError>, code: &str, exit: u8) {
        let e = opened.expect_err(code);
        assert_eq!((e.code(), e.exit_code()), (code, exit));
    }
    let store = new_store();
    let aead = aead();
    let wrong = VolumeKek::take_from(&mut [0x43; 32]).unwrap();
    check(
        Volume::open_on(store.clone(), &aead, &wrong, ID),
        "fs.wrong_key",
        48,
    );
    let other = VolumeId([1; 16]);
    check(
        Volume::open_on(store.clone(), &aead, &kek(), other),
        "fs.other_volume",
        50,
    );
    let empty = Arc::new(MemoryStore::default());
    check(
        Volume::open_on(empty, &aead, &kek(), ID),
        "fs.not_a_volume",
        50,
    );
    let again = init_on(store.clone(), &aead, &kek(), ID).unwrap_err();
    assert_eq!((again.code(), again.exit_code()), ("fs.not_empty", 50));

    let first = open(&store).unwrap();
    check(open(&store), "fs.in_use", 49);
    first.close().unwrap();
    open(&store).unwrap();
}

/// Over all floors, no key ever seals twice under one nonce; also not when a guest is cloned while
/// it runs, which is played here by two mounts of one store's copies.
#[test]
fn no_key_seals_twice_under_one_nonce() {
    let recorder = Recorder::default();
    let aead: Arc<dyn Aead> = Arc::new(recorder.clone());
    let store = Arc::new(MemoryStore::default());
    init_on(store.clone(), &aead, &kek(), ID).unwrap();
    let work = |store: &Arc<MemoryStore>| {
        let volume = open_with(store, &aead).unwrap();
        for i in 0..20 {
            let ino = put_file(volume.fs(), &format!("{i}"), &pattern(i, 10_000));
            volume.fs().write(ino, 100, b"again", CACHED).unwrap();
            volume.fs().fsync(ino).unwrap();
            volume
                .fs()
                .unlink(Ino::ROOT, format!("{i}").as_bytes())
                .unwrap();
        }
        volume.fs().checkpoint().unwrap();
        volume.close().unwrap();
    };
    let clone = Arc::new(MemoryStore::of(store.objects()));
    work(&store);
    work(&clone);
    work(&store);
    assert!(recorder.seals() > 200, "{}", recorder.seals());
}
