//! Core: stores put together from what was seen at several times.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{ID, Objects, SIBLING, Scene, Verdict, kind_of, scene, stranger};
use crate::error::OpenError;
use crate::format::SegmentKind;
use crate::store::ObjectName;
use crate::store::memory::{Dice, MemoryStore};
use crate::testing::{aead, open};
use crate::volume::Volume;

const SLOTS: [ObjectName; 2] = [ObjectName::Superblock(0), ObjectName::Superblock(1)];

/// The newest objects, with those that are asked for as they were before.
fn with_older(scene: &Scene, is_older: impl Fn(ObjectName) -> bool) -> Objects {
    let mut bent = scene.objects();
    for (name, bytes) in &scene.older.0 {
        if is_older(*name) {
            bent.insert(*name, bytes.clone());
        }
    }
    bent
}

#[test]
fn t24_objects_of_an_older_copy_under_the_newest_superblock_show_nothing_older() {
    let scene = scene();
    for name in scene.older.0.keys() {
        let bent = with_older(&scene, |n| n == *name);
        scene.check(&bent, &format!("{name} is older"));
    }
    for kind in [SegmentKind::Data, SegmentKind::Log, SegmentKind::Node] {
        let bent = with_older(&scene, |n| kind_of(n) == Some(kind));
        scene.check(&bent, &format!("all of {kind:?} are older"));
    }
    // And without what was made since.
    let mut only_older = scene.older.0.clone();
    for slot in SLOTS {
        only_older.insert(slot, scene.newest.0[&slot].clone());
    }
    assert_eq!(scene.judge(&only_older, "older segments"), Verdict::Refused);
}

/// Within the store nothing tells that a superblock is old. It leads to its own state, or to
/// nowhere; and it destroys nothing that the newest one needs.
#[test]
fn t24_an_older_superblock_over_newer_segments_destroys_nothing() {
    let scene = scene();
    let bent = with_older(&scene, |name| SLOTS.contains(&name));
    let store = Arc::new(MemoryStore::of(bent.clone()));
    match open(&store) {
        Err(e) => {
            assert!(matches!(e, OpenError::Tampered { .. }), "{e}");
            assert!(store.objects() == bent, "a refused mount wrote");
        }
        Ok(volume) => drop(volume),
    }
    let mut after = store.objects();
    for name in bent.keys() {
        assert!(after.contains_key(name), "{name} was deleted");
    }
    for slot in SLOTS {
        after.insert(slot, scene.newest.0[&slot].clone());
    }
    let newest = Verdict::Shows(0, BTreeSet::new());
    assert_eq!(scene.judge(&after, "the newest superblock again"), newest);
}

/// The two slots are of different times.
#[test]
fn t36_one_superblock_slot_of_an_older_copy_never_wins() {
    let scene = scene();
    for slot in SLOTS {
        let bent = with_older(&scene, |name| name == slot);
        let got = scene.check(&bent, &format!("{slot} is older"));
        assert_eq!(got, Verdict::Shows(0, BTreeSet::new()));
    }
}

/// The whole store as it was: nothing in it tells. What does is outside of it.
#[test]
fn t25_without_an_anchor_a_store_that_was_set_back_shows_just_what_it_was() {
    let scene = scene();
    let got = scene.judge(&scene.older.0, "all of it is older");
    assert_eq!(got, Verdict::Shows(1, BTreeSet::new()));
}

/// Each object is the newest, an older or another volume's one, cut somewhere, or gone.
#[test]
fn t24_a_store_mixed_from_everything_ever_seen_shows_what_once_was_or_errors() {
    let scene = scene();
    let foreign = stranger(ID);
    let (mut refused, mut hurt, mut whole) = (0, 0, 0);
    for seed in 0..120 {
        let mut dice = Dice(seed + 1);
        let mut bent = scene.objects();
        for (name, bytes) in &scene.newest.0 {
            let older = scene.older.0.get(name);
            match dice.roll(12) {
                0 => _ = bent.remove(name),
                1 | 2 => _ = older.and_then(|bytes| bent.insert(*name, bytes.clone())),
                3 => {
                    let like = foreign.iter().find(|(n, _)| kind_of(**n) == kind_of(*name));
                    bent.insert(*name, like.unwrap().1.clone());
                }
                4 => {
                    let len = usize::try_from(dice.roll(bytes.len() as u64)).unwrap();
                    bent.insert(*name, bytes[..len].to_vec());
                }
                _ => {}
            }
        }
        if !bent.keys().any(|name| SLOTS.contains(name)) {
            continue;
        }
        let store = Arc::new(MemoryStore::of(bent.clone()));
        if let Err(OpenError::WrongKey | OpenError::OtherVolume { .. } | OpenError::NotAVolume) =
            open(&store)
        {
            // None of the slots is ours.
            assert!(
                store.objects() == bent,
                "seed {seed}: a refused mount wrote"
            );
            refused += 1;
            continue;
        }
        match scene.judge(&bent, &format!("seed {seed}")) {
            Verdict::Refused => refused += 1,
            Verdict::Shows(_, files) if files.is_empty() => whole += 1,
            Verdict::Shows(..) => hurt += 1,
        }
    }
    assert!(
        refused > 10 && hurt > 2 && whole > 2,
        "{refused} {hurt} {whole}"
    );
}

#[test]
fn t27_two_volumes_of_one_deployment_that_are_swapped_are_refused_by_name() {
    let scene = scene();
    let sibling = stranger(SIBLING);
    for (objects, expected, claims) in [(&sibling, ID, SIBLING), (&scene.newest.0, SIBLING, ID)] {
        let store = Arc::new(MemoryStore::of(objects.clone()));
        let key = crate::testing::kek();
        match Volume::open_on(store.clone(), &aead(), &key, expected) {
            Err(OpenError::OtherVolume { found }) => assert_eq!(found, claims),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("the other volume was opened"),
        }
        assert!(store.objects() == *objects, "a refused mount wrote");
    }
}
