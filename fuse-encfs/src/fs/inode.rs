//! Core: attributes.

use std::sync::atomic::Ordering;

use super::vnode::{State, Vnode};
use super::xattr::{is_in_group, ops_of_lists};
use super::{Attr, Caller, Fs, REAP_SLICE, inode};
use crate::error::FsError;
use crate::format::{AttrChange, FileKind, Ino, InodeRecord, Op, Timestamp};
use crate::journal::Change;
use crate::tables::{Tables, without_privileges};
use crate::xattr::perm_after_change;

/// A file has at most this many bytes: the kernel's own limit for FUSE.
pub(super) const FILE_LEN_MAX: u64 = i64::MAX as u64;
/// How old an access time may be before a read renews it anyway.
const ACCESS_AGE_SECS: i64 = 24 * 3600;
/// Access times that are kept in memory before they are logged for their own sake.
const ACCESS_TIMES_MAX: usize = 4096;

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

    /// This moment by the clock that the kernel stamps files with: up to a tick behind.
    pub(super) fn of_tick() -> Self {
        let (secs, nanos) = crate::sys::file_time();
        Self { secs, nanos }
    }
}

impl Fs {
    /// Attributes of an inode.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        let vnode = self.vnodes.get(ino);
        let state = vnode.as_ref().map(|vnode| vnode.state.read());
        // After that: what leaves the overlay is in the map by then.
        let record = inode(&self.journal.tables(), ino)?;
        Ok(attr(ino, &record, state.as_deref()))
    }

    /// Changes attributes, and gives them.
    ///
    /// The kernel leaves it to the filesystem to take set-user-id and set-group-id away: from all
    /// but directories when the owner changes, and when somebody without privilege changes the
    /// size.
    pub(crate) fn setattr(&self, ino: Ino, set: SetAttr, caller: Caller) -> Result<Attr, FsError> {
        if let Some(size) = set.size {
            self.shed(ino, size)?;
        }
        let vnode = match (set.size, set.mtime) {
            // Not only what is pending now: nobody may drain between the look and the cut.
            (Some(_), _) => Some(self.vnodes.get_or_make(ino)),
            (None, Some(_)) => self.vnodes.get(ino),
            (None, None) => None,
        };
        let mut state = vnode.as_ref().map(|vnode| vnode.state.write());
        let now = Timestamp::now();
        let build = |tables: &Tables| {
            let record = inode(tables, ino)?;
            let mut change = Change::default();
            if let Some(size) = set.size {
                change.ops.push(truncate(ino, &record, size, now)?);
                // What was written before, and what is written from now on until the commit, is
                // to come with it: a crash shows a file as it was at some moment.
                change.owes = Some(ino);
            }
            let perm = kept_perm(&record, &set, caller);
            change.ops.extend(ops_of_lists(tables, ino, &set, now)?);
            change.ops.push(Op::SetAttr {
                ino,
                change: AttrChange {
                    perm,
                    uid: set.uid,
                    gid: set.gid,
                    atime: set.atime,
                    mtime: set.mtime,
                    ctime: Some(set.ctime.unwrap_or(now)),
                },
            });
            Ok(change)
        };
        let changed = self.journal.change(build, |_| Ok(()));
        if changed.is_ok()
            && let Some(state) = state.as_mut()
        {
            if let Some(size) = set.size {
                state.overlay.truncate(size);
            }
            state.overlay.forget_time();
        }
        drop(state);
        drop(vnode);
        self.vnodes.release(ino);
        changed?;
        if set.atime.is_some()
            && let Some(vnode) = self.vnodes.get(ino)
        {
            vnode.state.write().atime = None;
        }
        self.getattr(ino)
    }

    /// Target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let record = inode(&self.journal.tables(), ino)?;
        match record.kind {
            FileKind::Symlink => Ok(record.inline),
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Regular
            | FileKind::Socket => Err(FsError::Invalid),
        }
    }

    /// Notes that an inode was read, by the rule of relatime: when it was changed since it was
    /// read last, or was not read for a day.
    pub(super) fn note_access(&self, ino: Ino, record: &InodeRecord) {
        if self.keeps_no_atime.load(Ordering::Relaxed) {
            return;
        }
        let now = Timestamp::now();
        let is_due = |atime: Timestamp| {
            atime <= record.mtime
                || atime <= record.ctime
                || now.secs.saturating_sub(atime.secs) >= ACCESS_AGE_SECS
        };
        if !is_due(record.atime) {
            return;
        }
        let vnode = self.vnodes.get_or_make(ino);
        let is_noted = |vnode: &Vnode| vnode.state.read().atime.is_some_and(|at| !is_due(at));
        if !is_noted(&vnode) {
            vnode.state.write().atime = Some(now);
        }
    }

    /// Logs the access times that are in memory, if something is logged anyway or they are many.
    pub(super) fn keep_some_access_times(&self) {
        let read = self.access_times();
        if read.len() >= ACCESS_TIMES_MAX || self.journal.is_pending() {
            self.keep_access_times(read);
        }
    }

    /// Logs the access times that are in memory.
    pub(super) fn keep_all_access_times(&self) {
        self.keep_access_times(self.access_times());
    }

    fn access_times(&self) -> Vec<(Ino, Timestamp)> {
        let inodes = self.vnodes.all().into_iter();
        inodes
            .filter_map(|ino| Some((ino, self.vnodes.get(ino)?.state.read().atime?)))
            .collect()
    }

    fn keep_access_times(&self, read: Vec<(Ino, Timestamp)>) {
        for (ino, time) in read {
            let Some(vnode) = self.vnodes.get(ino) else {
                continue;
            };
            let mut state = vnode.state.write();
            let build = |tables: &Tables| {
                let change = AttrChange {
                    atime: Some(time),
                    ..AttrChange::default()
                };
                let is_there = tables.inode(ino)?.is_some();
                Ok(if is_there {
                    vec![Op::SetAttr { ino, change }]
                } else {
                    Vec::new()
                })
            };
            // An access time that cannot be kept is no loss that anybody must hear of.
            if self.journal.change(build, |_| Ok(())).is_ok() && state.atime == Some(time) {
                state.atime = None;
            }
        }
    }

    /// Cuts what is beyond `size` off a file of very many extents, a slice at a time, so that the
    /// operation that cuts the rest stays small.
    fn shed(&self, ino: Ino, size: u64) -> Result<(), FsError> {
        loop {
            let mut count = 0;
            self.journal
                .tables()
                .mapped(ino, &(size..u64::MAX), |_, _| {
                    count += 1;
                    if count > REAP_SLICE {
                        std::ops::ControlFlow::Break(())
                    } else {
                        std::ops::ControlFlow::Continue(())
                    }
                })?;
            if count <= REAP_SLICE {
                return Ok(());
            }
            let op = Op::Trim {
                map: ino,
                from: size,
                limit: REAP_SLICE,
            };
            self.journal.change(|_| Ok(vec![op]), |_| Ok(()))?;
        }
    }
}

