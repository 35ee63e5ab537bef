//! Core: every key and value of the map, coded in one place.
//!
//! | key (big endian) | value |
//! |---|---|
//! | `01 ino[8] 00` | inode record |
//! | `01 dir[8] 01 cookie[8]` | inode number, kind, name |
//! | `01 dir[8] 02 hash[8] n[2]` | cookie |
//! | `01 map[8] 03 start[8]` | extent, or a length that was promised |
//! | `01 ino[8] 04 name` | `00` and the value, or `01`, map and length |
//! | `02 segment[4]` | kind, uid, VMK epoch, live bytes |
//! | `03 segment[4] map[8]` | live bytes |
//! | `04 ino[8]` | nothing |
//!
//! The map of a file's contents has the number of its inode; that of a long extended attribute a
//! number of its own out of the same sequence. The largest item is an inode record with the
//! longest target: a node holds three of them.

use crate::format::{
    FileKind, Ino, InodeRecord, Malformed, Mapped, NAME_LEN_MAX, NODE_LEN_MAX, Reader, SegmentId,
    SegmentKind, SegmentRef, TARGET_LEN_MAX, XATTR_INLINE_LEN_MAX, is_file_name,
};
use crate::tables::{Dirent, SegmentEntry, XattrEntry};

#[cfg(test)]
mod tests;

const INODES: u8 = 1;
const SEGMENTS: u8 = 2;
const SEGREFS: u8 = 3;
const ORPHANS: u8 = 4;

const RECORD: u8 = 0;
const ENTRY: u8 = 1;
const HASH: u8 = 2;
const EXTENT: u8 = 3;
const XATTR: u8 = 4;

const ITEM_LEN_MAX: usize = 108 + TARGET_LEN_MAX + 32;
const _: () = assert!(
    3 * ITEM_LEN_MAX < NODE_LEN_MAX
        && NAME_LEN_MAX + XATTR_INLINE_LEN_MAX < TARGET_LEN_MAX
        && NAME_LEN_MAX < TARGET_LEN_MAX
);

/// Key of an inode's record.
pub(crate) fn record_key(ino: Ino) -> [u8; 10] {
    of_inode(ino, RECORD)
}

/// Key of a directory's entry.
pub(crate) fn entry_key(dir: Ino, cookie: u64) -> [u8; 18] {
    joined(&of_inode(dir, ENTRY), &cookie.to_be_bytes())
}

/// Key of an entry's place in the hash index; `n` tells names of one hash apart.
pub(crate) fn hash_key(dir: Ino, hash: u64, n: u16) -> [u8; 20] {
    let with_hash: [u8; 18] = joined(&of_inode(dir, HASH), &hash.to_be_bytes());
    joined(&with_hash, &n.to_be_bytes())
}

/// Key of what a map has from `start` on.
pub(crate) fn extent_key(map: Ino, start: u64) -> [u8; 18] {
    joined(&of_inode(map, EXTENT), &start.to_be_bytes())
}

/// Key of an extended attribute.
pub(crate) fn xattr_key(ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = of_inode(ino, XATTR).to_vec();
    key.extend(name);
    key
}

/// Key of a segment.
pub(crate) fn segment_key(id: SegmentId) -> [u8; 5] {
    joined(&[SEGMENTS], &id.0.to_be_bytes())
}

/// Key of what a map has in a segment.
pub(crate) fn segref_key(id: SegmentId, map: Ino) -> [u8; 13] {
    let with_segment: [u8; 5] = joined(&[SEGREFS], &id.0.to_be_bytes());
    joined(&with_segment, &map.0.to_be_bytes())
}

/// Key of an inode without a name.
pub(crate) fn orphan_key(ino: Ino) -> [u8; 9] {
    joined(&[ORPHANS], &ino.0.to_be_bytes())
}

/// An item of the map, as told by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Record(Ino),
    Entry(Ino, u64),
    Hash(Ino, u64, u16),
    Extent(Ino, u64),
    Xattr(Ino, &'a [u8]),
    Segment(SegmentId),
    SegRef(SegmentId, Ino),
    Orphan(Ino),
}

impl<'a> Key<'a> {
    /// Parses a key.
    pub(crate) fn parse(key: &'a [u8]) -> Result<Self, Malformed> {
        let mut k = Reader::new(key, "key");
        let parsed = match k.u8()? {
            INODES => {
                let ino = Ino(be64(&mut k)?);
                match k.u8()? {
                    RECORD => Self::Record(ino),
                    ENTRY => Self::Entry(ino, be64(&mut k)?),
                    HASH => Self::Hash(ino, be64(&mut k)?, k.array().map(u16::from_be_bytes)?),
                    EXTENT => Self::Extent(ino, be64(&mut k)?),
                    XATTR => Self::Xattr(ino, xattr_name(&mut k)?),
                    _ => return Err(k.malformed()),
                }
            }
            SEGMENTS => Self::Segment(SegmentId(be32(&mut k)?)),
            SEGREFS => Self::SegRef(SegmentId(be32(&mut k)?), Ino(be64(&mut k)?)),
            ORPHANS => Self::Orphan(Ino(be64(&mut k)?)),
            _ => return Err(k.malformed()),
        };
        k.end()?;
        Ok(parsed)
    }
}

