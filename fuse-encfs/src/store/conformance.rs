//! Core: what every store promises, as one suite that each of them passes.
#![expect(clippy::print_stdout, reason = "this is how a test skips")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::fault::FaultStore;
use super::memory::MemoryStore;
use super::{Appendable, ObjectName, Store, StoreError, open, open_or_make};
use crate::format::{SEGMENT_LEN_MAX, SegmentKind, SegmentUid};
use crate::testing::pattern;

const SUPER: ObjectName = ObjectName::Superblock(0);
const OTHER_SUPER: ObjectName = ObjectName::Superblock(1);
const DEVICE_LEN: u64 = 32 << 20;

fn data(n: u8) -> ObjectName {
    ObjectName::Segment(SegmentKind::Data, SegmentUid([n; 16]))
}

/// Everything a store promises, to one that is empty.
fn check_all(store: &dyn Appendable) {
    assert!(store.is_empty().unwrap());
    whole_objects(store);
    conditional_puts(store);
    ranged_reads(store);
    growing_objects(store);
    far_writes(store);
    deletion(store);
    pages(store);
    many_objects(store);
    lease(store);
    assert!(!store.is_empty().unwrap());
    store.delete(SUPER).unwrap();
    store.delete(OTHER_SUPER).unwrap();
    assert!(store.is_empty().unwrap(), "all was deleted");
}

/// What must be there once another process, or this one anew, opens the store.
fn check_kept(store: &dyn Store) {
    assert_eq!(read(store, SUPER), b"kept");
    assert_eq!(read_part(store, data(1), 0, 3000), pattern(1, 3000));
    assert_eq!(store.list(None, 10).unwrap(), [SUPER, data(1)]);
}

fn keep(store: &dyn Appendable) {
    store.put(SUPER, b"kept").unwrap();
    store.create(data(1), 4096).unwrap();
    store.write_at(data(1), 0, &pattern(1, 3000)).unwrap();
    store.sync(data(1)).unwrap();
}

fn read(store: &dyn Store, name: ObjectName) -> Vec<u8> {
    let len = usize::try_from(store.len(name).unwrap()).unwrap();
    // One byte more than there is.
    let mut bytes = vec![0xee; len + 1];
    let got = store.get(name, 0, &mut bytes).unwrap();
    assert_eq!(got, len, "a read ends where the object does");
    bytes.truncate(got);
    bytes
}

fn read_part(store: &dyn Store, name: ObjectName, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    let got = store.get(name, offset, &mut bytes).unwrap();
    bytes.truncate(got);
    bytes
}

fn whole_objects(store: &dyn Appendable) {
    for name in [SUPER, OTHER_SUPER, data(1)] {
        assert!(matches!(store.len(name), Err(StoreError::Absent)));
        let missing = store.get(name, 0, &mut [0; 4]);
        assert!(matches!(missing, Err(StoreError::Absent)));
        for round in 0..5 {
            let bytes = pattern(round, 600 - 100 * usize::try_from(round).unwrap());
            store.put(name, &bytes).unwrap();
            assert_eq!(read(store, name), bytes, "{name}, put {round}");
        }
        store.put(name, b"").unwrap();
        assert_eq!(read(store, name), b"", "{name}");
    }
    store.put(SUPER, b"zero").unwrap();
    store.put(OTHER_SUPER, b"one").unwrap();
    assert_eq!(read(store, SUPER), b"zero");
    // Longer than any unit that a store may be cut into here.
    let long = pattern(9, 300_000);
    store.put(data(1), &long).unwrap();
    assert_eq!(read(store, data(1)), long);
    store.delete(data(1)).unwrap();
}

fn conditional_puts(store: &dyn Appendable) {
    for name in [SUPER, data(2)] {
        let _ = store.delete(name);
        let refused = store.put_if_match(name, b"", b"x");
        assert!(matches!(refused, Err(StoreError::Absent)));
        store.put_if_absent(name, b"first").unwrap();
        let refused = store.put_if_absent(name, b"second");
        assert!(matches!(refused, Err(StoreError::Exists)));
        assert_eq!(read(store, name), b"first");
        for other in [&b"First"[..], b"firs", b"first!", b""] {
            let refused = store.put_if_match(name, other, b"second");
            assert!(matches!(refused, Err(StoreError::Changed)), "{other:?}");
        }
        store.put_if_match(name, b"first", b"second").unwrap();
        assert_eq!(read(store, name), b"second");
    }
    store.delete(data(2)).unwrap();
}

