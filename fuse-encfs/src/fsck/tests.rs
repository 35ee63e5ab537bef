//! Core: fsck names just what is hurt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{HurtFile, Report, Wrong, check, names};
use crate::format::{Ino, SegmentKind};
use crate::offline::Offline;
use crate::store::ObjectName;
use crate::store::memory::{Crash, MemoryStore};
use crate::testing::{
    CACHED, DIRECTORY, FILE, ID, ROOT_USER, aead, checkpoint, kek, new_store, open, pattern,
    put_file, sync_all,
};
use crate::volume::Volume;
use crate::xattr::SetRule;

/// First path, wrongs, ranges.
type Said = (String, Vec<Wrong>, Vec<(u64, u64)>);
type Objects = BTreeMap<ObjectName, Vec<u8>>;

pub(super) fn offline(store: &Arc<MemoryStore>) -> Offline {
    Offline::open_on(store.clone(), &aead(), (&kek()).into(), ID).unwrap()
}

pub(super) fn report(objects: Objects) -> Report {
    let store = Arc::new(MemoryStore::of(objects));
    check(&offline(&store), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .unwrap()
}

/// What is said of the files: first path, wrongs, ranges.
fn said(report: &Report) -> Vec<Said> {
    let one = |file: &HurtFile| {
        let name = match file.paths.first() {
            Some(path) => names::shown(path),
            None => names::number(file.ino),
        };
        let ranges = file.ranges.iter().map(|r| (r.start, r.end)).collect();
        (name, file.wrongs.iter().copied().collect(), ranges)
    };
    report.hurt.iter().map(one).collect()
}

/// A closed volume with some of everything.
pub(super) fn some_of_everything() -> Objects {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let dir = fs.make(Ino::ROOT, b"d", &DIRECTORY, ROOT_USER).unwrap().ino;
    let deep = fs.make(dir, b"e\xff\n", &DIRECTORY, ROOT_USER).unwrap().ino;
    let file = fs.make(deep, b"f", &FILE, ROOT_USER).unwrap().ino;
    fs.write(file, 0, &pattern(1, 100_000), CACHED).unwrap();
    put_file(fs, "neighbour", &pattern(2, 100_000));
    put_file(fs, "tiny", b"tiny");
    let linked = put_file(fs, "linked", &pattern(3, 20_000));
    fs.link(linked, dir, b"again").unwrap();
    let sparse = put_file(fs, "sparse", b"");
    fs.write(sparse, 1 << 30, &pattern(4, 5000), CACHED)
        .unwrap();
    fs.allocate(sparse, 0..8192, false).unwrap();
    let named = put_file(fs, "named", b"x");
    for (name, len) in [(&b"user.short"[..], 10), (b"user.long", 10_000)] {
        let value = pattern(5, len);
        fs.set_xattr(named, name, &value, SetRule::Any, ROOT_USER)
            .unwrap();
    }
    sync_all(fs).unwrap();
    let copy = put_file(fs, "copy", b"");
    fs.copy_range((file, 0), (copy, 0), 50_000).unwrap();
    let open_still = put_file(fs, "gone", &pattern(6, 9000));
    fs.unlink(Ino::ROOT, b"gone").unwrap();
    checkpoint(fs).unwrap();
    put_file(fs, "late", &pattern(7, 3000));
    assert!(fs.getattr(open_still).is_ok());
    volume.close().unwrap();
    store.objects()
}

#[test]
fn a_healthy_volume_is_clean() {
    let report = report(some_of_everything());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.files, report.unknown.0), (11, 0));
    assert!(report.bytes > 250_000 && report.nodes > 0 && !report.is_cancelled);
}

