//! Core: a block store survives crashes of its own, and what a hostile device shows it.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use super::*;
use crate::format::{SegmentKind, SegmentUid};
use crate::store::crash::Dice;
use crate::testing::pattern;

const LEN: u64 = 8 << 20;
const SUPER: ObjectName = ObjectName::Superblock(0);

/// A device that is a file.
struct Image {
    _parent: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("image");
        drop(BlockStore::make(&path, LEN).unwrap());
        Self {
            _parent: parent,
            path,
        }
    }

    fn open(&self) -> BlockStore {
        BlockStore::open(&self.path).unwrap()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

fn data(n: u8) -> ObjectName {
    ObjectName::Segment(SegmentKind::Data, SegmentUid([n; 16]))
}

fn read(store: &BlockStore, name: ObjectName, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let got = store.get(name, 0, &mut bytes).unwrap();
    bytes.truncate(got);
    bytes
}

fn add(store: &BlockStore, n: u8, len: usize) {
    store.create(data(n), 4096).unwrap();
    store.write_at(data(n), 0, &pattern(n.into(), len)).unwrap();
    store.sync(data(n)).unwrap();
}

#[test]
fn what_was_flushed_is_there_for_the_next_one() {
    let image = Image::new();
    let store = image.open();
    add(&store, 1, 200_000);
    add(&store, 2, 10);
    store.delete(data(2)).unwrap();
    let again = image.open();
    assert_eq!(read(&again, data(1), 200_000), pattern(1, 200_000));
    assert!(matches!(again.len(data(2)), Err(StoreError::Absent)));
    assert_eq!(again.space().unwrap(), store.space().unwrap());
}

#[test]
fn a_device_with_anything_on_it_is_never_laid_out() {
    for at in [0, 1024, 65_536 + 64, BLANK - 1, LEN - 4096, LEN - 1] {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("image");
        let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
        bytes[usize::try_from(at).unwrap()] = 1;
        fs::write(&path, &bytes).unwrap();
        let refused = BlockStore::open_or_lay_out(&path).map(|_| ());
        assert!(
            matches!(refused, Err(StoreError::NotEmpty)),
            "{at}: {refused:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was written");
        let refused = BlockStore::open(&path).map(|_| ());
        assert!(
            matches!(refused, Err(StoreError::NotAnObject)),
            "{at}: {refused:?}"
        );
    }
}

#[test]
fn opening_alone_writes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("image");
    let blank = vec![0; usize::try_from(LEN).unwrap()];
    fs::write(&path, &blank).unwrap();
    assert!(BlockStore::open(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), blank);
    let image = Image::new();
    add(&image.open(), 1, 5000);
    let before = image.bytes();
    drop(image.open());
    drop(BlockStore::open_or_lay_out(&image.path).unwrap());
    assert!(image.bytes() == before, "a store that is there was changed");
}

#[test]
fn a_device_without_room_is_refused_and_not_made() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("image");
    let refused = BlockStore::make(&path, 1 << 20).map(|_| ());
    assert!(matches!(refused, Err(StoreError::TooSmall)));
    assert!(!path.exists());
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let refused = BlockStore::open_or_lay_out(&path).map(|_| ());
    assert!(matches!(refused, Err(StoreError::TooSmall)));
}

#[test]
fn either_header_is_enough_and_a_cut_device_is_named() {
    for at in HEADERS_AT {
        let image = Image::new();
        add(&image.open(), 1, 5000);
        image.write(at, &[0xff; AREA_LEN]);
        assert_eq!(read(&image.open(), data(1), 5000), pattern(1, 5000));
    }
    let image = Image::new();
    let file = OpenOptions::new().write(true).open(&image.path).unwrap();
    file.set_len(LEN / 2).unwrap();
    let refused = BlockStore::open(&image.path).map(|_| ());
    assert!(
        matches!(refused, Err(StoreError::Malformed(_))),
        "{refused:?}"
    );
}

/// Whatever part of the last write of a superblock reached the device, it is the old or the new.
#[test]
fn a_torn_superblock_is_the_one_before() {
    let image = Image::new();
    let store = image.open();
    store.put(SUPER, b"first").unwrap();
    let old = image.bytes();
    store.put(SUPER, &pattern(2, 1500)).unwrap();
    let new = image.bytes();
    let differs = (0..old.len()).filter(|i| old[*i] != new[*i]);
    let (first, last) = (differs.clone().min().unwrap(), differs.max().unwrap());
    assert!(last - first < AREA_LEN);
    for cut in (first..=last + 1).step_by(97).chain([last + 1]) {
        image.write(first as u64, &old[first..=last]);
        image.write(first as u64, &new[first..cut]);
        let found = read(&image.open(), SUPER, 4096);
        assert!(
            (found == b"first" && cut <= last) || found == pattern(2, 1500),
            "cut at {cut}"
        );
    }
    assert_eq!(read(&image.open(), SUPER, 4096), pattern(2, 1500));
}

