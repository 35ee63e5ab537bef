//! Core: a volume, from making it to closing it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keys::{KekEpoch, VolumeId, VolumeKek};
use runtime::sync::{Condvar, Mutex};

use crate::anchor::{
    AnchorKeeper, Anchored, Found, Freshness, FreshnessError, admit, anchor_mount,
};
use crate::control::{Controlled, MountedVolume};
use crate::crypto::{Aead, Entropy, OwnerKey, VolumeKeys, fastest};
use crate::error::{CloseError, CommitError, OpenError};
use crate::format::{Body, SegmentId, SegmentKind, Timestamp};
use crate::fs::{Fs, Policy};
use crate::journal::{Journal, Retained, Start};
use crate::log::{Log, RecoverError, Recovered, read_chain};
use crate::map::{Map, Nodes};
use crate::mount::MountOptions;
use crate::store::{self, Appendable, Lease, ObjectName, Store, StoreError};
use crate::superblock::{self, Genesis, Superblock, Unlock, WriteSuperblockError};
use crate::sys;
use crate::tables::Tables;

mod janitor;
#[cfg(test)]
mod tests;

use janitor::Janitor;

/// How long what was written stays undurable at most when nobody calls fsync.
const COMMIT_EVERY: Duration = Duration::from_secs(if cfg!(test) { NEVER } else { 5 });
/// How often sparse segments are looked for.
const CLEAN_EVERY: Duration = Duration::from_secs(if cfg!(test) { NEVER } else { 1 });
/// A test does itself what is done in the background, so that it goes the same way each time.
const NEVER: u64 = 24 * 3600;
/// How long to wait before an anchor is asked again, times the number of the try.
const ANCHOR_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 200 });
/// How long to wait for another mount that is not known to be ending: it may just have been
/// unmounted and not have noticed yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a volume is opened.
#[derive(Debug)]
pub struct Opening<'a> {
    /// With which key, and how old it may be.
    pub unlock: Unlock<'a>,
    /// What tells whether the store was set back.
    pub freshness: &'a Freshness,
}

/// An open volume: the only writer of its store.
///
/// Dropped without [`Volume::close`] it is as after a crash: all that was committed is there.
pub struct Volume {
    fs: Arc<Fs>,
    id: VolumeId,
    committer: Ticker,
    cleaner: Ticker,
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
    init_on(store::open_or_make(store, None)?, &fastest(), kek, volume)
}

/// As [`init`], with a copy of the volume's master key for its owner
/// ([`recovery_copy`](crate::rekey::recovery_copy)).
pub fn init_with_owner(
    store: &Path,
    kek: &VolumeKek,
    volume: VolumeId,
    owner: &OwnerKey,
) -> Result<(), OpenError> {
    let store = store::open_or_make(store, None)?;
    init_for(store, &fastest(), kek, volume, Some(owner))
}

/// Draws an id for a new volume.
pub fn random_volume_id() -> Result<VolumeId, OpenError> {
    Ok(VolumeId(Entropy::default().draw()?))
}

/// The volume that the store in the directory `store` claims to hold. Not authenticated: an
/// expected id from elsewhere is what keeps volumes from being exchanged.
pub fn claimed_volume_id(store: &Path) -> Result<VolumeId, OpenError> {
    superblock::named_volume(&*store::open(store)?)
}

