//! Core: a volume for tools: recovered in memory, its store left as it is.
//!
//! The lease is held as by a mount, so nobody writes meanwhile. Where a mount refuses, this gives
//! what there is and says what is wrong, so that the tools can tell which files are hurt.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keys::VolumeId;

use crate::crypto::{Aead, VolumeKeys, fastest};
use crate::error::OpenError;
use crate::format::{Body, Extent, Ino, Mapped, SegmentKind};
use crate::log::{RecoverError, Recovered, read_chain};
use crate::map::{Map, Nodes};
use crate::segment::{ReadError, SegmentCache};
use crate::store::{self, Appendable, Lease, ObjectName, Store, StoreError};
use crate::superblock::{self, SlotState, Superblock, Unlock};
use crate::tables::{ApplyError, SegmentEntry, Tables};

/// Bytes of opened nodes that are kept.
const NODE_CACHE_LEN: usize = 64 << 20;
/// Objects that are listed at once.
const LIST_LEN: usize = 4096;

/// A volume that nobody has mounted.
pub(crate) struct Offline {
    store: Arc<dyn Appendable>,
    keys: Arc<VolumeKeys>,
    superblock: Superblock,
    slots: [SlotState; 2],
    state: State,
    segments: SegmentCache,
    _lease: Box<dyn Lease>,
}

/// The state that was found.
pub(crate) struct State {
    pub(crate) tables: Tables,
    /// The same as the checkpoint has it, every node of it in the store.
    pub(crate) written: Tables,
    pub(crate) recovered: Recovered,
    /// Why it is not the state that a mount would come to; `None` when it is.
    pub(crate) lacking: Option<Lacking>,
}

/// Why a state is not the newest.
#[derive(Debug)]
pub(crate) enum Lacking {
    /// Some changes behind the checkpoint cannot be applied: so many.
    Changes(u64),
    /// The newest checkpoint cannot be used; the state was found from the one before.
    Newest(RecoverError),
}

/// An object of a store, by what it is to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: ObjectName,
    pub(crate) len: u64,
    /// Whether the volume knows it.
    pub(crate) is_known: bool,
}

impl Offline {
    /// Takes the volume in the store at `path`.
    pub(crate) fn open(
        path: &Path,
        unlock: Unlock<'_>,
        expected: VolumeId,
    ) -> Result<Self, OpenError> {
        Self::open_on(store::open(path)?, &fastest(), unlock, expected)
    }

    /// Takes the volume on any store.
    pub(crate) fn open_on(
        store: Arc<dyn Appendable>,
        aead: &Arc<dyn Aead>,
        unlock: Unlock<'_>,
        expected: VolumeId,
    ) -> Result<Self, OpenError> {
        if !has_superblock(&*store)? {
            return Err(OpenError::NotAVolume);
        }
        let lease = store.lease(Duration::ZERO)?;
        let slots = superblock::slots(&*store, aead, unlock, expected)?;
        let (superblock, keys) = superblock::read(&*store, aead, unlock, expected)?;
        let keys = Arc::new(keys);
        let as_store: Arc<dyn Store> = Arc::clone(&store) as _;
        let nodes = Arc::new(Nodes::new(as_store, Arc::clone(&keys), NODE_CACHE_LEN));
        let state = recover(&*store, &keys, &nodes, superblock.body())?;
        Ok(Self {
            store,
            keys,
            superblock,
            slots,
            state,
            segments: SegmentCache::default(),
            _lease: lease,
        })
    }

    /// What the volume holds.
    pub(crate) fn tables(&self) -> &Tables {
        &self.state.tables
    }

    /// How that was found.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The superblock that was used.
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How the two superblock slots are.
    pub(crate) fn slots(&self) -> &[SlotState; 2] {
        &self.slots
    }

    /// The store.
    pub(crate) fn store(&self) -> &dyn Appendable {
        &*self.store
    }

    /// Reads a part of an extent, and authenticates it.
    pub(crate) fn read(
        &self,
        extent: &Extent,
        from: u32,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let entry = self.tables().segment(extent.segment)?;
        let entry = entry.ok_or(ReadError::Tampered)?;
        let segment = self.segments.get(&self.keys, extent.segment, entry);
        segment.read(&*self.store, extent, from, out, scratch)
    }

