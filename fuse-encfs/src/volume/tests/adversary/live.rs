//! Core: attacks on a volume that is mounted.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Files, Kind, Shown, look, put, scene, units_of};
use crate::format::{FRAME_HEAD_LEN, FrameHead, INLINE_LEN_MAX, LOG_ALIGNMENT};
use crate::store::Appendable;
use crate::store::memory::MemoryStore;
use crate::testing::{checkpoint, new_store, open, pattern};

/// The store changes under the mount. What was read before may have been kept, but what is read
/// from the store is what was written, or an error.
#[test]
fn t40_a_store_that_changes_under_a_mount_gives_errors_and_never_other_bytes() {
    let scene = scene();
    let store = Arc::new(MemoryStore::of(scene.objects()));
    let volume = open(&store).unwrap();
    let chunks = scene.units.iter().filter(|unit| unit.file.is_some());
    let mut hurt = BTreeSet::new();
    for unit in chunks {
        let zeros = vec![0; unit.range.len()];
        store
            .write_at(unit.object, unit.range.start as u64, &zeros)
            .unwrap();
        hurt.extend(unit.file.clone());
    }
    for (name, want) in &scene.newest.1 {
        match look(volume.fs(), name) {
            None => assert!(hurt.contains(name), "{name}"),
            Some(Shown::File(file)) => {
                assert!(file == *want && !hurt.contains(name), "{name}");
            }
            Some(Shown::Absent) => panic!("{name} is gone"),
        }
    }
    assert!(hurt.len() >= 5, "{hurt:?}");
}

/// Who moves bytes that he cannot authenticate would give them a fresh seal.
#[test]
fn t41_the_cleaner_never_seals_anew_what_is_not_authentic() {
    let store = new_store();
    let mut files = Files::new();
    let volume = open(&store).unwrap();
    for i in 0..40 {
        put(
            volume.fs(),
            &mut files,
            &format!("f{i}"),
            pattern(i, 100_000),
        );
    }
    checkpoint(volume.fs()).unwrap();
    // Most of it becomes garbage.
    for i in 0..40 {
        if i % 8 != 0 {
            let name = format!("f{i}");
            volume
                .fs()
                .unlink(crate::format::Ino::ROOT, name.as_bytes())
                .unwrap();
            files.remove(&name);
        }
    }
    volume.close().unwrap();
    let units = units_of(&store.objects(), &files);
    let bad = units
        .iter()
        .find(|u| u.kind == Kind::Chunk && u.file.as_deref() == Some("f8"));
    let bad = bad.unwrap();

    let volume = open(&store).unwrap();
    let mut byte = store.objects()[&bad.object][bad.range.clone()].to_vec();
    byte[7] ^= 1;
    store
        .write_at(bad.object, bad.range.start as u64, &byte)
        .unwrap();
    let mut copied = 0;
    for _ in 0..8 {
        copied += volume.fs().journal().clean(u64::MAX).unwrap().copied;
        checkpoint(volume.fs()).unwrap();
    }
    assert!(copied >= 100_000, "{copied} bytes moved");
    for (name, want) in &files {
        match look(volume.fs(), name) {
            Some(Shown::File(file)) => assert!(file == *want && name != "f8", "{name}"),
            Some(Shown::Absent) => panic!("{name} is gone"),
            None => assert_eq!(name, "f8"),
        }
    }
    volume.close().unwrap();
    let volume = open(&store).unwrap();
    assert!(look(volume.fs(), "f8").is_none(), "it has become authentic");
}

/// Heads of frames are the only lengths that are read before they are authenticated.
#[test]
fn t37_lengths_that_nobody_sealed_are_bounded() {
    let scene = scene();
    let last = scene.of(Kind::Frame).last().unwrap();
    let end = last.range.end.next_multiple_of(512);
    let longest = (16 << 20) + 48;
    for (sealed, inline) in [
        (48, 0),
        (448, INLINE_LEN_MAX),
        (longest, 0),
        (longest, INLINE_LEN_MAX),
    ] {
        let head = FrameHead::new(sealed, inline, LOG_ALIGNMENT).unwrap();
        for count in [1, 64] {
            let mut bent = scene.objects();
            let log = bent.get_mut(&last.object).unwrap();
            log.resize(end + count * 512, 0);
            for i in 0..count {
                let at = end + i * 512;
                log[at..at + FRAME_HEAD_LEN].copy_from_slice(&head.bytes());
            }
            scene.check(
                &bent,
                &format!("{count} heads of {sealed} and {inline} bytes"),
            );
        }
    }
    for lens in [
        [u32::MAX; 3],
        [0, 0, 512],
        [512, u32::MAX, 512],
        [u32::MAX, 1, 64],
    ] {
        let mut clear = FrameHead::new(48, 0, LOG_ALIGNMENT).unwrap().bytes();
        for (to, len) in clear[8..20].chunks_exact_mut(4).zip(lens) {
            to.copy_from_slice(&len.to_le_bytes());
        }
        let mut bent = scene.objects();
        let log = bent.get_mut(&last.object).unwrap();
        log.resize(end + 512, 0);
        log[end..end + FRAME_HEAD_LEN].copy_from_slice(&clear);
        scene.check(&bent, &format!("a head of {lens:?}"));
    }
}
