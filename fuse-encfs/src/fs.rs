//! Core: POSIX semantics in the crate's own types, neither FUSE nor cryptography.
//!
//! Synchronous, from any thread, with payloads in the caller's buffers: any transport can sit on
//! it. A call that shows an inode to the caller counts a *lookup*, until the caller forgets it;
//! an inode without a name lives as long as it is looked up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use runtime::sync::Mutex;

use crate::error::{CommitError, FsError};
use crate::format::{FileKind, Ino, Op, Timestamp};
use crate::journal::Journal;
use crate::tables::{Inode, Tables};

mod dir;
mod file;
mod inode;
#[cfg(test)]
mod tests;

pub(crate) use dir::{NewEntry, RenameRule};
pub(crate) use file::WriteMode;
pub(crate) use inode::SetAttr;

/// Extents that one operation reaps of an inode without a name.
const REAP_SLICE: u32 = 4096;
/// Bytes of log and tree that a change of names or attributes may take.
const CHANGE_COST: u64 = 4096;

/// A filesystem.
#[derive(Debug)]
pub(crate) struct Fs {
    journal: Journal,
    lookups: Lookups,
    counters: Counters,
}

/// What a file looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) size: u64,
    /// Units of 512 bytes that hold data.
    pub(crate) blocks: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Size and use of the volume's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Bytes in all and free.
    pub(crate) total: u64,
    pub(crate) free: u64,
    /// Inodes in use.
    pub(crate) files: u64,
}

/// What happened since the volume was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) auth_failures: AtomicU64,
}

/// How often each inode is known to the caller.
#[derive(Debug, Default)]
struct Lookups(Mutex<BTreeMap<Ino, u64>>);

impl Fs {
    /// A filesystem over an open journal. Inodes whose last user is gone with the mount before
    /// are reaped.
    pub(crate) fn new(journal: Journal) -> Self {
        let fs = Self {
            journal,
            lookups: Lookups::default(),
            counters: Counters::default(),
        };
        fs.reap_orphans();
        fs
    }

    /// The journal under it.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What happened so far.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Makes durable whatever was done to an inode.
    pub(crate) fn fsync(&self, ino: Ino) -> Result<(), FsError> {
        let changed = {
            let live = self.journal.tables();
            live.tables
                .inode(ino)
                .map_or_else(|| live.submitted(), |inode| inode.changed)
        };
        self.journal.commit(changed).map_err(|e| {
            // To who waits for his data it is a failure, whoever met it first.
            let late = matches!(e, CommitError::ReadOnly);
            if late {
                FsError::Failed("the change cannot be made durable")
            } else {
                e.into()
            }
        })
    }

    /// The caller gives back `n` lookups of an inode.
    pub(crate) fn forget(&self, ino: Ino, n: u64) {
        if self.lookups.forget(ino, n) {
            // Whoever fails to reap leaves an orphan, which the next mount reaps.
            let _ = self.reap(ino);
        }
    }

    /// Size and use of the volume's store.
    pub(crate) fn statistics(&self) -> Result<Statistics, FsError> {
        let space = self.journal.space().map_err(FsError::Store)?;
        let files = self.journal.tables().tables.inodes().count() as u64;
        Ok(Statistics {
            total: space.total,
            free: space.free,
            files,
        })
    }

    /// Brings everything to rest on the store: nobody uses an inode any more.
    pub(crate) fn close(&self) -> Result<(), CommitError> {
        self.journal.announce_end();
        self.lookups.clear();
        self.reap_orphans();
        self.journal.checkpoint()?;
        self.journal.finish()
    }

    fn reap_orphans(&self) {
        let orphans: Vec<Ino> = self.journal.tables().tables.orphans().collect();
        if let Err(e) = orphans.into_iter().try_for_each(|ino| self.reap(ino)) {
            tracing::warn!(error = %e, "inodes without a name are left to the next mount");
        }
    }

    /// Removes an inode that has no name and that nobody uses, a slice of its extents at a time.
    fn reap(&self, ino: Ino) -> Result<(), FsError> {
        let is_done = |tables: &Tables| !tables.is_orphan(ino) || self.lookups.holds(ino);
        loop {
            let build = |tables: &Tables| {
                let op = Op::Reap {
                    ino,
                    limit: REAP_SLICE,
                };
                Ok(if is_done(tables) {
                    Vec::new()
                } else {
                    vec![op]
                })
            };
            if self.journal.change(build, |tables| Ok(is_done(tables)))? {
                return Ok(());
            }
        }
    }
}

impl Lookups {
    fn add(&self, ino: Ino) {
        *self.0.lock().entry(ino).or_default() += 1;
    }

    fn holds(&self, ino: Ino) -> bool {
        self.0.lock().contains_key(&ino)
    }

    /// Takes `n` lookups off and says whether that were the last.
    fn forget(&self, ino: Ino, n: u64) -> bool {
        let mut lookups = self.0.lock();
        let Some(count) = lookups.get_mut(&ino) else {
            return true;
        };
        *count = count.saturating_sub(n);
        let was_last = *count == 0;
        if was_last {
            lookups.remove(&ino);
        }
        was_last
    }

    fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Counters {
    fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// The inode of a number that the caller was shown.
fn inode(tables: &Tables, ino: Ino) -> Result<&Inode, FsError> {
    tables.inode(ino).ok_or(FsError::NoEntry)
}

fn attr(tables: &Tables, ino: Ino) -> Result<Attr, FsError> {
    let Inode { record, live, .. } = inode(tables, ino)?;
    Ok(Attr {
        ino,
        kind: record.kind,
        perm: record.perm,
        nlink: record.nlink,
        uid: record.uid,
        gid: record.gid,
        rdev: record.rdev,
        size: record.size,
        blocks: live.div_ceil(512),
        atime: record.atime,
        mtime: record.mtime,
        ctime: record.ctime,
    })
}
