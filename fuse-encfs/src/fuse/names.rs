//! Edge: requests that find, make, move, list and remove names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileAttr, INodeNo, RenameFlags, ReplyDirectory, ReplyDirectoryPlus, Request};

use super::attributes::{file_attr, ino_no, kind, perm};
use super::{Edge, GENERATION, TTL, caller};
use crate::error::FsError;
use crate::format::{FileKind, Ino};
use crate::fs::{Attr, NewEntry, RenameRule};

/// What is to be made, but for its name and maker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) kind: FileKind,
    /// As the caller asked for it: with FUSE_DONT_MASK the umask comes beside it.
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) rdev: u32,
    pub(super) target: &'a [u8],
}

impl Edge {
    /// What a name leads to. `.` and `..` are asked for when a file handle of name_to_handle_at(2)
    /// is opened whose inode the kernel has forgotten: then `parent` is any inode at all.
    pub(super) fn found(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, FsError> {
        let at = Ino(parent.0);
        let attr = match name.as_bytes() {
            b"." => self.found_by_number(at)?,
            b".." => self.found_by_number(self.parent(at)?)?,
            name => self.fs.lookup(at, name)?,
        };
        Ok(file_attr(attr))
    }

    pub(super) fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        plan: Plan<'_>,
    ) -> Result<FileAttr, FsError> {
        let new = NewEntry {
            kind: plan.kind,
            perm: perm(plan.mode),
            umask: perm(plan.umask),
            rdev: plan.rdev,
            target: plan.target,
        };
        self.fs
            .make(Ino(parent.0), name.as_bytes(), &new, caller(req))
            .map(file_attr)
    }

    pub(super) fn rename_entry(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let rule = rename_rule(flags).ok_or(FsError::Invalid)?;
        let from = (Ino(from.0.0), from.1.as_bytes());
        let to = (Ino(to.0.0), to.1.as_bytes());
        self.fs.rename(from, to, rule)
    }

    pub(super) fn list(
        &self,
        ino: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), FsError> {
        self.fs.list(Ino(ino.0), offset, |entry| {
            let name = OsStr::from_bytes(entry.name);
            let is_full = reply.add(
                ino_no(entry.attr),
                entry.cookie,
                kind(entry.attr.kind),
                name,
            );
            !is_full
        })
    }

    pub(super) fn list_with_attributes(
        &self,
        ino: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), FsError> {
        self.fs.list(Ino(ino.0), offset, |entry| {
            let (name, attr) = (OsStr::from_bytes(entry.name), file_attr(entry.attr));
            let is_full = reply.add(attr.ino, entry.cookie, name, &TTL, &attr, GENERATION);
            // The kernel counts a lookup for each entry but the dots.
            if !is_full && !matches!(entry.name, b"." | b"..") {
                self.fs.count_lookup(entry.attr.ino);
            }
            !is_full
        })
    }

    fn found_by_number(&self, ino: Ino) -> Result<Attr, FsError> {
        // Counted first, so that it is not reaped in between.
        self.fs.count_lookup(ino);
        self.fs.getattr(ino).inspect_err(|_| self.fs.forget(ino, 1))
    }

    fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        const DOT_COOKIE: u64 = 1;
        let mut parent = None;
        self.fs.list(ino, DOT_COOKIE, |entry| {
            parent = Some(entry.attr.ino);
            false
        })?;
        parent.ok_or(FsError::NoEntry)
    }
}

fn rename_rule(flags: RenameFlags) -> Option<RenameRule> {
    match flags {
        f if f.is_empty() => Some(RenameRule::Replace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameRule::Exchange),
        RenameFlags::RENAME_NOREPLACE => Some(RenameRule::NoReplace),
        RenameFlags::RENAME_WHITEOUT => Some(RenameRule::Whiteout),
        _ => None,
    }
}
