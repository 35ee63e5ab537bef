//! Port: named objects on storage that an adversary may run.
//!
//! **Design.** The base is whole objects and ranged reads, which every kind of storage has. What
//! only local storage has, writes into an object at explicit offsets and a flush, is the second
//! trait, [`Appendable`].
//!
//! **Invariants.** A name carries no trust: what an object is says the authenticated pointer that
//! leads to it. No caller lists a store to find out what a volume consists of. "Durable" means
//! that the storage has acknowledged a flush; whether it told the truth is the anchor's concern.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::format::{SegmentKind, SegmentUid};

pub(crate) mod block;
#[cfg(test)]
mod conformance;
#[cfg(any(test, fuzzing))]
pub(crate) mod crash;
mod dir;
#[cfg(test)]
pub(crate) mod fault;
mod lease;
#[cfg(any(test, fuzzing))]
pub(crate) mod memory;

use block::BlockStore;
use dir::DirStore;

/// Name of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectName {
    /// One of the two superblock slots, 0 or 1.
    Superblock(u8),
    /// A segment.
    Segment(SegmentKind, SegmentUid),
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// There is no such object.
    #[error("the object does not exist")]
    Absent,
    /// An object is not what it was to be replaced as.
    #[error("the object was changed")]
    Changed,
    /// Somebody else holds the lease.
    #[error("the store is in use")]
    Busy,
    /// There is an object of that name already.
    #[error("the object exists")]
    Exists,
    /// No space is left.
    #[error("the store is full")]
    Full,
    /// What is to become a store holds something else.
    #[error("the device holds something else")]
    NotEmpty,
    /// A device has no room for a volume.
    #[error("the device is too small")]
    TooSmall,
    /// The storage failed.
    #[error("the storage failed")]
    Io(#[source] io::Error),
    /// The lease was taken away: somebody else may be writing.
    #[error("the lease on the store is lost")]
    LeaseLost,
    /// What the store keeps for itself contradicts itself.
    #[error("the store's own layout is damaged: {0}")]
    Malformed(&'static str),
    /// A name is taken by something that is not an object.
    #[error("a name on the store is taken by something that is not an object")]
    NotAnObject,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// Bytes in all.
    pub(crate) total: u64,
    /// Bytes still free.
    pub(crate) free: u64,
}

/// Whole objects and ranged reads.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Writes a whole object, replacing one of that name, so that a crash leaves the old or the
    /// new. Durable when it returns.
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError>;
    /// Writes a whole object as [`Store::put`] does, or says [`StoreError::Exists`].
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "the fence of a store without leases")
    )]
    fn put_if_absent(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError>;
    /// Replaces an object as [`Store::put`] does if its bytes are `current`, or says
    /// [`StoreError::Changed`]. A store that knows versions compares those of what it read.
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "the fence of a store without leases")
    )]
    fn put_if_match(
        &self,
        name: ObjectName,
        current: &[u8],
        bytes: &[u8],
    ) -> Result<(), StoreError>;
    /// Reads at `offset` until `buffer` is full or the object ends, and returns how much.
    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError>;
    /// Bytes that can be read of the object: what was written to it, and on some stores what
    /// happens to lie behind that.
    fn len(&self, name: ObjectName) -> Result<u64, StoreError>;
    /// Removes an object; one that is absent already is [`StoreError::Absent`].
    fn delete(&self, name: ObjectName) -> Result<(), StoreError>;
    /// The first `max` names in order behind `after`. For tools alone: what a volume consists of is
    /// never found out so.
    fn list(&self, after: Option<ObjectName>, max: usize) -> Result<Vec<ObjectName>, StoreError>;
    /// Whether there is nothing on the store, neither an object nor anything foreign.
    fn is_empty(&self) -> Result<bool, StoreError>;
    /// Becomes the only writer, or waits at most `patience` for another one to end, longer for one
    /// that has said that it is about to.
    fn lease(&self, patience: Duration) -> Result<Box<dyn Lease>, StoreError>;
    /// How much the store holds.
    fn space(&self) -> Result<Space, StoreError>;
}