impl Volume {
    /// Opens the volume `expected` in the directory `store`, and brings it to its last committed
    /// state. Blocking.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the key is wiped once it has been used"
    )]
    pub fn open(store: &Path, kek: VolumeKek, expected: VolumeId) -> Result<Self, OpenError> {
        Self::open_on(store::open(store)?, &fastest(), &kek, expected)
    }

    /// As [`Volume::open`], with any of a volume's keys.
    pub fn unlock(store: &Path, unlock: Unlock<'_>, expected: VolumeId) -> Result<Self, OpenError> {
        let store = store::open(store)?;
        Self::open_on(store, &fastest(), unlock, expected)
    }

    /// As [`Volume::unlock`], and judged by anchors: a store that was set back is refused.
    pub fn open_with(
        store: &Path,
        opening: &Opening<'_>,
        expected: VolumeId,
    ) -> Result<Self, OpenError> {
        Self::open_judged(store::open(store)?, &fastest(), opening, expected)
    }

    /// Opens a volume on any store.
    pub(crate) fn open_on<'a>(
        store: Arc<dyn Appendable>,
        aead: &Arc<dyn Aead>,
        unlock: impl Into<Unlock<'a>>,
        expected: VolumeId,
    ) -> Result<Self, OpenError> {
        let opening = Opening {
            unlock: unlock.into(),
            freshness: &Freshness::default(),
        };
        Self::open_judged(store, aead, &opening, expected)
    }

    /// Opens a volume on any store, judged by anchors.
    pub(crate) fn open_judged(
        store: Arc<dyn Appendable>,
        aead: &Arc<dyn Aead>,
        opening: &Opening<'_>,
        expected: VolumeId,
    ) -> Result<Self, OpenError> {
        if !has_superblock(&*store)? {
            return Err(OpenError::NotAVolume);
        }
        let lease = store.lease(PATIENCE)?;
        let rules = opening.freshness.rules();
        let mut unlock = opening.unlock;
        unlock.vmk_epoch_min = unlock.vmk_epoch_min.max(rules.vmk_epoch_min);
        let (mut superblock, keys) = superblock::read(&*store, aead, unlock, expected)?;
        let keys = Arc::new(keys);
        let anchors = opening
            .freshness
            .open(&keys)
            .map_err(FreshnessError::from)?;
        let nodes = nodes_of(&store, &keys);
        let (recovered, mut tables, dead) = recover(&*store, &keys, &nodes, superblock.body())?;
        let found = Found {
            newest: (recovered.log.position.seq, recovered.log.position.head.0),
            vmk_epoch: keys.vmk_epoch(),
            anchored_once: superblock.body().anchored_once,
            met: &|seq, head| recovered.met(seq, head),
            sealed: &recovered.checkpoint.anchored,
        };
        let loaded = admit(&anchors, &found, &rules, &pause)?;
        recovered.settle(&*store, &keys)?;

        let log = begin_log(
            &store,
            &keys,
            &mut tables,
            (&mut superblock, &*lease),
            &recovered,
        )?;
        let first = Anchored {
            seq: log.position().seq,
            head: log.position().head.0,
            vmk_epoch: keys.vmk_epoch(),
        };
        anchor_mount(&anchors, loaded, first, (&found, &rules), &pause)?;
        if anchors.anchor.is_lasting() && superblock.note_anchor() {
            superblock.write(&*store, &keys, &*lease)?;
        }
        let failed = Arc::new(AtomicBool::new(false));
        let keeper = AnchorKeeper::start(anchors, first, when_lost(&failed));
        let keeper = keeper.map_err(OpenError::Store)?;
        let nodes = recovered.checkpoint.nodes;
        let newest = Retained {
            nodes: nodes.iter().map(|node| node.id).collect(),
            dead,
            replay_from: recovered.checkpoint.next.segment,
        };
        let start = Start {
            tables,
            log,
            superblock,
            nodes,
            newest,
            failed,
            keeper: Some(keeper),
        };
        let volume = Self::serve(Journal::new(store, keys, lease, start), expected)?;
        tracing::info!(volume = %expected, "volume opened");
        Ok(volume)
    }

    /// Starts what is done beside all requests.
    fn serve(journal: Journal, id: VolumeId) -> Result<Self, OpenError> {
        let fs = Arc::new(Fs::new(journal, Policy::default()));
        let committed = Arc::clone(&fs);
        let committer = Ticker::start("encfs-commit", COMMIT_EVERY, move || {
            // The journal itself reports what fails, once.
            let _ = committed.tick();
        })?;
        let mut janitor = Janitor::new(Arc::clone(&fs));
        let cleaner = Ticker::start("encfs-clean", CLEAN_EVERY, move || janitor.tick())?;
        Ok(Self {
            committer,
            cleaner,
            fs,
            id,
            opened: Instant::now(),
        })
    }

    /// Goes by what mount options say of limits and access times from now on.
    pub fn obey(&self, options: &MountOptions) {
        self.fs.obey(options.policy());
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

    /// What a control socket may ask of it.
    pub fn controlled(&self) -> Arc<dyn Controlled> {
        Arc::new(MountedVolume::new(self.gauge(), &self.fs))
    }

    /// Commits everything, writes a checkpoint and gives the store free. Blocking.
    pub fn close(mut self) -> Result<(), CloseError> {
        self.cleaner.stop();
        self.committer.stop();
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
        auth_failures: counters
            .auth_failures
            .load(Ordering::Relaxed)
            .saturating_add(fs.journal().tables().map().1.tampered()),
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
    init_for(store, aead, kek, volume, None)
}

fn init_for(
    store: Arc<dyn Appendable>,
    aead: &Arc<dyn Aead>,
    kek: &VolumeKek,
    volume: VolumeId,
    owner: Option<&OwnerKey>,
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
        kek_epoch: KekEpoch(0),
        genesis: entropy.draw()?,
        log_alignment: store.alignment(),
        owner,
    };
    let (superblock, keys) = Superblock::make(aead, kek, &genesis, &entropy)?;
    let keys = Arc::new(keys);

    let owner = sys::effective_owner();
    let store_of_nodes = nodes_of(&store, &keys);
    let mut tables =
        Tables::with_root(store_of_nodes, keys.name_hasher(), owner, Timestamp::now())?;
    let head = keys.genesis_head(&genesis.genesis);
    let id = SegmentId(1);
    let (log, open) = Log::first(
        Arc::clone(&store),
        Arc::clone(&keys),
        genesis.log_alignment,
        id,
        head,
    )?;
    tables.apply(&open).map_err(CommitError::from)?;
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
            nodes: Vec::new(),
            newest,
            failed: Arc::default(),
            keeper: None,
        },
    );
    let _ = journal.checkpoint()?;
    Ok(journal.finish()?)
}

