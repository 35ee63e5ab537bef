//! Core: names.

use std::ops::ControlFlow;

use super::xattr::{inherited, ops_of_inherited};
use super::{Attr, Caller, Fs, inode};
use crate::error::FsError;
use crate::format::{
    AttrChange, FileKind, Ino, NAME_LEN_MAX, NewNode, Op, RenameMode, TARGET_LEN_MAX, Timestamp,
    is_file_name,
};
use crate::journal::Change;
use crate::space::Need;
use crate::tables::{Dirent, Tables};

/// Set-group-id: on a directory, what is made in it gets its group.
const S_ISGID: u16 = 0o2000;
/// Links of one inode at most, as ext4 has it for directories and more than anybody makes.
const LINKS_MAX: u32 = 65_000;

/// What is to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewEntry<'a> {
    pub(crate) kind: FileKind,
    /// Permission bits as the caller asked for them.
    pub(crate) perm: u16,
    /// What the caller's umask takes off them where the directory has no default list.
    pub(crate) umask: u16,
    pub(crate) rdev: u32,
    /// Target, of a symbolic link alone.
    pub(crate) target: &'a [u8],
}

/// How a rename treats a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenameRule {
    Exchange,
    NoReplace,
    Replace,
    /// As `Replace`, and the old name becomes a whiteout of overlayfs.
    Whiteout,
}

/// An entry of a listing.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Where a listing goes on behind this entry.
    pub(crate) cookie: u64,
    pub(crate) name: &'a [u8],
    pub(crate) attr: Attr,
}