fn ranged_reads(store: &dyn Appendable) {
    let bytes = pattern(3, 200_000);
    store.put(data(3), &bytes).unwrap();
    for (offset, len) in [
        (0, 1),
        (1, 4096),
        (65_535, 2),
        (65_536, 70_000),
        (199_999, 1),
    ] {
        let want = &bytes[offset..offset + len];
        assert_eq!(read_part(store, data(3), offset as u64, len), want);
    }
    assert_eq!(read_part(store, data(3), 199_990, 100), &bytes[199_990..]);
    assert_eq!(read_part(store, data(3), 200_000, 100), b"");
    assert_eq!(read_part(store, data(3), u64::MAX, 100), b"");
    assert_eq!(read_part(store, data(3), 5, 0), b"");
    store.delete(data(3)).unwrap();
}

/// Writes at any offset and of any length are read as written, across every boundary that a store
/// may have, before and after a flush, and next to each other.
fn growing_objects(store: &dyn Appendable) {
    let name = data(4);
    for call in [store.write_at(name, 0, b"x"), store.sync(name)] {
        assert!(matches!(call, Err(StoreError::Absent)));
    }
    store.create(name, 1 << 20).unwrap();
    let again = store.create(name, 1 << 20);
    assert!(matches!(again, Err(StoreError::Exists)));
    let mut at = 0;
    let mut want = Vec::new();
    for (i, len) in [
        16, 4080, 4096, 1, 15, 8192, 65_536, 70_000, 512, 33, 131_072,
    ]
    .iter()
    .enumerate()
    {
        let bytes = pattern(i as u64, *len);
        store.write_at(name, at, &bytes).unwrap();
        at += *len as u64;
        want.extend(bytes);
        assert_eq!(read_part(store, name, 0, want.len()), want, "write {i}");
        if i % 3 == 0 {
            store.sync(name).unwrap();
        }
    }
    // The same once more, as who was not sure writes it.
    store.write_at(name, 4096, &want[4096..9000]).unwrap();
    store.sync(name).unwrap();
    assert_eq!(read_part(store, name, 0, want.len()), want);
    assert!(store.len(name).unwrap() >= want.len() as u64);
    // Not behind the end that the format allows, on any store that has to be told.
    let alignment = u64::from(store.alignment());
    assert!(matches!(alignment, 512 | 4096));
    store.delete(name).unwrap();
}

/// What lies between two writes is zeros, or on a store that reuses space anything; but both
/// writes are there.
fn far_writes(store: &dyn Appendable) {
    let name = data(5);
    store.create(name, 1 << 20).unwrap();
    store.write_at(name, 500_000, b"far").unwrap();
    store.write_at(name, 7, b"near").unwrap();
    store.sync(name).unwrap();
    assert_eq!(read_part(store, name, 7, 4), b"near");
    assert_eq!(read_part(store, name, 500_000, 3), b"far");
    assert!((500_003..=SEGMENT_LEN_MAX).contains(&store.len(name).unwrap()));
    store.delete(name).unwrap();
}

fn deletion(store: &dyn Appendable) {
    let absent = store.delete(data(6));
    assert!(matches!(absent, Err(StoreError::Absent)));
    for round in 0..3 {
        store.create(data(6), 4096).unwrap();
        store.write_at(data(6), 0, &pattern(round, 5000)).unwrap();
        assert_eq!(read_part(store, data(6), 0, 5000), pattern(round, 5000));
        store.delete(data(6)).unwrap();
        let gone = store.get(data(6), 0, &mut [0; 1]);
        assert!(matches!(gone, Err(StoreError::Absent)));
        assert!(matches!(store.sync(data(6)), Err(StoreError::Absent)));
    }
}

fn pages(store: &dyn Appendable) {
    let uid = |n| SegmentUid([n; 16]);
    let mut names = vec![SUPER, OTHER_SUPER];
    for kind in [SegmentKind::Data, SegmentKind::Log, SegmentKind::Node] {
        names.extend([1, 2].map(|n| ObjectName::Segment(kind, uid(n))));
    }
    names.sort();
    names
        .iter()
        .skip(2)
        .for_each(|name| store.create(*name, 512).unwrap());
    for size in 1..=names.len() + 1 {
        let mut seen: Vec<ObjectName> = Vec::new();
        loop {
            let page = store.list(seen.last().copied(), size).unwrap();
            assert!(page.len() <= size);
            seen.extend(&page);
            if page.is_empty() {
                break;
            }
        }
        assert_eq!(seen, names, "in pages of {size}");
    }
    names
        .iter()
        .skip(2)
        .for_each(|name| store.delete(*name).unwrap());
}

