//! Core: keys that change while a volume is in use, and anchors that judge what is opened.

use std::path::Path;
use std::sync::Arc;

use keys::VolumeKek;

use crate::anchor::{AnchorChoice, Freshness, FreshnessError};
use crate::error::OpenError;
use crate::format::Ino;
use crate::store::crash::{Crash, Image};
use crate::store::memory::MemoryStore;
use crate::superblock::Unlock;
use crate::testing::{CACHED, ID, aead, kek, new_store, open, pattern, put_file, walk};
use crate::volume::{Opening, Volume};

fn other_kek() -> VolumeKek {
    VolumeKek::take_from(&mut [0x77; 32]).unwrap()
}

fn open_by(store: &Arc<MemoryStore>, kek: &VolumeKek) -> Result<Volume, OpenError> {
    Volume::open_on(store.clone(), &aead(), kek, ID)
}

/// Opens with a file as anchor.
fn open_anchored(store: &Arc<MemoryStore>, file: &Path) -> Result<Volume, OpenError> {
    let freshness = Freshness {
        anchor: AnchorChoice::File {
            path: file.to_owned(),
            vouched: true,
        },
        ..Freshness::default()
    };
    let kek = kek();
    let opening = Opening {
        unlock: Unlock::from(&kek),
        freshness: &freshness,
    };
    Volume::open_judged(store.clone(), &aead(), &opening, ID)
}

/// Works on a volume that has a bit of everything.
fn fill(volume: &Volume) {
    for i in 0..6 {
        let len = [10, 3000, 90_000][usize::try_from(i % 3).unwrap()];
        let ino = put_file(volume.fs(), &format!("f{i}"), &pattern(i, len));
        if i % 2 == 0 {
            volume.fs().fsync(ino).unwrap();
        }
    }
}

#[test]
fn another_key_encryption_key_takes_effect_at_once() {
    let store = new_store();
    let volume = open(&store).unwrap();
    fill(&volume);
    volume
        .fs()
        .journal()
        .change_keys(&other_kek(), None, false)
        .unwrap();
    let tree = walk(volume.fs());
    volume.close().unwrap();
    let refused = open_by(&store, &kek()).unwrap_err();
    assert!(matches!(refused, OpenError::WrongKey), "{refused}");
    assert_eq!(walk(open_by(&store, &other_kek()).unwrap().fs()), tree);
}

#[test]
fn a_volume_in_use_is_sealed_anew_under_a_new_master_key() {
    let store = new_store();
    let volume = open(&store).unwrap();
    fill(&volume);
    let (fs, journal) = (volume.fs(), volume.fs().journal());
    fs.sync().unwrap();
    journal.change_keys(&other_kek(), None, true).unwrap();
    assert!(journal.resealing().unwrap().unwrap().left > 90_000);
    let ino = fs.lookup(Ino::ROOT, b"f1").unwrap().ino;
    fs.write(ino, 0, b"changed meanwhile", CACHED).unwrap();
    for _ in 0..20 {
        journal.clean(u64::MAX).unwrap();
        fs.sync().unwrap();
        fs.checkpoint().unwrap();
        if journal.finish_resealing().unwrap() {
            break;
        }
    }
    assert_eq!(journal.resealing().unwrap(), None);
    journal.tables().check().unwrap();
    let mut epochs = Vec::new();
    let see = |_, e: crate::tables::SegmentEntry| epochs.push(e.segment.vmk_epoch);
    journal.tables().segments(see).unwrap();
    assert!(epochs.iter().all(|epoch| *epoch == 1), "{epochs:?}");
    let tree = walk(fs);
    volume.close().unwrap();
    assert_eq!(walk(open_by(&store, &other_kek()).unwrap().fs()), tree);
}

