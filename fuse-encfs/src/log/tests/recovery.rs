//! Core: from the store to the chain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runtime::sync::Mutex;

use super::{Scene, body_of};
use crate::crypto::{Head, ONCE_OVERHEAD};
use crate::format::{
    CommitHeader, FrameHead, LOG_ALIGNMENT, Op, PendingOps, Place, SEGMENT_BEGIN, SegmentId,
};
use crate::log::frames::{Found, FrameReader};
use crate::log::inline::INLINE_MAX;
use crate::log::recover::search_behind;
use crate::log::{Log, Position, RecoverError, log_name, read_chain};
use crate::store::memory::{Call, MemoryStore};
use crate::store::{Appendable, Lease, ObjectName, Space, Store, StoreError};

/// One long object of zeros, whose reads are counted.
#[derive(Debug, Default)]
struct Zeros {
    reads: AtomicU64,
}

const ZEROS_LEN: u64 = 64 << 20;

impl Store for Zeros {
    fn put(&self, _: ObjectName, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Full)
    }

    fn get(&self, _: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        buffer.fill(0);
        let left = usize::try_from(ZEROS_LEN.saturating_sub(offset)).unwrap();
        Ok(left.min(buffer.len()))
    }

    fn put_if_absent(&self, _: ObjectName, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Full)
    }

    fn put_if_match(&self, _: ObjectName, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Full)
    }

    fn list(&self, _: Option<ObjectName>, _: usize) -> Result<Vec<ObjectName>, StoreError> {
        Ok(Vec::new())
    }

    fn len(&self, _: ObjectName) -> Result<u64, StoreError> {
        Ok(ZEROS_LEN)
    }

    fn delete(&self, _: ObjectName) -> Result<(), StoreError> {
        Err(StoreError::Absent)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn lease(&self, _: Duration) -> Result<Box<dyn Lease>, StoreError> {
        Err(StoreError::Busy)
    }

    fn space(&self) -> Result<Space, StoreError> {
        Err(StoreError::Absent)
    }
}

#[test]
fn a_search_over_zeros_reads_them_once_in_large_pieces() {
    let scene = Scene::new();
    let zeros = Zeros::default();
    let frames = FrameReader {
        store: &zeros,
        keys: &scene.keys,
        alignment: 512,
    };
    let place = Place {
        segment: scene.first,
        offset: SEGMENT_BEGIN,
    };
    assert_eq!(search_behind(&frames, place).unwrap(), 0);
    let reads = zeros.reads.load(Ordering::Relaxed);
    assert!(reads <= 64, "{reads} reads of 64 MiB");
}

/// The search finds a commit anywhere behind the end, over the border of its pieces too.
#[test]
fn a_durable_commit_that_is_gone_is_missed_however_far_the_next_one_is() {
    let mut scene = Scene::new();
    let name = log_name(scene.log.current().0);
    let (gone, _) = scene.append(&[b"gone"]);
    scene.wait(gone).unwrap();
    let large = vec![3; INLINE_MAX];
    let mut later = Vec::new();
    while scene.log.position().next.offset < (5 << 19) {
        later.push(scene.append(&[&large]).0.place.offset);
    }
    let whole = scene.store.objects();
    let begin = usize::try_from(gone.place.offset).unwrap();
    for pair in later.windows(2) {
        let [at, end] = [pair[0], pair[1]].map(|at| usize::try_from(at).unwrap());
        let mut objects = whole.clone();
        let log = objects.get_mut(&name).unwrap();
        log[begin..at].fill(0);
        log.truncate(end);
        let refused = scene.recover(&MemoryStore::of(objects.clone()));
        let (first, last) = (gone.seq, gone.seq);
        let lost = RecoverError::Lost { first, last }.to_string();
        let e = refused.map(|_| ()).unwrap_err();
        assert_eq!(e.to_string(), lost, "next one at {at}");

        // Without any commit behind it, the same looks like a crash.
        objects.get_mut(&name).unwrap().truncate(at);
        scene.check(&MemoryStore::of(objects), &[]);
    }
}

#[test]
fn bytes_that_were_never_a_commit_end_the_chain_as_zeros_do() {
    let mut scene = Scene::new();
    let (kept, _) = scene.append(&[b"kept"]);
    scene.wait(kept).unwrap();
    let name = log_name(scene.log.current().0);
    let end = usize::try_from(scene.log.position().next.offset).unwrap();
    for at in [0, 100, 511, 512, 700] {
        let mut objects = scene.store.objects();
        objects.get_mut(&name).unwrap()[end + at] = 7;
        scene.check(&MemoryStore::of(objects), &[b"kept"]);
    }
}

/// A mount knows every head that it met, and no other: what an anchor asks.
#[test]
fn every_head_of_the_chain_is_met() {
    let mut scene = Scene::new();
    let mut heads = vec![scene.log.position()];
    for n in 0..5_u8 {
        scene.append(&[&[n + 1]]);
        heads.push(scene.log.position());
    }
    let found = scene.recover(&scene.store).unwrap().recovered;
    let (as_of, head) = (found.checkpoint.as_of, found.checkpoint.head);
    assert!(found.met(as_of, &head));
    assert!(!found.met(as_of - 1, &head) && !found.met(as_of + 1, &head));
    for position in &heads {
        assert!(found.met(position.seq, &position.head.0));
        assert!(!found.met(position.seq + 1, &position.head.0));
        assert!(!found.met(position.seq, &[0; 32]));
    }
    assert!(!found.met(u64::MAX, &head) && !found.met(0, &head));
}