/// What an inode looks like with what is pending of it.
fn attr(ino: Ino, record: &InodeRecord, state: Option<&State>) -> Attr {
    let overlay = state.map(|state| &state.overlay);
    let written = overlay.and_then(|overlay| overlay.time());
    let inline = record.inline.len() as u64 * u64::from(record.kind == FileKind::Regular);
    let pending = overlay.map_or(0, |overlay| overlay.bytes());
    let size = record.size.max(overlay.map_or(0, |overlay| overlay.size()));
    Attr {
        ino,
        kind: record.kind,
        perm: record.perm,
        nlink: record.nlink,
        uid: record.uid,
        gid: record.gid,
        rdev: record.rdev,
        size,
        blocks: held(record, inline + pending, size).div_ceil(512),
        atime: state.and_then(|state| state.atime).unwrap_or(record.atime),
        mtime: written.unwrap_or(record.mtime),
        ctime: written.map_or(record.ctime, |written| written.max(record.ctime)),
    }
}

fn truncate(ino: Ino, record: &InodeRecord, size: u64, now: Timestamp) -> Result<Op, FsError> {
    match record.kind {
        FileKind::Regular if size <= FILE_LEN_MAX => Ok(Op::Truncate {
            ino,
            size,
            time: Some(now),
        }),
        FileKind::Regular => Err(FsError::TooLarge),
        FileKind::Directory => Err(FsError::IsDirectory),
        FileKind::BlockDevice
        | FileKind::CharDevice
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::Symlink => Err(FsError::Invalid),
    }
}

/// Bytes that a file holds, `more` of them beside what the map has. What is in memory may take the
/// place of what the map has, so all of it is no more than the file is long, but for promises.
fn held(record: &InodeRecord, more: u64, size: u64) -> u64 {
    record.allocated.max((record.allocated + more).min(size))
}

/// The permission bits after a change; `None` when they stay.
fn kept_perm(record: &InodeRecord, set: &SetAttr, caller: Caller) -> Option<u16> {
    let is_chown = set.uid.is_some() || set.gid.is_some();
    let chowned = is_chown && record.kind != FileKind::Directory;
    let resized = set.size.is_some() && caller.uid != 0;
    let mut kept = record.perm;
    if chowned {
        kept = without_privileges(kept);
    }
    if resized {
        kept = perm_after_change(kept, is_in_group(record, caller));
    }
    set.perm.or_else(|| (kept != record.perm).then_some(kept))
}
