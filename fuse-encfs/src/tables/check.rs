//! Core: what must hold between the items of the map, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::{Inconsistent, SegmentEntry, Tables, XattrEntry};
use crate::format::{FileKind, Ino, InodeRecord, Mapped, SegmentId};
use crate::schema::{self, Key};

/// Everything in the map, by kind.
#[derive(Default)]
struct Items {
    records: BTreeMap<Ino, InodeRecord>,
    entries: BTreeMap<(Ino, u64), super::Dirent>,
    hashes: BTreeMap<(Ino, u64, u16), u64>,
    mapped: BTreeMap<Ino, BTreeMap<u64, Mapped>>,
    xattrs: BTreeMap<Ino, Vec<XattrEntry>>,
    segments: BTreeMap<SegmentId, SegmentEntry>,
    segrefs: BTreeMap<(SegmentId, Ino), u64>,
    orphans: BTreeSet<Ino>,
}

impl Tables {
    /// Checks what must hold between the items. Linear in their number.
    pub(crate) fn check(&self) -> Result<(), Inconsistent> {
        let items = self.items()?;
        items.check_maps(self.counters.live)?;
        items.check_names(self)?;
        if items.records.len() as u64 == self.counters.files {
            Ok(())
        } else {
            Err(Inconsistent("the number of inodes is wrong"))
        }
    }

    fn items(&self) -> Result<Items, Inconsistent> {
        let mut items = Items::default();
        self.scan(&[], |key, value| {
            match key {
                Key::Record(ino) => {
                    items.records.insert(ino, schema::parse_record(value)?);
                }
                Key::Entry(dir, cookie) => {
                    let entry = schema::parse_entry(value)?;
                    items.entries.insert((dir, cookie), entry);
                }
                Key::Hash(dir, hash, n) => {
                    let cookie = schema::parse_number(value)?;
                    items.hashes.insert((dir, hash, n), cookie);
                }
                Key::Extent(map, start) => {
                    let mapped = Mapped::parse(value)?;
                    items.mapped.entry(map).or_default().insert(start, mapped);
                }
                Key::Xattr(ino, _) => {
                    let entry = schema::parse_xattr(value)?;
                    items.xattrs.entry(ino).or_default().push(entry);
                }
                Key::Segment(id) => {
                    items.segments.insert(id, schema::parse_segment(value)?);
                }
                Key::SegRef(id, map) => {
                    let live = schema::parse_number(value)?;
                    items.segrefs.insert((id, map), live);
                }
                Key::Orphan(ino) => {
                    items.orphans.insert(ino);
                }
            }
            Ok(ControlFlow::Continue(()))
        })
        .map_err(|_| Inconsistent("the map cannot be read"))?;
        Ok(items)
    }
}

impl Items {
    fn check_maps(&self, live_total: u64) -> Result<(), Inconsistent> {
        let mut segrefs: BTreeMap<(SegmentId, Ino), u64> = BTreeMap::new();
        let mut values = BTreeMap::new();
        for entry in self.xattrs.values().flatten() {
            if let XattrEntry::Extents { map, len } = entry {
                values.insert(*map, u64::from(*len));
            }
        }
        for (map, mapped) in &self.mapped {
            let (mut end, mut bytes) = (0, 0);
            for (start, mapped) in mapped {
                if *start < end {
                    return Err(Inconsistent("extents overlap"));
                }
                end = start + mapped.live();
                bytes += mapped.live();
                if let Mapped::Data(extent) = mapped {
                    *segrefs.entry((extent.segment, *map)).or_default() += mapped.live();
                }
            }
            let fits = match (self.records.get(map), values.get(map)) {
                (Some(record), None) => {
                    let data_end = mapped.iter().rev().find_map(|(start, m)| match m {
                        Mapped::Data(_) => Some(start + m.live()),
                        Mapped::Unwritten(_) => None,
                    });
                    record.kind == FileKind::Regular
                        && record.allocated == bytes
                        && data_end.is_none_or(|end| end <= record.size)
                }
                (None, Some(len)) => *len == end,
                _ => false,
            };
            if !fits {
                return Err(Inconsistent("extents do not fit what they belong to"));
            }
        }
        let allocates = |ino: &Ino, record: &InodeRecord| {
            record.allocated > 0 && !self.mapped.contains_key(ino)
        };
        if self
            .records
            .iter()
            .any(|(ino, record)| allocates(ino, record))
        {
            return Err(Inconsistent("an inode counts bytes that it has not"));
        }
        let mut live: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for ((id, _), bytes) in &segrefs {
            *live.entry(*id).or_default() += bytes;
        }
        let counted = |(id, entry): (&SegmentId, &SegmentEntry)| {
            entry.live == live.get(id).copied().unwrap_or(0)
        };
        let known = segrefs.keys().all(|(id, _)| self.segments.contains_key(id));
        let all: u64 = live.values().sum();
        if segrefs == self.segrefs
            && known
            && all == live_total
            && self.segments.iter().all(counted)
        {
            Ok(())
        } else {
            Err(Inconsistent("live bytes of segments do not add up"))
        }
    }

    fn check_names(&self, tables: &Tables) -> Result<(), Inconsistent> {
        let mut names: BTreeMap<Ino, u32> = BTreeMap::from([(Ino::ROOT, 1)]);
        for ((dir, _), entry) in &self.entries {
            *names.entry(entry.ino).or_default() += 1;
            let leads = self.records.get(&entry.ino);
            if leads.is_none_or(|record| record.kind != entry.kind) || !self.is_directory(*dir) {
                return Err(Inconsistent("an entry points to no inode of its kind"));
            }
        }
        for ((dir, hash, _), cookie) in &self.hashes {
            let entry = self.entries.get(&(*dir, *cookie));
            if entry.is_none_or(|entry| tables.hasher.hash(&entry.name) != *hash) {
                return Err(Inconsistent("the hash index leads nowhere"));
            }
        }
        if self.hashes.len() != self.entries.len() {
            return Err(Inconsistent("a directory's two indices differ"));
        }
        for (ino, record) in &self.records {
            let names = names.get(ino).copied().unwrap_or(0);
            if (names == 0) != self.orphans.contains(ino) {
                return Err(Inconsistent(
                    "an inode without a name is no orphan, or the reverse",
                ));
            }
            if record.kind != FileKind::Directory && record.nlink != names {
                return Err(Inconsistent("a link count is wrong"));
            }
            let xattrs = self.xattrs.get(ino).map_or(0, Vec::len);
            if record.xattrs as usize != xattrs {
                return Err(Inconsistent("the number of extended attributes is wrong"));
            }
        }
        let is_lost = |ino: &&Ino| !self.records.contains_key(ino);
        if self
            .xattrs
            .keys()
            .chain(&self.orphans)
            .any(|ino| is_lost(&ino))
        {
            return Err(Inconsistent("something of an inode that is not there"));
        }
        Ok(())
    }

    fn is_directory(&self, ino: Ino) -> bool {
        let record = self.records.get(&ino);
        record.is_some_and(|record| record.kind == FileKind::Directory)
    }
}
