//! Adapter: a mounted volume, as its control socket sees it.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use runtime::sync::{Condvar, Mutex};

use super::controlled::{
    ControlError, Controlled, Figure, Figures, Happening, NewKeys, Scrubbed, Tell,
};
use crate::error::{CommitError, OpenError};
use crate::exit::Exit;
use crate::fs::Fs;
use crate::fsck;
use crate::volume::Gauge;

/// Bytes that are moved between two looks at who waits for new keys.
const RESEAL_STEP: u64 = 64 << 20;
/// How long to wait when nothing can be moved, because an anchor has to learn of the new key first.
const RESEAL_PAUSE: Duration = Duration::from_millis(200);

/// What a control socket asks of a volume. Keeps neither the volume open nor its keys alive.
pub(crate) struct MountedVolume {
    gauge: Gauge,
    fs: Weak<Fs>,
}

impl MountedVolume {
    pub(crate) fn new(gauge: Gauge, fs: &Arc<Fs>) -> Self {
        Self {
            gauge,
            fs: Arc::downgrade(fs),
        }
    }

    fn fs(&self) -> Result<Arc<Fs>, ControlError> {
        self.fs.upgrade().ok_or(ControlError::Unsupported)
    }
}

impl Controlled for MountedVolume {
    fn figures(&self) -> Result<Figures, ControlError> {
        let stats = self.gauge.stats().ok_or(ControlError::Unsupported)?;
        let fs = self.fs()?;
        let journal = fs.journal();
        let space = fs.statistics().map_err(|e| failed(&e))?;
        let counters = journal.tables().counters();
        let mut figures = vec![
            ("auth_failures", Figure::Count(stats.auth_failures)),
            ("files", Figure::Count(counters.files)),
            ("free_bytes", Figure::Count(space.free)),
            ("live_bytes", Figure::Count(counters.live)),
            ("open_seconds", Figure::Count(stats.open_for.as_secs())),
            ("read_bytes", Figure::Count(stats.bytes_read)),
            ("read_only", Figure::Flag(stats.read_only)),
            ("reserved_bytes", Figure::Count(counters.unwritten)),
            ("total_bytes", Figure::Count(space.total)),
            ("written_bytes", Figure::Count(stats.bytes_written)),
        ];
        if let Some(keeper) = journal.keeper() {
            let anchor = keeper.figures();
            figures.extend([
                ("anchor", Figure::Text(anchor.kind.into())),
                ("anchor_failures", Figure::Count(anchor.failures.into())),
                ("anchored_commit", Figure::Count(anchor.acknowledged_seq)),
                ("durable_commit", Figure::Count(anchor.durable_seq)),
            ]);
        }
        if let Some(resealing) = journal.resealing().map_err(|e| not_committed(&e))? {
            figures.push(("reseal_left_bytes", Figure::Count(resealing.left)));
        }
        let named = figures
            .into_iter()
            .map(|(name, figure)| (name.to_owned(), figure));
        Ok(named.collect())
    }

    fn freeze(&self) -> Result<(), ControlError> {
        let fs = self.fs()?;
        fs.sync()
            .and_then(|()| fs.checkpoint())
            .map_err(|e| not_committed(&e))?;
        fs.journal().freeze();
        Ok(())
    }

    fn thaw(&self) -> Result<(), ControlError> {
        // A volume that is closed holds nobody back.
        if let Some(fs) = self.fs.upgrade() {
            fs.journal().thaw();
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), ControlError> {
        let fs = self.fs()?;
        fs.sync()
            .and_then(|()| fs.checkpoint())
            .map_err(|e| not_committed(&e))
    }

    fn scrub(&self, tell: &mut Tell<'_>) -> Result<Scrubbed, ControlError> {
        let fs = self.fs()?;
        // What waits in memory alone has nothing in the store to be read.
        fs.sync().map_err(|e| not_committed(&e))?;
        fsck::scrub(fs.journal(), tell).map_err(|e| failed(&e))
    }

    fn rekey(&self, keys: NewKeys, tell: &mut Tell<'_>) -> Result<(), ControlError> {
        let fs = self.fs()?;
        let journal = fs.journal();
        let (kek, epoch) = keys.kek.ok_or_else(|| {
            let message = "a new master key has to be wrapped: give the key for that too";
            ControlError::Request(message.into())
        })?;
        journal
            .change_keys(&kek, epoch, keys.reseal)
            .map_err(|e| not_opened(&e))?;
        drop(kek);
        if keys.reseal {
            reseal(&fs, tell)
        } else {
            Ok(())
        }
    }
}

/// Moves everything from under the old master key. When nobody listens any more, it is left to the
/// volume's own pace.
fn reseal(fs: &Arc<Fs>, tell: &mut Tell<'_>) -> Result<(), ControlError> {
    let journal = fs.journal();
    let mut total = None;
    while let Some(resealing) = journal.resealing().map_err(|e| not_committed(&e))? {
        let total_bytes = *total.get_or_insert_with(|| resealing.left.max(1));
        let done_bytes = total_bytes.saturating_sub(resealing.left);
        let progress = Happening::Progress {
            done_bytes,
            total_bytes,
        };
        if let ControlFlow::Break(()) = tell(progress) {
            return Ok(());
        }
        let cleaned = journal.clean(RESEAL_STEP).map_err(|e| failed(&e))?;
        fs.checkpoint().map_err(|e| not_committed(&e))?;
        let is_done = journal.finish_resealing().map_err(|e| not_committed(&e))?;
        if !is_done && cleaned.copied == 0 && resealing.left == 0 {
            let (nobody, never) = (Mutex::new(()), Condvar::new());
            never.wait_for(&mut nobody.lock(), RESEAL_PAUSE);
        }
    }
    Ok(())
}

fn failed(e: &dyn std::error::Error) -> ControlError {
    ControlError::Failed {
        code: "fs.control_failed",
        exit: Exit::MountFailed.code(),
        message: e.to_string(),
    }
}

fn not_committed(e: &CommitError) -> ControlError {
    ControlError::Failed {
        code: "fs.not_committed",
        exit: Exit::MountFailed.code(),
        message: e.to_string(),
    }
}

fn not_opened(e: &OpenError) -> ControlError {
    ControlError::Failed {
        code: e.code(),
        exit: e.exit_code(),
        message: e.to_string(),
    }
}
