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
use std::io;
use std::time::Duration;

use crate::format::{SegmentKind, SegmentUid};

mod dir;
#[cfg(test)]
pub(crate) mod memory;

pub(crate) use dir::DirStore;

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
    /// Somebody else holds the lease.
    #[error("the store is in use")]
    Busy,
    /// There is an object of that name already.
    #[error("the object exists")]
    Exists,
    /// No space is left.
    #[error("the store is full")]
    Full,
    /// The storage failed.
    #[error("the storage failed")]
    Io(#[source] io::Error),
    /// The lease was taken away: somebody else may be writing.
    #[error("the lease on the store is lost")]
    LeaseLost,
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
    /// Reads at `offset` until `buffer` is full or the object ends, and returns how much.
    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError>;
    /// Bytes that the object has.
    fn len(&self, name: ObjectName) -> Result<u64, StoreError>;
    /// Removes an object; one that is absent already is [`StoreError::Absent`].
    fn delete(&self, name: ObjectName) -> Result<(), StoreError>;
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
    /// Makes an empty object, durable in its directory when it returns. It will get
    /// `expected_len` bytes at most.
    fn create(&self, name: ObjectName, expected_len: u64) -> Result<(), StoreError>;
    /// Writes all of `bytes` at `offset`; not durable before [`Appendable::sync`]. After an error
    /// any part may have been written.
    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;
    /// Makes durable what was written to the object. After an error nothing may be assumed of
    /// what was written since the last success: the system may have dropped it.
    fn sync(&self, name: ObjectName) -> Result<(), StoreError>;
}

/// Proof of being the only writer, until dropped.
pub(crate) trait Lease: fmt::Debug + Send + Sync {
    /// Checks that the lease still stands, before something that another writer could not undo.
    fn revalidate(&self) -> Result<(), StoreError>;
    /// Tells who waits that this writer is finishing.
    fn announce_end(&self);
}

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