impl Fs {
    /// Looks a name up, and counts a lookup of what it leads to.
    pub(crate) fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        let tables = self.journal.tables();
        let entry = find(&tables, parent, name)?.ok_or(FsError::NoEntry)?;
        self.lookups.add(entry.ino);
        // Reaped since the tables were looked at, it may be gone.
        self.getattr(entry.ino)
            .inspect_err(|_| self.forget(entry.ino, 1))
    }

    /// Makes a file, directory, link or device, and counts a lookup of it.
    pub(crate) fn make(
        &self,
        parent: Ino,
        name: &[u8],
        new: &NewEntry<'_>,
        caller: Caller,
    ) -> Result<Attr, FsError> {
        let now = Timestamp::now();
        if new.target.len() > TARGET_LEN_MAX {
            return Err(FsError::NameTooLong);
        }
        if (new.kind == FileKind::Symlink) == new.target.is_empty() {
            return Err(FsError::Invalid);
        }
        self.admit(Need::CHANGE)?;
        let is_file = new.kind == FileKind::Regular;
        let build = |tables: &Tables| {
            free_name(tables, parent, name)?;
            let above = inode(tables, parent)?;
            let is_directory = new.kind == FileKind::Directory;
            if is_directory && above.nlink >= LINKS_MAX {
                return Err(FsError::LinkLimit);
            }
            let inherits = above.perm & S_ISGID != 0;
            let setgid = if inherits && is_directory { S_ISGID } else { 0 };
            let lists = inherited(tables, parent, &above, new)?;
            let ino = tables.counters().next_ino;
            let mut ops = vec![Op::Create(NewNode {
                parent,
                name: name.to_vec(),
                ino,
                kind: new.kind,
                perm: lists.perm | setgid,
                uid: caller.uid,
                gid: if inherits { above.gid } else { caller.gid },
                rdev: new.rdev,
                time: now,
                target: new.target.to_vec(),
            })];
            ops.extend(ops_of_inherited(ino, &lists, now));
            ops.extend(is_file.then(|| stamped(ino, Timestamp::of_tick())));
            Ok(ops)
        };
        let made = self.journal.change(build, |tables| {
            let entry = find(tables, parent, name)?.ok_or(FsError::NoEntry)?;
            self.lookups.add(entry.ino);
            Ok(entry.ino)
        })?;
        self.getattr(made)
    }

    /// Gives an inode one more name, and counts a lookup of it.
    pub(crate) fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        let time = Timestamp::now();
        self.admit(Need::CHANGE)?;
        let build = |tables: &Tables| {
            free_name(tables, parent, name)?;
            let record = inode(tables, ino)?;
            if record.kind == FileKind::Directory {
                return Err(FsError::NotPermitted);
            }
            match record.nlink {
                0 => Err(FsError::NoEntry),
                LINKS_MAX.. => Err(FsError::LinkLimit),
                _ => Ok(vec![Op::Link {
                    ino,
                    parent,
                    name: name.to_vec(),
                    time,
                }]),
            }
        };
        self.journal.change(build, |_| {
            self.lookups.add(ino);
            Ok(())
        })?;
        self.getattr(ino)
    }

    /// Removes a name of what is not a directory.
    pub(crate) fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        self.remove(parent, name, |_, entry| {
            let is_directory = entry.kind == FileKind::Directory;
            if is_directory {
                Err(FsError::IsDirectory)
            } else {
                Ok(())
            }
        })
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        self.remove(parent, name, |tables, entry| {
            if entry.kind != FileKind::Directory {
                return Err(FsError::NotDirectory);
            }
            empty(tables, entry.ino)
        })
    }

    fn remove(
        &self,
        parent: Ino,
        name: &[u8],
        check: impl FnOnce(&Tables, &Dirent) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let time = Timestamp::now();
        let mut removed = Ino(0);
        let build = |tables: &Tables| {
            let entry = find(tables, parent, name)?.ok_or(FsError::NoEntry)?;
            check(tables, &entry)?;
            removed = entry.ino;
            Ok(vec![Op::Unlink {
                parent,
                name: name.to_vec(),
                time,
            }])
        };
        self.journal.change(build, |_| Ok(()))?;
        self.reap(removed)
    }

    /// Moves a name.
    pub(crate) fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        rule: RenameRule,
    ) -> Result<(), FsError> {
        let mut replaced = None;
        let build = |tables: &Tables| {
            let ops = rename_ops(tables, from, to, rule)?;
            replaced = find(tables, to.0, to.1)?.map(|entry| entry.ino);
            let moved = find(tables, from.0, from.1)?.map(|entry| entry.ino);
            // A crash must leave the old contents or the new ones.
            let owes = moved.filter(|_| replaced.is_some());
            Ok(Change { ops, owes })
        };
        self.journal.change(build, |_| Ok(()))?;
        replaced.map_or(Ok(()), |ino| self.reap(ino))
    }

    /// Shows the entries of a directory behind `cookie`, in the order of their making, until
    /// `show` returns false: it had no room for this entry.
    pub(crate) fn list(
        &self,
        dir: Ino,
        cookie: u64,
        mut show: impl FnMut(&Entry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let tables = self.journal.tables();
        let this = inode(&tables, dir)?;
        if this.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        self.note_access(dir, &this);
        let dots = [(1, &b"."[..], dir), (2, &b".."[..], this.parent)];
        for (cookie, name, ino) in dots.into_iter().filter(|(at, ..)| *at > cookie) {
            let attr = self.getattr(ino)?;
            if !show(&Entry { cookie, name, attr }) {
                return Ok(());
            }
        }
        let mut failed = None;
        tables.entries_after(dir, cookie, |cookie, entry| {
            // As it is now, not as in `tables`: what was pending then may be in the map since, and
            // the kernel keeps what it is shown.
            match self.getattr(entry.ino) {
                Ok(attr) => {
                    let name = &entry.name;
                    if show(&Entry { cookie, name, attr }) {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                }
                Err(FsError::NoEntry) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Counts a lookup of an inode that a listing has shown with its attributes.
    pub(crate) fn count_lookup(&self, ino: Ino) {
        self.lookups.add(ino);
    }
}

/// The times of a new file. What is written to it next is stamped by the kernel, by its own clock,
/// and must not look older than the file.
fn stamped(ino: Ino, time: Timestamp) -> Op {
    let change = AttrChange {
        atime: Some(time),
        mtime: Some(time),
        ctime: Some(time),
        ..AttrChange::default()
    };
    Op::SetAttr { ino, change }
}

fn rename_ops(
    tables: &Tables,
    from: (Ino, &[u8]),
    to: (Ino, &[u8]),
    rule: RenameRule,
) -> Result<Vec<Op>, FsError> {
    let moved = find(tables, from.0, from.1)?.ok_or(FsError::NoEntry)?;
    let taken = find(tables, to.0, to.1)?;
    let mode = match (rule, &taken) {
        (RenameRule::Exchange, None) => return Err(FsError::NoEntry),
        (RenameRule::Exchange, Some(other)) => {
            beside(tables, from.0, other)?;
            RenameMode::Exchange
        }
        (RenameRule::NoReplace, Some(_)) => return Err(FsError::Exists),
        (RenameRule::NoReplace | RenameRule::Replace, _) => RenameMode::Replace,
        (RenameRule::Whiteout, _) => RenameMode::Whiteout(tables.counters().next_ino),
    };
    beside(tables, to.0, &moved)?;
    match taken {
        None => free_name(tables, to.0, to.1)?,
        // Two names of one file: POSIX wants nothing to happen.
        Some(taken) if taken.ino == moved.ino => return Ok(Vec::new()),
        Some(taken) if mode != RenameMode::Exchange => can_replace(tables, &moved, &taken)?,
        Some(_) => {}
    }
    let place = |(parent, name): (Ino, &[u8])| (parent, name.to_vec());
    let time = Timestamp::now();
    Ok(vec![Op::Rename {
        from: place(from),
        to: place(to),
        mode,
        time,
    }])
}

/// A directory cannot move below itself.
fn beside(tables: &Tables, target: Ino, moved: &Dirent) -> Result<(), FsError> {
    if moved.kind != FileKind::Directory {
        return Ok(());
    }
    let mut at = target;
    while at != Ino::ROOT {
        if at == moved.ino {
            return Err(FsError::Invalid);
        }
        at = inode(tables, at)?.parent;
    }
    Ok(())
}

fn can_replace(tables: &Tables, moved: &Dirent, taken: &Dirent) -> Result<(), FsError> {
    let is_directory = |entry: &Dirent| entry.kind == FileKind::Directory;
    match (is_directory(moved), is_directory(taken)) {
        (false, false) => Ok(()),
        (false, true) => Err(FsError::IsDirectory),
        (true, false) => Err(FsError::NotDirectory),
        (true, true) => empty(tables, taken.ino),
    }
}

fn empty(tables: &Tables, directory: Ino) -> Result<(), FsError> {
    if tables.is_empty_directory(directory)? {
        Ok(())
    } else {
        Err(FsError::NotEmpty)
    }
}

fn find(tables: &Tables, parent: Ino, name: &[u8]) -> Result<Option<Dirent>, FsError> {
    if inode(tables, parent)?.kind != FileKind::Directory {
        return Err(FsError::NotDirectory);
    }
    if name.len() > NAME_LEN_MAX {
        return Err(FsError::NameTooLong);
    }
    Ok(tables.find(parent, name)?.map(|(_, entry)| entry))
}

/// Checks that a name can be made: a possible one, not taken, in a directory that still is there.
fn free_name(tables: &Tables, parent: Ino, name: &[u8]) -> Result<(), FsError> {
    if find(tables, parent, name)?.is_some() {
        return Err(FsError::Exists);
    }
    if inode(tables, parent)?.nlink == 0 {
        return Err(FsError::NoEntry);
    }
    if is_file_name(name) {
        Ok(())
    } else {
        Err(FsError::Invalid)
    }
}
