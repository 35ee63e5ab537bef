//! Core: an encrypted, authenticated, log-structured filesystem over a store that the adversary
//! runs.
//!
//! Everything outside of this process's memory is hostile: the store may show any mixture of old,
//! altered, exchanged and missing objects, at any time. What a file shows is what was last written
//! to it, or an error.
//!
//! ```text
//! edge        fuse mount cli       requests of the kernel, the command line
//! filesystem  fs                   POSIX semantics
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
//! The format is docs/format.md, "The encrypted volume".

#[doc(hidden)]
pub mod cli;
mod crypto;
mod error;
mod exit;
mod format;
mod fs;
mod fuse;
mod journal;
mod log;
pub mod mount;
mod schema;
mod segment;
mod space;
mod store;
mod superblock;
mod sys;
mod tables;
#[cfg(test)]
mod testing;
mod tree;
mod volume;

pub use error::{CloseError, OpenError};
pub use mount::Mounted;
pub use volume::{Gauge, Stats, Volume, claimed_volume_id, init, random_volume_id};
