//! Core: what somebody who has the store can do to it, one attack a row, by the numbers of
//! docs/threat-model.md.
//!
//! One oracle judges all of them. It knows from the volume itself where each unit lies that a mount
//! or a read opens and which file is behind it, and so what an altered store must show: everything
//! but what is in altered units, and for that an error.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use keys::VolumeId;

use crate::error::{FsError, OpenError};
use crate::format::{Extent, FRAME_HEAD_LEN, FrameHead, Ino, LOG_ALIGNMENT, Mapped, SEGMENT_BEGIN};
use crate::format::{SegmentKind, TAG_LEN};
use crate::fs::Fs;
use crate::log::read_chain;
use crate::map::{Map, Nodes};
use crate::store::ObjectName;
use crate::store::memory::MemoryStore;
use crate::superblock;
use crate::tables::{Tables, XattrEntry};
use crate::testing::{CACHED, FILE, ID, ROOT_USER, aead, kek, new_store, open, pattern, put_file};
use crate::volume::{Volume, init_on, recover};
use crate::xattr::SetRule;

mod live;
mod mixed;
mod objects;
mod units;

type Objects = BTreeMap<ObjectName, Vec<u8>>;
/// Contents and attribute of each file in the root directory.
type Files = BTreeMap<String, File>;

const ATTRIBUTE: &[u8] = b"user.long";
/// Another volume of the same deployment, with another id.
const SIBLING: VolumeId = VolumeId([0x5b; 16]);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct File {
    contents: Vec<u8>,
    attribute: Option<Vec<u8>>,
}

/// What is sealed at once, somewhere in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    kind: Kind,
    object: ObjectName,
    range: Range<usize>,
    /// The file that it is part of, if of one alone.
    file: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Chunk,
    ChunkOfAttribute,
    /// A frame that a mount reads.
    Frame,
    ChunkInLog,
    Node,
    /// A frame that belongs to the checkpoint before.
    OldFrame,
    Superblock,
}

/// What a store comes to when it is mounted and read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// The mount is refused as tampered with, and nothing was written.
    Refused,
    /// Every file is as in the state of this number, but for these, which give errors.
    Shows(usize, BTreeSet<String>),
}

/// A volume that was unmounted twice, and its units.
struct Scene {
    older: (Objects, Files),
    newest: (Objects, Files),
    units: Vec<Unit>,
}

fn scene() -> Scene {
    let store = new_store();
    let mut files = Files::new();
    let volume = open(&store).unwrap();
    for i in 0..40 {
        let name = format!("n{i}-{}", "x".repeat(100));
        put(volume.fs(), &mut files, &name, pattern(i, 500));
    }
    put(volume.fs(), &mut files, "several", pattern(50, 10_000));
    put(volume.fs(), &mut files, "replaced", pattern(51, 10_000));
    set_attribute(volume.fs(), &mut files, "several", pattern(52, 3000));
    volume.close().unwrap();
    let older = (store.objects(), files.clone());

    let volume = open(&store).unwrap();
    let ino = put(volume.fs(), &mut files, "replaced", pattern(53, 10_000));
    volume.fs().fsync(ino).unwrap();
    for i in 0..3 {
        let ino = put(
            volume.fs(),
            &mut files,
            &format!("rides{i}"),
            pattern(60 + i, 5000),
        );
        volume.fs().fsync(ino).unwrap();
    }
    put(volume.fs(), &mut files, "late", pattern(70, 10_000));
    set_attribute(volume.fs(), &mut files, "late", pattern(71, 3000));
    volume.close().unwrap();
    let newest = (store.objects(), files);
    let units = units_of(&newest.0, &newest.1);
    Scene {
        older,
        newest,
        units,
    }
}

/// Writes a file from its beginning, which may be there.
fn put(fs: &Fs, files: &mut Files, name: &str, contents: Vec<u8>) -> Ino {
    let found = fs.lookup(Ino::ROOT, name.as_bytes());
    let found = found.or_else(|_| fs.make(Ino::ROOT, name.as_bytes(), &FILE, ROOT_USER));
    let ino = found.unwrap().ino;
    fs.write(ino, 0, &contents, CACHED).unwrap();
    files.entry(name.into()).or_default().contents = contents;
    ino
}

fn set_attribute(fs: &Fs, files: &mut Files, name: &str, value: Vec<u8>) {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
    fs.set_xattr(ino, ATTRIBUTE, &value, SetRule::Any, ROOT_USER)
        .unwrap();
    files.get_mut(name).unwrap().attribute = Some(value);
}

