//! Core: a segment that cannot be written any more.

use std::sync::Arc;

use super::Scene;
use crate::crypto::{Aead, recorder::Recorder};
use crate::format::{Extent, Op, PendingOps};
use crate::log::reopen::Reopened;
use crate::log::{LogError, log_name};
use crate::store::memory::{Call, Crash, MemoryStore};
use crate::store::{ObjectName, StoreError};
use crate::testing::pattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sync,
    Write,
}

/// Lets the next `times` calls of a kind on an object fail.
fn fail(scene: &Scene, kind: Kind, name: ObjectName, times: usize) {
    let mut left = times;
    scene.store.fail(move |call| {
        let hit = match (kind, call) {
            (Kind::Sync, Call::Sync(n)) | (Kind::Write, Call::Write(n, ..)) => *n == name,
            _ => false,
        };
        let fails = hit && left > 0;
        left -= usize::from(fails);
        fails.then(|| StoreError::Io(std::io::ErrorKind::Other.into()))
    });
}

fn current(scene: &Scene) -> ObjectName {
    log_name(scene.log.current().0)
}

/// Goes on in another segment, as an owner of a log does.
fn reopen(scene: &mut Scene) -> Reopened {
    let next = scene.next_segment();
    scene.log.reopen(next).unwrap()
}

#[test]
fn a_write_or_flush_that_fails_once_is_repeated() {
    for kind in [Kind::Write, Kind::Sync] {
        let mut scene = Scene::new();
        fail(&scene, kind, current(&scene), 1);
        let (appended, _) = scene.append(&[b"data"]);
        scene.wait(appended).unwrap();
        assert!(!scene.log.has_failed());
        let store = MemoryStore::after(&scene.store.calls(), Crash::Power(1));
        scene.check(&store, &[b"data"]);
    }
}

/// Both attempts fail, in every way: commits, records and parts of records all go along.
#[test]
fn what_is_not_durable_goes_along_into_another_segment() {
    for kind in [Kind::Write, Kind::Sync] {
        let mut scene = Scene::new();
        let long = pattern(3, 9000);
        let (durable, kept) = scene.append(&[b"durable"]);
        scene.wait(durable).unwrap();
        let old = current(&scene);
        fail(&scene, kind, old, 2);
        let (one, extents) = scene.append(&[b"one", &long]);
        let part = extents[1].skip(4096).unwrap().keep(100).unwrap();
        let shared = scene.append_named(vec![part, kept[0]]);
        let pending = PendingOps::of(&super::write_op(vec![part]));

        assert!(scene.wait(shared).is_err() && scene.log.has_failed());
        let (late, _) = scene.append(&[b"late"]);
        let reopened = reopen(&mut scene);
        assert_ne!(current(&scene), old);
        assert!(scene.wait(one).is_err(), "nothing is acknowledged yet");

        // Whoever holds extents follows.
        assert!(reopened.has_moved());
        let moved = reopened.translate(&extents[0]).unwrap();
        assert_ne!(moved.segment, extents[0].segment);
        assert_eq!(reopened.translate(&kept[0]), None, "what was durable stays");
        let pending = pending.with_extents(|e| reopened.translate(e)).unwrap();
        let numbers: Vec<u64> = reopened.commits.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(numbers, [one.seq, shared.seq, late.seq]);

        scene.write_superblock(reopened.position.seq);
        reopened.acknowledge();
        for appended in [one, shared, late] {
            scene.wait(appended).unwrap();
        }
        let after = scene.log.append(&pending, None).unwrap();
        scene.wait(after).unwrap();

        let store = MemoryStore::after(&scene.store.calls(), Crash::Power(1));
        let part = &long[4096..4196];
        let want: [&[u8]; 7] = [b"durable", b"one", &long, part, b"durable", b"late", part];
        scene.check(&store, &want);
    }
}

/// From the failure to the acknowledgement, a crash behind any call leaves a prefix of the commits
/// with all that was acknowledged, whatever the failed writes left in the old segment.
#[test]
fn a_crash_at_any_call_while_the_log_is_opened_anew_loses_nothing_acknowledged() {
    let records: Vec<Vec<u8>> = (1..7).map(|n| pattern(n, 900)).collect();
    let mut scene = Scene::new();
    let begin = scene.store.calls().len();
    let mut acknowledged = vec![(begin, 0)];
    for (n, record) in records.iter().enumerate() {
        if n == 2 {
            fail(&scene, Kind::Sync, current(&scene), 2);
        }
        let (appended, _) = scene.append(&[record]);
        if n == 3 {
            scene.wait(appended).unwrap_err();
            let reopened = reopen(&mut scene);
            scene.write_superblock(reopened.position.seq);
            reopened.acknowledge();
        }
        if n != 2 {
            scene.wait(appended).unwrap();
            acknowledged.push((scene.store.calls().len(), n + 1));
        }
    }
    let calls = scene.store.calls();
    for at in begin..=calls.len() {
        let power = (0..10).map(Crash::Power);
        for crash in power.chain([Crash::Daemon]) {
            let store = MemoryStore::after(&calls[..at], crash);
            let found = scene.recover(&store).unwrap().records;
            let least = acknowledged
                .iter()
                .rfind(|(calls, _)| *calls <= at)
                .unwrap()
                .1;
            assert!(found.len() >= least, "call {at}, {crash:?}");
            for (found, want) in found.iter().zip(&records) {
                assert_eq!(found.as_ref(), Some(want), "call {at}, {crash:?}");
            }
        }
    }
}