/// More objects at once than any store keeps open files.
fn many_objects(store: &dyn Appendable) {
    let free = store.space().unwrap().free;
    let names: Vec<ObjectName> = (0..100).map(|n| data(100 + n)).collect();
    for (i, name) in names.iter().enumerate() {
        store.create(*name, 4096).unwrap();
        store.write_at(*name, 0, &pattern(i as u64, 100)).unwrap();
    }
    names.iter().for_each(|name| store.sync(*name).unwrap());
    for (i, name) in names.iter().enumerate() {
        assert_eq!(read_part(store, *name, 0, 100), pattern(i as u64, 100));
    }
    assert!(store.space().unwrap().total >= free);
    names.iter().for_each(|name| store.delete(*name).unwrap());
}

fn lease(store: &dyn Appendable) {
    let first = store.lease(Duration::ZERO).unwrap();
    let second = store.lease(Duration::ZERO);
    assert!(matches!(second, Err(StoreError::Busy)));
    first.revalidate().unwrap();
    drop(first);
    let third = store.lease(Duration::ZERO).unwrap();
    third.announce_end();
    third.revalidate().unwrap();
    drop(third);
    // The mark of the last one does not stick to the next.
    drop(store.lease(Duration::ZERO).unwrap());
}

#[test]
fn memory() {
    check_all(&MemoryStore::default());
}

#[test]
fn a_store_with_faults_and_none_planned() {
    let store = FaultStore::new(Arc::new(MemoryStore::default()));
    check_all(&store);
    assert_eq!(store.hits(), 0);
}

#[test]
fn directory() {
    let parent = tempfile::tempdir().unwrap();
    check_at(&parent.path().join("store"), None);
}

#[test]
fn block_store_in_a_file() {
    let parent = tempfile::tempdir().unwrap();
    check_at(&parent.path().join("store"), Some(DEVICE_LEN));
}

#[test]
fn block_store_on_a_device() {
    let parent = tempfile::tempdir().unwrap();
    if let Some(device) = LoopDevice::over(&parent.path().join("image")) {
        check_at(&device.0, None);
        let device = open(&device.0).unwrap();
        let lease = device.lease(Duration::ZERO).unwrap();
        lease.revalidate().unwrap();
    }
}

fn check_at(path: &Path, size: Option<u64>) {
    check_all(&*open_or_make(path, size).unwrap());
    keep(&*open_or_make(path, None).unwrap());
    check_kept(&*open(path).unwrap());
    check_kept(&*open_or_make(path, None).unwrap());
}

/// A block device over a file, for as long as it lives.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(image: &Path) -> Option<Self> {
        let file = std::fs::File::create_new(image).unwrap();
        file.set_len(DEVICE_LEN).unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output();
        match made {
            Ok(made) if made.status.success() => {
                let name = String::from_utf8(made.stdout).unwrap();
                Some(Self(PathBuf::from(name.trim())))
            }
            _ => {
                println!("skipped: no right to make a loop device");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for name in [SUPER, OTHER_SUPER, data(0), data(0xab)] {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    let upper = data(0xab).to_string().to_uppercase();
    for text in [
        "",
        "s2",
        "s",
        "lock",
        "d",
        "d00",
        "d+0",
        &upper,
        &format!("{}0", data(1)),
    ] {
        assert!(text.parse::<ObjectName>().is_err(), "{text}");
    }
    let signed = format!("d+{}", "0".repeat(31));
    assert!(signed.parse::<ObjectName>().is_err());
}

#[test]
fn what_is_neither_is_no_store() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("absent");
    assert!(matches!(open(&path), Err(StoreError::Absent)));
    assert!(matches!(
        open(Path::new("/dev/null")),
        Err(StoreError::NotAnObject)
    ));
    let made = open_or_make(Path::new("/dev/null"), None);
    assert!(matches!(made, Err(StoreError::NotAnObject)));
    std::fs::write(&path, vec![7; 4 << 20]).unwrap();
    assert!(matches!(open(&path), Err(StoreError::NotAnObject)));
    let _: Arc<dyn Appendable> = open(parent.path()).unwrap();
}
