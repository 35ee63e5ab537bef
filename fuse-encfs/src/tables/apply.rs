//! Core: what each operation does to the map.

use super::extents::{FileMap, added};
use super::{ApplyError, Dirent, FIRST_COOKIE, Inconsistent, SegmentEntry, Tables, XattrEntry};
use crate::format::{
    AttrChange, Extent, FileKind, Ino, InodeRecord, Mapped, NewNode, Op, RenameMode, SegmentId,
    SegmentKind, SegmentRef, Shared, Timestamp, Written, XattrValue,
};
use crate::schema;

type Applied = Result<(), ApplyError>;

/// Set-user-id, set-group-id and execute by the group.
const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;

impl Tables {
    /// Applies an operation: by the same steps whether it happens for the first time or is
    /// replayed. After an error the tables are void.
    pub(crate) fn apply(&mut self, op: &Op) -> Applied {
        match op {
            Op::Open(open) => {
                let known = self.segment(open.id)?;
                // One that was made ahead has been announced.
                if known.is_some_and(|e| e.kind == SegmentKind::Log && e.segment == open.segment) {
                    return Ok(());
                }
                self.add_segment(open.id, SegmentKind::Log, open.segment)
            }
            Op::Roll(_) | Op::Checkpoint(_) => Ok(()),
            Op::SegNew(new) => self.add_segment(new.id, new.kind, new.segment),
            Op::SegDrop(id) => self.drop_segment(*id),
            Op::Create(node) => self.create(node),
            Op::Link {
                ino,
                parent,
                name,
                time,
            } => self.link(*ino, *parent, name, *time),
            Op::Unlink { parent, name, time } => self.unlink(*parent, name, *time),
            Op::Rename {
                from,
                to,
                mode,
                time,
            } => match mode {
                RenameMode::Exchange => self.exchange(from, to, *time),
                RenameMode::Replace => self.rename(from, to, *time),
                RenameMode::Whiteout(ino) => {
                    self.rename(from, to, *time)?;
                    self.create(&NewNode::whiteout(from, *ino, *time))
                }
            },
            Op::SetAttr { ino, change } => self.change(*ino, |record| set_attr(record, change)),
            Op::Write(_)
            | Op::Truncate { .. }
            | Op::Punch { .. }
            | Op::Inline { .. }
            | Op::Allocate { .. }
            | Op::Share(_)
            | Op::Move { .. }
            | Op::Trim { .. } => self.apply_to_contents(op),
            Op::Reap { ino, limit } => self.reap(*ino, *limit),
            Op::SetXattr {
                ino,
                name,
                value,
                time,
            } => self.set_xattr(*ino, name, value, *time),
            Op::RemoveXattr { ino, name, time } => {
                self.drop_xattr(*ino, name)?;
                self.change(*ino, |record| {
                    record.xattrs = record.xattrs.saturating_sub(1);
                    record.ctime = *time;
                    Ok(())
                })
            }
        }
    }

    fn apply_to_contents(&mut self, op: &Op) -> Applied {
        match op {
            Op::Write(written) => self.write(written),
            Op::Truncate { ino, size, time } => self.truncate(*ino, *size, *time),
            Op::Punch {
                ino,
                start,
                end,
                time,
            } => self.with_map(
                *ino,
                |file| file.punch(&(*start..*end)),
                |record| {
                    let len = record.inline.len() as u64;
                    let hole = index((*start).min(len))..index((*end).min(len));
                    if let Some(bytes) = record.inline.get_mut(hole) {
                        bytes.fill(0);
                    }
                    record.stamp(*time);
                },
            ),
            Op::Inline {
                ino,
                bytes,
                size,
                time,
                kill_privileges,
            } => self.with_map(
                *ino,
                |file| file.punch(&(0..u64::MAX)),
                |record| {
                    record.inline.clone_from(bytes);
                    record.size = *size;
                    record.written(*time, *kill_privileges);
                },
            ),
            Op::Allocate { ino, start, end } => {
                self.with_map(*ino, |file| file.allocate(&(*start..*end)), |_| {})
            }
            Op::Share(shared) => self.share(shared),
            Op::Move {
                map,
                start,
                from,
                to,
            } => {
                let mut file = FileMap::new(self, *map);
                file.relocate(*start, *from, *to)?;
                file.finish().map(|_| ())
            }
            Op::Trim { map, from, limit } => {
                self.with_map(*map, |file| file.trim(*from, *limit).map(|_| ()), |_| {})
            }
            Op::Checkpoint(_)
            | Op::Create(_)
            | Op::Link { .. }
            | Op::Open(_)
            | Op::Reap { .. }
            | Op::RemoveXattr { .. }
            | Op::Rename { .. }
            | Op::Roll(_)
            | Op::SegDrop(_)
            | Op::SegNew(_)
            | Op::SetAttr { .. }
            | Op::SetXattr { .. }
            | Op::Unlink { .. } => Err(Inconsistent("an operation on contents").into()),
        }
    }