/// A commit that continues the chain at `at` as well as the one that was written there, as one of
/// a clone of the guest would.
fn other_commit(scene: &Scene, at: &Position) -> Vec<u8> {
    let header = CommitHeader {
        seq: at.seq + 1,
        log_epoch: scene.log.current().1,
        prev_head: at.head.0,
        durable_seq: at.seq,
    };
    let plaintext = PendingOps::of(&Op::SegDrop(SegmentId(7)));
    let plaintext = plaintext.encode(&header, LOG_ALIGNMENT).unwrap();
    let sealed_len = u32::try_from(plaintext.len() + ONCE_OVERHEAD).unwrap();
    let clear = FrameHead::new(sealed_len, 0, LOG_ALIGNMENT)
        .unwrap()
        .bytes();
    let place = (at.next.segment, at.next.offset);
    let sealed = scene.keys.seal_commit(place, &clear, &plaintext).unwrap();
    [&clear[..], &sealed].concat()
}

/// The operations come from the second reading, which must agree with what was judged.
#[test]
fn a_store_that_answers_otherwise_the_second_time_is_found_out() {
    let mut scene = Scene::new();
    let at = scene.log.position();
    let (kept, _) = scene.append(&[b"kept"]);
    scene.wait(kept).unwrap();
    let name = log_name(at.next.segment);
    let own = scene.store.objects();
    for other in [vec![0; 512], vec![7; 512], other_commit(&scene, &at)] {
        let store = MemoryStore::of(own.clone());
        let body = body_of(&store);
        let chain = read_chain(&store, &scene.keys, &body, &body.newest).unwrap();
        store.write_at(name, at.next.offset, &other).unwrap();
        // CHECKPOINT, which is read before, has no effect.
        let mut applied = Vec::new();
        let refused = chain.replay(&mut |op: &Op| {
            applied.push(op.clone());
            Ok::<_, RecoverError>(())
        });
        assert!(matches!(refused, Err(RecoverError::Tampered("log"))));
        assert!(applied.iter().all(|op| matches!(op, Op::Checkpoint(_))));
    }
}

/// Commits that may be in a page cache alone are written again, byte by byte as they were.
#[test]
fn settling_writes_what_was_not_durable_again() {
    let mut scene = Scene::new();
    let (durable, _) = scene.append(&[b"durable"]);
    scene.wait(durable).unwrap();
    let unsure: Vec<u64> = (0..3_u8)
        .map(|n| scene.append(&[&[n + 1; 100]]).0.place.offset)
        .collect();
    let store = MemoryStore::of(scene.store.objects());
    let found = scene.recover(&store).unwrap().recovered;
    assert!(store.calls().is_empty(), "recovery writes nothing");
    found.settle(&store, &scene.keys).unwrap();
    let name = log_name(scene.log.current().0);
    let mut written = Vec::new();
    let mut synced = false;
    for call in store.calls() {
        match call {
            Call::Write(n, at, bytes) => {
                let begin = usize::try_from(at).unwrap();
                assert_eq!(
                    (n, &scene.store.objects()[&name][begin..begin + bytes.len()]),
                    (name, &bytes[..])
                );
                written.push(at);
            }
            Call::Sync(n) => synced = n == name,
            other => panic!("{other:?}"),
        }
    }
    assert!(synced);
    // The first of the unsure ones says that the one before was durable.
    assert_eq!(written, unsure);
}

/// Threads append under the log's lock and wait without it, on files with two lanes.
#[test]
fn threads_that_append_and_wait_find_their_commits_in_the_chain() {
    const THREADS: u64 = 4;
    const EACH: u64 = 25;
    let directory = tempfile::tempdir().unwrap();
    let store = crate::store::open(directory.path()).unwrap();
    assert_eq!(store.lanes(), 2);
    let scene = Scene::new();
    let keys = Arc::clone(&scene.keys);
    let head = Head([3; 32]);
    let (log, _) = Log::first(store.clone(), keys, LOG_ALIGNMENT, SegmentId(1), head).unwrap();
    let (flush, segment) = (Arc::clone(log.flusher()), log.current().0);
    let log = Mutex::new(log);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (log, flush) = (&log, &flush);
            scope.spawn(move || {
                for n in 0..EACH {
                    let ops = PendingOps::of(&Op::SegDrop(SegmentId(u32::try_from(n).unwrap())));
                    let appended = log.lock().append(&ops, None).unwrap();
                    flush.wait_durable(appended.seq).unwrap();
                    let durable = flush.durable().seq;
                    assert!(durable >= appended.seq, "thread {thread}, commit {n}");
                }
            });
        }
    });
    let end = log.lock().position();
    assert_eq!((end.seq, flush.durable()), (1 + THREADS * EACH, end));
    let frames = FrameReader {
        store: &*store,
        keys: &scene.keys,
        alignment: LOG_ALIGNMENT,
    };
    let mut at = Position {
        seq: 0,
        head,
        next: Place {
            segment,
            offset: SEGMENT_BEGIN,
        },
    };
    while let Found::Frame(frame) = frames.read(at.next).unwrap() {
        assert!(frame.continues(&at, 1) && frame.header.durable_seq <= at.seq);
        at = frame.advance(&at);
    }
    assert_eq!(at, end);
}
