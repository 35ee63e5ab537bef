//! Core: contents in the log itself, as a forger with the keys writes them.

use std::sync::Arc;

use crate::crypto::{Head, Link, ONCE_OVERHEAD, VolumeKeys, next_head};
use crate::format::{
    CommitHeader, Extent, FrameHead, Ino, LOG_ALIGNMENT, Op, PendingOps, Place, SegmentKind,
    Written, stored_len,
};
use crate::log::{Position, RecoverError};
use crate::map::Nodes;
use crate::store::memory::MemoryStore;
use crate::store::{Appendable, ObjectName, Store};
use crate::superblock;
use crate::tables::{SegmentEntry, Tables};
use crate::testing::{ID, aead, kek, new_store, open, pattern, put_file, walk};
use crate::volume::recover;

/// A closed volume with a file, opened for a forger who has its keys.
struct Scene {
    store: Arc<MemoryStore>,
    keys: Arc<VolumeKeys>,
    tables: Tables,
    at: Position,
    epoch: u64,
    file: Ino,
}

fn scene() -> Scene {
    let store = new_store();
    let volume = open(&store).unwrap();
    let file = put_file(volume.fs(), "a", b"before");
    volume.close().unwrap();
    let (superblock, keys) = superblock::read(&*store, &aead(), &kek(), ID).unwrap();
    let keys = Arc::new(keys);
    let nodes = Arc::new(Nodes::new(store.clone(), Arc::clone(&keys), 1 << 20));
    let (recovered, tables, _) = recover(&*store, &keys, &nodes, superblock.body()).unwrap();
    let log = recovered.log;
    Scene {
        store,
        keys,
        tables,
        at: log.position,
        epoch: log.epoch,
        file,
    }
}

impl Scene {
    /// Appends a commit that writes `data` to the file at 0, inline, or one that changes nothing.
    fn append(&mut self, data: Option<&[u8]>, durable_seq: u64) {
        let Position { seq, head, next } = self.at;
        let mut id = None;
        let see = |this, entry: SegmentEntry| {
            if entry.segment == next.segment {
                id = Some(this);
            }
        };
        self.tables.segments(see).unwrap();
        let id = id.unwrap();
        let header = CommitHeader {
            seq: seq + 1,
            log_epoch: self.epoch,
            prev_head: head.0,
            durable_seq,
        };
        // The chunks begin where the sealed commit ends, whose length the operation does not
        // change: seal once to learn it.
        let encode = |offset: u64, salt| {
            let mut ops = PendingOps::default();
            if let Some(data) = data {
                let len = u32::try_from(data.len()).unwrap();
                let extents = vec![Extent::of_record(id, offset, len, salt).unwrap()];
                let (ino, start) = (self.file, 0);
                ops.push(&Op::Write(Written {
                    ino,
                    start,
                    extents,
                    time: None,
                    kill_privileges: false,
                }));
            }
            ops.encode(&header, LOG_ALIGNMENT).unwrap()
        };
        let sealed_len = u32::try_from(encode(4096, [0; 8]).len() + ONCE_OVERHEAD).unwrap();
        let inline_len = data.map_or(0, |data| {
            stored_len(u32::try_from(data.len()).unwrap()).unwrap()
        });
        let frame_head = FrameHead::new(sealed_len, inline_len, LOG_ALIGNMENT).unwrap();
        let salt = self.keys.entropy().draw().unwrap();
        let inline_offset = next.offset + frame_head.inline_begin();
        let plaintext = encode(inline_offset, salt);
        let clear = frame_head.bytes();
        let sealed = self
            .keys
            .seal_commit((next.segment, next.offset), &clear, &plaintext)
            .unwrap();
        let mut frame = clear.to_vec();
        frame.extend(&sealed);
        if let Some(data) = data {
            frame.extend(self.seal_chunk(inline_offset, &salt, data));
        }
        frame.resize(frame_head.frame_len as usize, 0);
        self.store
            .write_at(self.log_name(), next.offset, &frame)
            .unwrap();
        let link = Link {
            seq: seq + 1,
            log_epoch: self.epoch,
            uid: next.segment.uid,
            offset: next.offset,
            sealed: &sealed,
        };
        self.at = Position {
            seq: seq + 1,
            head: next_head(&head, &link),
            next: Place {
                offset: next.offset + u64::from(frame_head.frame_len),
                ..next
            },
        };
    }

    /// One chunk is enough here.
    fn seal_chunk(&self, offset: u64, salt: &[u8; 8], data: &[u8]) -> Vec<u8> {
        let mut chunk = data.to_vec();
        chunk.resize(data.len().next_multiple_of(64), 0);
        let mut unit = vec![0; chunk.len() + 16];
        let sealer = self.keys.segment(SegmentKind::Log, self.at.next.segment);
        sealer.seal(offset, salt, &chunk, &mut unit).unwrap();
        unit
    }

    fn log_name(&self) -> ObjectName {
        ObjectName::Segment(SegmentKind::Log, self.at.next.segment.uid)
    }

    /// Flips a byte of the store so far before the end of what was appended.
    fn flip(&self, before_end: u64) {
        let at = self.at.next.offset - before_end;
        let mut byte = [0];
        self.store.get(self.log_name(), at, &mut byte).unwrap();
        self.store
            .write_at(self.log_name(), at, &[byte[0] ^ 1])
            .unwrap();
    }

    #[track_caller]
    fn check(&self, want: &[u8]) {
        let volume = open(&self.store).unwrap();
        assert_eq!(walk(volume.fs())["/a"].bytes, want);
        volume.close().unwrap();
    }
}

#[test]
fn inline_contents_are_read_and_their_log_is_kept() {
    let mut scene = scene();
    let data = pattern(3, 1000);
    let durable = scene.at.seq;
    scene.append(Some(&data), durable);
    // Over several mounts: the log segment outlives its commits.
    for _ in 0..4 {
        scene.check(&data);
    }
    assert!(scene.store.len(scene.log_name()).is_ok());
}

#[test]
fn a_bad_inline_chunk_of_a_commit_that_may_not_have_been_flushed_is_a_tear() {
    let mut scene = scene();
    let durable = scene.at.seq;
    scene.append(Some(&pattern(3, 1000)), durable);
    // 1,024 bytes and a tag, in a frame that ends on a multiple of 512.
    scene.flip(512 + 100);
    scene.check(b"before");
}

#[test]
fn a_bad_inline_chunk_of_a_durable_commit_is_damage_of_its_file() {
    let mut scene = scene();
    let durable = scene.at.seq;
    scene.append(Some(&pattern(3, 1000)), durable);
    scene.flip(512 + 100);
    let now_durable = scene.at.seq;
    scene.append(None, now_durable);
    let volume = open(&scene.store).unwrap();
    let shown = walk(volume.fs())["/a"].bytes.clone();
    assert!(
        shown.starts_with(b"error: the store does not hold"),
        "{shown:?}"
    );
}

#[test]
fn a_commit_that_does_not_continue_the_chain_is_refused() {
    let mut scene = scene();
    scene.at.head = Head([7; 32]);
    scene.append(None, 1);
    let (superblock, keys) = superblock::read(&*scene.store, &aead(), &kek(), ID).unwrap();
    let keys = Arc::new(keys);
    let nodes = Arc::new(Nodes::new(scene.store.clone(), Arc::clone(&keys), 1 << 20));
    let refused = recover(&*scene.store, &keys, &nodes, superblock.body());
    assert!(matches!(refused, Err(RecoverError::Tampered(_))));
}
