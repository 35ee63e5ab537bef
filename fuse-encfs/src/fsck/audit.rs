//! Core: whether what the map says of each thing in several places agrees, and what it points to
//! can be read.
//!
//! **Design.** One pass over the items in their order, which brings everything of an inode
//! together. Memory holds some words an inode, and otherwise grows only with what is hurt.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};

use super::scan::{self, Lost, add_range, unread};
use crate::format::{Extent, FileKind, Ino, InodeRecord, Malformed, Mapped, SegmentId};
use crate::schema::{self, Key};
use crate::segment::ReadError;
use crate::tables::{Tables, XattrEntry};

/// Reads a part of an extent, and authenticates it.
pub(crate) type Read<'a> = &'a mut dyn FnMut(&Extent, u32, &mut [u8]) -> Result<(), ReadError>;
/// Is told of bytes that were checked. It says to end early.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// What is wrong with an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// Bytes of its contents are not what was written, or are gone.
    Contents,
    /// The store does not answer for some of it.
    Unanswered,
    /// It has names, and is gone itself.
    Gone,
    /// Its attributes are gone, and other things of it are there.
    Record,
    /// An extended attribute is not what was written, or is gone.
    Attributes,
    /// Names in it may be gone.
    Names,
    /// The index of its names does not fit the names.
    Index,
    /// No name leads to it.
    Nameless,
    /// It counts as removed and has a name, or the reverse.
    Removed,
    /// Its link count is not the number of its names.
    Links,
    /// A name says that it is of another kind.
    Kind,
    /// It lies in another directory than it says, or in none that leads to the root.
    Parent,
    /// The ranges that it has overlap, or are not as many bytes as it says.
    Extents,
}

/// An inode with what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hurt {
    pub(crate) wrongs: BTreeSet<Wrong>,
    /// Bytes of its contents that are lost.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Names of extended attributes with long values that are lost.
    pub(crate) values: BTreeSet<Vec<u8>>,
}

/// What came of a check.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) hurt: BTreeMap<Ino, Hurt>,
    /// What is wrong with the volume's own accounts.
    pub(crate) accounts: BTreeSet<&'static str>,
    /// Whether it was ended early.
    pub(crate) is_cancelled: bool,
}

/// What is known of an inode by its own items and by names that lead to it.
#[derive(Debug, Default)]
struct Seen {
    record: Option<(FileKind, u32, Ino)>,
    names: u32,
    /// Of a name, the last that was seen: in which directory, and what kind it says.
    named: Option<(Ino, FileKind)>,
    directories: u32,
    is_removed: bool,
}

/// What belongs to one number, while its items are seen.
#[derive(Debug, Default)]
struct Group {
    number: Option<Ino>,
    record: Option<InodeRecord>,
    entries: u64,
    hashes: u64,
    xattrs: u32,
    /// Bytes that are mapped, and where they and those of records end.
    mapped: u64,
    end: u64,
    data_end: u64,
    overlaps: bool,
    live: BTreeMap<SegmentId, u64>,
    lost: Vec<Range<u64>>,
    is_unanswered: bool,
}

struct Auditor<'a> {
    tables: &'a Tables,
    lost: &'a [Lost],
    read: Option<Read<'a>>,
    watch: Watch<'a>,
    audit: Audit,
    group: Group,
    seen: BTreeMap<Ino, Seen>,
    /// Long values of extended attributes whose map is still to come.
    values: BTreeMap<Ino, (Ino, u32, Vec<u8>)>,
    segments: BTreeMap<SegmentId, u64>,
    live: BTreeMap<SegmentId, u64>,
    refs: (u64, u64),
    unwritten: u64,
}

/// Checks all items, and with `read` all that they point to.
pub(crate) fn audit<'a>(
    tables: &'a Tables,
    lost: &'a [Lost],
    read: Option<Read<'a>>,
    watch: Watch<'a>,
) -> Result<Audit, ReadError> {
    let mut auditor = Auditor {
        tables,
        lost,
        read,
        watch,
        audit: Audit::default(),
        group: Group::default(),
        seen: BTreeMap::new(),
        values: BTreeMap::new(),
        segments: BTreeMap::new(),
        live: BTreeMap::new(),
        refs: (0, 0),
        unwritten: 0,
    };
    let mut flow = ControlFlow::Continue(());
    scan::items(tables, lost, &mut |key, value| {
        flow = match auditor.meet(key, value) {
            Ok(flow) => flow,
            Err(Malformed(_)) => {
                auditor
                    .audit
                    .accounts
                    .insert("an item of the map is malformed");
                ControlFlow::Continue(())
            }
        };
        flow
    })?;
    auditor.audit.is_cancelled = flow.is_break();
    if !auditor.audit.is_cancelled {
        auditor.end_group();
        auditor.judge_values();
        auditor.judge_inodes();
        auditor.judge_accounts();
    }
    Ok(auditor.audit)
}

