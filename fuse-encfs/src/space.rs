//! Core: how much of the store may be used, with a reserve for what frees space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::FsError;
use crate::store::{Appendable, Space, StoreError};

/// Bytes that are kept at least, on a store that is not tiny: a log segment's beginning, and a
/// checkpoint of a small volume.
const KEPT: u64 = 4 << 20;
/// Bytes that are used before the store is asked again.
const ASK_EVERY: u64 = 8 << 20;

/// Admits what needs space while enough is left for removals, commits and checkpoints.
#[derive(Debug)]
pub(crate) struct Reserve {
    store: Arc<dyn Appendable>,
    /// Bytes that may be used before the store is asked again.
    left: AtomicU64,
    /// Bytes of the last tree that was written: the next one needs about as many.
    tree: AtomicU64,
}

impl Reserve {
    /// The reserve of a store.
    pub(crate) fn new(store: Arc<dyn Appendable>) -> Self {
        Self {
            store,
            left: AtomicU64::new(0),
            tree: AtomicU64::new(0),
        }
    }

    /// Takes `bytes`, or says that the store is full.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), FsError> {
        let take = |left: u64| left.checked_sub(bytes);
        if self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
        {
            return Ok(());
        }
        let usable = self.space().map_err(FsError::Store)?.free;
        let rest = usable.checked_sub(bytes).ok_or(FsError::Full)?;
        // A quarter at most, as several threads may ask at once and all be told the same.
        self.left.store(rest.min(ASK_EVERY) / 4, Ordering::Relaxed);
        Ok(())
    }

    /// The store's space without the reserve.
    pub(crate) fn space(&self) -> Result<Space, StoreError> {
        let Space { total, free } = self.store.space()?;
        let kept = KEPT.saturating_add(self.tree.load(Ordering::Relaxed).saturating_mul(2));
        Ok(Space {
            total,
            free: free.saturating_sub(kept.min(total / 4)),
        })
    }

    /// Notes how many bytes a tree of the volume takes.
    pub(crate) fn note_tree(&self, bytes: u64) {
        self.tree.store(bytes, Ordering::Relaxed);
    }
}
