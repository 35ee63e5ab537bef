//! Core: bytes to sealed bytes and back; the only part that names an AEAD crate.
//!
//! ```text
//! KEK --wraps--> VMK (random, per volume and epoch) --wraps--> the VMK before, while it is replaced
//!                 |-- K_data --- per segment --> key of chunks
//!                 |-- K_node --- per segment --> key of nodes
//!                 |-- K_log  --- per segment --> key of inline chunks
//!                 |                         `--> parent of commits
//!                 |-- K_super ----------------> parent of superblock bodies
//!                 |-- K_anchor ---------------> tags of anchor records
//!                 |-- K_data, K_node, K_log --> parents of segment headers too
//!                 `-- commitments, in the superblock and in the first head of the chain
//! owner's RSA key --encrypts--> VMK, when a volume was made so
//! ```
//!
//! **Where keys are.** What is derived from a VMK and lives as long as the volume is open is in
//! locked pages ([`runtime::locked`]). A KEK or VMK itself exists for the length of one call, boxed
//! and wiped. A cipher's round keys and hash key lie in the provider's memory for as long as their
//! segment is prepared: AWS-LC keeps them in one block of its own, made in place, and overwrites
//! every block that it frees; the portable provider is built to wipe its schedule when dropped.
//!
//! **Invariants.** Two ways of sealing exist and no third. A *unit* (chunk or node) is sealed
//! under its segment's key with a nonce made of its own offset and a salt drawn after its plaintext
//! is complete ([`SegmentSealer`]); what is small and rare is sealed under a key of its own
//! ([`seal_once`]). What a unit is, is in its AAD, all of it from the pointer.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod aead;
mod anchor;
mod chain;
mod epoch;
mod keys;
mod label;
mod once;
mod random;
mod recovery;
#[cfg(test)]
mod tests;
mod unit;
mod wrap;

#[cfg(test)]
pub(crate) use aead::recorder;
pub(crate) use aead::{Aead, fastest};
#[cfg(any(test, fuzzing))]
pub(crate) use aead::{AeadKey, providers};
pub(crate) use anchor::ANCHOR_TAG_LEN;
pub(crate) use chain::{Head, Link, next_head};
pub(crate) use epoch::EpochKeys;
pub(crate) use keys::{NameHasher, VolumeKeys};
pub(crate) use once::{ONCE_OVERHEAD, open_once, seal_once};
pub(crate) use random::Entropy;
pub use recovery::{OwnerKey, OwnerKeyError};
#[cfg(test)]
pub(crate) use tests::vectors;
pub(crate) use unit::SegmentSealer;
pub(crate) use wrap::{KekSealer, unwrap_older, wrap_older};

/// Sealing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// No randomness is to be had.
    #[error("the system gives no randomness")]
    Entropy,
    /// The cipher refused; a bug.
    #[error("the cipher refused to seal")]
    Cipher,
    /// No memory for keys is to be had.
    #[error(transparent)]
    Memory(#[from] runtime::locked::LockError),
}

/// Bytes are not what was sealed there. No detail: the cause is nobody's to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not authentic")]
pub(crate) struct NotAuthentic;
