//! Core: what one thread does in the middle of what another does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::read_all;
use crate::format::{Ino, SegmentKind};
use crate::fs::{Fs, RenameRule, SetAttr};
use crate::store::ObjectName;
use crate::store::memory::{Call, MemoryStore};
use crate::testing::{
    CACHED, DIRECTORY, FILE, ROOT_USER, check_consistent, new_store, open, pattern, put_file, walk,
};

/// Runs `meddle` once, while a data segment is flushed.
fn at_next_flush(store: &Arc<MemoryStore>, fs: &Arc<Fs>, meddle: impl Fn(&Fs) + Send + 'static) {
    let (fs, mut is_done) = (Arc::clone(fs), false);
    store.fail(move |call| {
        let is_flush = matches!(call, Call::Sync(ObjectName::Segment(SegmentKind::Data, _)));
        if is_flush && !is_done {
            is_done = true;
            meddle(&fs);
        }
        None
    });
}

/// Writes `old` and makes it durable, writes `new` over it from `at` on and lets a flush meet
/// another write, of 100 bytes at `at`. After a crash there is what was written before the flush,
/// or what was written during it.
#[track_caller]
fn check_outrun(old: usize, at: usize, new: usize) {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let ino = put_file(fs, "a", &pattern(1, old));
    fs.fsync(ino).unwrap();
    fs.write(ino, at as u64, &pattern(2, new), CACHED).unwrap();
    at_next_flush(&store, fs, move |fs| {
        fs.write(ino, 0, &pattern(3, 100), CACHED).unwrap();
    });
    fs.fsync(ino).unwrap();
    store.mend();
    drop(volume);

    let volume = open(&store).unwrap();
    let got = read_all(volume.fs(), ino);
    let mut before = pattern(1, old);
    before.resize(before.len().max(at + new), 0);
    before[at..at + new].copy_from_slice(&pattern(2, new));
    let mut during = before.clone();
    during[..100].copy_from_slice(&pattern(3, 100));
    assert!(got == before || got == during, "{old}, {at}, {new}");
}

#[test]
fn what_was_written_before_a_flush_is_durable_though_it_is_overwritten_during_it() {
    check_outrun(200_000, 0, 100_000);
    check_outrun(200_000, 50, 100_000);
}

#[test]
fn what_a_small_file_held_is_not_lost_while_it_grows() {
    check_outrun(2000, 2000, 100_000);
    check_outrun(2000, 1000, 100_000);
}

/// With names of any length that are pending beside it, so that its commit has any length.
#[test]
fn what_is_appended_rides_in_a_commit_of_any_length() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let ino = put_file(fs, "a", &pattern(1, 5000));
    fs.fsync(ino).unwrap();
    for i in 0..600 {
        let name = "n".repeat(1 + i % 200);
        let _ = fs.unlink(Ino::ROOT, name.as_bytes());
        fs.make(Ino::ROOT, name.as_bytes(), &FILE, ROOT_USER)
            .unwrap();
        fs.write(ino, 5000 + i as u64 * 10, b"0123456789", CACHED)
            .unwrap();
        fs.fsync(ino).unwrap();
    }
    assert_eq!(fs.getattr(ino).unwrap().size, 5000 + 600 * 10);
}

/// Whoever looks while contents go from memory to the map sees a file of its full length.
#[test]
fn a_file_that_grows_never_looks_shorter() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    for i in 0..300 {
        put_file(fs, &format!("f{i}"), b"");
    }
    let ino = put_file(fs, "last", b"x");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for len in 1..1500 {
                fs.write(ino, len, b"x", CACHED).unwrap();
                fs.drain(ino).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut longest = 0;
        while !done.load(Ordering::Relaxed) {
            let shown = fs.getattr(ino).unwrap().size;
            assert!(shown >= longest, "{shown} after {longest}");
            longest = shown;
            fs.list(Ino::ROOT, 2, |entry| {
                if entry.attr.ino == ino {
                    assert!(
                        entry.attr.size >= longest,
                        "{} after {longest}",
                        entry.attr.size
                    );
                    longest = entry.attr.size;
                }
                true
            })
            .unwrap();
        }
    });
}

/// Everything at once on few files: nobody waits for ever, and the volume is consistent.
#[test]
fn threads_that_share_files_leave_a_consistent_volume() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let dir = fs.make(Ino::ROOT, b"d", &DIRECTORY, ROOT_USER).unwrap().ino;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let meddlers: Vec<_> = (0..4)
            .map(|seed| scope.spawn(move || meddle(fs, dir, seed)))
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs.tick().unwrap();
                fs.checkpoint().unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs.journal().clean(1 << 20).unwrap();
            }
        });
        let ended: Vec<_> = meddlers.into_iter().map(|meddler| meddler.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|end| end.unwrap());
    });
    check_consistent(fs);
    let before = walk(fs);
    assert!(
        before
            .values()
            .all(|shown| !shown.bytes.starts_with(b"error"))
    );
    volume.close().unwrap();
    let volume = open(&store).unwrap();
    assert_eq!(walk(volume.fs()), before);
    check_consistent(volume.fs());
}

/// Does this and that with eight files. Another may have been faster, so most may fail.
fn meddle(fs: &Fs, dir: Ino, seed: u64) {
    let mut n = seed;
    let mut next = |below: u64| {
        n = n
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (n >> 33) % below
    };
    for _ in 0..600 {
        let (name, other) = (format!("f{}", next(8)), format!("f{}", next(8)));
        let (name, other) = (name.as_bytes(), other.as_bytes());
        let found = fs
            .lookup(dir, name)
            .or_else(|_| fs.make(dir, name, &FILE, ROOT_USER));
        let Ok(found) = found else { continue };
        let (ino, at, len) = (found.ino, next(200_000), next(80_000));
        let _ = match next(12) {
            0 | 1 => fs
                .write(
                    ino,
                    at,
                    &pattern(seed, usize::try_from(len).unwrap()),
                    CACHED,
                )
                .map(|_| ()),
            2 => fs.write(ino, at % 2000, b"little", CACHED).map(|_| ()),
            3 => {
                let size = SetAttr {
                    size: Some(at % 3 * 1000),
                    ..SetAttr::default()
                };
                fs.setattr(ino, size, ROOT_USER).map(|_| ())
            }
            4 => fs.fsync(ino),
            5 => fs.rename((dir, name), (dir, other), RenameRule::Replace),
            6 => fs.rename((dir, name), (dir, other), RenameRule::Exchange),
            7 => fs.unlink(dir, name),
            8 => fs
                .link(ino, dir, other)
                .map(|linked| fs.forget(linked.ino, 1)),
            9 => fs.punch(ino, at..at + len, false),
            10 => fs.allocate(ino, at..at + len, true),
            _ => {
                let to = fs.lookup(dir, other);
                to.and_then(|to| {
                    let copied = fs.copy_range((ino, 0), (to.ino, at), len);
                    fs.forget(to.ino, 1);
                    copied.map(|_| ())
                })
            }
        };
        let mut bytes = vec![0; 5000];
        let _ = fs.read(ino, at, &mut bytes);
        fs.forget(ino, 1);
    }
}
