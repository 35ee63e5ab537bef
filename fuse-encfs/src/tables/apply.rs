//! Core: what each operation does to the tables.

use super::extents::FileMap;
use super::{Content, Dirent, FIRST_COOKIE, Inconsistent, Inode, SegmentEntry, Tables};
use crate::format::{
    AttrChange, FileKind, Ino, InodeRecord, NewNode, Op, RenameMode, SegmentId, SegmentKind,
    Timestamp, Written,
};

type Applied = Result<(), Inconsistent>;

/// Set-user-id, set-group-id and execute by the group.
const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;

impl Tables {
    /// Applies an operation, whose number is `ticket`: by the same steps whether it happens for
    /// the first time or is replayed. After an error the tables are void.
    pub(crate) fn apply(&mut self, op: &Op, ticket: u64) -> Applied {
        self.ticket = ticket;
        match op {
            Op::Open(open) => {
                let entry = SegmentEntry {
                    kind: SegmentKind::Log,
                    segment: open.segment,
                };
                self.add_segment(open.id, entry)
            }
            Op::Roll(_) | Op::Checkpoint(_) => Ok(()),
            Op::SegNew(new) => self.add_segment(
                new.id,
                SegmentEntry {
                    kind: new.kind,
                    segment: new.segment,
                },
            ),
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
            Op::SetAttr { ino, change } => self.set_attr(*ino, change),
            Op::Write(written) => self.write(written),
            Op::Truncate { ino, size, time } => self.truncate(*ino, *size, *time),
            Op::Punch {
                ino,
                start,
                end,
                time,
            } => {
                self.file(*ino)?.punch(*start..*end)?;
                self.inode_mut(*ino)?.stamp(*time);
                Ok(())
            }
            Op::Move {
                map,
                start,
                from,
                to,
            } => self.file(*map)?.relocate(*start, *from, *to),
            Op::Trim { map, from, limit } => self.file(*map)?.trim(*from, *limit).map(|_| ()),
            Op::Reap { ino, limit } => self.reap(*ino, *limit),
        }
    }

    fn add_segment(&mut self, id: SegmentId, entry: SegmentEntry) -> Applied {
        let next =
            id.0.checked_add(1)
                .ok_or(Inconsistent("segment numbers ran out"))?;
        self.counters.next_segment = self.counters.next_segment.max(SegmentId(next));
        match self.segments.insert(id, entry) {
            None => Ok(()),
            Some(_) => Err(Inconsistent("a segment number is used twice")),
        }
    }

    fn drop_segment(&mut self, id: SegmentId) -> Applied {
        if self.is_referenced(id) || self.segments.remove(&id).is_none() {
            return Err(Inconsistent(
                "a segment is dropped that is in use or unknown",
            ));
        }
        Ok(())
    }

