//! Core: how much the cleaner may do, and when what it emptied is deleted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::CommitError;
use crate::fs::Fs;

/// Bytes that may be moved a second while files are written: a quarter of what is written, and
/// this much at least.
const BUSY_MIN: u64 = 4 << 20;
/// Bytes that may be moved a second while nobody writes.
const IDLE_MAX: u64 = 64 << 20;
/// The same when the store is nearly full.
const PRESSED_MAX: u64 = 256 << 20;
/// A store with less than one part in this many free is nearly full.
const PRESSED_PART: u64 = 20;
/// Bytes of dead segments that are worth the checkpoints after which they can be deleted.
const DEAD_MAX: u64 = 32 << 20;
/// Bytes that may be written a second, and changes made, while the volume counts as at rest.
const REST_MAX: u64 = 1 << 20;
const REST_CHANGES_MAX: u64 = 256;
/// Bytes of log that are worth a checkpoint of a volume at rest: only then is it known which nodes
/// nobody needs any more, and a mount has little to replay.
const REST_LOG: u64 = 1 << 20;
/// Seconds between checkpoints that only bring the store down.
const SETTLE_EVERY: u32 = 5;
/// How many of these may change nothing before they are given up.
const SETTLE_TRIES: u32 = 3;

/// Looks after the store while the volume is open.
pub(super) struct Janitor {
    fs: Arc<Fs>,
    /// Bytes that were written when it looked last.
    written: u64,
    /// Changes that were made until then.
    submitted: u64,
    settling: Settling,
    has_complained: bool,
}

/// Checkpoints of a volume at rest whose store holds more than it should: what is dead, old nodes
/// and an old log go by them.
#[derive(Debug, Default)]
struct Settling {
    /// What the store held too much when it was looked at last.
    excess: u64,
    /// How often it was the same.
    tries: u32,
    /// Seconds at rest since the last one.
    since: u32,
}

impl Janitor {
    pub(super) fn new(fs: Arc<Fs>) -> Self {
        Self {
            fs,
            written: 0,
            submitted: 0,
            settling: Settling::default(),
            has_complained: false,
        }
    }

    /// Goes on with a change of the master key, if one is under way.
    fn reseal(&self) -> Result<(), CommitError> {
        let journal = self.fs.journal();
        if journal
            .resealing()?
            .is_some_and(|resealing| resealing.left == 0)
            && !journal.finish_resealing()?
        {
            // What was emptied goes with the second checkpoint.
            self.fs.checkpoint()?;
        }
        Ok(())
    }

    /// What is done every second.
    pub(super) fn tick(&mut self) {
        let written = self.fs.counters().bytes_written.load(Ordering::Relaxed);
        let lately = written.saturating_sub(self.written);
        self.written = written;
        let journal = self.fs.journal();
        if journal.has_failed() {
            return;
        }
        let submitted = journal.submitted();
        let changes = submitted.saturating_sub(std::mem::replace(&mut self.submitted, submitted));
        let is_at_rest = lately <= REST_MAX && changes <= REST_CHANGES_MAX;
        let _ = self.fs.catch_up();
        // Whoever waits for a commit meets the failure.
        let _ = self.fs.checkpoint_if_due();
        if let Err(e) = journal.prepare_log() {
            tracing::debug!(error = %e, "the log's next segment is not made ahead");
        }
        if let Err(e) = self.reseal() {
            tracing::debug!(error = %e, "the volume is not under its new master key yet");
        }
        let journal = self.fs.journal();
        let is_pressed = journal
            .space()
            .is_ok_and(|space| space.free < space.total / PRESSED_PART);
        let budget = match (is_pressed, lately) {
            (true, _) => PRESSED_MAX,
            (false, 0) => IDLE_MAX,
            (false, lately) => (lately / 4).max(BUSY_MIN),
        };
        let settling = &mut self.settling;
        if is_pressed {
            // Where it is written now, too, may be nothing but garbage.
            let _ = journal.has_dead_data();
        }
        let cleaned = journal.clean(budget).and_then(|cleaned| {
            // Dead in one checkpoint and in the next, a segment goes.
            let is_worth_it = cleaned.dead >= DEAD_MAX || (is_pressed && cleaned.dead > 0);
            let is_at_rest = is_at_rest && cleaned.copied == 0;
            if is_worth_it || (is_at_rest && settling.is_due(cleaned.excess, journal.log_bytes())) {
                self.fs.checkpoint()?;
            }
            Ok(())
        });
        if let Err(e) = cleaned
            && !std::mem::replace(&mut self.has_complained, true)
        {
            tracing::warn!(error = %e, error_code = "fs.cleaner", "sparse segments cannot be cleaned");
        }
    }
}

impl Settling {
    /// To be asked of a volume at rest, once a second.
    fn is_due(&mut self, excess: u64, log_bytes: u64) -> bool {
        self.since = self.since.saturating_add(1);
        if self.since < SETTLE_EVERY {
            return false;
        }
        if excess != self.excess {
            (self.excess, self.tries) = (excess, 0);
        }
        let is_due = log_bytes >= REST_LOG || (excess > 0 && self.tries < SETTLE_TRIES);
        if is_due {
            self.tries += 1;
            self.since = 0;
        }
        is_due
    }
}