impl Auditor<'_> {
    fn meet(&mut self, key: &[u8], value: &[u8]) -> Result<ControlFlow<()>, Malformed> {
        let key = Key::parse(key)?;
        let number = match key {
            Key::Record(ino) | Key::Xattr(ino, _) => Some(ino),
            Key::Entry(dir, _) | Key::Hash(dir, ..) => Some(dir),
            Key::Extent(map, _) => Some(map),
            Key::Segment(_) | Key::SegRef(..) | Key::Orphan(_) => None,
        };
        if number.is_some() && number != self.group.number {
            self.end_group();
            self.group.number = number;
        }
        match key {
            Key::Record(_) => self.group.record = Some(schema::parse_record(value)?),
            Key::Entry(dir, cookie) => self.meet_entry(dir, cookie, value)?,
            Key::Hash(..) => {
                schema::parse_number(value)?;
                self.group.hashes += 1;
            }
            Key::Extent(_, start) => return Ok(self.meet_extent(start, Mapped::parse(value)?)),
            Key::Xattr(ino, name) => {
                self.group.xattrs += 1;
                if let XattrEntry::Extents { map, len } = schema::parse_xattr(value)? {
                    self.values.insert(map, (ino, len, name.to_vec()));
                }
            }
            Key::Segment(id) => {
                let entry = schema::parse_segment(value)?;
                self.segments.insert(id, entry.live);
            }
            Key::SegRef(..) => self.refs.1 += 1,
            Key::Orphan(ino) => self.seen.entry(ino).or_default().is_removed = true,
        }
        Ok((self.watch)(0))
    }

    fn meet_entry(&mut self, dir: Ino, cookie: u64, value: &[u8]) -> Result<(), Malformed> {
        let entry = schema::parse_entry(value)?;
        self.group.entries += 1;
        let is_directory = entry.kind == FileKind::Directory;
        self.seen.entry(dir).or_default().directories += u32::from(is_directory);
        let child = self.seen.entry(entry.ino).or_default();
        child.names = child.names.saturating_add(1);
        let differs = child.named.is_some_and(|(_, kind)| kind != entry.kind);
        child.named = Some((dir, entry.kind));
        if differs {
            self.wrong(entry.ino, Wrong::Kind);
        }
        match self.tables.find(dir, &entry.name) {
            Ok(Some((found, _))) if found == cookie => {}
            Ok(_) | Err(ReadError::Tampered) => self.wrong(dir, Wrong::Index),
            Err(ReadError::Store(_)) => self.wrong(dir, Wrong::Unanswered),
        }
        Ok(())
    }

    fn meet_extent(&mut self, start: u64, mapped: Mapped) -> ControlFlow<()> {
        let len = mapped.live();
        self.group.overlaps |= start < self.group.end;
        self.group.end = start.saturating_add(len);
        self.group.mapped = self.group.mapped.saturating_add(len);
        let Mapped::Data(extent) = mapped else {
            self.unwritten = self.unwritten.saturating_add(len);
            return (self.watch)(0);
        };
        self.group.data_end = self.group.end;
        *self.group.live.entry(extent.segment).or_default() += len;
        if let Some(read) = self.read.as_mut() {
            let unread = unread(&extent, start, read);
            self.audit.bytes += len;
            self.group.is_unanswered |= unread.is_unanswered;
            for range in unread.ranges {
                add_range(&mut self.group.lost, range);
            }
        }
        (self.watch)(len)
    }

    /// Judges what belongs to one number.
    fn end_group(&mut self) {
        let group = std::mem::take(&mut self.group);
        let Some(number) = group.number else {
            return;
        };
        for (id, bytes) in &group.live {
            *self.live.entry(*id).or_default() += bytes;
            self.refs.0 += 1;
            let key = schema::segref_key(*id, number);
            let (map, nodes) = self.tables.map();
            let found = map.get(nodes, &key, |value| schema::parse_number(value).ok());
            if let Ok(found) = found
                && found.flatten() != Some(*bytes)
            {
                self.audit.accounts.insert(LIVE);
            }
        }
        match (&group.record, self.values.remove(&number)) {
            (Some(record), None) => self.judge_inode(number, &group, record),
            (None, Some((owner, len, name))) => {
                let is_whole = !group.overlaps
                    && group.mapped == u64::from(len)
                    && group.end == u64::from(len)
                    && group.lost.is_empty();
                if !is_whole {
                    self.lose_value(owner, name, group.is_unanswered);
                }
            }
            (Some(record), Some((owner, _, name))) => {
                self.lose_value(owner, name, false);
                self.judge_inode(number, &group, record);
            }
            (None, None) => {
                let has_any = group.entries + group.hashes + group.mapped > 0 || group.xattrs > 0;
                if has_any {
                    self.wrong(number, Wrong::Record);
                    self.lose_contents(number, &group);
                }
            }
        }
    }

    fn judge_inode(&mut self, number: Ino, group: &Group, record: &InodeRecord) {
        self.audit.files += 1;
        self.seen.entry(number).or_default().record =
            Some((record.kind, record.nlink, record.parent));
        self.lose_contents(number, group);
        let fits = match record.kind {
            FileKind::Regular => {
                let is_twice = !record.inline.is_empty() && group.data_end > 0;
                !is_twice && record.allocated == group.mapped && group.data_end <= record.size
            }
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::Symlink => group.mapped == 0 && record.allocated == 0,
        };
        if !fits || group.overlaps {
            self.lose_mapped(number, record);
        }
        if record.kind == FileKind::Directory {
            if group.entries != group.hashes {
                self.wrong(number, Wrong::Index);
            }
            if self.lost.iter().any(|lost| lost.may_have_names_of(number)) {
                self.wrong(number, Wrong::Names);
            }
        } else if group.entries + group.hashes > 0 {
            self.wrong(number, Wrong::Kind);
        }
        if record.xattrs != group.xattrs {
            self.wrong(number, Wrong::Attributes);
        }
    }

    /// Bytes that do not open.
    fn lose_contents(&mut self, number: Ino, group: &Group) {
        if group.lost.is_empty() {
            return;
        }
        let wrong = match group.is_unanswered {
            true => Wrong::Unanswered,
            false => Wrong::Contents,
        };
        self.wrong(number, wrong);
        let hurt = self.audit.hurt.entry(number).or_default();
        hurt.ranges.extend(group.lost.iter().cloned());
    }

    /// What the map has of a file is not what its record says: parts of the map are lost, or the
    /// volume contradicts itself.
    fn lose_mapped(&mut self, number: Ino, record: &InodeRecord) {
        let mut is_lost = false;
        for lost in self.lost {
            let Some(range) = lost.offsets(number) else {
                continue;
            };
            let range = range.start..range.end.min(record.size);
            if !range.is_empty() {
                is_lost = true;
                let hurt = self.audit.hurt.entry(number).or_default();
                hurt.ranges.push(range);
                hurt.ranges.sort_by_key(|range| range.start);
            }
        }
        let wrong = if is_lost {
            Wrong::Contents
        } else {
            Wrong::Extents
        };
        self.wrong(number, wrong);
    }

    fn lose_value(&mut self, owner: Ino, name: Vec<u8>, is_unanswered: bool) {
        let wrong = match is_unanswered {
            true => Wrong::Unanswered,
            false => Wrong::Attributes,
        };
        self.wrong(owner, wrong);
        self.audit
            .hurt
            .entry(owner)
            .or_default()
            .values
            .insert(name);
    }

    fn judge_values(&mut self) {
        // Their maps never came; a value without a byte has none.
        for (_, (owner, len, name)) in std::mem::take(&mut self.values) {
            if len > 0 {
                self.lose_value(owner, name, false);
            }
        }
    }

    fn judge_inodes(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        for (ino, inode) in &seen {
            let Some((kind, nlink, parent)) = inode.record else {
                let is_known = self.audit.hurt.contains_key(ino);
                if !is_known {
                    self.wrong(*ino, Wrong::Gone);
                }
                continue;
            };
            let names = inode.names + u32::from(*ino == Ino::ROOT);
            match (names, inode.is_removed) {
                (0, false) => self.wrong(*ino, Wrong::Nameless),
                (1.., true) => self.wrong(*ino, Wrong::Removed),
                _ => {}
            }
            if inode.named.is_some_and(|(_, named)| named != kind) {
                self.wrong(*ino, Wrong::Kind);
            }
            let is_directory = kind == FileKind::Directory;
            let links = match (is_directory, inode.is_removed) {
                (true, false) => inode.directories.saturating_add(2),
                (true, true) => 0,
                (false, _) => inode.names,
            };
            if nlink != links && (names > 0 || inode.is_removed) {
                self.wrong(*ino, Wrong::Links);
            }
            let strays = inode.named.is_some_and(|(dir, _)| dir != parent) || names > 1;
            if is_directory && strays {
                self.wrong(*ino, Wrong::Parent);
            }
        }
        self.judge_directories(&seen);
        if seen
            .get(&Ino::ROOT)
            .is_none_or(|root| root.record.is_none())
        {
            self.wrong(Ino::ROOT, Wrong::Record);
        }
    }

    /// Directories that lie in themselves.
    fn judge_directories(&mut self, seen: &BTreeMap<Ino, Seen>) {
        let mut rooted = BTreeSet::from([Ino::ROOT]);
        for (ino, inode) in seen {
            let is_directory = matches!(inode.record, Some((FileKind::Directory, ..)));
            if !is_directory || rooted.contains(ino) {
                continue;
            }
            let (mut way, mut at) = (BTreeSet::new(), *ino);
            while !rooted.contains(&at) && way.insert(at) {
                match seen.get(&at).and_then(|inode| inode.named) {
                    Some((above, _)) => at = above,
                    // Without a name, which is said already.
                    None => {
                        rooted.insert(at);
                    }
                }
            }
            if !rooted.contains(&at) {
                self.wrong(*ino, Wrong::Parent);
            }
            rooted.append(&mut way);
        }
    }

    fn judge_accounts(&mut self) {
        if !self.lost.is_empty() {
            // What is lost is missing in every sum.
            return;
        }
        let counters = self.tables.counters();
        let all: u64 = self.live.values().sum();
        let counted =
            |(id, live): (&SegmentId, &u64)| *live == self.live.get(id).copied().unwrap_or(0);
        let known = self.live.keys().all(|id| self.segments.contains_key(id));
        let fits = self.refs.0 == self.refs.1 && known && all == counters.live;
        if !fits || !self.segments.iter().all(counted) {
            self.audit.accounts.insert(LIVE);
        }
        if counters.files != self.audit.files {
            self.audit.accounts.insert("the number of inodes is wrong");
        }
        if counters.unwritten != self.unwritten {
            self.audit
                .accounts
                .insert("the number of promised bytes is wrong");
        }
    }

    fn wrong(&mut self, ino: Ino, wrong: Wrong) {
        self.audit.hurt.entry(ino).or_default().wrongs.insert(wrong);
    }
}

const LIVE: &str = "live bytes of segments do not add up";

impl Wrong {
    /// What it is, in words that follow the name of a file.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Attributes => "extended attributes are lost",
            Self::Contents => "contents are lost",
            Self::Extents => "its ranges do not fit its size",
            Self::Gone => "the file behind the name is lost",
            Self::Index => "the index of its names is damaged",
            Self::Kind => "a name says another kind of file",
            Self::Links => "its link count is wrong",
            Self::Nameless => "its name is lost",
            Self::Names => "names in it may be lost",
            Self::Parent => "it is not where it says it is",
            Self::Record => "its attributes are lost",
            Self::Removed => "it counts as removed",
            Self::Unanswered => "the store does not answer for it",
        }
    }

    /// Its name in figures for machines.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Attributes => "attributes",
            Self::Contents => "contents",
            Self::Extents => "extents",
            Self::Gone => "gone",
            Self::Index => "index",
            Self::Kind => "kind",
            Self::Links => "links",
            Self::Nameless => "nameless",
            Self::Names => "names",
            Self::Parent => "parent",
            Self::Record => "record",
            Self::Removed => "removed",
            Self::Unanswered => "unanswered",
        }
    }
}
