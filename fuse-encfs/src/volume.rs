//! Core: a volume, from making it to closing it.

use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keys::{VolumeId, VolumeKek};
use runtime::sync::{Condvar, Mutex};

use crate::crypto::{Aead, Entropy, fastest};
use crate::error::{CloseError, CommitError, OpenError};
use crate::format::{LOG_ALIGNMENT, SegmentId, Timestamp};
use crate::fs::Fs;
use crate::journal::{Journal, Retained, Start};
use crate::log::{Log, recover};
use crate::store::{Appendable, DirStore, ObjectName, Store, StoreError};
use crate::superblock::{self, Genesis, Superblock, WriteSuperblockError};
use crate::sys;
use crate::tables::Tables;

#[cfg(test)]
mod tests;

/// How long what was written stays undurable at most when nobody calls fsync.
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How long to wait for another mount that is not known to be ending: it may just have been
/// unmounted and not have noticed yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// An open volume: the only writer of its store.
///
/// Dropped without [`Volume::close`] it is as after a crash: all that was committed is there.
pub struct Volume {
    fs: Arc<Fs>,
    id: VolumeId,
    ticker: Ticker,
    opened: Instant,
}

/// A view of a volume's [`Stats`] that keeps neither the volume open nor its keys alive.
#[derive(Clone)]
pub struct Gauge {
    fs: Weak<Fs>,
    opened: Instant,
}

/// What happened since a volume was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of files that were read from the store.
    pub bytes_read: u64,
    /// Bytes of files that were written to the store.
    pub bytes_written: u64,
    /// Reads that were refused because the store did not hold what was written to it.
    pub auth_failures: u64,
    /// Whether a failure has made the volume read-only.
    pub read_only: bool,
    /// Time since the volume was opened.
    pub open_for: Duration,
}

/// Makes a new volume in the directory `store`, which is made too when it is absent.
///
/// Blocking. Refuses a store that holds anything.
pub fn init(store: &Path, kek: &VolumeKek, volume: VolumeId) -> Result<(), OpenError> {
    let store = Arc::new(DirStore::open_or_make(store)?);
    init_on(store, &fastest(), kek, volume)
}

/// Draws an id for a new volume.
pub fn random_volume_id() -> Result<VolumeId, OpenError> {
    Ok(VolumeId(Entropy::default().draw()?))
}

/// The volume that the store in the directory `store` claims to hold. Not authenticated: an
/// expected id from elsewhere is what keeps volumes from being exchanged.
pub fn claimed_volume_id(store: &Path) -> Result<VolumeId, OpenError> {
    superblock::named_volume(&DirStore::open(store)?)
}

impl Volume {
    /// Opens the volume `expected` in the directory `store`, and brings it to its last committed
    /// state. Blocking.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the key is wiped once it has been used"
    )]
    pub fn open(store: &Path, kek: VolumeKek, expected: VolumeId) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(DirStore::open(store)?), &fastest(), &kek, expected)
    }

    /// Opens a volume on any store.
    pub(crate) fn open_on(
        store: Arc<dyn Appendable>,
        aead: &Arc<dyn Aead>,
        kek: &VolumeKek,
        expected: VolumeId,
    ) -> Result<Self, OpenError> {
        if !has_superblock(&*store)? {
            return Err(OpenError::NotAVolume);
        }
        let lease = store.lease(PATIENCE)?;
        let (mut superblock, keys) = superblock::read(&*store, aead, kek, expected)?;
        let keys = Arc::new(keys);
        let mut recovered = recover(&*store, &keys, superblock.body())?;
        recovered.settle(&*store)?;

        let mut tables = recovered.tables;
        let id = tables.counters().next_segment;
        let alignment = superblock.body().log_alignment;
        let (log, open) = Log::open(
            Arc::clone(&store),
            Arc::clone(&keys),
            alignment,
            id,
            recovered.log,
        )?;
        tables.apply(&open, 0).map_err(CommitError::from)?;
        superblock.name_log(log.current(), log.durable_seq());
        superblock.write(&*store, &keys, &*lease)?;

        let newest = Retained {
            nodes: recovered
                .checkpoint
                .nodes
                .iter()
                .map(|node| node.id)
                .collect(),
            dead: recovered.dead,
            replay_from: recovered.checkpoint.next.segment,
        };
        let journal = Journal::new(
            store,
            keys,
            lease,
            Start {
                tables,
                log,
                superblock,
                newest,
            },
        );
        let fs = Arc::new(Fs::new(journal));
        tracing::info!(volume = %expected, "volume opened");
        Ok(Self {
            ticker: Ticker::start(&fs)?,
            fs,
            id: expected,
            opened: Instant::now(),
        })
    }

    /// Whose volume it is.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        stats_of(&self.fs, self.opened)
    }

    /// Where to ask for [`Stats`] from elsewhere.
    pub fn gauge(&self) -> Gauge {
        Gauge {
            fs: Arc::downgrade(&self.fs),
            opened: self.opened,
        }
    }

    /// Commits everything, writes a checkpoint and gives the store free. Blocking.
    pub fn close(mut self) -> Result<(), CloseError> {
        self.ticker.stop();
        self.fs.close()?;
        tracing::info!(volume = %self.id, "volume closed");
        Ok(())
    }

    /// The filesystem in it.
    pub(crate) fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }
}

