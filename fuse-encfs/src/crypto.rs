//! Core: bytes to sealed bytes and back; the only part that names an AEAD crate.
//!
//! ```text
//! KEK --wraps--> VMK (random, per volume)
//!                 |-- K_data --- per segment --> key of chunks
//!                 |-- K_node --- per segment --> key of nodes
//!                 |-- K_log  --- per segment --> key of inline chunks
//!                 |                         `--> parent of commits
//!                 |-- K_super ----------------> parent of superblock bodies
//!                 |-- K_dirhash --------------> SipHash key of names
//!                 `-- commitment, in the first head of the chain
//! ```
//!
//! **Invariants.** Two ways of sealing exist and no third. A *unit* (chunk or node) is sealed
//! under its segment's key with a nonce made of its own offset and a salt drawn after its plaintext
//! is complete ([`SegmentSealer`]); what is small and rare is sealed under a key of its own
//! ([`seal_once`]). What a unit is, is in its AAD, all of it from the pointer.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod aead;
mod chain;
mod keys;
mod label;
mod once;
mod random;
#[cfg(test)]
mod tests;
mod unit;

pub(crate) use aead::{Aead, fastest};
#[cfg(test)]
pub(crate) use aead::{providers, recorder};
pub(crate) use chain::{Head, Link, next_head};
pub(crate) use keys::{KekSealer, NameHasher, VolumeKeys};
pub(crate) use once::{ONCE_OVERHEAD, open_once, seal_once};
pub(crate) use random::Entropy;
pub(crate) use unit::SegmentSealer;

/// Sealing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// No randomness is to be had.
    #[error("the system gives no randomness")]
    Entropy,
    /// The cipher refused; a bug.
    #[error("the cipher refused to seal")]
    Cipher,
}

/// Bytes are not what was sealed there. No detail: the cause is nobody's to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not authentic")]
pub(crate) struct NotAuthentic;
