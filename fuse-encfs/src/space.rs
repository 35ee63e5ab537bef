//! Core: how much of the store may be used, with a reserve for what frees space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::FsError;
use crate::store::{Appendable, Space, StoreError};

/// Bytes that are kept at least, on a store that is not tiny, besides a log segment: for a
/// checkpoint of a small volume.
const KEPT: u64 = 4 << 20;
/// The next segment of the log takes at most this much, and this part of the store.
const LOG_SEGMENT_MAX: u64 = 64 << 20;
const LOG_SEGMENT_PART: u64 = 16;
/// No segment has to be shorter than this for the store's sake.
const SEGMENT_MIN: u64 = 1 << 20;
/// Bytes that are used before the store is asked again.
const ASK_EVERY: u64 = 8 << 20;

/// What a change needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Bytes of the store.
    pub(crate) stored: u64,
    /// Bytes by which the volume holds more.
    pub(crate) more: u64,
}

/// What a volume holds, as the map counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Bytes of contents.
    pub(crate) live: u64,
    /// Bytes that were promised.
    pub(crate) promised: u64,
    /// Bytes of nodes that were changed since the last tree was written: an upper bound of by how
    /// much the next one is larger.
    pub(crate) changed: u64,
}

/// Admits what needs space while enough is left for removals, commits and checkpoints, and for
/// what was promised.
#[derive(Debug)]
pub(crate) struct Reserve {
    store: Arc<dyn Appendable>,
    /// Bytes of the store in all, as it was opened.
    total: u64,
    /// Bytes that may be used before the store is asked again.
    left: AtomicU64,
    /// Bytes of the last tree that was written: the next one needs about as many.
    tree: AtomicU64,
    /// Bytes that the volume may hold.
    limit: AtomicU64,
    /// Bytes that were admitted so far.
    admitted: AtomicU64,
    /// How many of them are in the map, or took the place of what was.
    settled: AtomicU64,
}

impl Need {
    /// That of a change of names or attributes.
    pub(crate) const CHANGE: Self = Self::of(4096);

    /// That of contents. Those that have all their room already need none for their names in the
    /// map either: the reserve is for that.
    pub(crate) fn of_contents(stored: u64, more: u64) -> Self {
        let with_change = |bytes: u64| match bytes {
            0 => 0,
            bytes => bytes.saturating_add(Self::CHANGE.more),
        };
        Self {
            stored: with_change(stored),
            more: with_change(more),
        }
    }

    /// Of `bytes` that nothing makes room for.
    pub(crate) const fn of(bytes: u64) -> Self {
        Self {
            stored: bytes,
            more: bytes,
        }
    }
}

impl Reserve {
    /// The reserve of a store.
    pub(crate) fn new(store: Arc<dyn Appendable>) -> Self {
        // A store that does not say is not taken for a small one.
        let total = store.space().map_or(u64::MAX, |space| space.total);
        Self {
            store,
            total,
            left: AtomicU64::new(0),
            tree: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            admitted: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        }
    }

    /// At most `bytes`, and at most one `part`th of the store: what is much on a small store is
    /// little on a large one.
    pub(crate) fn at_most(&self, bytes: u64, part: u64) -> u64 {
        bytes.min((self.total / part).max(SEGMENT_MIN))
    }

    /// How long the log's next segment may be, of `bytes` that it should be.
    pub(crate) fn log_segment(&self, bytes: u64) -> u64 {
        self.at_most(bytes, LOG_SEGMENT_PART)
    }

    /// Lets the volume hold `bytes` at most from now on.
    pub(crate) fn limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
    }

    /// Whether there is a limit of the volume's own.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) < u64::MAX
    }

    /// Takes what is needed, or says that the store or the volume is full.
    pub(crate) fn take(&self, need: Need, held: Held) -> Result<(), FsError> {
        let bytes = need.stored.max(need.more);
        let take = |left: u64| left.checked_sub(bytes);
        let is_taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok();
        if !is_taken {
            let store = self.unused(held).map_err(FsError::Store)?;
            let volume = self.unheld(held);
            let rest = store.free.checked_sub(need.stored).ok_or(FsError::Full)?;
            let rest = rest.min(volume.checked_sub(need.more).ok_or(FsError::Full)?);
            // A quarter at most, as several threads may ask at once and all be told the same.
            self.left.store(rest.min(ASK_EVERY) / 4, Ordering::Relaxed);
        }
        self.admitted.fetch_add(need.more, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that were admitted so far.
    pub(crate) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// The map has what the first `admitted` of them became.
    pub(crate) fn settle(&self, admitted: u64) {
        self.settled.fetch_max(admitted, Ordering::Relaxed);
    }

    /// The volume's space: what of the store or of its limit is left, without the reserve.
    pub(crate) fn space(&self, held: Held) -> Result<Space, StoreError> {
        let Space { total, free } = self.unused(held)?;
        Ok(Space {
            total: total.min(self.limit.load(Ordering::Relaxed)),
            free: free.min(self.unheld(held)),
        })
    }

    /// The store's space without the reserve and the promises.
    fn unused(&self, held: Held) -> Result<Space, StoreError> {
        let Space { total, free } = self.store.space()?;
        let kept = KEPT
            .saturating_add(self.log_segment(LOG_SEGMENT_MAX))
            .saturating_add(self.tree.load(Ordering::Relaxed).saturating_mul(2));
        let kept = kept.min(total / 4).saturating_add(held.promised);
        Ok(Space {
            total,
            free: free.saturating_sub(kept),
        })
    }

    /// Bytes that the volume may still come to hold.
    fn unheld(&self, held: Held) -> u64 {
        let tree = self.tree.load(Ordering::Relaxed);
        let settled = self.settled.load(Ordering::Relaxed);
        let pending = self.admitted().saturating_sub(settled);
        let parts = [held.live, held.promised, held.changed, tree, pending];
        let all = parts.into_iter().fold(0, u64::saturating_add);
        self.limit.load(Ordering::Relaxed).saturating_sub(all)
    }

    /// Bytes of the last tree that was written.
    pub(crate) fn tree(&self) -> u64 {
        self.tree.load(Ordering::Relaxed)
    }

    /// Notes how many bytes a tree of the volume takes.
    pub(crate) fn note_tree(&self, bytes: u64) {
        self.tree.store(bytes, Ordering::Relaxed);
    }
}
