//! Core: contents in the log.

use std::collections::BTreeMap;

use super::{Scene, body_of, write_op};
use crate::format::{Extent, PendingOps, SEGMENT_BEGIN, SegmentId};
use crate::log::inline::INLINE_MAX;
use crate::log::{LogError, RecoverError, log_name, read_chain};
use crate::store::ObjectName;
use crate::store::memory::{Crash, MemoryStore};
use crate::testing::pattern;

type Objects = BTreeMap<ObjectName, Vec<u8>>;

#[test]
fn records_of_every_length_are_read_as_they_were_written() {
    let mut scene = Scene::new();
    let lens = [1, 63, 64, 65, 4095, 4096, 4097, 9000, INLINE_MAX];
    let records: Vec<Vec<u8>> = (1..).zip(lens).map(|(n, len)| pattern(n, len)).collect();
    for record in &records {
        let (appended, extents) = scene.append(&[record]);
        assert!(extents[0].offset.is_multiple_of(16) && extents[0].offset >= SEGMENT_BEGIN);
        scene.wait(appended).unwrap();
    }
    let together: Vec<&[u8]> = records[..8].iter().map(Vec::as_slice).collect();
    let (appended, _) = scene.append(&together);
    scene.wait(appended).unwrap();
    let all: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let want = [&all[..], &together[..]].concat();
    scene.check(&scene.store, &want);
}

#[test]
fn what_is_not_for_the_log_gets_no_plan() {
    let scene = Scene::new();
    let long = vec![1; INLINE_MAX + 1];
    let half = vec![1; INLINE_MAX / 2 + 1];
    let refused: [&[&[u8]]; 4] = [&[], &[b"a", b""], &[&long], &[&half, &half]];
    for records in refused {
        assert!(scene.log.plan_inline(100, records).unwrap().is_none());
    }
}

#[test]
fn a_plan_is_for_its_own_place_and_commit_alone() {
    let mut scene = Scene::new();
    let plan = |scene: &Scene, len| scene.log.plan_inline(len, &[b"data"]).unwrap().unwrap();
    let op = |scene: &Scene| PendingOps::of(&write_op(plan(scene, 100).extents().collect()));

    let ops = op(&scene);
    let stale = plan(&scene, ops.len());
    scene.append(&[b"between"]);
    let moved = scene.log.append(&ops, Some(stale));
    assert!(matches!(moved, Err(LogError::Moved)));

    let ops = op(&scene);
    let longer = plan(&scene, ops.len() + 512);
    let moved = scene.log.append(&ops, Some(longer));
    assert!(matches!(moved, Err(LogError::Moved)));

    let (appended, _) = scene.append(&[b"after"]);
    scene.wait(appended).unwrap();
    scene.check(&scene.store, &[b"between", b"after"]);
}

/// The objects before and after a commit with inline contents, where its frame lies, and how many
/// bytes of it matter.
fn one_commit(scene: &mut Scene, data: &[u8]) -> (Objects, Objects, usize, usize) {
    let before = scene.store.objects();
    let (appended, extents) = scene.append(&[data]);
    let after = scene.store.objects();
    let begin = usize::try_from(appended.place.offset).unwrap();
    let end = usize::try_from(extents[0].end().unwrap()).unwrap();
    (before, after, begin, end - begin)
}

/// Whatever part of a frame a crash left, the commit is there whole or not at all.
#[test]
fn a_commit_cut_off_behind_any_byte_is_whole_or_none() {
    let mut scene = Scene::new();
    let (kept, _) = scene.append(&[b"kept"]);
    scene.wait(kept).unwrap();
    let data = pattern(5, 300);
    let name = log_name(scene.log.current().0);
    let (before, after, begin, len) = one_commit(&mut scene, &data);
    for cut in 0..=len {
        let mut torn = before.clone();
        let there = &after[&name][begin..begin + cut];
        torn.get_mut(&name).unwrap()[begin..begin + cut].copy_from_slice(there);
        let store = MemoryStore::of(torn);
        if cut < len {
            scene.check(&store, &[b"kept"]);
        } else {
            scene.check(&store, &[b"kept", &data]);
        }
    }
}

#[test]
fn a_bad_chunk_is_a_tear_unless_its_commit_was_durable() {
    for durable in [false, true] {
        let mut scene = Scene::new();
        let (first, extents) = scene.append(&[b"first"]);
        if durable {
            scene.wait(first).unwrap();
        }
        let (second, _) = scene.append(&[b"second"]);
        assert_eq!(second.seq, first.seq + 1);
        let mut objects = scene.store.objects();
        let at = usize::try_from(extents[0].offset).unwrap();
        objects.get_mut(&log_name(scene.log.current().0)).unwrap()[at] ^= 1;
        let found = scene.recover(&MemoryStore::of(objects)).unwrap();
        let want: &[Option<Vec<u8>>] = if durable {
            &[None, Some(b"second".to_vec())]
        } else {
            &[]
        };
        assert_eq!(found.records, want, "durable: {durable}");
        let end = found.recovered.log.position.seq;
        assert_eq!(end, if durable { second.seq } else { first.seq - 1 });
    }
}

/// An extent in a data segment may have any offset, that of an inline chunk too.
#[test]
fn an_extent_elsewhere_is_not_taken_for_an_inline_chunk() {
    let mut scene = Scene::new();
    let placeholder = Extent::of_record(SegmentId(99), SEGMENT_BEGIN, 4, [0; 8]).unwrap();
    let len = PendingOps::of(&write_op(vec![placeholder; 2])).len();
    let planned = scene.log.plan_inline(len, &[b"data"]).unwrap().unwrap();
    let own = planned.extents().next().unwrap();
    let elsewhere = Extent {
        segment: SegmentId(99),
        salt: [9; 8],
        ..own
    };
    let ops = PendingOps::of(&write_op(vec![own, elsewhere]));
    let appended = scene.log.append(&ops, Some(planned)).unwrap();

    let body = body_of(&scene.store);
    let chain = read_chain(&*scene.store, &scene.keys, &body, &body.newest).unwrap();
    let recovered = chain.replay(&mut |_| Ok::<_, RecoverError>(())).unwrap();
    assert_eq!(recovered.log.position.seq, appended.seq);
}

#[test]
fn power_that_fails_leaves_a_prefix_of_the_commits() {
    let records: Vec<Vec<u8>> = (1..9)
        .map(|n| pattern(n, 700 * usize::try_from(n).unwrap()))
        .collect();
    let mut scene = Scene::new();
    let mut acknowledged = vec![(scene.store.calls().len(), 0)];
    for (n, record) in records.iter().enumerate() {
        let (appended, _) = scene.append(&[record]);
        if n % 3 == 2 {
            scene.wait(appended).unwrap();
            acknowledged.push((scene.store.calls().len(), n + 1));
        }
    }
    let calls = scene.store.calls();
    for at in acknowledged[0].0..=calls.len() {
        for seed in 0..20 {
            let store = MemoryStore::after(&calls[..at], Crash::Power(seed));
            let found = scene.recover(&store).unwrap().records;
            let least = acknowledged
                .iter()
                .rfind(|(calls, _)| *calls <= at)
                .unwrap()
                .1;
            assert!(found.len() >= least, "call {at}, seed {seed}");
            for (found, want) in found.iter().zip(&records) {
                assert_eq!(found.as_ref(), Some(want), "call {at}, seed {seed}");
            }
        }
    }
}
