//! Core: who reads a file finds what was written to it while the cleaner moves it away and
//! checkpoints delete the segments that it lay in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::format::{Ino, SegmentKind};
use crate::fs::Fs;
use crate::store::ObjectName;
use crate::store::memory::Call;
use crate::testing::{CACHED, check_consistent, new_store, open, pattern, put_file};

const FILES: u64 = 8;
/// Some fill a data segment.
const LEN: usize = 300_000;
const ROUNDS: u64 = 6;
const READERS: usize = 3;

fn contents(file: u64, round: u64) -> Vec<u8> {
    pattern(1000 * file + round, LEN)
}

/// Reads every file whole again and again: each time it is what one round wrote.
fn read(fs: &Fs, files: &[Ino], is_over: &AtomicBool) -> usize {
    let mut reads = 0;
    while !is_over.load(Ordering::Relaxed) {
        for (file, ino) in (0..).zip(files) {
            let mut bytes = vec![0; LEN];
            assert_eq!(fs.read(*ino, 0, &mut bytes).unwrap(), LEN);
            let is_of = |round| contents(file, round) == bytes;
            assert!((0..=ROUNDS).rev().any(is_of), "file {file} is of no round");
            reads += 1;
        }
    }
    reads
}

#[test]
fn what_is_read_while_segments_are_emptied_and_deleted_is_what_was_written() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let files: Vec<Ino> = (0..FILES)
        .map(|file| put_file(fs, &format!("{file}"), &contents(file, 0)))
        .collect();
    let is_over = AtomicBool::new(false);
    let mut copied = 0;
    thread::scope(|scope| {
        let reader = || read(fs, &files, &is_over);
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        for round in 1..=ROUNDS {
            for (file, ino) in (0..).zip(&files) {
                fs.write(*ino, 0, &contents(file, round), CACHED).unwrap();
                // What is removed again leaves segments with little in them.
                for _ in 0..2 {
                    let ino = put_file(fs, "short-lived", &contents(FILES, round));
                    fs.unlink(Ino::ROOT, b"short-lived").unwrap();
                    fs.sync().unwrap();
                    fs.forget(ino, 1);
                }
            }
            fs.sync().unwrap();
            loop {
                match fs.journal().clean(1 << 20).unwrap().copied {
                    0 => break,
                    more => copied += more,
                }
            }
            fs.checkpoint().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    check_consistent(fs);
    assert!(copied > 0, "the cleaner had nothing to do");
    let is_data = |call: &Call| {
        matches!(
            call,
            Call::Delete(ObjectName::Segment(SegmentKind::Data, _))
        )
    };
    let deleted = store.calls().iter().filter(|call| is_data(call)).count();
    assert!(deleted > 3, "{deleted} data segments were deleted");
}