#[test]
fn a_failure_while_the_log_rolls_is_mended_too() {
    // The ROLL, then the OPEN of the segment that it names.
    for fails_in_next in [false, true] {
        let mut scene = Scene::new();
        let (first, _) = scene.append(&[b"first"]);
        let next = scene.next_segment();
        let name = if fails_in_next {
            log_name(next.segment)
        } else {
            current(&scene)
        };
        fail(&scene, Kind::Sync, name, 2);
        scene.log.roll(next).unwrap_err();
        let reopened = reopen(&mut scene);
        assert!(matches!(reopened.open, Op::Open(_)));
        let path = scene.log.segments_since(scene.first);
        assert_eq!(path, [scene.first, scene.log.current().0]);
        scene.write_superblock(reopened.position.seq);
        reopened.acknowledge();
        scene.wait(first).unwrap();
        let next = scene.next_segment();
        scene.log.roll(next).unwrap();
        let (second, _) = scene.append(&[b"second"]);
        scene.wait(second).unwrap();
        scene.check(&scene.store, &[b"first", b"second"]);
    }
}

#[test]
fn a_second_failure_is_the_end() {
    let mut scene = Scene::new();
    let (first, _) = scene.append(&[b"kept"]);
    scene.wait(first).unwrap();
    let (second, _) = scene.append(&[b"lost"]);
    let next = scene.next_segment();
    let further = scene.next_segment();
    scene.store.fail(|call| {
        matches!(call, Call::Sync(_)).then(|| StoreError::Io(std::io::ErrorKind::Other.into()))
    });
    assert!(matches!(scene.wait(second), Err(LogError::Store(_))));
    assert!(matches!(scene.wait(second), Err(LogError::Failed)));
    assert!(matches!(scene.log.reopen(next), Err(LogError::Store(_))));
    scene.store.mend();
    assert!(matches!(scene.log.reopen(further), Err(LogError::Failed)));
    let nothing = scene.log.append(&PendingOps::default(), None);
    assert!(matches!(nothing, Err(LogError::Failed)));
    assert!(
        scene.wait(second).is_err(),
        "and nobody is let through later"
    );
    let store = MemoryStore::after(&scene.store.calls(), Crash::Power(2));
    assert_eq!(
        scene.recover(&store).unwrap().records[0],
        Some(b"kept".to_vec())
    );
}

/// The old tail may come back at any later time: it is behind the cut.
#[test]
fn the_tail_of_the_segment_that_was_left_never_counts_again() {
    let mut scene = Scene::new();
    let (first, _) = scene.append(&[b"first"]);
    scene.wait(first).unwrap();
    let old = current(&scene);
    fail(&scene, Kind::Sync, old, 2);
    let (second, _) = scene.append(&[b"second"]);
    let tail = scene.store.objects()[&old].clone();
    scene.wait(second).unwrap_err();
    let reopened = reopen(&mut scene);
    scene.write_superblock(reopened.position.seq);
    reopened.acknowledge();
    let mut objects = scene.store.objects();
    objects.insert(old, tail);
    scene.check(&MemoryStore::of(objects), &[b"first", b"second"]);
}

/// Commits with contents, failures and what follows seal nothing twice under one nonce.
#[test]
fn no_key_seals_twice_under_one_nonce_when_the_log_is_opened_anew() {
    let recorder = Recorder::default();
    let aead: Arc<dyn Aead> = Arc::new(recorder.clone());
    let mut scene = Scene::with(&aead);
    let data = pattern(2, 5000);
    for round in 0..4 {
        let (kept, _) = scene.append(&[&data, b"short"]);
        scene.wait(kept).unwrap();
        // A plan that is dropped: its addresses go to the next commit.
        drop(scene.log.plan_inline(100, &[&data]).unwrap().unwrap());
        fail(&scene, Kind::Sync, current(&scene), 2);
        let (lost, extents): (_, Vec<Extent>) = scene.append(&[&data]);
        scene.append_named(extents);
        scene.wait(lost).unwrap_err();
        let reopened = reopen(&mut scene);
        scene.write_superblock(reopened.position.seq);
        reopened.acknowledge();
        scene.wait(lost).unwrap();
        let next = scene.next_segment();
        scene.log.roll(next).unwrap();
        assert!(recorder.seals() > 10 * round);
    }
    assert_eq!(scene.recover(&scene.store).unwrap().records.len(), 4 * 4);
}
