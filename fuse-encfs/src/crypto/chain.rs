//! Core: the head of the log, a hash over all that was ever committed.

use std::fmt;

use keys::VolumeId;
use sha2::{Digest, Sha256};

use super::label;
use crate::format::SegmentUid;

/// The head of the chain after some commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head(pub(crate) [u8; 32]);

/// A sealed commit and where it lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) seq: u64,
    pub(crate) log_epoch: u64,
    pub(crate) uid: SegmentUid,
    pub(crate) offset: u64,
    pub(crate) sealed: &'a [u8],
}

/// The head before the first commit.
pub(crate) fn genesis_head(volume: VolumeId, genesis: &[u8; 32], commitment: &[u8; 32]) -> Head {
    let hash = Sha256::new()
        .chain_update(label::GENESIS)
        .chain_update(volume.0)
        .chain_update(genesis)
        .chain_update(commitment);
    Head(hash.finalize().into())
}

/// The head after `link`.
pub(crate) fn next_head(head: &Head, link: &Link<'_>) -> Head {
    let hash = Sha256::new()
        .chain_update(label::HEAD)
        .chain_update(head.0)
        .chain_update(link.seq.to_le_bytes())
        .chain_update(link.log_epoch.to_le_bytes())
        .chain_update(link.uid.0)
        .chain_update(link.offset.to_le_bytes())
        .chain_update((link.sealed.len() as u64).to_le_bytes())
        .chain_update(Sha256::digest(link.sealed));
    Head(hash.finalize().into())
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(4)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