/// Encodes an inode record.
pub(crate) fn record_value(record: &InodeRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + record.inline.len());
    record.put(&mut out);
    out
}

/// Parses an inode record.
pub(crate) fn parse_record(value: &[u8]) -> Result<InodeRecord, Malformed> {
    let mut v = Reader::new(value, "inode record");
    let record = InodeRecord::parse(&mut v)?;
    v.end()?;
    Ok(record)
}

/// Encodes a directory's entry.
pub(crate) fn entry_value(entry: &Dirent) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + entry.name.len());
    out.extend(entry.ino.0.to_le_bytes());
    out.push(entry.kind.code());
    out.extend(&entry.name);
    out
}

/// Parses a directory's entry.
pub(crate) fn parse_entry(value: &[u8]) -> Result<Dirent, Malformed> {
    let mut v = Reader::new(value, "directory entry");
    let (ino, kind) = (Ino(v.u64()?), FileKind::parse(&mut v)?);
    let name = v.rest();
    if is_file_name(name) {
        Ok(Dirent {
            ino,
            kind,
            name: name.to_vec(),
        })
    } else {
        Err(v.malformed())
    }
}

/// Encodes a cookie or a count of live bytes.
pub(crate) fn number_value(n: u64) -> [u8; 8] {
    n.to_le_bytes()
}

/// Parses a cookie or a count of live bytes.
pub(crate) fn parse_number(value: &[u8]) -> Result<u64, Malformed> {
    let mut v = Reader::new(value, "number");
    let n = v.u64()?;
    v.end()?;
    Ok(n)
}

/// Encodes what a map has.
pub(crate) fn mapped_value(mapped: &Mapped) -> Vec<u8> {
    let mut out = Vec::with_capacity(26);
    mapped.put(&mut out);
    out
}

/// Encodes a segment.
pub(crate) fn segment_value(entry: &SegmentEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(29);
    out.push(entry.kind.code());
    entry.segment.put(&mut out);
    out.extend(entry.live.to_le_bytes());
    out
}

/// Parses a segment.
pub(crate) fn parse_segment(value: &[u8]) -> Result<SegmentEntry, Malformed> {
    let mut v = Reader::new(value, "segment");
    let kind = SegmentKind::from_code(v.u8()?).ok_or_else(|| v.malformed())?;
    let segment = SegmentRef::parse(&mut v)?;
    let live = v.u64()?;
    v.end()?;
    Ok(SegmentEntry {
        kind,
        segment,
        live,
    })
}

/// Encodes an extended attribute.
pub(crate) fn xattr_value(entry: &XattrEntry) -> Vec<u8> {
    match entry {
        XattrEntry::Inline(bytes) => [&[0][..], bytes].concat(),
        XattrEntry::Extents { map, len } => {
            [&[1][..], &map.0.to_le_bytes(), &len.to_le_bytes()].concat()
        }
    }
}

/// Parses an extended attribute.
pub(crate) fn parse_xattr(value: &[u8]) -> Result<XattrEntry, Malformed> {
    let mut v = Reader::new(value, "extended attribute");
    let entry = match v.u8()? {
        0 => XattrEntry::Inline(inline_xattr(&mut v)?.to_vec()),
        1 => XattrEntry::Extents {
            map: Ino(v.u64()?),
            len: v.u32()?,
        },
        _ => return Err(v.malformed()),
    };
    v.end()?;
    Ok(entry)
}

fn xattr_name<'a>(k: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let name = k.rest();
    if (1..=NAME_LEN_MAX).contains(&name.len()) && !name.contains(&0) {
        Ok(name)
    } else {
        Err(k.malformed())
    }
}

fn inline_xattr<'a>(v: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let bytes = v.rest();
    if bytes.len() <= XATTR_INLINE_LEN_MAX {
        Ok(bytes)
    } else {
        Err(v.malformed())
    }
}

fn of_inode(ino: Ino, what: u8) -> [u8; 10] {
    let with_ino: [u8; 9] = joined(&[INODES], &ino.0.to_be_bytes());
    joined(&with_ino, &[what])
}

/// The bytes of `a` and then those of `b`, which are `N` together.
fn joined<const N: usize>(a: &[u8], b: &[u8]) -> [u8; N] {
    debug_assert_eq!(a.len() + b.len(), N);
    let mut key = [0; N];
    for (to, from) in key.iter_mut().zip(a.iter().chain(b)) {
        *to = *from;
    }
    key
}

fn be64(r: &mut Reader<'_>) -> Result<u64, Malformed> {
    r.array().map(u64::from_be_bytes)
}

fn be32(r: &mut Reader<'_>) -> Result<u32, Malformed> {
    r.array().map(u32::from_be_bytes)
}
