//! Core: over all floors, and whatever happens to a volume, no key seals twice under one nonce.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keys::{KekEpoch, VolumeKek};

use crate::crypto::{Aead, Entropy, recorder::Recorder};
use crate::format::{Ino, SegmentId, SegmentKind};
use crate::fs::Fs;
use crate::segment::{Segment, SegmentWriter};
use crate::store::memory::{Call, MemoryStore};
use crate::store::{ObjectName, Store, StoreError};
use crate::superblock::{self, NewKek, UnlockWith};
use crate::tables::SegmentEntry;
use crate::testing::{CACHED, ID, check_consistent, kek, pattern, put_file, walk};
use crate::volume::{Volume, init_on};

const OTHER_KEK: [u8; 32] = [0x43; 32];
/// Files of one life: enough for data segments that are full and then mostly garbage.
const FILES: u64 = 48;

/// Flushes of a log segment fail twice: once, and once more when it was mended. Then all that was
/// not durable is sealed anew in another segment.
fn fail_the_log(store: &MemoryStore) -> Arc<AtomicUsize> {
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    store.fail(move |call| {
        let is_hit = matches!(call, Call::Sync(ObjectName::Segment(SegmentKind::Log, _)));
        let fails = is_hit && count.load(Ordering::Relaxed) < 2;
        count.fetch_add(usize::from(fails), Ordering::Relaxed);
        fails.then(|| StoreError::Io(std::io::ErrorKind::Other.into()))
    });
    failed
}

/// Files of every way of lying on the store, most of them removed again, and the rest moved by the
/// cleaner.
fn work(store: &MemoryStore, fs: &Fs, round: u64) {
    let name = |i: u64| format!("{round}-{i}");
    for i in 0..FILES {
        // In the inode record, in the log, in data segments: small, and as a stream.
        let len = [500, 9000, 40_000, 400_000][usize::try_from(i % 4).unwrap()];
        let ino = put_file(fs, &name(i), &pattern(round * 100 + i, len));
        if i % 3 > 0 {
            fs.fsync(ino).unwrap();
        }
        fs.write(ino, 100, b"once more", CACHED).unwrap();
        // Or it would live on without a name.
        fs.forget(ino, 1);
    }
    let failed = fail_the_log(store);
    fs.sync().unwrap();
    store.mend();
    assert_eq!(failed.load(Ordering::Relaxed), 2);
    for i in (0..FILES).filter(|i| i % 6 != 3) {
        fs.unlink(Ino::ROOT, name(i).as_bytes()).unwrap();
    }
    fs.sync().unwrap();
    let mut copied = 0;
    loop {
        match fs.journal().clean(1 << 20).unwrap().copied {
            0 => break,
            more => copied += more,
        }
    }
    assert!(copied > 0, "round {round}: the cleaner had nothing to do");
    for _ in 0..3 {
        fs.checkpoint().unwrap();
    }
    check_consistent(fs);
}

/// One life of the volume in a store, which ends as by a crash or not.
fn live(store: &Arc<MemoryStore>, aead: &Arc<dyn Aead>, kek: &VolumeKek, round: u64) {
    let volume = Volume::open_on(store.clone(), aead, kek, ID).unwrap();
    work(store, volume.fs(), round);
    let shown = walk(volume.fs());
    match round % 2 {
        0 => volume.close().unwrap(),
        _ => drop(volume),
    }
    let volume = Volume::open_on(store.clone(), aead, kek, ID).unwrap();
    assert!(walk(volume.fs()) == shown, "round {round}");
    volume.close().unwrap();
}

#[test]
fn no_key_seals_twice_under_one_nonce_whatever_happens_to_a_volume() {
    let recorder = Recorder::default();
    let aead: Arc<dyn Aead> = Arc::new(recorder.clone());
    let store = Arc::new(MemoryStore::default());
    init_on(store.clone(), &aead, &kek(), ID).unwrap();
    live(&store, &aead, &kek(), 0);
    live(&store, &aead, &kek(), 1);

    // The store as it is now lives on in two places, both times with the same keys.
    let copy = Arc::new(MemoryStore::of(store.objects()));
    live(&store, &aead, &kek(), 2);
    live(&copy, &aead, &kek(), 2);

    // Under a new master key everything is sealed anew by the cleaner.
    let other = VolumeKek::take_from(&mut OTHER_KEK.clone()).unwrap();
    let (mut superblock, keys) = superblock::read(&*store, &aead, &kek(), ID).unwrap();
    let old = kek();
    let with = UnlockWith::Kek {
        kek: &old,
        epoch: None,
    };
    let new = NewKek {
        kek: &other,
        epoch: KekEpoch(1),
    };
    let keys = superblock.begin_rekey(&keys, with, new).unwrap();
    let lease = store.lease(std::time::Duration::ZERO).unwrap();
    superblock.write(&*store, &keys, &*lease).unwrap();
    drop(lease);
    live(&store, &aead, &other, 3);
    live(&store, &aead, &other, 4);
    let volume = Volume::open_on(store.clone(), &aead, &other, ID).unwrap();
    assert_eq!(volume.fs().journal().clean(0).unwrap().stale, 0);
    volume.close().unwrap();
    assert!(recorder.seals() > 3000, "{}", recorder.seals());
}

/// A guest that goes on in two places at once, with the same keys, the same open segments and the
/// same next offsets, seals other bytes at the same addresses: the salts tell them apart.
#[test]
fn two_copies_of_a_running_guest_share_no_nonce() {
    let recorder = Recorder::default();
    let aead: Arc<dyn Aead> = Arc::new(recorder.clone());
    let store = Arc::new(MemoryStore::default());
    init_on(store.clone(), &aead, &kek(), ID).unwrap();
    let (_, keys) = superblock::read(&*store, &aead, &kek(), ID).unwrap();
    let reference = keys.new_segment(&keys.genesis_head(&[1; 32])).unwrap();
    let begun = recorder.seals();
    let entropy = Entropy::default();
    let rounds = 500;
    for kind in [SegmentKind::Data, SegmentKind::Node, SegmentKind::Log] {
        let entry = SegmentEntry {
            kind,
            segment: reference,
            live: 0,
        };
        let segment = Arc::new(Segment::new(&keys, SegmentId(9), entry));
        let copies = [(); 2].map(|()| SegmentWriter::new(Arc::clone(&segment), 64 << 20));
        for i in 0..rounds {
            let sealed = [0, 1].map(|copy| {
                let bytes = pattern(2 * i + copy, 4096);
                let writer = &copies[usize::try_from(copy).unwrap()];
                match kind {
                    SegmentKind::Data => {
                        let slot = writer.reserve_record(4096).unwrap();
                        let record = slot.seal_record(&entropy, &bytes).unwrap().pointer;
                        (record.offset, record.salt.to_vec())
                    }
                    SegmentKind::Node => {
                        let slot = writer.reserve_node(4096).unwrap();
                        let node = slot.seal_node(&entropy, &bytes).unwrap().pointer;
                        (node.offset, node.salt.to_vec())
                    }
                    SegmentKind::Log => {
                        let offset = 4096 * (i + 1);
                        let sealed = keys.seal_commit((reference, offset), &[0; 64], &bytes);
                        (offset, sealed.unwrap()[..32].to_vec())
                    }
                }
            });
            let [(here, salt), (there, other_salt)] = sealed;
            assert_eq!(here, there, "both are at the same address");
            assert_ne!(salt, other_salt);
        }
    }
    assert_eq!(
        recorder.seals() - begun,
        3 * 2 * usize::try_from(rounds).unwrap()
    );
}
