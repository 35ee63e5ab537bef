//! Core: keeps the anchors of an open volume up to date, on a thread of its own.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use runtime::sync::{Condvar, Mutex, MutexGuard};

use super::keeping::{Keeping, Step};
use super::{AdvanceError, Anchored, Anchors};

/// How long an fsync waits for the anchor before it fails.
const STRICT_PATIENCE: Duration = Duration::from_secs(30);

/// The anchors of an open volume.
///
/// Locks: whoever seals a CHECKPOINT may hold the log's lock when he takes [`AnchorKeeper::pairs`];
/// nothing in here takes a lock of the log.
pub(crate) struct AnchorKeeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    anchors: Anchors,
    keeping: Mutex<Keeping>,
    /// Something changed that may make the thread move the anchor.
    changed: Condvar,
    /// The anchor has acknowledged something, or is lost.
    answered: Condvar,
    on_lost: Box<dyn Fn() + Send + Sync>,
    started: Instant,
}

/// What the anchors may hold. As long as it lives, nothing else is sent to them, and no flush
/// is acknowledged: not to be held over one.
pub(crate) struct HeldPairs<'a> {
    keeping: MutexGuard<'a, Keeping>,
    guest: Option<Anchored>,
}

/// How far the anchor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnchorFigures {
    /// What kind of anchor it is.
    pub(crate) kind: &'static str,
    /// Number of the last commit that it has acknowledged.
    pub(crate) acknowledged_seq: u64,
    /// Number of the newest durable commit.
    pub(crate) durable_seq: u64,
    /// Times in a row that it did not answer.
    pub(crate) failures: u32,
}

/// A durable commit is not anchored.
#[derive(Debug, thiserror::Error)]
#[error("the anchor has not taken the newest state")]
pub(crate) struct NotAnchored;

impl AnchorKeeper {
    /// Keeps `anchors`, of which the anchor has acknowledged `first`. `on_lost` is called once, from
    /// the keeper's thread and with no lock held, when the anchor holds a state that this mount
    /// never had: somebody else writes the volume, or wrote a fork of it. The volume must take no
    /// further change from then on.
    pub(crate) fn start(
        anchors: Anchors,
        first: Anchored,
        on_lost: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            anchors,
            keeping: Mutex::new(Keeping::new(first, Duration::ZERO)),
            changed: Condvar::new(),
            answered: Condvar::new(),
            on_lost: Box::new(on_lost),
            started: Instant::now(),
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || shared.run()
        };
        let thread = thread::Builder::new()
            .name("encfs-anchor".into())
            .spawn(run)?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The commit `seq` with this head, and all before it, are durable. To be called after the
    /// flush and before anybody is told of it. Calls may overtake each other.
    pub(crate) fn durable(&self, seq: u64, head: [u8; 32]) {
        let mut keeping = self.shared.keeping.lock();
        let wake = keeping.durable(seq, head);
        let durable = Anchored {
            seq,
            head,
            vmk_epoch: keeping.newest().vmk_epoch,
        };
        drop(keeping);
        if let Some(guest) = &self.shared.anchors.guest {
            guest.record(durable);
        }
        if wake {
            self.shared.changed.notify_one();
        }
    }