/// Every unit that a mount or a read of these files opens, and the frames of the mount before.
fn units_of(objects: &Objects, files: &Files) -> Vec<Unit> {
    let store = Arc::new(MemoryStore::of(objects.clone()));
    let (superblock, keys) = superblock::read(&*store, &aead(), &kek(), ID).unwrap();
    let keys = Arc::new(keys);
    let nodes = Arc::new(Nodes::new(store.clone(), Arc::clone(&keys), 1 << 20));
    let body = superblock.body();
    let (_, tables, _) = recover(&*store, &keys, &nodes, body).unwrap();
    let chain = read_chain(&*store, &keys, body, &body.newest).unwrap();
    let checkpoint = chain.checkpoint();

    let mut units: Vec<Unit> = [0, 1]
        .map(|slot| Unit {
            kind: Kind::Superblock,
            object: ObjectName::Superblock(slot),
            range: 0..objects[&ObjectName::Superblock(slot)].len(),
            file: None,
        })
        .into();
    let replayed = ObjectName::Segment(SegmentKind::Log, checkpoint.next.segment.uid);
    for (name, bytes) in objects {
        if kind_of(*name) == Some(SegmentKind::Log) {
            let from = usize::try_from(checkpoint.next.offset).unwrap();
            let is_read = |at| *name == replayed && (at == begin() || at >= from);
            units.extend(frames(*name, bytes, is_read));
        }
    }
    let tree = Map::stored(checkpoint.root, checkpoint.root_level);
    tree.pointers(&nodes, &mut |pointer, _| {
        let node = checkpoint.nodes.iter().find(|n| n.id == pointer.segment);
        let object = ObjectName::Segment(SegmentKind::Node, node.unwrap().segment.uid);
        let at = usize::try_from(pointer.offset).unwrap();
        units.push(Unit {
            kind: Kind::Node,
            object,
            range: at..at + pointer.len as usize + TAG_LEN,
            file: None,
        });
    })
    .unwrap();
    for name in files.keys() {
        let ino = tables
            .find(Ino::ROOT, name.as_bytes())
            .unwrap()
            .unwrap()
            .1
            .ino;
        units.extend(chunks(&tables, ino, Kind::Chunk, name));
        if let Some(XattrEntry::Extents { map, .. }) = tables.xattr(ino, ATTRIBUTE).unwrap() {
            units.extend(chunks(&tables, map, Kind::ChunkOfAttribute, name));
        }
    }
    units
}

fn frames(object: ObjectName, bytes: &[u8], is_read: impl Fn(usize) -> bool) -> Vec<Unit> {
    let (mut units, mut at) = (Vec::new(), begin());
    while let Some(clear) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let Ok(head) = FrameHead::parse(clear, LOG_ALIGNMENT) else {
            at += usize::from(LOG_ALIGNMENT);
            continue;
        };
        units.push(Unit {
            kind: if is_read(at) {
                Kind::Frame
            } else {
                Kind::OldFrame
            },
            object,
            range: at..at + FRAME_HEAD_LEN + head.sealed_len as usize,
            file: None,
        });
        at += head.frame_len as usize;
    }
    units
}

