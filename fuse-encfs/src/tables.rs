//! Core: the ordered map, in memory.
//!
//! **Design.** The map has typed tables instead of keys and values, so that hot files keep their
//! attributes and extents in one object; [`schema`](crate::schema) is the one place that turns
//! them into keys and values, for the tree that a checkpoint writes. All of it is resident.
//!
//! **Invariants.** The tables change through [`Tables::apply`] alone, which the first run and
//! every replay of an operation share. The live bytes of a segment are the sum over the extents
//! that point into it, by inode; `check`, of test builds, says so after each operation of each test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::crypto::NameHasher;
use crate::format::{
    Counters, Extent, FileKind, Ino, InodeRecord, SegmentId, SegmentKind, SegmentRef, Timestamp,
};

mod apply;
#[cfg(test)]
mod check;
mod directory;
mod extents;

pub(crate) use apply::without_privileges;
pub(crate) use directory::{Directory, Dirent};

/// Cookies 1 and 2 stand for `.` and `..` in a listing.
pub(crate) const FIRST_COOKIE: u64 = 3;

/// All that a volume holds, besides the bytes of its files.
#[derive(Debug)]
pub(crate) struct Tables {
    inodes: BTreeMap<Ino, Inode>,
    segments: BTreeMap<SegmentId, SegmentEntry>,
    /// Live bytes of a segment that one inode's extents point to.
    segrefs: BTreeMap<(SegmentId, Ino), u64>,
    /// Inodes without a name, to be reaped when nobody has them open.
    orphans: BTreeSet<Ino>,
    counters: Counters,
    hasher: Arc<NameHasher>,
    /// Number of the operation that is being applied; not stored.
    ticket: u64,
}

/// A file, directory or other inode.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) record: InodeRecord,
    pub(crate) content: Content,
    /// Bytes that the extents cover; not stored.
    pub(crate) live: u64,
    /// The last operation that changed it; not stored.
    pub(crate) changed: u64,
}

/// What an inode holds, by its kind.
#[derive(Debug)]
pub(crate) enum Content {
    /// Entries.
    Directory(Directory),
    /// Neither entries nor extents.
    Nothing,
    /// Extents by the offset that they begin at; what none covers is a hole.
    Regular(BTreeMap<u64, Extent>),
}

/// A segment as the map knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentEntry {
    pub(crate) kind: SegmentKind,
    pub(crate) segment: SegmentRef,
}

