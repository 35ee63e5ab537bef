//! Core: changing the keys of a volume that is in use.
//!
//! A new master key is in use from the moment that both superblock slots name it; what lies under
//! the one before is moved by the cleaner, nodes by checkpoints. When no segment of the old key is
//! left, the old key is given up. A crash at any point leaves a volume that opens, and goes on.

use std::collections::BTreeSet;

use keys::{KekEpoch, VolumeKek};

use super::Journal;
use crate::error::{CommitError, OpenError};
use crate::format::{SegmentId, SegmentKind};
use crate::superblock::{NewKek, UnlockWith};

/// How far a volume is on its way to a new master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resealing {
    /// Bytes that lie under the old key.
    pub(crate) left: u64,
}

impl Journal {
    /// Wraps the master key with another key-encryption key, by default of the next epoch; with
    /// `reseal` a new master key, under which everything is sealed anew from then on.
    pub(crate) fn change_keys(
        &self,
        kek: &VolumeKek,
        epoch: Option<KekEpoch>,
        reseal: bool,
    ) -> Result<(), OpenError> {
        {
            let mut checkpointer = self.checkpointing.lock();
            let mut committer = self.committer();
            self.still_writable()?;
            let next = KekEpoch(committer.superblock.kek_epoch().0.saturating_add(1));
            let epoch = epoch.unwrap_or(next);
            let master = self.keys.newest_master()?;
            let (with, new) = (UnlockWith::Vmk(&master), NewKek { kek, epoch });
            let superblock = &mut committer.superblock;
            if reseal {
                let keys = superblock.begin_rekey(&self.keys, with, new)?;
                superblock.write(&*self.store, &keys, &*self.lease)?;
                self.keys.adopt(&keys);
            } else {
                superblock.rewrap(&self.keys, with, new)?;
                superblock.write(&*self.store, &self.keys, &*self.lease)?;
                return Ok(());
            }
            // Nothing more goes under the old key.
            committer.next = None;
            self.data.end(|_| true);
            checkpointer.end_segment();
            self.roll(&mut committer)?;
        }
        if let Some(keeper) = &self.keeper {
            keeper.renew(self.keys.vmk_epoch());
        }
        Ok(())
    }

    /// Whether there is something under an old master key.
    pub(crate) fn resealing(&self) -> Result<Option<Resealing>, CommitError> {
        if !self.log.lock().superblock.is_rekeying() {
            return Ok(None);
        }
        let newest = self.keys.vmk_epoch();
        let mut left = 0;
        self.tables().segments(|_, entry| {
            if entry.segment.vmk_epoch != newest {
                left += entry.live;
            }
        })?;
        left += self.checkpointing.lock().stale_nodes(newest);
        Ok(Some(Resealing { left }))
    }

    /// Gives up the old master key, if nothing is left that it could open. Says whether it did.
    pub(crate) fn finish_resealing(&self) -> Result<bool, CommitError> {
        let newest = self.keys.vmk_epoch();
        let mut stale: BTreeSet<(SegmentId, SegmentKind)> = BTreeSet::new();
        self.tables().segments(|id, entry| {
            if entry.segment.vmk_epoch != newest {
                stale.insert((id, entry.kind));
            }
        })?;
        let is_anchored = self
            .keeper
            .as_ref()
            .is_none_or(|keeper| keeper.vmk_epoch() >= newest);
        if !stale.is_empty() || !is_anchored {
            return Ok(false);
        }
        let mut committer = self.committer();
        committer.superblock.finish_rekey();
        let durable_seq = committer.log.durable_seq();
        self.write_superblock(&mut committer, durable_seq)?;
        self.keys.forget_older();
        tracing::info!(
            vmk_epoch = newest,
            "everything is sealed under the new master key"
        );
        Ok(true)
    }
}