    fn add_segment(&mut self, id: SegmentId, kind: SegmentKind, segment: SegmentRef) -> Applied {
        let next = id.0.checked_add(1).map(SegmentId);
        let next = next.ok_or(Inconsistent("segment numbers ran out"))?;
        self.counters.next_segment = self.counters.next_segment.max(next);
        let entry = SegmentEntry {
            kind,
            segment,
            live: 0,
        };
        if self.put(&schema::segment_key(id), &schema::segment_value(&entry))? {
            return Err(Inconsistent("a segment number is used twice").into());
        }
        Ok(())
    }

    fn drop_segment(&mut self, id: SegmentId) -> Applied {
        let is_dead = self.segment(id)?.is_some_and(|entry| entry.live == 0);
        if !is_dead {
            return Err(Inconsistent("a segment is dropped that is in use or unknown").into());
        }
        self.remove(&schema::segment_key(id))?;
        Ok(())
    }

    fn create(&mut self, node: &NewNode) -> Applied {
        self.take_number(node.ino)?;
        self.counters.files = added(self.counters.files, 1)?;
        self.put_record(node.ino, &node.record())?;
        let entry = Dirent {
            ino: node.ino,
            kind: node.kind,
            name: node.name.clone(),
        };
        let links = i32::from(node.kind == FileKind::Directory);
        self.add_entry(node.parent, &entry, links, node.time)
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8], time: Timestamp) -> Applied {
        let mut kind = FileKind::Directory;
        self.change(ino, |record| {
            kind = record.kind;
            if kind == FileKind::Directory || record.nlink == 0 {
                return Err(Inconsistent("a link to a directory or to an orphan"));
            }
            record.ctime = time;
            record.add_links(1)
        })?;
        let name = name.to_vec();
        self.add_entry(parent, &Dirent { ino, kind, name }, 0, time)
    }

    fn unlink(&mut self, parent: Ino, name: &[u8], time: Timestamp) -> Applied {
        let (_, entry) = self.remove_entry(parent, name, time)?;
        self.lose_name(parent, &entry, time)
    }

    /// What follows for an inode from the loss of a name.
    fn lose_name(&mut self, parent: Ino, entry: &Dirent, time: Timestamp) -> Applied {
        let is_directory = entry.kind == FileKind::Directory;
        if is_directory {
            if !self.is_empty_directory(entry.ino)? {
                return Err(Inconsistent("a directory that is not empty loses its name").into());
            }
            self.change(parent, |record| record.add_links(-1))?;
        }
        let mut is_last = false;
        self.change(entry.ino, |record| {
            record.ctime = time;
            if is_directory {
                record.nlink = 0;
            } else {
                record.add_links(-1)?;
            }
            is_last = record.nlink == 0;
            Ok(())
        })?;
        if is_last {
            self.put(&schema::orphan_key(entry.ino), &[])?;
        }
        Ok(())
    }

    fn rename(&mut self, from: &(Ino, Vec<u8>), to: &(Ino, Vec<u8>), time: Timestamp) -> Applied {
        let (cookie, moved) = self.remove_entry(from.0, &from.1, time)?;
        if self.find(to.0, &to.1)?.is_some() {
            let (_, replaced) = self.remove_entry(to.0, &to.1, time)?;
            self.lose_name(to.0, &replaced, time)?;
        }
        let entry = Dirent {
            name: to.1.clone(),
            ..moved
        };
        if from.0 == to.0 {
            // Whoever lists the directory meanwhile sees the entry once, by whichever name.
            self.put_entry(to.0, cookie, &entry)?;
        } else {
            self.add_entry(to.0, &entry, 0, time)?;
        }
        self.moved(&entry, from.0, to.0, time)
    }

    fn exchange(&mut self, a: &(Ino, Vec<u8>), b: &(Ino, Vec<u8>), time: Timestamp) -> Applied {
        let missing = Inconsistent("a name is missing");
        let (cookie_a, at_a) = self.find(a.0, &a.1)?.ok_or(missing)?;
        let (cookie_b, at_b) = self.find(b.0, &b.1)?.ok_or(missing)?;
        for (dir, cookie, here, other) in
            [(a.0, cookie_a, &at_a, &at_b), (b.0, cookie_b, &at_b, &at_a)]
        {
            let entry = Dirent {
                ino: other.ino,
                kind: other.kind,
                name: here.name.clone(),
            };
            self.put(
                &schema::entry_key(dir, cookie),
                &schema::entry_value(&entry),
            )?;
            self.change(dir, |record| {
                record.stamp(time);
                Ok(())
            })?;
        }
        self.moved(&at_a, a.0, b.0, time)?;
        self.moved(&at_b, b.0, a.0, time)
    }

    /// What follows for an inode whose name went from one directory to another.
    fn moved(&mut self, entry: &Dirent, old: Ino, new: Ino, time: Timestamp) -> Applied {
        let is_reparented = entry.kind == FileKind::Directory && old != new;
        if is_reparented {
            self.change(old, |record| record.add_links(-1))?;
            self.change(new, |record| record.add_links(1))?;
        }
        self.change(entry.ino, |record| {
            record.ctime = time;
            if is_reparented {
                record.parent = new;
            }
            Ok(())
        })
    }

    /// Places extents. That ends what a small file had inline: who writes to one writes it all.
    fn write(&mut self, written: &Written) -> Applied {
        let mut end = written.start;
        let place = |file: &mut FileMap<'_>| {
            for extent in &written.extents {
                end = file.place(end, Mapped::Data(*extent))?;
            }
            Ok(())
        };
        let mut file = FileMap::new(self, written.ino);
        let placed: Applied = { place }(&mut file);
        placed?;
        let allocated = file.finish()?;
        self.change(written.ino, |record| {
            record.allocated = added(record.allocated, allocated)?;
            record.inline.clear();
            record.size = record.size.max(end);
            record.written(written.time, written.kill_privileges);
            Ok(())
        })
    }

    fn truncate(&mut self, ino: Ino, size: u64, time: Option<Timestamp>) -> Applied {
        self.with_map(
            ino,
            |file| file.punch(&(size..u64::MAX)),
            |record| {
                record.inline.truncate(index(size));
                record.size = size;
                record.written(time, false);
            },
        )
    }

    fn share(&mut self, shared: &Shared) -> Applied {
        let end = |start: u64| start.checked_add(shared.len).ok_or(Inconsistent("offset"));
        let source = shared.from_start..end(shared.from_start)?;
        let target = shared.to_start..end(shared.to_start)?;
        let found = FileMap::new(self, shared.from).overlapping(&source)?;
        let copy = |file: &mut FileMap<'_>| {
            file.punch(&target)?;
            for (start, mapped) in &found {
                let Some((at, piece)) = clipped(*start, *mapped, &source) else {
                    continue;
                };
                // What was only promised to the source is a hole in the copy.
                if let Mapped::Data(_) = piece {
                    file.place(target.start + (at - source.start), piece)?;
                }
            }
            Ok(())
        };
        self.with_map(shared.to, copy, |record| {
            record.size = record.size.max(target.end);
            record.stamp(shared.time);
        })
    }

    /// Changes what the map of a file has, and then its record.
    fn with_map(
        &mut self,
        ino: Ino,
        map: impl FnOnce(&mut FileMap<'_>) -> Applied,
        record: impl FnOnce(&mut InodeRecord),
    ) -> Applied {
        let mut file = FileMap::new(self, ino);
        map(&mut file)?;
        let allocated = file.finish()?;
        self.change(ino, |r| {
            if r.kind != FileKind::Regular {
                return Err(Inconsistent("extents of no file"));
            }
            r.allocated = added(r.allocated, allocated)?;
            record(r);
            Ok(())
        })
    }

    fn reap(&mut self, ino: Ino, limit: u32) -> Applied {
        if !self.is_orphan(ino)? {
            return Err(Inconsistent("an inode with a name is reaped").into());
        }
        let mut file = FileMap::new(self, ino);
        let is_empty = file.trim(0, limit)?;
        file.finish()?;
        if !is_empty {
            return Ok(());
        }
        let mut names = Vec::new();
        self.xattrs(ino, |name, _| names.push(name.to_vec()))?;
        for name in names {
            self.drop_xattr(ino, &name)?;
        }
        self.remove(&schema::record_key(ino))?;
        self.remove(&schema::orphan_key(ino))?;
        self.counters.files = added(self.counters.files, -1)?;
        Ok(())
    }

    fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &XattrValue, time: Timestamp) -> Applied {
        let is_new = self.xattr(ino, name)?.is_none();
        if !is_new {
            self.drop_xattr(ino, name)?;
        }
        let entry = match value {
            XattrValue::Inline(bytes) => XattrEntry::Inline(bytes.clone()),
            XattrValue::Extents { map, extents } => self.place_value(*map, extents)?,
        };
        self.put(&schema::xattr_key(ino, name), &schema::xattr_value(&entry))?;
        self.change(ino, |record| {
            record.xattrs = record.xattrs.saturating_add(u32::from(is_new));
            record.ctime = time;
            Ok(())
        })
    }

    fn place_value(&mut self, map: Ino, extents: &[Extent]) -> Result<XattrEntry, ApplyError> {
        self.take_number(map)?;
        let mut file = FileMap::new(self, map);
        let mut end = 0;
        for extent in extents {
            end = file.place(end, Mapped::Data(*extent))?;
        }
        file.finish()?;
        let len = u32::try_from(end).map_err(|_| Inconsistent("a value is too long"))?;
        Ok(XattrEntry::Extents { map, len })
    }

    fn drop_xattr(&mut self, ino: Ino, name: &[u8]) -> Applied {
        let missing = Inconsistent("an extended attribute is missing");
        if let XattrEntry::Extents { map, .. } = self.xattr(ino, name)?.ok_or(missing)? {
            let mut file = FileMap::new(self, map);
            file.punch(&(0..u64::MAX))?;
            file.finish()?;
        }
        self.remove(&schema::xattr_key(ino, name))?;
        Ok(())
    }

    /// Takes a number of the sequence of inodes and maps.
    fn take_number(&mut self, ino: Ino) -> Applied {
        if ino < self.counters.next_ino {
            return Err(Inconsistent("an inode number is used twice").into());
        }
        self.counters.next_ino = Ino(ino.0.saturating_add(1));
        Ok(())
    }

    /// Puts an entry behind all others of a directory.
    fn add_entry(&mut self, dir: Ino, entry: &Dirent, links: i32, time: Timestamp) -> Applied {
        let mut cookie = 0;
        self.change(dir, |record| {
            if record.kind != FileKind::Directory {
                return Err(Inconsistent("entries of no directory"));
            }
            cookie = record.next_cookie.max(FIRST_COOKIE);
            record.next_cookie = cookie.saturating_add(1);
            record.stamp(time);
            record.add_links(links)
        })?;
        self.put_entry(dir, cookie, entry)
    }

    /// Puts an entry where a cookie says.
    fn put_entry(&mut self, dir: Ino, cookie: u64, entry: &Dirent) -> Applied {
        let (mut is_taken, mut free) = (false, 0);
        self.same_hash(dir, &entry.name, |n, _, other| {
            is_taken |= other.name == entry.name;
            if n == free {
                free = n.saturating_add(1);
            }
            true
        })?;
        if is_taken || free == u16::MAX {
            return Err(Inconsistent("a name is taken").into());
        }
        let hash = self.hasher.hash(&entry.name);
        self.put(
            &schema::hash_key(dir, hash, free),
            &schema::number_value(cookie),
        )?;
        self.put(&schema::entry_key(dir, cookie), &schema::entry_value(entry))?;
        Ok(())
    }

    /// Removes an entry, and gives it with its cookie.
    fn remove_entry(
        &mut self,
        dir: Ino,
        name: &[u8],
        time: Timestamp,
    ) -> Result<(u64, Dirent), ApplyError> {
        let mut found = None;
        self.same_hash(dir, name, |n, cookie, entry| {
            if entry.name == name {
                found = Some((n, cookie, entry));
            }
            found.is_none()
        })?;
        let (n, cookie, entry) = found.ok_or(Inconsistent("a name is missing"))?;
        self.remove(&schema::hash_key(dir, self.hasher.hash(name), n))?;
        self.remove(&schema::entry_key(dir, cookie))?;
        self.change(dir, |record| {
            record.stamp(time);
            Ok(())
        })?;
        Ok((cookie, entry))
    }

    fn change(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut InodeRecord) -> Result<(), Inconsistent>,
    ) -> Applied {
        let record = self.inode(ino)?;
        let mut record = record.ok_or(Inconsistent("an inode is missing"))?;
        change(&mut record)?;
        Ok(self.put_record(ino, &record)?)
    }
}