/// Objects that grow by writes at explicit offsets.
pub(crate) trait Appendable: Store {
    /// What a write has to begin and to end on a multiple of, in bytes, so that a power failure in
    /// it never hurts what another write made durable: the log's alignment on this store.
    fn alignment(&self) -> u16;
    /// Makes an object in which nothing is written yet, durable in its directory when it returns.
    /// It will get about `expected_len` bytes.
    fn create(&self, name: ObjectName, expected_len: u64) -> Result<(), StoreError>;
    /// Writes all of `bytes` at `offset`; not durable before [`Appendable::sync`]. After an error
    /// any part may have been written.
    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;
    /// Makes durable what was written to the object. After an error nothing may be assumed of
    /// what was written since the last success: the system may have dropped it.
    fn sync(&self, name: ObjectName) -> Result<(), StoreError>;
    /// In how many lanes one object can be flushed at once. Of syncs without lanes only one may be
    /// told of a failure, so two that overlap say nothing when one of them succeeds.
    fn lanes(&self) -> usize {
        1
    }
    /// As [`Appendable::sync`], by one of the lanes, which the caller does not use twice at once.
    /// Each lane is told by itself of every failure since it was used last.
    fn sync_by(&self, name: ObjectName, _lane: usize) -> Result<(), StoreError> {
        self.sync(name)
    }
}

/// Proof of being the only writer, until dropped.
pub(crate) trait Lease: fmt::Debug + Send + Sync {
    /// Checks that the lease still stands, before something that another writer could not undo.
    fn revalidate(&self) -> Result<(), StoreError>;
    /// Tells who waits that this writer is finishing.
    fn announce_end(&self);
}

/// The store at `path`: a directory, a block device, or a file that is cut up like one.
pub(crate) fn open(path: &Path) -> Result<Arc<dyn Appendable>, StoreError> {
    let kind = fs::metadata(path).map_err(StoreError::from)?.file_type();
    if kind.is_dir() {
        Ok(Arc::new(DirStore::open(path)?))
    } else if kind.is_file() || kind.is_block_device() {
        Ok(Arc::new(BlockStore::open(path)?))
    } else {
        Err(StoreError::NotAnObject)
    }
}

/// As [`open`], for a new volume. What is absent is made: a directory, or with a `size` in bytes a
/// file of that size. A device or file that is all zeros at both ends is laid out first.
pub(crate) fn open_or_make(
    path: &Path,
    size: Option<u64>,
) -> Result<Arc<dyn Appendable>, StoreError> {
    let kind = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e.into()),
    };
    match (kind, size) {
        (None, Some(size)) => Ok(Arc::new(BlockStore::make(path, size)?)),
        (None, None) => Ok(Arc::new(DirStore::open_or_make(path)?)),
        (Some(kind), _) if kind.is_dir() => Ok(Arc::new(DirStore::open(path)?)),
        (Some(kind), _) if kind.is_file() || kind.is_block_device() => {
            Ok(Arc::new(BlockStore::open_or_lay_out(path)?))
        }
        (Some(_), _) => Err(StoreError::NotAnObject),
    }
}

/// Whether an object has just these bytes.
fn holds(store: &dyn Store, name: ObjectName, bytes: &[u8]) -> Result<bool, StoreError> {
    // One byte more, so that a longer object is noticed.
    let mut found = vec![0; bytes.len() + 1];
    let got = store.get(name, 0, &mut found)?;
    Ok(found.get(..got) == Some(bytes))
}

/// Fills `buffer` by reads that may give less than was asked for, until one gives nothing.
fn read_fully(
    buffer: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> Result<usize, StoreError> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read(done as u64, rest) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

impl From<io::Error> for StoreError {
    fn from(e: io::Error) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the kinds of std are open-ended"
        )]
        match e.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::AlreadyExists => Self::Exists,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(e),
        }
    }
}

impl FromStr for ObjectName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let kind = match text.as_bytes() {
            b"s0" => return Ok(Self::Superblock(0)),
            b"s1" => return Ok(Self::Superblock(1)),
            [b'd', ..] => SegmentKind::Data,
            [b'l', ..] => SegmentKind::Log,
            [b'n', ..] => SegmentKind::Node,
            _ => return Err(NotAName),
        };
        let digits = text.get(1..).filter(|digits| digits.len() == 32);
        let uid = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let name = Self::Segment(kind, SegmentUid(uid.ok_or(NotAName)?.to_be_bytes()));
        // Upper case and signs are no names.
        if name.to_string() == text {
            Ok(name)
        } else {
            Err(NotAName)
        }
    }
}

/// A text is no object's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAName;

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock(slot) => write!(f, "s{slot}"),
            Self::Segment(SegmentKind::Data, uid) => write!(f, "d{uid}"),
            Self::Segment(SegmentKind::Log, uid) => write!(f, "l{uid}"),
            Self::Segment(SegmentKind::Node, uid) => write!(f, "n{uid}"),
        }
    }
}