    fn create(&mut self, node: &NewNode) -> Applied {
        if node.ino < self.counters.next_ino {
            return Err(Inconsistent("an inode number is used twice"));
        }
        let is_directory = node.kind == FileKind::Directory;
        self.counters.next_ino = Ino(node.ino.0.saturating_add(1));
        self.inodes.insert(node.ino, Inode::new(node.record()));
        self.inode_mut(node.ino)?;
        let entry = Dirent {
            ino: node.ino,
            kind: node.kind,
            name: node.name.clone(),
        };
        self.add_entry(node.parent, entry, node.time)?;
        if is_directory {
            self.inode_mut(node.parent)?.add_links(1)?;
        }
        Ok(())
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8], time: Timestamp) -> Applied {
        let inode = self.inode_mut(ino)?;
        if inode.record.kind == FileKind::Directory || inode.record.nlink == 0 {
            return Err(Inconsistent("a link to a directory or to an orphan"));
        }
        inode.add_links(1)?;
        inode.record.ctime = time;
        let entry = Dirent {
            ino,
            kind: inode.record.kind,
            name: name.to_vec(),
        };
        self.add_entry(parent, entry, time)
    }

    fn unlink(&mut self, parent: Ino, name: &[u8], time: Timestamp) -> Applied {
        let entry = self.remove_entry(parent, name, time)?;
        self.lose_name(parent, &entry, time)
    }

    /// What follows for an inode from the loss of a name.
    fn lose_name(&mut self, parent: Ino, entry: &Dirent, time: Timestamp) -> Applied {
        let inode = self.inode_mut(entry.ino)?;
        inode.record.ctime = time;
        if let Content::Directory(directory) = &inode.content {
            if !directory.is_empty() {
                return Err(Inconsistent("a directory that is not empty loses its name"));
            }
            inode.record.nlink = 0;
            self.inode_mut(parent)?.add_links(-1)?;
        } else {
            inode.add_links(-1)?;
        }
        if self.inode_mut(entry.ino)?.record.nlink == 0 {
            self.orphans.insert(entry.ino);
        }
        Ok(())
    }

    fn rename(&mut self, from: &(Ino, Vec<u8>), to: &(Ino, Vec<u8>), time: Timestamp) -> Applied {
        let moved = self.remove_entry(from.0, &from.1, time)?;
        if self.has_entry(to.0, &to.1)? {
            let replaced = self.remove_entry(to.0, &to.1, time)?;
            self.lose_name(to.0, &replaced, time)?;
        }
        let (ino, kind) = (moved.ino, moved.kind);
        self.add_entry(
            to.0,
            Dirent {
                name: to.1.clone(),
                ..moved
            },
            time,
        )?;
        self.inode_mut(ino)?.record.ctime = time;
        if kind == FileKind::Directory {
            self.reparent(ino, from.0, to.0)?;
        }
        Ok(())
    }

    fn exchange(&mut self, a: &(Ino, Vec<u8>), b: &(Ino, Vec<u8>), time: Timestamp) -> Applied {
        let (at_a, at_b) = (self.entry(a.0, &a.1)?, self.entry(b.0, &b.1)?);
        for ((parent, name), other) in [(a, &at_b), (b, &at_a)] {
            let cookie = self.cookie(*parent, name)?;
            let inode = self.inode_mut(*parent)?;
            inode.stamp(time);
            let Content::Directory(directory) = &mut inode.content else {
                return Err(Inconsistent("entries of no directory"));
            };
            let entry = directory.entry_mut(cookie).ok_or(Inconsistent("entry"))?;
            (entry.ino, entry.kind) = (other.ino, other.kind);
            self.inode_mut(other.ino)?.record.ctime = time;
        }
        for (entry, old, new) in [(&at_a, a.0, b.0), (&at_b, b.0, a.0)] {
            if entry.kind == FileKind::Directory {
                self.reparent(entry.ino, old, new)?;
            }
        }
        Ok(())
    }

    fn reparent(&mut self, ino: Ino, old: Ino, new: Ino) -> Applied {
        if old != new {
            self.inode_mut(old)?.add_links(-1)?;
            self.inode_mut(new)?.add_links(1)?;
            self.inode_mut(ino)?.record.parent = new;
        }
        Ok(())
    }

    fn set_attr(&mut self, ino: Ino, change: &AttrChange) -> Applied {
        let record = &mut self.inode_mut(ino)?.record;
        record.perm = change.perm.unwrap_or(record.perm);
        record.uid = change.uid.unwrap_or(record.uid);
        record.gid = change.gid.unwrap_or(record.gid);
        record.atime = change.atime.unwrap_or(record.atime);
        record.mtime = change.mtime.unwrap_or(record.mtime);
        record.ctime = change.ctime.unwrap_or(record.ctime);
        Ok(())
    }

    fn write(&mut self, written: &Written) -> Applied {
        if written
            .extents
            .iter()
            .any(|e| !self.segments.contains_key(&e.segment))
        {
            return Err(Inconsistent("an extent in an unknown segment"));
        }
        let mut file = self.file(written.ino)?;
        let mut at = written.start;
        for extent in &written.extents {
            at = file.place(at, *extent)?;
        }
        let inode = self.inode_mut(written.ino)?;
        inode.record.size = inode.record.size.max(at);
        if let Some(time) = written.time {
            inode.stamp(time);
        }
        if written.kill_privileges {
            inode.record.perm = without_privileges(inode.record.perm);
        }
        Ok(())
    }

    fn truncate(&mut self, ino: Ino, size: u64, time: Option<Timestamp>) -> Applied {
        self.file(ino)?.punch(size..u64::MAX)?;
        let inode = self.inode_mut(ino)?;
        inode.record.size = size;
        if let Some(time) = time {
            inode.stamp(time);
        }
        Ok(())
    }

    fn reap(&mut self, ino: Ino, limit: u32) -> Applied {
        if !self.orphans.contains(&ino) {
            return Err(Inconsistent("an inode with a name is reaped"));
        }
        let has_extents = |inode: &Inode| inode.extents().is_some_and(|e| !e.is_empty());
        if self.inode(ino).is_some_and(has_extents) {
            self.file(ino)?.trim(0, limit)?;
        }
        if !self.inode(ino).is_some_and(has_extents) {
            self.inodes.remove(&ino);
            self.orphans.remove(&ino);
        }
        Ok(())
    }

    fn add_entry(&mut self, parent: Ino, entry: Dirent, time: Timestamp) -> Applied {
        if self.has_entry(parent, &entry.name)? {
            return Err(Inconsistent("a name is taken"));
        }
        let hash = self.hasher.hash(&entry.name);
        let inode = self.inode_mut(parent)?;
        inode.stamp(time);
        let cookie = inode.record.next_cookie.max(FIRST_COOKIE);
        inode.record.next_cookie = cookie.saturating_add(1);
        let Content::Directory(directory) = &mut inode.content else {
            return Err(Inconsistent("entries of no directory"));
        };
        directory
            .insert(hash, cookie, entry)
            .ok_or(Inconsistent("too many names of one hash"))
    }

    fn remove_entry(
        &mut self,
        parent: Ino,
        name: &[u8],
        time: Timestamp,
    ) -> Result<Dirent, Inconsistent> {
        let cookie = self.cookie(parent, name)?;
        let hash = self.hasher.hash(name);
        let inode = self.inode_mut(parent)?;
        inode.stamp(time);
        let Content::Directory(directory) = &mut inode.content else {
            return Err(Inconsistent("entries of no directory"));
        };
        directory
            .remove(hash, cookie)
            .ok_or(Inconsistent("a name is missing"))
    }

    fn has_entry(&self, parent: Ino, name: &[u8]) -> Result<bool, Inconsistent> {
        let directory = self.inode(parent).and_then(Inode::directory);
        let directory = directory.ok_or(Inconsistent("entries of no directory"))?;
        Ok(self.find(directory, name).is_some())
    }

    fn cookie(&self, parent: Ino, name: &[u8]) -> Result<u64, Inconsistent> {
        let directory = self.inode(parent).and_then(Inode::directory);
        let cookie = directory.and_then(|directory| self.find(directory, name));
        cookie.ok_or(Inconsistent("a name is missing"))
    }

    fn entry(&self, parent: Ino, name: &[u8]) -> Result<Dirent, Inconsistent> {
        let cookie = self.cookie(parent, name)?;
        let directory = self.inode(parent).and_then(Inode::directory);
        directory
            .and_then(|d| d.entry(cookie))
            .cloned()
            .ok_or(Inconsistent("a name is missing"))
    }

    fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode, Inconsistent> {
        let inode = self
            .inodes
            .get_mut(&ino)
            .ok_or(Inconsistent("an inode is missing"))?;
        inode.changed = self.ticket;
        Ok(inode)
    }

    fn file(&mut self, ino: Ino) -> Result<FileMap<'_>, Inconsistent> {
        let inode = self
            .inodes
            .get_mut(&ino)
            .ok_or(Inconsistent("an inode is missing"))?;
        inode.changed = self.ticket;
        FileMap::new(ino, inode, &mut self.segrefs)
    }
}

impl Inode {
    fn stamp(&mut self, time: Timestamp) {
        self.record.mtime = time;
        self.record.ctime = time;
    }

    fn add_links(&mut self, n: i32) -> Applied {
        let nlink = self.record.nlink.checked_add_signed(n);
        self.record.nlink = nlink.ok_or(Inconsistent("a link count overflows"))?;
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
            target: self.target.clone(),
        }
    }
}

/// Permission bits without set-user-id, and without set-group-id where it makes a program run as
/// its group (elsewhere it means something else).
pub(crate) fn without_privileges(perm: u16) -> u16 {
    let group = if perm & S_IXGRP != 0 { S_ISGID } else { 0 };
    perm & !(S_ISUID | group)
}