/// Recovers a volume from the body of its winning superblock: the end of its chain, the tables
/// there, and the segments that were dead in the checkpoint. Writes nothing.
pub(crate) fn recover(
    store: &dyn Store,
    keys: &VolumeKeys,
    nodes: &Arc<Nodes>,
    body: &Body,
) -> Result<(Recovered, Tables, BTreeSet<SegmentId>), RecoverError> {
    let chain = read_chain(store, keys, body, &body.newest)?;
    let checkpoint = chain.checkpoint();
    for node in &checkpoint.nodes {
        nodes.add_segment(node.id, node.segment);
    }
    let map = Map::stored(checkpoint.root, checkpoint.root_level);
    let nodes = Arc::clone(nodes);
    let mut tables = Tables::stored(map, checkpoint.counters, nodes, keys.name_hasher());
    let mut dead = BTreeSet::new();
    tables.segments(|id, entry| {
        if entry.kind != SegmentKind::Node && entry.live == 0 {
            dead.insert(id);
        }
    })?;
    let recovered = chain.replay(&mut |op| Ok::<_, RecoverError>(tables.apply(op)?))?;
    Ok((recovered, tables, dead))
}

/// Begins the log segment of this mount, and lets the superblock name it.
fn begin_log(
    store: &Arc<dyn Appendable>,
    keys: &Arc<VolumeKeys>,
    tables: &mut Tables,
    (superblock, lease): (&mut Superblock, &dyn Lease),
    recovered: &Recovered,
) -> Result<Log, OpenError> {
    let (log, open) = Log::open(
        Arc::clone(store),
        Arc::clone(keys),
        superblock.body().log_alignment,
        tables.counters().next_segment,
        recovered.log.clone(),
    )?;
    tables.apply(&open).map_err(CommitError::from)?;
    superblock.name_log(log.current(), log.durable_seq());
    superblock.write(&**store, keys, lease)?;
    Ok(log)
}

/// What happens when the anchor holds a state that this mount never had.
fn when_lost(failed: &Arc<AtomicBool>) -> impl Fn() + Send + Sync + 'static {
    let failed = Arc::clone(failed);
    move || failed.store(true, Ordering::Release)
}

/// Waits before an anchor is asked once more.
fn pause(attempt: u32) {
    let (nobody, never) = (Mutex::new(()), Condvar::new());
    never.wait_for(&mut nobody.lock(), ANCHOR_PAUSE * attempt);
}

/// Bytes of opened nodes that are kept.
const NODE_CACHE_LEN: usize = 64 << 20;

fn nodes_of(store: &Arc<dyn Appendable>, keys: &Arc<VolumeKeys>) -> Arc<Nodes> {
    let store: Arc<dyn Store> = Arc::clone(store) as _;
    Arc::new(Nodes::new(store, Arc::clone(keys), NODE_CACHE_LEN))
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

/// Something that is done again and again, on a thread of its own.
struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(
        name: &str,
        every: Duration,
        mut tick: impl FnMut() + Send + 'static,
    ) -> Result<Self, OpenError> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let (flag, signal) = &*stopped;
            let mut is_stopped = flag.lock();
            while !*is_stopped {
                let waited = signal.wait_for(&mut is_stopped, every);
                if waited.timed_out() && !*is_stopped {
                    // Who wants to stop it waits for its end, not for the flag.
                    drop(is_stopped);
                    tick();
                    is_stopped = flag.lock();
                }
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run);
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