/// Whatever moment of a change of keys a crash hits, the volume opens with the key before or the
/// key after, and the change comes to its end.
#[test]
fn a_change_of_keys_survives_a_crash_behind_every_call() {
    let store = new_store();
    let volume = open(&store).unwrap();
    fill(&volume);
    volume.fs().sync().unwrap();
    let tree = walk(volume.fs());
    let begin = store.call_count();
    volume
        .fs()
        .journal()
        .change_keys(&other_kek(), None, true)
        .unwrap();
    for _ in 0..6 {
        volume.fs().journal().clean(20_000).unwrap();
        volume.fs().checkpoint().unwrap();
        volume.fs().journal().finish_resealing().unwrap();
    }
    let calls = store.calls();
    drop(volume);
    let (mut by_old, mut by_new) = (0, 0);
    for at in begin..=calls.len() {
        let crash = if at % 3 == 0 {
            Crash::Daemon
        } else {
            Crash::Power(at as u64)
        };
        let left = Arc::new(MemoryStore::after(&calls[..at], crash));
        let opened = match open_by(&left, &other_kek()) {
            Ok(volume) => {
                by_new += 1;
                volume
            }
            Err(OpenError::WrongKey) => {
                by_old += 1;
                open_by(&left, &kek()).unwrap()
            }
            Err(e) => panic!("behind call {at}: {e}"),
        };
        assert_eq!(walk(opened.fs()), tree, "behind call {at}");
        let journal = opened.fs().journal();
        for _ in 0..20 {
            if journal.resealing().unwrap().is_none() {
                break;
            }
            journal.clean(u64::MAX).unwrap();
            opened.fs().checkpoint().unwrap();
            journal.finish_resealing().unwrap();
        }
        assert_eq!(journal.resealing().unwrap(), None, "behind call {at}");
        assert_eq!(walk(opened.fs()), tree, "behind call {at}, sealed anew");
    }
    assert!(by_old > 0 && by_new > 20, "{by_old} {by_new}");
}

#[test]
fn t25_a_store_that_was_set_back_is_refused_by_the_anchor() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("anchor");
    let store = new_store();
    let volume = open_anchored(&store, &file).unwrap();
    put_file(volume.fs(), "a", b"old");
    volume.close().unwrap();
    let old = store.objects();
    let volume = open_anchored(&store, &file).unwrap();
    put_file(volume.fs(), "b", b"new");
    volume.close().unwrap();

    let set_back = Arc::new(MemoryStore::of(old.clone()));
    let refused = open_anchored(&set_back, &file).unwrap_err();
    assert!(
        matches!(refused, OpenError::Freshness(FreshnessError::Refused(_))),
        "{refused}"
    );
    assert_eq!(set_back.objects(), old, "a refused mount writes nothing");
    // Without the anchor it is not opened either: the volume says that there was one.
    let refused = open(&set_back).unwrap_err();
    assert!(
        matches!(refused, OpenError::Freshness(FreshnessError::Refused(_))),
        "{refused}"
    );
    assert_eq!(walk(open_anchored(&store, &file).unwrap().fs()).len(), 2);
}

/// No crash makes the anchor refuse what is there.
#[test]
fn no_crash_looks_like_a_rollback() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("anchor");
    let mut left = new_store();
    let mut image = Image::default();
    for round in 0..12_u64 {
        let volume = open_anchored(&left, &file).unwrap();
        let fs = volume.fs();
        for i in 0..round {
            let ino = put_file(fs, &format!("f{round}-{i}"), &pattern(i, 5000));
            match i % 3 {
                0 => fs.fsync(ino).unwrap(),
                1 => fs.sync().unwrap(),
                _ => fs.checkpoint().unwrap(),
            }
        }
        left.calls().iter().for_each(|call| image.apply(call));
        drop(volume);
        image = image.crash(Crash::Power(round)).0;
        left = Arc::new(MemoryStore::with(image.clone()));
    }
}

#[test]
fn a_frozen_volume_does_not_change_its_store_and_goes_on_when_it_is_thawed() {
    let store = new_store();
    let volume = open(&store).unwrap();
    fill(&volume);
    volume.fs().sync().unwrap();
    volume.fs().checkpoint().unwrap();
    volume.fs().journal().freeze();
    let copied = store.objects();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let ino = put_file(volume.fs(), "late", &pattern(9, 90_000));
            volume.fs().fsync(ino).unwrap();
        });
        let syncer = scope.spawn(|| volume.fs().checkpoint().unwrap());
        // Reads go on, and neither thread gets anywhere.
        for _ in 0..200 {
            walk(volume.fs());
            std::thread::yield_now();
        }
        assert!(!writer.is_finished() && !syncer.is_finished());
        assert_eq!(store.objects(), copied);
        volume.fs().journal().thaw();
    });
    assert_eq!(walk(volume.fs()).len(), 7);
    assert_eq!(
        walk(open(&Arc::new(MemoryStore::of(copied))).unwrap().fs()).len(),
        6
    );
}
