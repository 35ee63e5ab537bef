//! Core: an encrypted, authenticated, log-structured filesystem over a store that the adversary
//! runs.
//!
//! Everything outside of this process's memory is hostile: the store may show any mixture of old,
//! altered, exchanged and missing objects, at any time. What a file shows is what was last written
//! to it, or an error.
//!
//! ```text
//! edge        fuse mount cli       requests of the kernel, the command line
//! beside      rekey                changing keys
//! filesystem  fs acl xattr         POSIX semantics
//! map         tables schema tree   what a volume holds; as keys and values; as sealed nodes
//! log         journal log          group commit, checkpoint; the chain, recovery
//! segments    segment              write-once addresses
//! seal        crypto format        bytes to sealed bytes; every byte of the format
//! store       store                objects
//! ```
//!
//! A call only goes down. Two structures stand on the segments and no third: the *log*, a
//! hash-chained sequence of sealed commits, and the *tree*, which a checkpoint writes. An address
//! (a segment's random uid and an offset) names one ciphertext for ever, so an authenticated
//! pointer to an address is a version check too.
//!
//! The format is docs/format.md, "The encrypted volume", and docs/format-map.md.

mod acl;
pub mod anchor;
#[doc(hidden)]
pub mod cli;
pub mod control;
mod crypto;
mod error;
mod exit;
mod format;
mod fs;
mod fsck;
mod fuse;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod journal;
mod log;
mod map;
pub mod mount;
mod offline;
pub mod rekey;
mod schema;
mod segment;
mod space;
mod store;
mod superblock;
mod sys;
mod tables;
#[cfg(any(test, fuzzing))]
mod testing;
mod transfer;
mod volume;
mod xattr;

pub use crypto::{OwnerKey, OwnerKeyError};
pub use error::{CloseError, OpenError};
pub use mount::Mounted;
pub use superblock::{NewKek, Unlock, UnlockWith};
pub use volume::{
    Gauge, Opening, Stats, Volume, claimed_volume_id, init, init_with_owner, random_volume_id,
};
