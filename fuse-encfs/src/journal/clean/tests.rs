//! What lives moves out of sparse segments, and nothing else changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::fs::Fs;
use crate::store::crash::Dice;
use crate::store::memory::MemoryStore;
use crate::testing::{
    CACHED, check_consistent, checkpoint, new_store, open, pattern, put_file, walk,
};
use crate::volume::Volume;

const PAGE: usize = 4096;

/// Cleans and writes checkpoints until neither has anything left to do.
fn settle(fs: &Fs) {
    for _ in 0..50 {
        checkpoint(fs).unwrap();
        checkpoint(fs).unwrap();
        let cleaned = fs.journal().clean(u64::MAX).unwrap();
        if cleaned.copied == 0 && cleaned.dead == 0 {
            return;
        }
    }
    panic!("the store does not come to rest");
}

fn stored(store: &MemoryStore, kind: SegmentKind) -> u64 {
    let objects = store.objects();
    let of_kind = objects
        .iter()
        .filter(|(name, _)| matches!(name, ObjectName::Segment(other, _) if *other == kind));
    of_kind.map(|(_, bytes)| bytes.len() as u64).sum()
}

fn count_extents(fs: &Fs, ino: Ino) -> usize {
    let mut count = 0;
    let tables = fs.journal().tables();
    tables
        .mapped(ino, &(0..u64::MAX), |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    count
}

/// Overwrites single pages of a file in random order, each made durable in a record of its own.
fn scatter(fs: &Fs, ino: Ino, contents: &mut [u8], dice: &mut Dice, count: usize) {
    let pages = (contents.len() / PAGE) as u64;
    for n in 0..count {
        let at = usize::try_from(dice.roll(pages)).unwrap() * PAGE;
        let page = pattern(dice.roll(1 << 30), PAGE);
        contents[at..at + PAGE].copy_from_slice(&page);
        fs.write(ino, at as u64, &page, CACHED).unwrap();
        if n % 8 == 0 {
            fs.sync().unwrap();
        }
    }
    fs.sync().unwrap();
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(fs.getattr(ino).unwrap().size).unwrap()];
    assert_eq!(fs.read(ino, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// Removes a file that [`put_file`] made.
fn remove(fs: &Fs, name: &str) {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
    fs.unlink(Ino::ROOT, name.as_bytes()).unwrap();
    fs.forget(ino, 2);
}

fn new_volume() -> (Arc<MemoryStore>, Volume) {
    let store = new_store();
    let volume = open(&store).unwrap();
    (store, volume)
}

#[test]
fn a_file_that_was_overwritten_in_pages_comes_together() {
    let (store, volume) = new_volume();
    let fs = volume.fs();
    let mut contents = pattern(1, 1 << 20);
    let ino = put_file(fs, "a", &contents);
    scatter(fs, ino, &mut contents, &mut Dice(1), 1000);
    let scattered = count_extents(fs, ino);
    assert!(scattered > 150, "{scattered} extents");
    settle(fs);
    let whole = count_extents(fs, ino);
    assert!(whole <= 16, "{scattered} extents became {whole}");
    assert_eq!(read_all(fs, ino), contents);
    check_consistent(fs);
    drop(volume);
    assert_eq!(read_all(open(&store).unwrap().fs(), ino), contents);
}

#[test]
fn no_more_is_copied_than_the_budget_and_a_run() {
    let (_, volume) = new_volume();
    let fs = volume.fs();
    for i in 0..160 {
        put_file(fs, &format!("f{i}"), &pattern(i, 40_000));
    }
    fs.sync().unwrap();
    for i in (0..160).filter(|i| i % 5 != 0) {
        remove(fs, &format!("f{i}"));
    }
    let budget = 100_000;
    let mut rounds = 0;
    loop {
        let cleaned = fs.journal().clean(budget).unwrap();
        assert!(cleaned.copied < budget + 40_000, "{cleaned:?}");
        if cleaned.copied == 0 {
            break;
        }
        rounds += 1;
    }
    assert!(rounds >= 3, "{rounds} rounds");
    check_consistent(fs);
}

#[test]
fn what_is_damaged_stays_and_all_beside_it_moves() {
    let (store, volume) = new_volume();
    for i in 0..120 {
        put_file(volume.fs(), &format!("f{i}"), &pattern(i, 50_000));
    }
    volume.fs().sync().unwrap();
    for i in (0..120).filter(|i| i % 4 != 0) {
        volume
            .fs()
            .unlink(Ino::ROOT, format!("f{i}").as_bytes())
            .unwrap();
    }
    volume.close().unwrap();

    let volume = open(&store).unwrap();
    let hurt = volume.fs().lookup(Ino::ROOT, b"f40").unwrap().ino;
    let mut place = None;
    let tables = volume.fs().journal().tables();
    tables
        .mapped(hurt, &(0..1), |_, mapped| {
            place = Some(mapped);
            ControlFlow::Break(())
        })
        .unwrap();
    let Some(Mapped::Data(extent)) = place else {
        panic!("{place:?}");
    };
    let entry = tables.segment(extent.segment).unwrap().unwrap();
    let before = walk(volume.fs());
    drop((tables, volume));
    let mut objects = store.objects();
    let name = ObjectName::Segment(entry.kind, entry.segment.uid);
    objects.get_mut(&name).unwrap()[usize::try_from(extent.offset).unwrap() + 7] ^= 1;
    let store = Arc::new(MemoryStore::of(objects));
    let volume = open(&store).unwrap();
    let fs = volume.fs();

    fs.journal().clean_all().unwrap();
    let mut left = BTreeSet::new();
    fs.journal()
        .tables()
        .segrefs(extent.segment, Ino(0), |map, _| {
            left.insert(map);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(left, BTreeSet::from([hurt]), "only what is hurt stays");
    settle(fs);
    let after = walk(fs);
    for (path, shown) in &before {
        let is_hurt = path == "/f40";
        assert_eq!(after[path] != *shown, is_hurt, "{path}");
    }
    assert!(after["/f40"].bytes.starts_with(b"error"));
    assert_eq!(
        fs.journal().clean(u64::MAX).unwrap().copied,
        0,
        "and is left alone"
    );
    check_consistent(fs);
}

#[test]
fn a_log_that_little_lives_in_is_cleaned() {
    let (store, volume) = new_volume();
    let fs = volume.fs();
    let mut files = Vec::new();
    for i in 0..400_u64 {
        // Alone in an fsync, so little rides in the log.
        let ino = put_file(fs, &format!("f{}", i % 8), b"");
        fs.write(ino, 0, &pattern(i, 6000), CACHED).unwrap();
        fs.fsync(ino).unwrap();
        if i % 20 == 0 {
            let name = format!("kept-{i}");
            let kept = put_file(fs, &name, &pattern(i, 5000));
            fs.fsync(kept).unwrap();
            files.push((kept, i));
        }
        fs.unlink(Ino::ROOT, format!("f{}", i % 8).as_bytes())
            .unwrap();
        fs.forget(ino, 1);
        if i % 50 == 0 {
            checkpoint(fs).unwrap();
        }
    }
    let lives_in_log = |fs: &Fs| {
        let mut count = 0;
        let see = |_, entry: SegmentEntry| {
            count += usize::from(entry.kind == SegmentKind::Log && entry.live > 0);
        };
        fs.journal().tables().segments(see).unwrap();
        count
    };
    checkpoint(fs).unwrap();
    checkpoint(fs).unwrap();
    assert!(lives_in_log(fs) > 10, "{}", lives_in_log(fs));
    fs.journal().clean_all().unwrap();
    assert_eq!(lives_in_log(fs), 0);
    checkpoint(fs).unwrap();
    checkpoint(fs).unwrap();
    checkpoint(fs).unwrap();
    let left = stored(&store, SegmentKind::Log);
    assert!(left <= 128 << 10, "{left} bytes of log");
    drop(volume);
    let volume = open(&store).unwrap();
    for (ino, seed) in files {
        assert_eq!(read_all(volume.fs(), ino), pattern(seed, 5000));
    }
}

/// A sixth of the files stays: the store comes down to what lives and a little.
#[test]
fn a_store_settles_after_removals() {
    let (store, volume) = new_volume();
    let fs = volume.fs();
    for i in 0..600 {
        let len = [500, 3000, 20_000, 90_000][usize::try_from(i % 4).unwrap()];
        put_file(fs, &format!("f{i}"), &pattern(i, len));
    }
    fs.sync().unwrap();
    for i in (0..600).filter(|i| i % 6 != 0) {
        remove(fs, &format!("f{i}"));
    }
    let before = walk(fs);
    settle(fs);
    let live = fs.journal().tables().counters().live + fs.journal().reserve.tree();
    let all: u64 = [SegmentKind::Data, SegmentKind::Log, SegmentKind::Node]
        .into_iter()
        .map(|kind| stored(&store, kind))
        .sum();
    let most = live + live / 2 + SLACK + OVERHEAD_MAX;
    assert!(all <= most, "{all} bytes stored, {live} live");
    assert_eq!(walk(fs), before);
    check_consistent(fs);
}

#[test]
fn nodes_are_written_anew_when_their_segments_hold_little() {
    let (store, volume) = new_volume();
    let fs = volume.fs();
    for i in 0..1500 {
        put_file(
            fs,
            &format!("file-{i}-{}", "n".repeat(60)),
            &pattern(i, 200),
        );
    }
    checkpoint(fs).unwrap();
    let mut dice = Dice(2);
    for _ in 0..150 {
        for _ in 0..10 {
            let i = dice.roll(1500);
            let name = format!("file-{i}-{}", "n".repeat(60));
            let ino = fs.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
            fs.write(ino, 0, &pattern(i, 100), CACHED).unwrap();
        }
        checkpoint(fs).unwrap();
    }
    let (all, live) = (
        stored(&store, SegmentKind::Node),
        fs.journal().reserve.tree(),
    );
    // Half as much again and the slack, and what the checkpoint before needs.
    assert!(live > 400 << 10, "{live}");
    assert!(
        all < live * 5 / 2 + (256 << 10),
        "{all} bytes of nodes, {live} live"
    );
    check_consistent(fs);
}

/// Writers, readers, cleaner and checkpoints at once: each sees what he wrote.
#[test]
fn moves_are_seen_by_nobody() {
    let (store, volume) = new_volume();
    let fs = volume.fs();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3_u8)
            .map(|thread| {
                scope.spawn(move || {
                    let mut dice = Dice(thread.into());
                    let mut contents = pattern(thread.into(), 400_000 / PAGE * PAGE);
                    let ino = put_file(fs, &format!("t{thread}"), &contents);
                    for _ in 0..25 {
                        scatter(fs, ino, &mut contents, &mut dice, 12);
                        assert!(read_all(fs, ino) == contents, "thread {thread}");
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs.journal().clean_all().unwrap();
                fs.checkpoint().unwrap();
            }
        });
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    check_consistent(fs);
    let before = walk(fs);
    volume.close().unwrap();
    assert_eq!(walk(open(&store).unwrap().fs()), before);
}