#[test]
fn a_volume_that_was_not_closed_is_clean() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let made = store.call_count();
    put_file(volume.fs(), "a", &pattern(1, 70_000));
    sync_all(volume.fs()).unwrap();
    put_file(volume.fs(), "b", &pattern(1, 70_000));
    let calls = store.calls();
    drop(volume);
    assert!(calls.len() > made + 5);
    for n in made..=calls.len() {
        let store = Arc::new(MemoryStore::after(&calls[..n], Crash::Power(n as u64)));
        let report = check(&offline(&store), &mut |_| {
            std::ops::ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert!(report.is_clean(), "after {n} calls: {report:?}");
    }
}

/// Where a chunk of a file lies, by the volume's own map.
pub(crate) fn place_of(objects: &Objects, path: &[&[u8]], at: u64) -> (ObjectName, usize) {
    let store = Arc::new(MemoryStore::of(objects.clone()));
    let volume = offline(&store);
    let tables = volume.tables();
    let mut ino = Ino::ROOT;
    for name in path {
        ino = tables.find(ino, name).unwrap().unwrap().1.ino;
    }
    place_in(&volume, ino, at)
}

fn place_in(volume: &Offline, map: Ino, at: u64) -> (ObjectName, usize) {
    let tables = volume.tables();
    let (start, mapped) = tables.last_mapped(map, at).unwrap().unwrap();
    let crate::format::Mapped::Data(extent) = mapped else {
        panic!("nothing is written there");
    };
    let from = u32::try_from(at - start).unwrap();
    let chunk = extent.chunks(from, from + 1).0.next().unwrap();
    let entry = tables.segment(extent.segment).unwrap().unwrap();
    let name = ObjectName::Segment(entry.kind, entry.segment.uid);
    (name, usize::try_from(chunk.offset).unwrap())
}

#[track_caller]
fn flipped(mut objects: Objects, (name, at): (ObjectName, usize)) -> Objects {
    objects.get_mut(&name).unwrap()[at] ^= 1;
    objects
}

#[test]
fn a_damaged_chunk_is_named_with_its_files_and_bytes() {
    let objects = some_of_everything();
    let place = place_of(&objects, &[b"d", b"e\xff\n", b"f"], 70_000);
    let found = report(flipped(objects.clone(), place));
    let want = vec![(
        "/d/e\\xff\\x0a/f".to_owned(),
        vec![Wrong::Contents],
        vec![(69_632, 73_728)],
    )];
    assert_eq!(said(&found), want);

    // What two files share hurts both; and neighbours of it are not named.
    let place = place_of(&objects, &[b"copy"], 5000);
    let found = report(flipped(objects.clone(), place));
    let names: Vec<String> = said(&found).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["/d/e\\xff\\x0a/f", "/copy"]);

    // A file with two names is named with both.
    let place = place_of(&objects, &[b"linked"], 0);
    let found = report(flipped(objects.clone(), place));
    let paths: BTreeSet<&[u8]> = found.hurt[0].paths.iter().map(Vec::as_slice).collect();
    assert_eq!(paths, BTreeSet::from([&b"/linked"[..], b"/d/again"]));

    let place = place_of(&objects, &[b"sparse"], (1 << 30) + 4500);
    let found = report(flipped(objects, place));
    let end = (1 << 30) + 5000;
    let want = vec![(
        "/sparse".to_owned(),
        vec![Wrong::Contents],
        vec![((1 << 30) + 4096, end)],
    )];
    assert_eq!(said(&found), want);
}

#[test]
fn a_damaged_value_is_named_with_its_file() {
    let objects = some_of_everything();
    let store = Arc::new(MemoryStore::of(objects.clone()));
    let volume = offline(&store);
    let named = volume.tables().find(Ino::ROOT, b"named").unwrap().unwrap();
    let long = volume.tables().xattr(named.1.ino, b"user.long").unwrap();
    let Some(crate::tables::XattrEntry::Extents { map, .. }) = long else {
        panic!("it is no long value");
    };
    let place = place_in(&volume, map, 0);
    let found = report(flipped(objects, place));
    let want = vec![("/named".to_owned(), vec![Wrong::Attributes], vec![])];
    assert_eq!(said(&found), want);
}

