//! Port: a place outside of the store that remembers how far a volume has come.
//!
//! The store can be set back to any state that it ever had, and nothing in it can tell. What can is
//! a few bytes elsewhere: the number and the head of a durable commit. The log is a chain, so the
//! head stands for everything before it, and a volume that never had that head is another history.
//!
//! ```text
//! guest    on the guest's own tmpfs, written after every flush: a restart of the daemon alone
//!          opens no window
//! anchor   what outlives the guest: none, a file, or whoever implements Anchor
//! ```
//!
//! **Mounting.** `admit` compares what recovery found with what both remember: the anchored pair
//! must be met in replay, be where the starting checkpoint was taken, or be sealed in that
//! checkpoint. The last is what makes it sound to drop old log: a checkpoint carries the pairs that
//! the anchor may hold, and a history that never had a head never sealed it either.
//!
//! **Running.** `AnchorKeeper` moves the anchor to the newest durable head, one request in
//! flight. A pair is registered before it is sent and under the lock that a CHECKPOINT is sealed
//! under, so whatever the anchor holds after a crash is met or sealed. A request of unknown outcome
//! is sent again with the same pair and no other.
//!
//! ```text
//! superblock read, keys derived   Freshness::open
//! recovered, nothing written      admit             refuses; a read-only mount ends here
//! OPEN and superblocks flushed    anchor_mount      the first head of this mount is remembered
//! serving                         AnchorKeeper::start
//!   after every flush             durable           before anybody is told
//!   fsync, after that             wait              returns at once unless strict
//!   CHECKPOINT sealed             pairs             held meanwhile
//! last checkpoint flushed         close
//! ```

use std::error::Error;
use std::path::PathBuf;

use keys::VolumeId;

use crate::exit::Exit;

mod admission;
mod choice;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guest;
mod judge;
mod keeper;
mod keeping;
mod none;
mod record;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(crate) use admission::{admit, anchor_mount};
pub use choice::{AnchorChoice, Freshness, UnknownAnchor, guest_anchor_path};
pub(crate) use choice::{Anchors, forget_guest_anchor, make_guest_directory};
pub(crate) use judge::Found;
pub use judge::Refusal;
#[cfg(test)]
pub(crate) use judge::Rules;
pub(crate) use keeper::{AnchorKeeper, HeldPairs};

/// What an anchor remembers of one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchored {
    /// Number of a commit.
    pub seq: u64,
    /// Head of the log's chain after that commit. Not secret.
    pub head: [u8; 32],
    /// Epoch of the master key that the volume was written under.
    pub vmk_epoch: u32,
}

/// Remembers one volume's newest state, outside of the reach of whoever runs its store.
///
/// An implementation serves one volume. What it stores names that volume, is authentic when it
/// comes back, and is replaced in one step: after a crash at any moment it holds the old pair or
/// the new one. It never forgets on its own, and it never answers for another volume.
///
/// Both calls may block; they are made from one thread at a time, but not always the same one.
pub trait Anchor: Send + Sync {
    /// What is remembered. `None` only when it is certain that there never was anything: an anchor
    /// that cannot be reached, or lost what it held, is an error.
    fn load(&self) -> Result<Option<Anchored>, AnchorError>;

    /// Replaces `prev` by `next` if it still holds `prev`: compare and swap.
    ///
    /// `prev` alone decides. `next.seq` may be lower, after an operator has accepted an older state.
    fn advance(&self, prev: Option<&Anchored>, next: &Anchored) -> Result<(), AdvanceError>;

    /// Whether it outlives the guest. If so, it is remembered in the volume that there was an
    /// anchor, and the volume is not opened again when the anchor remembers nothing.
    fn is_lasting(&self) -> bool;

    /// What kind of anchor it is, in one word, for logs and figures.
    fn kind(&self) -> &'static str;
}

/// Why an anchor did not say what it remembers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnchorError {
    /// What it holds is not what was written to it.
    #[error("the anchor's record is damaged")]
    Damaged,
    /// It holds the record of another volume.
    #[error("the anchor is of volume {found}")]
    OtherVolume {
        /// The volume that the record names.
        found: VolumeId,
    },
    /// It was written under a newer master key than the volume in the store has.
    #[error(
        "the anchor was written under the master key of epoch {epoch}, newer than the volume's"
    )]
    NewerKeys {
        /// The epoch that the record names.
        epoch: u32,
    },
    /// A file outlives the guest, or can be set back by the host, and nobody vouched for it.
    #[error("{} is not on a tmpfs", path.display())]
    NotVolatile {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be reached now.
    #[error("the anchor cannot be reached")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

/// Why an anchor did not take a new pair.
#[derive(Debug, thiserror::Error)]
pub enum AdvanceError {
    /// It holds something else than `prev`, and has changed nothing.
    #[error("the anchor holds another state than expected")]
    Conflict,
    /// It may have taken the pair or not.
    #[error("it is not known whether the anchor took the state")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
}

/// Why a volume is not served: its freshness is not certain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreshnessError {
    /// The anchor did not answer, or what it answered is of no use.
    #[error("the anchor is of no use")]
    Anchor(#[from] AnchorError),
    /// The state in the store is not the one that is remembered, nor one that came after it.
    #[error("the volume is refused")]
    Refused(#[source] Box<Refusal>),
    /// The anchor did not take the state that the mount begins with.
    #[error("the anchor did not take the state of this mount")]
    NotTaken(#[source] AdvanceError),
}

impl AnchorError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Damaged => "fs.anchor_damaged",
            Self::NewerKeys { .. } => "fs.stale_keys",
            Self::NotVolatile { .. } => "fs.anchor_not_volatile",
            Self::OtherVolume { .. } => "fs.anchor_other_volume",
            Self::Unavailable(_) => "fs.anchor_unavailable",
        }
    }

    /// Whether asking again can give another answer.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Damaged | Self::NewerKeys { .. } => Exit::Tampered,
            Self::NotVolatile { .. } => Exit::Usage,
            Self::OtherVolume { .. } => Exit::NotOurVolume,
            Self::Unavailable(_) => Exit::MountFailed,
        }
    }

    fn unavailable(e: impl Error + Send + Sync + 'static) -> Self {
        Self::Unavailable(Box::new(e))
    }
}

impl AdvanceError {
    fn unknown(e: impl Error + Send + Sync + 'static) -> Self {
        Self::Unknown(Box::new(e))
    }
}

impl From<Refusal> for FreshnessError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl FreshnessError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Anchor(e) => e.code(),
            Self::NotTaken(AdvanceError::Conflict) => "fs.anchor_conflict",
            Self::NotTaken(AdvanceError::Unknown(_)) => "fs.anchor_unavailable",
            Self::Refused(e) => e.code(),
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        let exit = match self {
            Self::Anchor(e) => e.exit(),
            Self::NotTaken(AdvanceError::Conflict) | Self::Refused(_) => Exit::Tampered,
            Self::NotTaken(AdvanceError::Unknown(_)) => Exit::MountFailed,
        };
        exit.code()
    }
}
