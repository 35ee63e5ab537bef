//! Core: the map, with types.
//!
//! **Design.** All that a volume holds, besides the bytes of its files, is in one ordered map of
//! keys to values; [`schema`] codes them. Here the map is read and changed by what
//! the keys mean. A clone costs nothing: who changes the volume changes a clone, and puts it in
//! the old one's place when all went well.
//!
//! **Invariants.** The map changes through [`Tables::apply`] alone, which the first run and every
//! replay of an operation share. The live bytes of a segment are the sum over the extents that
//! point into it, by map; `check`, of test builds, says so after each operation of each test.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::crypto::NameHasher;
use crate::format::{
    Counters, FileKind, Ino, InodeRecord, Malformed, Mapped, SegmentId, SegmentKind, SegmentRef,
    Timestamp,
};
use crate::map::{Map, Nodes};
use crate::schema::{self, Key};
use crate::segment::ReadError;

mod apply;
#[cfg(any(test, fuzzing))]
mod check;
mod extents;

pub(crate) use apply::without_privileges;

/// Cookies 1 and 2 stand for `.` and `..` in a listing.
pub(crate) const FIRST_COOKIE: u64 = 3;

/// All that a volume holds, besides the bytes of its files.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    map: Map,
    nodes: Arc<Nodes>,
    counters: Counters,
    hasher: Arc<NameHasher>,
}

/// A name and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) name: Vec<u8>,
}

/// A segment as the map knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentEntry {
    pub(crate) kind: SegmentKind,
    pub(crate) segment: SegmentRef,
    /// Bytes in it that extents point to.
    pub(crate) live: u64,
}

/// An extended attribute as the map knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum XattrEntry {
    /// The value itself.
    Inline(Vec<u8>),
    /// The map whose extents hold the value, and its length.
    Extents { map: Ino, len: u32 },
}