    /// What to seal in a CHECKPOINT, to be held until it is sealed. To be taken once the place where
    /// the tree was cloned is durable: every later pair is met in replay from there.
    pub(crate) fn pairs(&self) -> HeldPairs<'_> {
        HeldPairs {
            keeping: self.shared.keeping.lock(),
            guest: self
                .shared
                .anchors
                .guest
                .as_ref()
                .and_then(|guest| guest.last()),
        }
    }

    /// With a strict anchor, returns once `seq` is anchored; with any other at once.
    ///
    /// After an error the commit is durable, and may be anchored or not.
    pub(crate) fn wait(&self, seq: u64) -> Result<(), NotAnchored> {
        if !self.shared.anchors.strict {
            return Ok(());
        }
        let mut keeping = self.shared.keeping.lock();
        keeping.want(seq);
        self.shared.changed.notify_one();
        self.shared.answered.wait_while_for(
            &mut keeping,
            |keeping| keeping.acked().seq < seq && !keeping.is_lost(),
            STRICT_PATIENCE,
        );
        if keeping.acked().seq >= seq && !keeping.is_lost() {
            Ok(())
        } else {
            Err(NotAnchored)
        }
    }

    /// The volume is written under a newer master key from now on; its anchor key was added before.
    pub(crate) fn renew(&self, vmk_epoch: u32) {
        let mut keeping = self.shared.keeping.lock();
        keeping.renew(vmk_epoch);
        let newest = keeping.newest();
        drop(keeping);
        if let Some(guest) = &self.shared.anchors.guest {
            guest.record(newest);
        }
        self.shared.changed.notify_one();
    }

    /// Epoch of the master key that the anchor knows of: keys below it can be forgotten.
    pub(crate) fn vmk_epoch(&self) -> u32 {
        self.shared.keeping.lock().acked().vmk_epoch
    }

    /// Whether the anchor holds a state that this mount never had.
    #[cfg(test)]
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.keeping.lock().is_lost()
    }

    /// How far the anchor is.
    pub(crate) fn figures(&self) -> AnchorFigures {
        let keeping = self.shared.keeping.lock();
        AnchorFigures {
            kind: self.shared.anchors.anchor.kind(),
            acknowledged_seq: keeping.acked().seq,
            durable_seq: keeping.newest().seq,
            failures: keeping.failures(),
        }
    }

    /// Moves the anchor to the newest durable head, with a few tries, and ends the thread. An error
    /// harms nothing but freshness: the next mount is judged by an older pair.
    pub(crate) fn close(&self) -> Result<(), NotAnchored> {
        self.end();
        let keeping = self.shared.keeping.lock();
        if keeping.acked() == keeping.newest() && !keeping.is_lost() {
            Ok(())
        } else {
            Err(NotAnchored)
        }
    }

    fn end(&self) {
        self.shared.keeping.lock().close();
        self.shared.changed.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the thread was reported by the panic itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut keeping = self.keeping.lock();
        loop {
            match keeping.step(self.now()) {
                Step::Advance { prev, next } => {
                    let advance = || self.anchors.anchor.advance(Some(&prev), &next);
                    let outcome = MutexGuard::unlocked(&mut keeping, advance);
                    report(&outcome, keeping.failures());
                    keeping.advanced(&outcome, self.now());
                }
                Step::Load => {
                    let load = || self.anchors.anchor.load();
                    let outcome = MutexGuard::unlocked(&mut keeping, load);
                    keeping.loaded(&outcome, self.now());
                    if keeping.is_lost() {
                        tracing::error!(
                            error_code = "fs.anchor_conflict",
                            "the anchor holds a state that this mount never had: another writer, \
                             or a fork of the volume; the volume takes no more changes"
                        );
                        MutexGuard::unlocked(&mut keeping, || (self.on_lost)());
                    }
                }
                Step::Wait(None) => self.changed.wait(&mut keeping),
                Step::Wait(Some(until)) => {
                    let left = until.saturating_sub(self.now());
                    self.changed.wait_for(&mut keeping, left);
                }
                Step::End => return,
            }
            self.answered.notify_all();
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

impl HeldPairs<'_> {
    /// The pairs, each once.
    pub(crate) fn to_vec(&self) -> Vec<(u64, [u8; 32])> {
        let mut pairs: Vec<_> = self
            .keeping
            .pairs()
            .chain(self.guest)
            .map(|pair| (pair.seq, pair.head))
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }
}

impl Drop for AnchorKeeper {
    /// As after a crash: the anchor is not moved again.
    fn drop(&mut self) {
        if self.thread.lock().is_some() {
            self.shared.keeping.lock().abandon();
            self.end();
        }
    }
}

impl fmt::Debug for AnchorKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnchorKeeper")
            .field("anchors", &self.shared.anchors)
            .finish_non_exhaustive()
    }
}

fn report(outcome: &Result<(), AdvanceError>, failures: u32) {
    if let Err(AdvanceError::Unknown(e)) = outcome
        && failures == 0
    {
        tracing::warn!(
            error_code = "fs.anchor_unavailable",
            error = %e,
            "the anchor does not answer; it is asked again until it does"
        );
    }
}