fn set_attr(record: &mut InodeRecord, change: &AttrChange) -> Result<(), Inconsistent> {
    record.perm = change.perm.unwrap_or(record.perm);
    record.uid = change.uid.unwrap_or(record.uid);
    record.gid = change.gid.unwrap_or(record.gid);
    record.atime = change.atime.unwrap_or(record.atime);
    record.mtime = change.mtime.unwrap_or(record.mtime);
    record.ctime = change.ctime.unwrap_or(record.ctime);
    Ok(())
}

/// The part of what begins at `start` that lies in `range`, and where that begins.
fn clipped(start: u64, mapped: Mapped, range: &std::ops::Range<u64>) -> Option<(u64, Mapped)> {
    let skipped = range.start.saturating_sub(start);
    let rest = if skipped == 0 {
        mapped
    } else {
        mapped.skip(skipped)?
    };
    let at = start.saturating_add(skipped);
    Some((at, rest.keep(range.end.checked_sub(at)?)?))
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl InodeRecord {
    fn stamp(&mut self, time: Timestamp) {
        self.mtime = time;
        self.ctime = time;
    }

    /// What a write does besides placing its bytes.
    fn written(&mut self, time: Option<Timestamp>, kill_privileges: bool) {
        if let Some(time) = time {
            self.mtime = time;
            // It was written a while ago; what was changed since was changed later.
            self.ctime = self.ctime.max(time);
        }
        if kill_privileges {
            self.perm = without_privileges(self.perm);
        }
    }

    fn add_links(&mut self, n: i32) -> Result<(), Inconsistent> {
        let nlink = self.nlink.checked_add_signed(n);
        self.nlink = nlink.ok_or(Inconsistent("a link count overflows"))?;
        Ok(())
    }
}

impl NewNode {
    fn whiteout(at: &(Ino, Vec<u8>), ino: Ino, time: Timestamp) -> Self {
        Self {
            parent: at.0,
            name: at.1.clone(),
            ino,
            kind: FileKind::CharDevice,
            perm: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            time,
            target: Vec::new(),
        }
    }

    fn record(&self) -> InodeRecord {
        let is_directory = self.kind == FileKind::Directory;
        InodeRecord {
            kind: self.kind,
            perm: self.perm,
            nlink: if is_directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.target.len() as u64,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            parent: if is_directory { self.parent } else { Ino(0) },
            next_cookie: if is_directory { FIRST_COOKIE } else { 0 },
            allocated: 0,
            xattrs: 0,
            inline: self.target.clone(),
        }
    }
}

/// Permission bits without set-user-id, and without set-group-id where it makes a program run as
/// its group (elsewhere it means something else).
pub(crate) fn without_privileges(perm: u16) -> u16 {
    let group = if perm & S_IXGRP != 0 { S_ISGID } else { 0 };
    perm & !(S_ISUID | group)
}