#[test]
fn a_missing_data_object_hurts_what_was_in_it_and_nothing_else() {
    let objects = some_of_everything();
    let (name, _) = place_of(&objects, &[b"neighbour"], 0);
    let mut without = objects;
    without.remove(&name).unwrap();
    let found = report(without);
    let names: BTreeSet<String> = said(&found).into_iter().map(|(name, ..)| name).collect();
    // Streams of even inodes and of odd ones are in lanes of their own.
    assert!(
        names.contains("/neighbour") && !names.contains("/tiny"),
        "{names:?}"
    );
    assert!(
        found
            .hurt
            .iter()
            .all(|f| f.wrongs.iter().all(|w| *w == Wrong::Contents))
    );
}

#[test]
fn damaged_superblock_slots_and_foreign_objects_are_told() {
    let objects = some_of_everything();
    let found = report(flipped(objects.clone(), (ObjectName::Superblock(1), 1500)));
    assert_eq!(found.slots, [(1, "does not open")]);
    assert!(!found.is_clean() && found.hurt.is_empty());

    let mut more = objects;
    let uid = crate::format::SegmentUid([7; 16]);
    more.insert(ObjectName::Segment(SegmentKind::Data, uid), vec![0; 5000]);
    let found = report(more);
    assert!(found.is_clean());
    assert_eq!(found.unknown, (1, 5000));
}

/// A closed volume with a tree of several nodes.
pub(super) fn many_files() -> (Objects, BTreeSet<String>) {
    let store = new_store();
    let volume: Volume = open(&store).unwrap();
    let mut paths = BTreeSet::new();
    for d in 0..6 {
        let dir = format!("d{d}");
        let made = volume
            .fs()
            .make(Ino::ROOT, dir.as_bytes(), &DIRECTORY, ROOT_USER);
        let parent = made.unwrap().ino;
        paths.insert(format!("/{dir}"));
        for f in 0..40 {
            let name = format!("f{f}-{}", "n".repeat(100));
            let made = volume.fs().make(parent, name.as_bytes(), &FILE, ROOT_USER);
            let contents = pattern(d * 100 + f, 500);
            volume
                .fs()
                .write(made.unwrap().ino, 0, &contents, CACHED)
                .unwrap();
            paths.insert(format!("/{dir}/{name}"));
        }
    }
    volume.close().unwrap();
    (store.objects(), paths)
}

/// The leaves of the tree, in order, with their places.
pub(super) fn leaves(objects: &Objects) -> Vec<(ObjectName, usize)> {
    let store = Arc::new(MemoryStore::of(objects.clone()));
    let volume = offline(&store);
    let (map, nodes) = volume.tables().map();
    let mut leaves = Vec::new();
    let checkpoint = &volume.state().recovered.checkpoint;
    map.pointers(nodes, &mut |pointer, level| {
        if level == 0 {
            let id = pointer.segment;
            let segment = checkpoint.nodes.iter().find(|node| node.id == id).unwrap();
            let name = ObjectName::Segment(SegmentKind::Node, segment.segment.uid);
            leaves.push((name, usize::try_from(pointer.offset).unwrap()));
        }
    })
    .unwrap();
    leaves
}

