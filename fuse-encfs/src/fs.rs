//! Core: POSIX semantics in the crate's own types, neither FUSE nor cryptography.
//!
//! Synchronous, from any thread, with payloads in the caller's buffers: any transport can sit on
//! it. A call that shows an inode to the caller counts a *lookup*, until the caller forgets it;
//! an inode without a name lives as long as it is looked up.
//!
//! Names and attributes are in the map as soon as they change. The contents of files wait in an
//! [overlay](overlay::Overlay) of their inode until they are durable; then the map learns of them.
//!
//! **Locks**, in this order: an inode's (of two inodes first that of the lower number), then those
//! of the journal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use runtime::sync::Mutex;

use crate::error::{CommitError, FsError};
use crate::format::{FileKind, Ino, InodeRecord, Op, Timestamp};
use crate::journal::Journal;
use crate::space::Need;
use crate::tables::Tables;

mod contents;
mod dir;
mod drain;
mod file;
mod inode;
#[cfg(any(test, fuzzing))]
pub(crate) mod model;
mod overlay;
#[cfg(test)]
mod tests;
mod vnode;
mod xattr;

pub(crate) use contents::Seek;
pub(crate) use dir::{NewEntry, RenameRule};
pub(crate) use file::WriteMode;
pub(crate) use inode::SetAttr;

use vnode::Vnodes;

/// Extents that one operation reaps of an inode without a name, or cuts off a file.
const REAP_SLICE: u32 = 4096;
/// Inodes without a name that are looked for at once.
const ORPHAN_SLICE: usize = 1024;
/// How often who commits lets contents that are owed go first before he goes on without: more than
/// once only while somebody makes new debts all the time.
const OWED_TRIES: u32 = 64;
/// Bytes that wait in the buffers of all files at most, about, and the least that one write counts
/// as: many files with little in each take memory too.
const BUFFERED_MAX: u64 = if cfg!(test) { 2 << 20 } else { 64 << 20 };
const BUFFERED_MIN: u64 = 1024;

/// A filesystem.
#[derive(Debug)]
pub(crate) struct Fs {
    journal: Journal,
    lookups: Lookups,
    vnodes: Vnodes,
    counters: Counters,
    /// Reads leave access times as they are.
    keeps_no_atime: AtomicBool,
    /// Bytes that went into buffers since all were drained last.
    buffered: AtomicU64,
}