impl Gauge {
    /// What happened so far; `None` once the volume is closed.
    pub fn stats(&self) -> Option<Stats> {
        Some(stats_of(&*self.fs.upgrade()?, self.opened))
    }
}

fn stats_of(fs: &Fs, opened: Instant) -> Stats {
    let counters = fs.counters();
    Stats {
        bytes_read: counters.bytes_read.load(Ordering::Relaxed),
        bytes_written: counters.bytes_written.load(Ordering::Relaxed),
        auth_failures: counters.auth_failures.load(Ordering::Relaxed),
        read_only: fs.journal().has_failed(),
        open_for: opened.elapsed(),
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauge(..)")
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Makes a new volume on any store.
pub(crate) fn init_on(
    store: Arc<dyn Appendable>,
    aead: &Arc<dyn Aead>,
    kek: &VolumeKek,
    volume: VolumeId,
) -> Result<(), OpenError> {
    if !store.is_empty()? {
        return Err(OpenError::NotEmpty);
    }
    let lease = store.lease(Duration::ZERO)?;
    if !store.is_empty()? {
        return Err(OpenError::NotEmpty);
    }
    let entropy = Entropy::default();
    let genesis = Genesis {
        volume,
        genesis: entropy.draw()?,
        log_alignment: LOG_ALIGNMENT,
    };
    let (superblock, keys) = Superblock::make(aead, kek, &genesis, &entropy)?;
    let keys = Arc::new(keys);

    let owner = sys::effective_owner();
    let mut tables = Tables::with_root(keys.name_hasher(), owner, Timestamp::now());
    let head = keys.genesis_head(&genesis.genesis);
    let id = SegmentId(1);
    let (log, open) = Log::first(
        Arc::clone(&store),
        Arc::clone(&keys),
        LOG_ALIGNMENT,
        id,
        head,
    )?;
    tables.apply(&open, 0).map_err(CommitError::from)?;
    let newest = Retained {
        nodes: Default::default(),
        dead: Default::default(),
        replay_from: log.current().0,
    };
    let journal = Journal::new(
        store,
        keys,
        lease,
        Start {
            tables,
            log,
            superblock,
            newest,
        },
    );
    journal.checkpoint()?;
    Ok(journal.finish()?)
}

impl From<WriteSuperblockError> for OpenError {
    fn from(e: WriteSuperblockError) -> Self {
        match e {
            WriteSuperblockError::Seal(e) => e.into(),
            WriteSuperblockError::Store(e) => e.into(),
        }
    }
}

fn has_superblock(store: &dyn Store) -> Result<bool, OpenError> {
    for slot in [0, 1] {
        match store.len(ObjectName::Superblock(slot)) {
            Ok(_) => return Ok(true),
            Err(StoreError::Absent) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

/// Commits every few seconds, on a thread of its own.
struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(fs: &Arc<Fs>) -> Result<Self, OpenError> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (fs, stopped) = (Arc::clone(fs), Arc::clone(&stop));
        let run = move || {
            let (flag, signal) = &*stopped;
            let mut is_stopped = flag.lock();
            while !*is_stopped {
                let waited = signal.wait_for(&mut is_stopped, COMMIT_EVERY);
                if waited.timed_out() && !*is_stopped {
                    // The journal itself reports what fails, once.
                    let journal = fs.journal();
                    let _ = journal
                        .commit_all()
                        .and_then(|()| journal.checkpoint_if_due());
                }
            }
        };
        let thread = thread::Builder::new()
            .name("encfs-commit".into())
            .spawn(run);
        Ok(Self {
            stop,
            thread: Some(thread.map_err(OpenError::Store)?),
        })
    }

    fn stop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop();
    }
}