fn chunks(tables: &Tables, map: Ino, kind: Kind, file: &str) -> Vec<Unit> {
    let mut extents: Vec<Extent> = Vec::new();
    tables
        .mapped(map, &(0..u64::MAX), |_, mapped| {
            if let Mapped::Data(extent) = mapped {
                extents.push(extent);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let mut units = Vec::new();
    for extent in extents {
        let entry = tables.segment(extent.segment).unwrap().unwrap();
        let in_log = entry.kind == SegmentKind::Log;
        for chunk in extent.chunks(0, extent.live).0 {
            let at = usize::try_from(chunk.offset).unwrap();
            units.push(Unit {
                kind: if in_log { Kind::ChunkInLog } else { kind },
                object: ObjectName::Segment(entry.kind, entry.segment.uid),
                range: at..at + chunk.len as usize + TAG_LEN,
                file: Some(file.into()),
            });
        }
    }
    units
}

fn kind_of(name: ObjectName) -> Option<SegmentKind> {
    match name {
        ObjectName::Segment(kind, _) => Some(kind),
        ObjectName::Superblock(_) => None,
    }
}

fn begin() -> usize {
    usize::try_from(SEGMENT_BEGIN).unwrap()
}

impl Scene {
    fn objects(&self) -> Objects {
        self.newest.0.clone()
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Unit> {
        self.units.iter().filter(move |unit| unit.kind == kind)
    }

    /// Mounts altered objects, reads all, and says what came of it. It must be what the units say
    /// that are not what they were.
    #[track_caller]
    fn check(&self, bent: &Objects, what: &str) -> Verdict {
        let altered = |unit: &&Unit| {
            let is = bent
                .get(&unit.object)
                .and_then(|o| o.get(unit.range.clone()));
            is != self.newest.0[&unit.object].get(unit.range.clone())
        };
        let altered: Vec<&Unit> = self.units.iter().filter(altered).collect();
        let count = |kind| altered.iter().filter(|unit| unit.kind == kind).count();
        let hurt: BTreeSet<String> = altered.iter().filter_map(|u| u.file.clone()).collect();
        let got = self.judge(bent, what);
        if count(Kind::Frame) > 0 || count(Kind::Superblock) == 2 {
            assert_eq!(got, Verdict::Refused, "{what}");
        } else if count(Kind::Node) > 0 {
            // What a node holds cannot be told from outside, but nothing else may be hurt by it,
            // and what is hurt already stays so.
            if let Verdict::Shows(state, found) = &got {
                assert!(*state == 0 && found.is_superset(&hurt), "{what}: {found:?}");
            }
        } else {
            assert_eq!(got, Verdict::Shows(0, hurt), "{what}");
        }
        got
    }

    /// Mounts objects and reads all. Whatever was done to them, it shows the newest state or the
    /// older one, each file as it was or as an error, or is refused and left alone.
    #[track_caller]
    fn judge(&self, bent: &Objects, what: &str) -> Verdict {
        let store = Arc::new(MemoryStore::of(bent.clone()));
        let volume = match open(&store) {
            Ok(volume) => volume,
            Err(OpenError::Tampered { .. }) => {
                assert!(store.objects() == *bent, "{what}: a refused mount wrote");
                return Verdict::Refused;
            }
            Err(e) => panic!("{what}: {e}"),
        };
        let states = [&self.newest.1, &self.older.1];
        let names: BTreeSet<&String> = states.iter().flat_map(|files| files.keys()).collect();
        let shown: BTreeMap<&String, Option<Shown>> = names
            .into_iter()
            .map(|name| (name, look(volume.fs(), name)))
            .collect();
        let hurt: BTreeSet<String> = shown
            .iter()
            .filter(|(_, shown)| shown.is_none())
            .map(|(name, _)| (*name).clone())
            .collect();
        assert!(
            hurt.is_empty() || volume.stats().auth_failures > 0,
            "{what}: an error that nobody counts"
        );
        let fits = |files: &&Files| {
            shown.iter().all(|(name, shown)| match shown {
                None => true,
                Some(Shown::Absent) => !files.contains_key(*name),
                Some(Shown::File(file)) => files.get(*name) == Some(file),
            })
        };
        match states.iter().position(fits) {
            Some(state) => Verdict::Shows(state, hurt),
            None => panic!("{what}: the volume shows what never was"),
        }
    }
}

enum Shown {
    Absent,
    File(File),
}

/// A file as it can be read; `None` when it gives an error of damage.
fn look(fs: &Fs, name: &str) -> Option<Shown> {
    let read = || {
        let attr = fs.lookup(Ino::ROOT, name.as_bytes())?;
        let mut contents = vec![0xee; usize::try_from(attr.size).unwrap()];
        let got = fs.read(attr.ino, 0, &mut contents)?;
        contents.truncate(got);
        let attribute = match fs.get_xattr(attr.ino, ATTRIBUTE) {
            Err(FsError::NoAttribute) => None,
            found => Some(found?),
        };
        Ok(File {
            contents,
            attribute,
        })
    };
    match read() {
        Ok(file) => Some(Shown::File(file)),
        Err(FsError::NoEntry) => Some(Shown::Absent),
        Err(FsError::Tampered) => None,
        Err(e) => panic!("{name}: {e}"),
    }
}

/// A volume with the same key and another id, or with the same id and its own master key.
fn stranger(id: VolumeId) -> Objects {
    let store = Arc::new(MemoryStore::default());
    init_on(store.clone(), &aead(), &kek(), id).unwrap();
    let volume = Volume::open_on(store.clone(), &aead(), &kek(), id).unwrap();
    put_file(volume.fs(), "several", &pattern(90, 10_000));
    volume.close().unwrap();
    store.objects()
}
