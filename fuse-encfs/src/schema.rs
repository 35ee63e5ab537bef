//! Core: every key and value of the map, coded in one place.
//!
//! | key (big endian) | value |
//! |---|---|
//! | `01 ino[8] 00` | inode record |
//! | `01 dir[8] 01 cookie[8]` | inode number, kind, name |
//! | `01 dir[8] 02 hash[8] n[2]` | cookie |
//! | `01 map[8] 03 start[8]` | extent |
//! | `02 segment[4]` | kind, uid, VMK epoch |
//! | `03 segment[4] map[8]` | live bytes |
//! | `04 ino[8]` | nothing |
//!
//! The map id of a file's contents is its inode number. The largest item is an inode record with
//! the longest target, 4,179 bytes: a node holds three of them.

use crate::format::{
    Extent, FileKind, Ino, InodeRecord, Malformed, NAME_LEN_MAX, NODE_LEN_MAX, NodeBuilder, Reader,
    SegmentId, SegmentKind, SegmentRef, TARGET_LEN_MAX,
};
use crate::tables::{Dirent, SegmentEntry, Tables};

const INODES: u8 = 1;
const SEGMENTS: u8 = 2;
const SEGREFS: u8 = 3;
const ORPHANS: u8 = 4;

const RECORD: u8 = 0;
const ENTRY: u8 = 1;
const HASH: u8 = 2;
const EXTENT: u8 = 3;

const ITEM_LEN_MAX: usize = 84 + TARGET_LEN_MAX + 32;
const _: () = assert!(3 * ITEM_LEN_MAX < NODE_LEN_MAX && NAME_LEN_MAX < TARGET_LEN_MAX);

/// A leaf: its first key and its plaintext.
pub(crate) type Leaf = (Vec<u8>, Vec<u8>);

/// Writes the whole map into leaves, in the order of its keys.
pub(crate) fn leaves(tables: &Tables) -> Vec<Leaf> {
    let mut out = Leaves {
        done: Vec::new(),
        current: NodeBuilder::new(0),
    };
    for (ino, inode) in tables.inodes() {
        out.put(&inode_key(ino, RECORD, &[]), |v| inode.record.put(v));
        if let Some(directory) = inode.directory() {
            for (cookie, entry) in directory.entries() {
                out.put(&inode_key(ino, ENTRY, &cookie.to_be_bytes()), |v| {
                    put_entry(entry, v);
                });
            }
            for ((hash, n), cookie) in directory.index() {
                let mut rest = hash.to_be_bytes().to_vec();
                rest.extend(n.to_be_bytes());
                out.put(&inode_key(ino, HASH, &rest), |v| {
                    v.extend(cookie.to_le_bytes());
                });
            }
        }
        for (start, extent) in inode.extents().into_iter().flatten() {
            out.put(&inode_key(ino, EXTENT, &start.to_be_bytes()), |v| {
                extent.put(v);
            });
        }
    }
    for (id, entry) in tables.segments() {
        out.put(&key(SEGMENTS, &[&id.0.to_be_bytes()]), |v| {
            v.push(entry.kind.code());
            entry.segment.put(v);
        });
    }
    for ((id, map), live) in tables.segrefs() {
        let key = key(SEGREFS, &[&id.0.to_be_bytes(), &map.0.to_be_bytes()]);
        out.put(&key, |v| v.extend(live.to_le_bytes()));
    }
    for ino in tables.orphans() {
        out.put(&key(ORPHANS, &[&ino.0.to_be_bytes()]), |_| {});
    }
    out.finish()
}

/// Puts one item of the map back into the tables. Items come in the order of their keys.
pub(crate) fn load(tables: &mut Tables, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let mut k = Reader::new(key, "key");
    let mut v = Reader::new(value, "value");
    let malformed = Malformed("item of the map");
    match k.u8()? {
        INODES => {
            let ino = Ino(be64(&mut k)?);
            load_of_inode(tables, ino, &mut k, &mut v)?;
        }
        SEGMENTS => {
            let id = SegmentId(be32(&mut k)?);
            let kind = SegmentKind::from_code(v.u8()?).ok_or(malformed)?;
            let segment = SegmentRef::parse(&mut v)?;
            tables.load_segment(id, SegmentEntry { kind, segment });
        }
        SEGREFS => {
            let (id, map) = (SegmentId(be32(&mut k)?), Ino(be64(&mut k)?));
            tables.load_segref(id, map, v.u64()?);
        }
        ORPHANS => tables.load_orphan(Ino(be64(&mut k)?)),
        _ => return Err(malformed),
    }
    k.end()?;
    v.end()
}

fn load_of_inode(
    tables: &mut Tables,
    ino: Ino,
    k: &mut Reader<'_>,
    v: &mut Reader<'_>,
) -> Result<(), Malformed> {
    let loaded = match k.u8()? {
        RECORD => {
            tables.load_inode(ino, InodeRecord::parse(v)?);
            Some(())
        }
        ENTRY => tables.load_entry(ino, be64(k)?, parse_entry(v)?),
        HASH => {
            let hash = (be64(k)?, k.array().map(u16::from_be_bytes)?);
            tables.load_hash(ino, hash, v.u64()?)
        }
        EXTENT => tables.load_extent(ino, be64(k)?, Extent::parse(v)?),
        _ => None,
    };
    loaded.ok_or(Malformed("item of an inode"))
}

struct Leaves {
    done: Vec<Leaf>,
    current: NodeBuilder,
}

impl Leaves {
    fn put(&mut self, key: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        value(&mut bytes);
        if !self.current.push(key, &bytes) {
            let full = std::mem::replace(&mut self.current, NodeBuilder::new(0));
            self.done.push(full.finish());
            let fits = self.current.push(key, &bytes);
            debug_assert!(fits, "an item is larger than a node");
        }
    }

    fn finish(mut self) -> Vec<Leaf> {
        if !self.current.is_empty() {
            self.done.push(self.current.finish());
        }
        self.done
    }
}

fn inode_key(ino: Ino, what: u8, rest: &[u8]) -> Vec<u8> {
    key(INODES, &[&ino.0.to_be_bytes(), &[what], rest])
}

fn key(space: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![space];
    parts.iter().for_each(|part| key.extend(*part));
    key
}

fn put_entry(entry: &Dirent, out: &mut Vec<u8>) {
    out.extend(entry.ino.0.to_le_bytes());
    out.push(entry.kind.code());
    out.extend(&entry.name);
}

fn parse_entry(v: &mut Reader<'_>) -> Result<Dirent, Malformed> {
    let (ino, kind) = (Ino(v.u64()?), FileKind::parse(v)?);
    let name = v.rest();
    if crate::format::is_file_name(name) {
        Ok(Dirent {
            ino,
            kind,
            name: name.to_vec(),
        })
    } else {
        Err(v.malformed())
    }
}

fn be64(r: &mut Reader<'_>) -> Result<u64, Malformed> {
    r.array().map(u64::from_be_bytes)
}

fn be32(r: &mut Reader<'_>) -> Result<u32, Malformed> {
    r.array().map(u32::from_be_bytes)
}