#[test]
fn a_lost_leaf_names_the_files_in_it_and_no_others() {
    let (objects, paths) = many_files();
    let leaves = leaves(&objects);
    assert!(leaves.len() > 10, "{}", leaves.len());
    let whole = open(&Arc::new(MemoryStore::of(objects.clone()))).unwrap();
    for (n, leaf) in leaves.iter().enumerate() {
        let hurt = flipped(objects.clone(), *leaf);
        let store = Arc::new(MemoryStore::of(hurt.clone()));
        let Ok(volume) = Offline::open_on(store.clone(), &aead(), (&kek()).into(), ID) else {
            continue;
        };
        let found = check(&volume, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        drop(volume);
        assert_eq!(found.lost_nodes, 1, "leaf {n}");
        // What is not named must be readable as it was, as far as its directory is whole.
        let named: BTreeSet<Ino> = found.hurt.iter().map(|file| file.ino).collect();
        let Ok(mounted) = open(&store) else {
            continue;
        };
        let mut unnamed = 0;
        for path in &paths {
            let mut parts = path.split('/').skip(1);
            let (dir, name) = (parts.next().unwrap(), parts.next());
            let Some(name) = name else { continue };
            let at = whole.fs().lookup(Ino::ROOT, dir.as_bytes()).unwrap();
            let file = whole.fs().lookup(at.ino, name.as_bytes()).unwrap();
            if [Ino::ROOT, at.ino, file.ino]
                .iter()
                .any(|ino| named.contains(ino))
            {
                continue;
            }
            unnamed += 1;
            let mut bytes = vec![0; 500];
            let got = mounted.fs().lookup(at.ino, name.as_bytes());
            let got = got.unwrap_or_else(|e| panic!("leaf {n}, {path}: {e}; {found:?}"));
            assert_eq!(got.ino, file.ino);
            assert_eq!(mounted.fs().read(got.ino, 0, &mut bytes).unwrap(), 500);
        }
        let expected = if named.contains(&Ino::ROOT) { 0 } else { 100 };
        assert!(unnamed >= expected, "leaf {n}: {unnamed}");
    }
}

/// What scrubbing a mounted volume says.
fn scrubbed(objects: Objects) -> (crate::control::Scrubbed, Vec<String>) {
    use crate::control::Happening;
    let volume = open(&Arc::new(MemoryStore::of(objects))).unwrap();
    let mut files = Vec::new();
    let done = super::scrub(volume.fs().journal(), &mut |happening| {
        if let Happening::Damaged { file } = happening {
            files.push(file);
        }
        std::ops::ControlFlow::Continue(())
    });
    (done.unwrap(), files)
}

#[test]
fn scrubbing_a_mounted_volume_names_what_is_hurt() {
    let objects = some_of_everything();
    let (done, files) = scrubbed(objects.clone());
    assert!(done.complete && done.checked_bytes > 250_000);
    assert_eq!((done.damaged_files, files.len()), (0, 0));
    let place = place_of(&objects, &[b"neighbour"], 0);
    let (done, files) = scrubbed(flipped(objects, place));
    assert_eq!(
        (done.damaged_files, files),
        (1, vec!["/neighbour".to_owned()])
    );
    let (objects, _) = many_files();
    let leaf = leaves(&objects)[5];
    let (done, files) = scrubbed(flipped(objects, leaf));
    assert!(done.damaged_files > 1 && files.len() as u64 == done.damaged_files);
}

#[test]
fn a_repair_drops_what_is_lost_and_nothing_else() {
    let objects = some_of_everything();
    let whole = crate::testing::walk(
        open(&Arc::new(MemoryStore::of(objects.clone())))
            .unwrap()
            .fs(),
    );
    let place = place_of(&objects, &[b"neighbour"], 50_000);
    let hurt = flipped(flipped(objects, place), (ObjectName::Superblock(0), 1500));
    let store = Arc::new(MemoryStore::of(hurt));
    let found = check(&offline(&store), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((found.hurt.len(), found.slots.len()), (1, 1));
    let volume = open(&store).unwrap();
    let dropped = super::repair(volume.fs(), &found.hurt).unwrap();
    assert_eq!(dropped[0].paths, [b"/neighbour".to_vec()]);
    let range = dropped[0].ranges[0].clone();
    assert_eq!((dropped.len(), range), (1, 49_152..53_248));
    volume.close().unwrap();
    let found = check(&offline(&store), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert!(found.is_clean(), "{found:?}");
    let mut want = whole;
    let bytes = &mut want.get_mut("/neighbour").unwrap().bytes;
    bytes[49_152..53_248].fill(0);
    assert_eq!(crate::testing::walk(open(&store).unwrap().fs()), want);
}

#[test]
fn foreign_objects_are_deleted_on_request() {
    let mut objects = some_of_everything();
    let uid = crate::format::SegmentUid([7; 16]);
    let before = objects.clone();
    objects.insert(ObjectName::Segment(SegmentKind::Data, uid), vec![0; 5000]);
    let store = Arc::new(MemoryStore::of(objects));
    assert_eq!(super::reclaim(&offline(&store)).unwrap(), (1, 5000));
    assert_eq!(store.objects(), before);
}