/// An operation does not fit the state that it is applied to.
///
/// Operations are authenticated and were checked before they were logged, so this is a bug or a
/// forgery by who has the key; the volume stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an operation does not fit the volume: {0}")]
pub(crate) struct Inconsistent(pub(crate) &'static str);

/// Why an operation was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// It does not fit the state.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
    /// A part of the map cannot be read.
    #[error("a part of the map cannot be read")]
    Read(#[from] ReadError),
}

impl Tables {
    /// Tables without anything in them.
    pub(crate) fn empty(nodes: Arc<Nodes>, hasher: NameHasher) -> Self {
        let counters = Counters {
            next_ino: Ino(2),
            next_segment: SegmentId(1),
            files: 0,
            live: 0,
            unwritten: 0,
        };
        Self::stored(Map::empty(), counters, nodes, hasher)
    }

    /// Tables over a map that a checkpoint wrote.
    pub(crate) fn stored(
        map: Map,
        counters: Counters,
        nodes: Arc<Nodes>,
        hasher: NameHasher,
    ) -> Self {
        Self {
            map,
            nodes,
            counters,
            hasher: Arc::new(hasher),
        }
    }

    /// Tables of a new volume: a root directory.
    pub(crate) fn with_root(
        nodes: Arc<Nodes>,
        hasher: NameHasher,
        owner: (u32, u32),
        now: Timestamp,
    ) -> Result<Self, ReadError> {
        let mut tables = Self::empty(nodes, hasher);
        let record = InodeRecord {
            kind: FileKind::Directory,
            perm: 0o755,
            nlink: 2,
            uid: owner.0,
            gid: owner.1,
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            parent: Ino::ROOT,
            next_cookie: FIRST_COOKIE,
            allocated: 0,
            xattrs: 0,
            inline: Vec::new(),
        };
        tables.put_record(Ino::ROOT, &record)?;
        tables.counters.files = 1;
        Ok(tables)
    }

    /// An inode's record.
    pub(crate) fn inode(&self, ino: Ino) -> Result<Option<InodeRecord>, ReadError> {
        self.value(&schema::record_key(ino), schema::parse_record)
    }

    /// A segment.
    pub(crate) fn segment(&self, id: SegmentId) -> Result<Option<SegmentEntry>, ReadError> {
        self.value(&schema::segment_key(id), schema::parse_segment)
    }

    /// Shows all segments, in ascending order.
    pub(crate) fn segments(
        &self,
        mut see: impl FnMut(SegmentId, SegmentEntry),
    ) -> Result<(), ReadError> {
        self.scan(&schema::segment_key(SegmentId(0)), |key, value| {
            let Key::Segment(id) = key else {
                return Ok(ControlFlow::Break(()));
            };
            see(id, schema::parse_segment(value)?);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Shows the maps that point into a segment, with how many bytes, from the map `from` on until
    /// `see` breaks.
    pub(crate) fn segrefs(
        &self,
        id: SegmentId,
        from: Ino,
        mut see: impl FnMut(Ino, u64) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.scan(&schema::segref_key(id, from), |key, value| {
            let Key::SegRef(of, map) = key else {
                return Ok(ControlFlow::Break(()));
            };
            if of != id {
                return Ok(ControlFlow::Break(()));
            }
            Ok(see(map, schema::parse_number(value)?))
        })
    }

    /// Inodes without a name, in ascending order, at most `limit` from `from` on.
    pub(crate) fn orphans(&self, from: Ino, limit: usize) -> Result<Vec<Ino>, ReadError> {
        let mut orphans = Vec::new();
        self.scan(&schema::orphan_key(from), |key, _| {
            let Key::Orphan(ino) = key else {
                return Ok(ControlFlow::Break(()));
            };
            orphans.push(ino);
            Ok(if orphans.len() < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        Ok(orphans)
    }

    /// Whether an inode has lost its last name.
    pub(crate) fn is_orphan(&self, ino: Ino) -> Result<bool, ReadError> {
        self.map.contains(&self.nodes, &schema::orphan_key(ino))
    }

    /// The volume's counters.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// The entry of a directory that has this name, with its cookie.
    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<(u64, Dirent)>, ReadError> {
        let mut found = None;
        self.same_hash(dir, name, |_, cookie, entry| {
            if entry.name == name {
                found = Some((cookie, entry));
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Shows the entries of a directory behind a cookie, in the order of their making, until
    /// `see` breaks.
    pub(crate) fn entries_after(
        &self,
        dir: Ino,
        cookie: u64,
        mut see: impl FnMut(u64, Dirent) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let from = schema::entry_key(dir, cookie.saturating_add(1));
        self.scan(&from, |key, value| {
            let Key::Entry(of, cookie) = key else {
                return Ok(ControlFlow::Break(()));
            };
            if of != dir {
                return Ok(ControlFlow::Break(()));
            }
            Ok(see(cookie, schema::parse_entry(value)?))
        })
    }

    /// Whether a directory has no entry.
    pub(crate) fn is_empty_directory(&self, dir: Ino) -> Result<bool, ReadError> {
        let mut is_empty = true;
        self.entries_after(dir, 0, |_, _| {
            is_empty = false;
            ControlFlow::Break(())
        })?;
        Ok(is_empty)
    }

    /// Shows what a map has for a range, the whole of what only overlaps it included, until `see`
    /// breaks.
    pub(crate) fn mapped(
        &self,
        map: Ino,
        range: &Range<u64>,
        mut see: impl FnMut(u64, Mapped) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let first = self.last_mapped(map, range.start)?;
        let from = match first {
            Some((start, mapped)) if start.saturating_add(mapped.live()) > range.start => start,
            _ => range.start,
        };
        self.scan(&schema::extent_key(map, from), |key, value| {
            let Key::Extent(of, start) = key else {
                return Ok(ControlFlow::Break(()));
            };
            if of != map || start >= range.end {
                return Ok(ControlFlow::Break(()));
            }
            Ok(see(start, Mapped::parse(value)?))
        })
    }

    /// The last thing that a map has at `at` or before.
    pub(crate) fn last_mapped(
        &self,
        map: Ino,
        at: u64,
    ) -> Result<Option<(u64, Mapped)>, ReadError> {
        let mut found = Ok(None);
        let from = schema::extent_key(map, at);
        self.map.scan_back(&self.nodes, &from, &mut |key, value| {
            if let Ok(Key::Extent(of, start)) = Key::parse(key)
                && of == map
            {
                found = Mapped::parse(value).map(|mapped| Some((start, mapped)));
            }
            ControlFlow::Break(())
        })?;
        found.map_err(Into::into)
    }

    /// An extended attribute of an inode.
    pub(crate) fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<XattrEntry>, ReadError> {
        self.value(&schema::xattr_key(ino, name), schema::parse_xattr)
    }

    /// Shows the extended attributes of an inode.
    pub(crate) fn xattrs(
        &self,
        ino: Ino,
        mut see: impl FnMut(&[u8], XattrEntry),
    ) -> Result<(), ReadError> {
        self.scan(&schema::xattr_key(ino, b""), |key, value| {
            let Key::Xattr(of, name) = key else {
                return Ok(ControlFlow::Break(()));
            };
            if of != ino {
                return Ok(ControlFlow::Break(()));
            }
            see(name, schema::parse_xattr(value)?);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The map itself, and where its nodes come from.
    pub(crate) fn map(&self) -> (&Map, &Arc<Nodes>) {
        (&self.map, &self.nodes)
    }

    /// The map itself, for a checkpoint.
    pub(crate) fn map_mut(&mut self) -> &mut Map {
        &mut self.map
    }

    /// Shows the entries that share the hash of `name`: index number, cookie, entry; until `see`
    /// returns false.
    fn same_hash(
        &self,
        dir: Ino,
        name: &[u8],
        mut see: impl FnMut(u16, u64, Dirent) -> bool,
    ) -> Result<(), ReadError> {
        let hash = self.hasher.hash(name);
        let mut cookies = Vec::new();
        self.scan(&schema::hash_key(dir, hash, 0), |key, value| {
            let Key::Hash(of, other, n) = key else {
                return Ok(ControlFlow::Break(()));
            };
            if of != dir || other != hash {
                return Ok(ControlFlow::Break(()));
            }
            cookies.push((n, schema::parse_number(value)?));
            Ok(ControlFlow::Continue(()))
        })?;
        for (n, cookie) in cookies {
            let entry = self.entry(dir, cookie)?.ok_or(ReadError::Tampered)?;
            if !see(n, cookie, entry) {
                break;
            }
        }
        Ok(())
    }

    fn entry(&self, dir: Ino, cookie: u64) -> Result<Option<Dirent>, ReadError> {
        self.value(&schema::entry_key(dir, cookie), schema::parse_entry)
    }

    fn value<T>(
        &self,
        key: &[u8],
        parse: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<T>, ReadError> {
        let parsed = self.map.get(&self.nodes, key, parse)?;
        Ok(parsed.transpose()?)
    }

    fn scan(
        &self,
        from: &[u8],
        mut see: impl FnMut(Key<'_>, &[u8]) -> Result<ControlFlow<()>, Malformed>,
    ) -> Result<(), ReadError> {
        let mut failed = None;
        self.map
            .scan(&self.nodes, from, &mut |key, value| match Key::parse(key)
                .and_then(|key| see(key, value))
            {
                Ok(flow) => flow,
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            })?;
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    fn put_record(&mut self, ino: Ino, record: &InodeRecord) -> Result<(), ReadError> {
        self.put(&schema::record_key(ino), &schema::record_value(record))?;
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<bool, ReadError> {
        self.map.put(&self.nodes, key, value)
    }

    fn remove(&mut self, key: &[u8]) -> Result<bool, ReadError> {
        self.map.remove(&self.nodes, key)
    }
}

impl SegmentEntry {
    /// Whether its units are contents of files.
    pub(crate) fn is_data(self) -> bool {
        self.kind == SegmentKind::Data
    }
}

impl From<Malformed> for ReadError {
    /// Nodes are authenticated: what does not parse in one was not written by us.
    fn from(_: Malformed) -> Self {
        Self::Tampered
    }
}
