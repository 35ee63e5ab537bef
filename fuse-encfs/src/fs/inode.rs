//! Core: attributes.

use super::{Attr, Caller, Fs, attr, inode};
use crate::error::FsError;
use crate::format::{AttrChange, FileKind, Ino, Op, Timestamp};
use crate::tables::without_privileges;

/// A file has at most this many bytes: the kernel's own limit for FUSE.
pub(super) const FILE_LEN_MAX: u64 = i64::MAX as u64;

/// Attributes to change; what is `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SetAttr {
    pub(crate) perm: Option<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<Timestamp>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) ctime: Option<Timestamp>,
}

impl Timestamp {
    /// This moment.
    pub(crate) fn now() -> Self {
        let (secs, nanos) = crate::sys::time_of_day();
        Self { secs, nanos }
    }
}

impl Fs {
    /// Attributes of an inode.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        attr(&self.journal.tables().tables, ino)
    }

    /// Changes attributes, and gives them.
    ///
    /// The kernel leaves it to the filesystem to take set-user-id and set-group-id away: from all
    /// but directories when the owner changes, and when somebody without privilege changes the
    /// size.
    pub(crate) fn setattr(&self, ino: Ino, set: SetAttr, caller: Caller) -> Result<Attr, FsError> {
        let now = Timestamp::now();
        self.journal.change(
            |tables| {
                let record = &inode(tables, ino)?.record;
                let mut ops = Vec::new();
                if let Some(size) = set.size {
                    match record.kind {
                        FileKind::Regular if size <= FILE_LEN_MAX => {}
                        FileKind::Regular => return Err(FsError::TooLarge),
                        FileKind::Directory => return Err(FsError::IsDirectory),
                        FileKind::BlockDevice
                        | FileKind::CharDevice
                        | FileKind::Fifo
                        | FileKind::Socket
                        | FileKind::Symlink => return Err(FsError::Invalid),
                    }
                    ops.push(Op::Truncate {
                        ino,
                        size,
                        time: Some(now),
                    });
                }
                let is_chown = set.uid.is_some() || set.gid.is_some();
                let chowned = is_chown && record.kind != FileKind::Directory;
                let resized = set.size.is_some() && caller.uid != 0;
                let kept = if chowned || resized {
                    without_privileges(record.perm)
                } else {
                    record.perm
                };
                let change = AttrChange {
                    perm: set.perm.or_else(|| (kept != record.perm).then_some(kept)),
                    uid: set.uid,
                    gid: set.gid,
                    atime: set.atime,
                    mtime: set.mtime,
                    ctime: Some(set.ctime.unwrap_or(now)),
                };
                ops.push(Op::SetAttr { ino, change });
                Ok(ops)
            },
            |tables| attr(tables, ino),
        )
    }

    /// Target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let live = self.journal.tables();
        let record = &inode(&live.tables, ino)?.record;
        match record.kind {
            FileKind::Symlink => Ok(record.target.clone()),
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Regular
            | FileKind::Socket => Err(FsError::Invalid),
        }
    }
}