/// What a mount can choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Reads leave access times as they are.
    pub(crate) noatime: bool,
    /// Bytes that the volume may hold; `None` for what the store has room for.
    pub(crate) size_max: Option<u64>,
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
    pub(crate) fn new(journal: Journal, policy: Policy) -> Self {
        let fs = Self {
            journal,
            lookups: Lookups::default(),
            vnodes: Vnodes::default(),
            counters: Counters::default(),
            keeps_no_atime: AtomicBool::new(false),
            buffered: AtomicU64::new(0),
        };
        fs.obey(policy);
        fs.reap_orphans();
        fs
    }

    /// Goes by another policy from now on.
    pub(crate) fn obey(&self, policy: Policy) {
        self.keeps_no_atime.store(policy.noatime, Ordering::Relaxed);
        self.journal
            .reserve()
            .limit(policy.size_max.unwrap_or(u64::MAX));
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
        if self.journal.has_failed() {
            // To who waits for his data it is a failure, whoever met it first.
            return Err(FsError::Failed("the change cannot be made durable"));
        }
        let number = match self.ride(ino)? {
            Some(number) => number,
            None => {
                self.drain(ino)?;
                self.journal.submitted()
            }
        };
        let committed = self.commit(number);
        let anchored = committed.and_then(|()| self.journal.wait_anchored());
        anchored.map_err(|e| match e {
            CommitError::ReadOnly => FsError::Failed("the change cannot be made durable"),
            CommitError::Bug(_)
            | CommitError::Inconsistent(_)
            | CommitError::Log(_)
            | CommitError::NotAnchored
            | CommitError::Read(_)
            | CommitError::Seal(_)
            | CommitError::Store(_) => e.into(),
        })
    }

    /// Makes durable whatever was done so far. Contents of a file that cannot be made so are left
    /// where they are, and all else is durable when that is said.
    pub(crate) fn sync(&self) -> Result<(), CommitError> {
        let reserve = self.journal.reserve();
        let (admitted, mut drained) = (reserve.admitted(), Ok(()));
        let pending = self.vnodes.all();
        for ino in &pending {
            // Who drains it meets the failure again.
            let _ = self.prepare(*ino);
        }
        for ino in pending {
            if let Err(e) = self.drain(ino) {
                tracing::warn!(inode = ino.0, error = %e, "contents of a file are not durable yet");
                drained = drained.and_then(|()| Err(e.into()));
            }
            self.vnodes.release(ino);
        }
        if drained.is_ok() {
            reserve.settle(admitted);
        }
        self.commit(self.journal.submitted()).and(drained)
    }

    /// What is done every few seconds.
    pub(crate) fn tick(&self) -> Result<(), CommitError> {
        self.keep_some_access_times();
        self.sync()?;
        self.checkpoint_if_due()
    }

    /// Counts bytes that went into a buffer; whoever fills the buffers up drains them, those of all
    /// files. Holds no inode's lock when it does.
    fn note_buffered(&self, bytes: usize) {
        let bytes = (bytes as u64).max(BUFFERED_MIN);
        let before = self.buffered.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes < BUFFERED_MAX {
            return;
        }
        self.buffered.store(0, Ordering::Relaxed);
        let pending = self.vnodes.all();
        for ino in &pending {
            let _ = self.prepare(*ino);
        }
        for ino in pending {
            // What cannot be drained stays, and who waits for it meets the failure.
            let _ = self.drain(ino);
            self.vnodes.release(ino);
        }
    }

    /// Whether the tree should be written, and if so, writes it: between two ticks.
    pub(crate) fn checkpoint_if_due(&self) -> Result<(), CommitError> {
        if self.journal.is_checkpoint_due() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Commits what is pending, if it is much: between two ticks.
    pub(crate) fn catch_up(&self) -> Result<(), CommitError> {
        if self.journal.is_behind() {
            self.commit(self.journal.submitted())?;
        }
        Ok(())
    }

    /// Commits everything that is in the map, and writes a checkpoint.
    pub(crate) fn checkpoint(&self) -> Result<(), CommitError> {
        loop {
            self.pay_debts()?;
            if self.journal.checkpoint()? {
                return Ok(());
            }
        }
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
        Ok(Statistics {
            total: space.total,
            free: space.free,
            files: self.journal.tables().counters().files,
        })
    }

    /// Brings everything to rest on the store: nobody uses an inode any more.
    pub(crate) fn close(&self) -> Result<(), CommitError> {
        self.journal.announce_end();
        self.lookups.clear();
        self.reap_orphans();
        self.keep_all_access_times();
        self.sync()?;
        self.checkpoint()?;
        self.journal.finish()
    }

    fn commit(&self, upto: u64) -> Result<(), CommitError> {
        for _ in 0..OWED_TRIES {
            self.pay_debts()?;
            if self.journal.commit(upto)? {
                return Ok(());
            }
        }
        self.journal.commit_submitted()
    }

    /// Lets contents of files into the map that must be there before the next commit. Without them
    /// nothing can be committed.
    fn pay_debts(&self) -> Result<(), CommitError> {
        let owed = self.journal.owed();
        if owed.len() > 1 {
            for ino in owed.keys() {
                let _ = self.prepare(*ino);
            }
        }
        for (ino, number) in owed {
            self.drain(ino)?;
            self.journal.settle_debt(ino, number);
        }
        Ok(())
    }

    /// Admits a change. When there is no room, what is pending is made durable, so that it is known
    /// what it takes, and dead segments are deleted at once; when too much of the tree is in memory
    /// alone, it is written first. The caller holds no inode's lock.
    fn admit(&self, need: Need) -> Result<(), FsError> {
        if self.journal.is_overfull() {
            self.checkpoint()?;
        }
        match self.journal.admit(need) {
            Err(FsError::Full) => {}
            admitted => return admitted,
        }
        self.sync()?;
        match self.journal.admit(need) {
            Err(FsError::Full)
                if self.journal.is_size_vague() || self.journal.has_dead_data()? =>
            {
                // A segment goes once it was dead in two checkpoints.
                self.checkpoint()?;
                self.checkpoint()?;
                self.journal.admit(need)
            }
            admitted => admitted,
        }
    }

    fn reap_orphans(&self) {
        let mut from = Ino(0);
        loop {
            let reaped = self.journal.tables().orphans(from, ORPHAN_SLICE);
            let reaped = reaped.map_err(FsError::from).and_then(|orphans| {
                orphans.iter().try_for_each(|ino| self.reap(*ino))?;
                Ok(orphans)
            });
            match reaped {
                Ok(orphans) => match orphans.last() {
                    Some(last) => from = Ino(last.0.saturating_add(1)),
                    None => return,
                },
                Err(e) => {
                    tracing::warn!(error = %e, "inodes without a name are left to the next mount");
                    return;
                }
            }
        }
    }

    /// Removes an inode that has no name and that nobody uses, a slice of its extents at a time.
    fn reap(&self, ino: Ino) -> Result<(), FsError> {
        let is_done =
            |tables: &Tables| Ok::<_, FsError>(self.lookups.holds(ino) || !tables.is_orphan(ino)?);
        if is_done(&self.journal.tables())? {
            return Ok(());
        }
        self.vnodes.remove(ino);
        loop {
            let build = |tables: &Tables| {
                let op = Op::Reap {
                    ino,
                    limit: REAP_SLICE,
                };
                Ok(if is_done(tables)? {
                    Vec::new()
                } else {
                    vec![op]
                })
            };
            if self.journal.change(build, is_done)? {
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

/// The record of an inode that the caller was shown.
fn inode(tables: &Tables, ino: Ino) -> Result<InodeRecord, FsError> {
    tables.inode(ino)?.ok_or(FsError::NoEntry)
}

/// That of a regular file.
fn regular(tables: &Tables, ino: Ino) -> Result<InodeRecord, FsError> {
    let record = inode(tables, ino)?;
    if record.kind == FileKind::Regular {
        Ok(record)
    } else {
        Err(FsError::Invalid)
    }
}