/// An operation does not fit the state that it is applied to.
///
/// Operations are authenticated and were checked before they were logged, so this is a bug or a
/// forgery by who has the key; the volume stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an operation does not fit the volume: {0}")]
pub(crate) struct Inconsistent(pub(crate) &'static str);

impl Tables {
    /// Tables without anything in them.
    pub(crate) fn empty(hasher: NameHasher) -> Self {
        Self {
            inodes: BTreeMap::new(),
            segments: BTreeMap::new(),
            segrefs: BTreeMap::new(),
            orphans: BTreeSet::new(),
            counters: Counters {
                next_ino: Ino(2),
                next_segment: SegmentId(1),
            },
            hasher: Arc::new(hasher),
            ticket: 0,
        }
    }

    /// Tables of a new volume: a root directory.
    pub(crate) fn with_root(hasher: NameHasher, owner: (u32, u32), now: Timestamp) -> Self {
        let mut tables = Self::empty(hasher);
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
            target: Vec::new(),
        };
        tables.inodes.insert(Ino::ROOT, Inode::new(record));
        tables
    }

    /// An inode.
    pub(crate) fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    /// All inodes, in ascending order.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    /// All segments, in ascending order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (SegmentId, SegmentEntry)> {
        self.segments.iter().map(|(id, entry)| (*id, *entry))
    }

    /// A segment.
    pub(crate) fn segment(&self, id: SegmentId) -> Option<SegmentEntry> {
        self.segments.get(&id).copied()
    }

    /// All references into segments, in ascending order.
    pub(crate) fn segrefs(&self) -> impl Iterator<Item = ((SegmentId, Ino), u64)> {
        self.segrefs.iter().map(|(key, live)| (*key, *live))
    }

    /// Whether any extent points into a segment.
    pub(crate) fn is_referenced(&self, id: SegmentId) -> bool {
        self.segrefs
            .range((id, Ino(0))..=(id, Ino(u64::MAX)))
            .next()
            .is_some()
    }

    /// Inodes without a name, in ascending order.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = Ino> {
        self.orphans.iter().copied()
    }

    /// Whether an inode has lost its last name.
    pub(crate) fn is_orphan(&self, ino: Ino) -> bool {
        self.orphans.contains(&ino)
    }

    /// The volume's counters.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Sets the counters of a tree that was just loaded.
    pub(crate) fn set_counters(&mut self, counters: Counters) {
        self.counters = counters;
    }

    /// Where a directory has the entry `name`.
    pub(crate) fn find(&self, directory: &Directory, name: &[u8]) -> Option<u64> {
        directory.find(self.hasher.hash(name), name)
    }

    /// Puts back an inode of a tree that is being loaded.
    pub(crate) fn load_inode(&mut self, ino: Ino, record: InodeRecord) {
        self.inodes.insert(ino, Inode::new(record));
    }

    /// Puts back a directory entry.
    pub(crate) fn load_entry(&mut self, dir: Ino, cookie: u64, entry: Dirent) -> Option<()> {
        let Content::Directory(directory) = &mut self.inodes.get_mut(&dir)?.content else {
            return None;
        };
        directory.load_entry(cookie, entry)
    }

    /// Puts back the place of a directory entry in the hash index. The entry was loaded before and
    /// must have that hash.
    pub(crate) fn load_hash(&mut self, dir: Ino, hash: (u64, u16), cookie: u64) -> Option<()> {
        let hasher = Arc::clone(&self.hasher);
        let Content::Directory(directory) = &mut self.inodes.get_mut(&dir)?.content else {
            return None;
        };
        directory.load_hash(hash, cookie, |name| hasher.hash(name))
    }

    /// Puts back an extent.
    pub(crate) fn load_extent(&mut self, map: Ino, start: u64, extent: Extent) -> Option<()> {
        let inode = self.inodes.get_mut(&map)?;
        let Content::Regular(extents) = &mut inode.content else {
            return None;
        };
        let begins = extents
            .last_key_value()
            .is_none_or(|(s, e)| s + u64::from(e.live) <= start);
        start.checked_add(u64::from(extent.live))?;
        extents.insert(start, extent);
        inode.live += u64::from(extent.live);
        begins.then_some(())
    }

    /// Puts back a segment.
    pub(crate) fn load_segment(&mut self, id: SegmentId, entry: SegmentEntry) {
        self.segments.insert(id, entry);
    }

    /// Puts back a reference into a segment.
    pub(crate) fn load_segref(&mut self, id: SegmentId, map: Ino, live: u64) {
        self.segrefs.insert((id, map), live);
    }

    /// Puts back an orphan.
    pub(crate) fn load_orphan(&mut self, ino: Ino) {
        self.orphans.insert(ino);
    }
}

impl SegmentEntry {
    /// Whether its units are contents of files.
    pub(crate) fn is_data(self) -> bool {
        self.kind == SegmentKind::Data
    }
}

impl Inode {
    fn new(record: InodeRecord) -> Self {
        let content = match record.kind {
            FileKind::Directory => Content::Directory(Directory::default()),
            FileKind::Regular => Content::Regular(BTreeMap::new()),
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::Symlink => Content::Nothing,
        };
        Self {
            record,
            content,
            live: 0,
            changed: 0,
        }
    }

    /// Its entries, when it is a directory.
    pub(crate) fn directory(&self) -> Option<&Directory> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            Content::Nothing | Content::Regular(_) => None,
        }
    }

    /// Its extents, when it is a regular file.
    pub(crate) fn extents(&self) -> Option<&BTreeMap<u64, Extent>> {
        match &self.content {
            Content::Regular(extents) => Some(extents),
            Content::Nothing | Content::Directory(_) => None,
        }
    }
}
