//! Core: what the log promises to its owner, whatever the store does.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the cases that it means"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Appended, Log, LogError, NextSegment, RecoverError, Recovered, log_name, read_chain};
use crate::crypto::{Aead, Entropy, VolumeKeys};
use crate::format::{
    Body, Checkpoint, CheckpointAddress, Counters, Extent, Ino, LOG_ALIGNMENT, NodePointer, Op,
    PendingOps, SEGMENT_BEGIN, SegmentId, SegmentKind, SegmentRef, TAG_LEN, Written,
};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::superblock::{self, Genesis, Superblock};
use crate::testing::{ID, aead, kek};

mod inline;
mod recovery;
mod reopening;

const FIRST: SegmentId = SegmentId(1);
const FILE: Ino = Ino(2);

/// The log of a volume without a tree, whose commits write to one file.
struct Scene {
    store: Arc<MemoryStore>,
    keys: Arc<VolumeKeys>,
    superblock: Superblock,
    log: Log,
    first: SegmentRef,
    last_id: u32,
}

/// What a mount finds.
struct Found {
    recovered: Recovered,
    /// The records of every Write behind the checkpoint, in order; `None` where one is damaged.
    records: Vec<Option<Vec<u8>>>,
}

impl Scene {
    fn new() -> Self {
        Self::with(&aead())
    }

    fn with(aead: &Arc<dyn Aead>) -> Self {
        let store = Arc::new(MemoryStore::default());
        let genesis = Genesis {
            volume: ID,
            kek_epoch: keys::KekEpoch(0),
            genesis: [7; 32],
            log_alignment: LOG_ALIGNMENT,
            owner: None,
        };
        let made = Superblock::make(aead, &kek(), &genesis, &Entropy::default());
        let (superblock, keys) = made.unwrap();
        let keys = Arc::new(keys);
        let head = keys.genesis_head(&genesis.genesis);
        let log = Log::first(store.clone(), keys.clone(), LOG_ALIGNMENT, FIRST, head);
        let (log, _) = log.unwrap();
        let mut scene = Self {
            first: log.current().0,
            store,
            keys,
            superblock,
            log,
            last_id: FIRST.0,
        };
        scene.checkpoint();
        scene
    }

    /// Appends a CHECKPOINT that names the place before it, and lets the superblock name it.
    fn checkpoint(&mut self) {
        let at = self.log.position();
        let root = NodePointer {
            segment: FIRST,
            offset: SEGMENT_BEGIN,
            len: 64,
            salt: [0; 8],
        };
        let checkpoint = Op::Checkpoint(Box::new(Checkpoint {
            as_of: at.seq,
            head: at.head.0,
            next: at.next,
            root,
            root_level: 0,
            nodes: Vec::new(),
            counters: Counters {
                next_ino: Ino(3),
                next_segment: SegmentId(2),
                files: 1,
                live: 0,
                unwritten: 0,
            },
            anchored: Vec::new(),
        }));
        let appended = self.log.append(&PendingOps::of(&checkpoint), None).unwrap();
        self.wait(appended).unwrap();
        self.superblock.name_checkpoint(CheckpointAddress {
            segment: appended.place.segment,
            offset: appended.place.offset,
            seq: appended.seq,
        });
        self.write_superblock(self.log.durable_seq());
    }

    /// Lets both superblock slots name the current segment and what is durable.
    fn write_superblock(&mut self, durable_seq: u64) {
        let lease = self.store.lease(Duration::ZERO).unwrap();
        self.superblock.name_log(self.log.current(), durable_seq);
        let Self { store, keys, .. } = self;
        self.superblock.write(&**store, keys, &*lease).unwrap();
    }

    /// A segment that the log may go on in.
    fn next_segment(&mut self) -> NextSegment {
        let segment = self.log.draw_segment().unwrap();
        self.last_id += 1;
        let len = self.log.next_len();
        NextSegment::make(
            &*self.store,
            &self.keys,
            (SegmentId(self.last_id), segment),
            len,
        )
        .unwrap()
    }

    /// Appends a commit that writes records, with the contents inline.
    fn append(&mut self, records: &[&[u8]]) -> (Appended, Vec<Extent>) {
        let len = |record: &&[u8]| u32::try_from(record.len()).unwrap();
        let anywhere = records
            .iter()
            .map(|r| Extent::of_record(FIRST, SEGMENT_BEGIN, len(r), [0; 8]).unwrap());
        let ops_len = PendingOps::of(&write_op(anywhere.collect())).len();
        let planned = self.log.plan_inline(ops_len, records).unwrap().unwrap();
        let extents: Vec<Extent> = planned.extents().collect();
        let ops = PendingOps::of(&write_op(extents.clone()));
        let appended = self.log.append(&ops, Some(planned)).unwrap();
        (appended, extents)
    }

    /// Appends a commit that only names extents.
    fn append_named(&mut self, extents: Vec<Extent>) -> Appended {
        let ops = PendingOps::of(&write_op(extents));
        self.log.append(&ops, None).unwrap()
    }

    fn wait(&self, appended: Appended) -> Result<(), LogError> {
        self.log.flusher().wait_durable(appended.seq)
    }

    /// What a mount of `store` finds.
    fn recover(&self, store: &MemoryStore) -> Result<Found, RecoverError> {
        let body = body_of(store);
        let chain = read_chain(store, &self.keys, &body, &body.newest)?;
        let mut segments = BTreeMap::from([(FIRST, self.first)]);
        let mut extents = Vec::new();
        let recovered = chain.replay(&mut |op| {
            match op {
                Op::Open(open) => drop(segments.insert(open.id, open.segment)),
                Op::Write(written) => extents.extend(written.extents.clone()),
                _ => {}
            }
            Ok::<_, RecoverError>(())
        })?;
        let read = |extent: &Extent| self.read(store, segments[&extent.segment], extent);
        Ok(Found {
            records: extents.iter().map(read).collect(),
            recovered,
        })
    }

    /// Checks that a mount of `store` finds these records.
    #[track_caller]
    fn check(&self, store: &MemoryStore, want: &[&[u8]]) {
        let found = self.recover(store).unwrap();
        let found: Vec<&[u8]> = found
            .records
            .iter()
            .map(|r| r.as_deref().unwrap())
            .collect();
        assert_eq!(found, want);
    }

    fn read(&self, store: &MemoryStore, segment: SegmentRef, extent: &Extent) -> Option<Vec<u8>> {
        let sealer = self.keys.segment(SegmentKind::Log, segment);
        let (chunks, skip) = extent.chunks(0, extent.live);
        let mut contents = Vec::new();
        for chunk in chunks {
            let mut unit = vec![0; chunk.len as usize + TAG_LEN];
            let mut opened = vec![0; chunk.len as usize];
            store
                .get(log_name(segment), chunk.offset, &mut unit)
                .unwrap();
            let salt = &extent.salt;
            sealer.open(chunk.offset, salt, &unit, &mut opened).ok()?;
            contents.extend(opened);
        }
        let begin = skip as usize;
        Some(contents[begin..begin + extent.live as usize].to_vec())
    }
}

/// What the winning superblock of a store says.
fn body_of(store: &MemoryStore) -> Body {
    let (superblock, _) = superblock::read(store, &aead(), &kek(), ID).unwrap();
    superblock.body().clone()
}

fn write_op(extents: Vec<Extent>) -> Op {
    Op::Write(Written {
        ino: FILE,
        start: 0,
        extents,
        time: None,
        kill_privileges: false,
    })
}