/// Every entry may be torn, or old, or of another device: at worst the object is gone.
#[test]
fn a_hostile_table_is_an_error_or_a_missing_object() {
    let image = Image::new();
    let store = image.open();
    (1..10).for_each(|n| add(&store, n, 100_000));
    let good = image.bytes();
    let mut dice = Dice(1);
    let entry_at =
        |slot: u64| usize::try_from(Layout::entry_at(u32::try_from(slot).unwrap())).unwrap();
    for round in 0..200 {
        let (to, from) = (dice.roll(20), dice.roll(20));
        let mut entry = good[entry_at(from)..][..ENTRY_LEN].to_vec();
        match dice.roll(3) {
            0 => entry = vec![0; ENTRY_LEN],
            1 => entry[usize::try_from(dice.roll(40)).unwrap()] ^= 1 << dice.roll(8),
            _ => {}
        }
        image.write(entry_at(to) as u64, &entry);
        let store = image.open();
        for n in 1..10 {
            match store.len(data(n)) {
                Ok(_) => {
                    let found = read(&store, data(n), 100_000);
                    assert!(
                        pattern(n.into(), 100_000).starts_with(&found),
                        "round {round}"
                    );
                }
                Err(e) => assert!(matches!(e, StoreError::Absent), "round {round}: {e}"),
            }
        }
        // A hurt slot is never given out.
        let table = store.table.read();
        let objects = table.names(None).map(|name| table.object(name).unwrap());
        let used: u64 = objects.map(|object| object.slots.len() as u64).sum();
        let hurt = table.hurt() as u64;
        assert_eq!(used + hurt + table.free(), store.layout.slots);
        image.write(Layout::entry_at(0), &good[entry_at(0)..entry_at(20)]);
    }
    image.write(0, &good);
    // The same piece twice, each entry true by itself.
    let twin = Entry {
        name: data(1),
        generation: store.table.read().object(data(1)).unwrap().generation,
        index: 0,
        whole: None,
    };
    image.write(Layout::entry_at(30), &twin.bytes(30));
    let refused = BlockStore::open(&image.path).map(|_| ());
    assert!(matches!(refused, Err(StoreError::Malformed(_))));
}

#[test]
fn a_full_device_says_so_and_what_is_deleted_is_free_again() {
    let image = Image::new();
    let store = image.open();
    let slot = usize::try_from(store.layout.slot_len).unwrap();
    let slots = store.layout.slots;
    let free = store.space().unwrap().free;
    assert_eq!(free, (slots - SLOTS_KEPT) * slot as u64);
    for n in 0..u8::try_from(slots).unwrap() {
        add(&store, n, slot);
    }
    assert_eq!(store.space().unwrap().free, 0);
    let full = store.create(data(255), 4096);
    assert!(matches!(full, Err(StoreError::Full)));
    let full = store.write_at(data(3), slot as u64 - 5, &pattern(0, 10));
    assert!(matches!(full, Err(StoreError::Full)));
    let full = store.put(data(4), b"new");
    assert!(matches!(full, Err(StoreError::Full)));
    assert_eq!(read(&store, data(4), slot), pattern(4, slot));
    store.put(SUPER, b"superblocks need no slot").unwrap();
    store.delete(data(5)).unwrap();
    add(&store, 255, slot);
    assert_eq!(read(&store, data(255), slot), pattern(255, slot));
    assert_eq!(read(&image.open(), data(6), slot), pattern(6, slot));
}

#[test]
fn a_slot_given_out_again_reads_as_zeros() {
    let image = Image::new();
    let store = image.open();
    let slots = store.layout.slots;
    for n in 0..u8::try_from(slots).unwrap() {
        add(&store, n, 60_000);
    }
    store.delete(data(7)).unwrap();
    store.create(data(200), 4096).unwrap();
    assert!(
        read(&store, data(200), 65_536)
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn no_object_is_larger_than_the_format_allows() {
    let image = Image::new();
    let store = image.open();
    store.create(data(1), 4096).unwrap();
    for offset in [SEGMENT_LEN_MAX, u64::MAX] {
        assert!(store.write_at(data(1), offset, b"x").is_err());
    }
    let long = store.put(SUPER, &[0; AREA_LEN]);
    assert!(long.is_err());
    let growing = store.create(SUPER, 4096);
    assert!(growing.is_err(), "superblocks are put whole");
}