    /// Reads all that a map holds up to `len`: the value of an extended attribute.
    pub(crate) fn value(&self, map: Ino, len: u32) -> Result<Vec<u8>, ReadError> {
        let mut value = vec![0; len as usize];
        let mut extents = Vec::new();
        let range = 0..u64::from(len);
        self.tables().mapped(map, &range, |start, mapped| {
            extents.push((start, mapped));
            ControlFlow::Continue(())
        })?;
        let (mut scratch, mut end) = (Vec::new(), 0);
        for (start, mapped) in extents {
            let Mapped::Data(extent) = mapped else {
                return Err(ReadError::Tampered);
            };
            let from = usize::try_from(start).map_err(|_| ReadError::Tampered)?;
            let to = from.saturating_add(extent.live as usize);
            let out = value.get_mut(from..to).ok_or(ReadError::Tampered)?;
            self.read(&extent, 0, out, &mut scratch)?;
            end = if from == end { to } else { usize::MAX };
        }
        if end == value.len() {
            Ok(value)
        } else {
            Err(ReadError::Tampered)
        }
    }

    /// Shows every object of the store.
    pub(crate) fn objects(&self, see: &mut dyn FnMut(Listed)) -> Result<(), ReadError> {
        let known = self.known_objects()?;
        let mut after = None;
        loop {
            let names = self.store.list(after, LIST_LEN).map_err(ReadError::Store)?;
            let Some(last) = names.last() else {
                return Ok(());
            };
            after = Some(*last);
            for name in names {
                let len = self.store.len(name).map_err(ReadError::Store)?;
                let is_known = known.contains(&name);
                see(Listed {
                    name,
                    len,
                    is_known,
                });
            }
        }
    }

    /// Names of all objects that the volume consists of, or is going to delete.
    fn known_objects(&self) -> Result<BTreeSet<ObjectName>, ReadError> {
        let mut known = BTreeSet::from([ObjectName::Superblock(0), ObjectName::Superblock(1)]);
        self.tables().segments(|_, entry: SegmentEntry| {
            known.insert(ObjectName::Segment(entry.kind, entry.segment.uid));
        })?;
        let Body {
            newest,
            previous,
            log,
            ..
        } = self.superblock.body();
        let path = self.state.recovered.log.path.iter();
        for log in path.chain([&newest.segment, &previous.segment, log]) {
            known.insert(ObjectName::Segment(SegmentKind::Log, log.uid));
        }
        for node in &self.state.recovered.checkpoint.nodes {
            known.insert(ObjectName::Segment(SegmentKind::Node, node.segment.uid));
        }
        Ok(known)
    }
}

impl fmt::Debug for Offline {
    /// Shows nothing of what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offline")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// The newest state that can be found: from the newest checkpoint, or from the one before.
fn recover(
    store: &dyn Store,
    keys: &VolumeKeys,
    nodes: &Arc<Nodes>,
    body: &Body,
) -> Result<State, RecoverError> {
    let newest = match recover_from(store, keys, nodes, body) {
        Err(e @ RecoverError::Store(_)) => return Err(e),
        Err(e) => e,
        Ok(state) => return Ok(state),
    };
    if body.previous == body.newest {
        return Err(newest);
    }
    let before = Body {
        newest: body.previous,
        ..body.clone()
    };
    match recover_from(store, keys, nodes, &before) {
        Ok(mut state) => {
            state.lacking = Some(Lacking::Newest(newest));
            Ok(state)
        }
        Err(_) => Err(newest),
    }
}

/// The state behind one checkpoint. What cannot be read of the tree takes the changes to it along,
/// and no others.
fn recover_from(
    store: &dyn Store,
    keys: &VolumeKeys,
    nodes: &Arc<Nodes>,
    body: &Body,
) -> Result<State, RecoverError> {
    let chain = read_chain(store, keys, body, &body.newest)?;
    let checkpoint = chain.checkpoint();
    for node in &checkpoint.nodes {
        nodes.add_segment(node.id, node.segment);
    }
    let map = Map::stored(checkpoint.root, checkpoint.root_level);
    let as_written = Tables::stored(
        map,
        checkpoint.counters,
        Arc::clone(nodes),
        keys.name_hasher(),
    );
    let (mut tables, mut lost) = (as_written.clone(), 0);
    let recovered = chain.replay(&mut |op| {
        let mut next = tables.clone();
        match next.apply(op) {
            Ok(()) => tables = next,
            Err(ApplyError::Read(ReadError::Store(e))) => return Err(RecoverError::Store(e)),
            Err(ApplyError::Inconsistent(_) | ApplyError::Read(ReadError::Tampered)) => lost += 1,
        }
        Ok(())
    })?;
    Ok(State {
        tables,
        written: as_written,
        recovered,
        lacking: (lost > 0).then_some(Lacking::Changes(lost)),
    })
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
