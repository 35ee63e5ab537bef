//! Core: the log, a hash-chained sequence of sealed commits.
//!
//! **Invariants.** A commit is acknowledged only when it and every commit before it are flushed.
//! A log segment begins with OPEN; one that is followed by another of the same mount ends with
//! ROLL, and both are flushed before anything in the successor is acknowledged. Nothing is ever
//! appended to a log segment of an earlier mount.

use std::sync::Arc;

use crate::crypto::{Head, Link, SealError, VolumeKeys, next_head};
use crate::format::{
    CommitHeader, FrameHead, Op, Open, PendingOps, Place, SEGMENT_BEGIN, SEGMENT_LEN_MAX,
    SegmentId, SegmentKind, SegmentRef,
};
use crate::store::{Appendable, ObjectName, StoreError};

mod frames;
mod recover;

pub(crate) use recover::{RecoverError, recover};

/// Bytes of a log segment after which the log goes on in another. What is pending then still fits.
/// A test build has short segments, here and elsewhere, so that every test meets their ends.
const ROLL_AT: u64 = if cfg!(test) { 8 << 10 } else { 64 << 20 };

/// Where the chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last commit.
    pub(crate) seq: u64,
    /// The head after it.
    pub(crate) head: Head,
    /// Where the next one begins.
    pub(crate) next: Place,
}

/// The end of the log, where commits are appended.
#[derive(Debug)]
pub(crate) struct Log {
    store: Arc<dyn Appendable>,
    keys: Arc<VolumeKeys>,
    alignment: u16,
    mount: [u8; 16],
    epoch: u64,
    position: Position,
    durable_seq: u64,
    /// Frames that are written but not known to be durable, as sealed.
    unflushed: Vec<(u64, Vec<u8>)>,
    /// Log segments that this mount has written or replayed, oldest first.
    path: Vec<SegmentRef>,
}

/// Why the log cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// Sealing failed.
    #[error("a commit cannot be sealed")]
    Seal(#[from] SealError),
    /// The store refused, twice.
    #[error("a commit cannot be written to the store")]
    Store(#[from] StoreError),
    /// A commit or a segment exceeds a bound of the format.
    #[error("a commit is too large")]
    TooLarge,
}

/// What a new log segment continues.
#[derive(Debug)]
pub(crate) struct Continuation {
    pub(crate) position: Position,
    /// Epoch of the log segment before.
    pub(crate) epoch: u64,
    pub(crate) path: Vec<SegmentRef>,
}

impl Log {
    /// Begins a new log segment, numbered `id`, that continues `from`, and flushes its OPEN. Gives
    /// the OPEN too, for the map.
    pub(crate) fn open(
        store: Arc<dyn Appendable>,
        keys: Arc<VolumeKeys>,
        alignment: u16,
        id: SegmentId,
        from: Continuation,
    ) -> Result<(Self, Op), LogError> {
        let mount = keys.entropy().draw()?;
        let mut log = Self {
            store,
            keys,
            alignment,
            mount,
            epoch: from.epoch,
            position: from.position,
            durable_seq: from.position.seq,
            unflushed: Vec::new(),
            path: from.path,
        };
        let segment = log.keys.new_segment(&log.position.head)?;
        log.create(segment)?;
        let open = log.begin(segment, id)?;
        log.flush()?;
        Ok((log, open))
    }

    /// The first log segment of a volume, whose chain begins with `head`.
    pub(crate) fn first(
        store: Arc<dyn Appendable>,
        keys: Arc<VolumeKeys>,
        alignment: u16,
        id: SegmentId,
        head: Head,
    ) -> Result<(Self, Op), LogError> {
        let segment = keys.new_segment(&head)?;
        let next = Place { segment, offset: 0 };
        let mut log = Self {
            store,
            mount: keys.entropy().draw()?,
            keys,
            alignment,
            epoch: 0,
            position: Position { seq: 0, head, next },
            durable_seq: 0,
            unflushed: Vec::new(),
            path: Vec::new(),
        };
        log.create(segment)?;
        let open = log.begin(segment, id)?;
        log.flush()?;
        Ok((log, open))
    }

    /// Where the chain stands.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// The newest commit that is flushed.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// The current segment and its epoch.
    pub(crate) fn current(&self) -> (SegmentRef, u64) {
        (self.position.next.segment, self.epoch)
    }

    /// Log segments since the one that holds `from`, which are all that replay from there reads.
    pub(crate) fn segments_since(&self, from: SegmentRef) -> &[SegmentRef] {
        let first = self
            .path
            .iter()
            .position(|segment| *segment == from)
            .unwrap_or(0);
        self.path.get(first..).unwrap_or_default()
    }

    /// Whether the next commit should go into another segment.
    pub(crate) fn is_long(&self) -> bool {
        self.position.next.offset >= ROLL_AT
    }

    /// Seals a commit and writes it, without flushing it. Gives where its frame begins.
    pub(crate) fn append(&mut self, ops: &PendingOps) -> Result<Place, LogError> {
        let Position { seq, head, next } = self.position;
        let seq = seq + 1;
        let header = CommitHeader {
            seq,
            log_epoch: self.epoch,
            prev_head: head.0,
            durable_seq: self.durable_seq,
        };
        let plaintext = ops
            .encode(&header, self.alignment)
            .ok_or(LogError::TooLarge)?;
        let sealed_len = u32::try_from(plaintext.len() + crate::crypto::ONCE_OVERHEAD);
        let frame_head = sealed_len
            .ok()
            .and_then(|len| FrameHead::new(len, 0, self.alignment));
        let frame_head = frame_head.ok_or(LogError::TooLarge)?;
        let end = next.offset + u64::from(frame_head.frame_len);
        if end > SEGMENT_LEN_MAX {
            return Err(LogError::TooLarge);
        }
        let clear = frame_head.bytes();
        let sealed = self
            .keys
            .seal_commit((next.segment, next.offset), &clear, &plaintext)?;
        let link = Link {
            seq,
            log_epoch: self.epoch,
            uid: next.segment.uid,
            offset: next.offset,
            sealed: &sealed,
        };
        let head = next_head(&head, &link);
        let mut frame = clear.to_vec();
        frame.extend(&sealed);
        frame.resize(frame_head.frame_len as usize, 0);

        self.position = Position {
            seq,
            head,
            next: Place {
                offset: end,
                ..next
            },
        };
        // A failure shows at the flush, which writes the same bytes once more.
        if let Err(e) = self.store.write_at(self.name(), next.offset, &frame) {
            tracing::warn!(error = %e, "a commit was not written; its flush tries once more");
            self.unflushed.push((next.offset, frame));
            return self.mend().map(|()| next);
        }
        self.unflushed.push((next.offset, frame));
        Ok(next)
    }

    /// Makes durable all that was appended.
    pub(crate) fn flush(&mut self) -> Result<(), LogError> {
        if let Err(e) = self.store.sync(self.name()) {
            tracing::warn!(error = %e, "a flush of the log failed; writing the same bytes again");
            self.mend()?;
            self.store.sync(self.name())?;
        }
        self.unflushed.clear();
        self.durable_seq = self.position.seq;
        Ok(())
    }

    /// Goes on in a new segment, numbered `id`. Gives its OPEN, for the map.
    pub(crate) fn roll(&mut self, id: SegmentId) -> Result<Op, LogError> {
        let segment = self.keys.new_segment(&self.position.head)?;
        self.create(segment)?;
        self.append(&PendingOps::of(&Op::Roll(segment)))?;
        self.flush()?;
        let open = self.begin(segment, id)?;
        self.flush()?;
        Ok(open)
    }

    fn create(&self, segment: SegmentRef) -> Result<(), StoreError> {
        let name = ObjectName::Segment(SegmentKind::Log, segment.uid);
        self.store.create(name, ROLL_AT)
    }

    fn begin(&mut self, segment: SegmentRef, id: SegmentId) -> Result<Op, LogError> {
        self.epoch += 1;
        let cut = self.position.next;
        let open = Op::Open(Open {
            log_epoch: self.epoch,
            mount: self.mount,
            id,
            segment,
            cut,
            cut_head: self.position.head.0,
        });
        self.position.next = Place {
            segment,
            offset: SEGMENT_BEGIN,
        };
        self.path.push(segment);
        self.append(&PendingOps::of(&open))?;
        Ok(open)
    }

    fn mend(&self) -> Result<(), LogError> {
        for (offset, frame) in &self.unflushed {
            self.store.write_at(self.name(), *offset, frame)?;
        }
        Ok(())
    }

    fn name(&self) -> ObjectName {
        ObjectName::Segment(SegmentKind::Log, self.position.next.segment.uid)
    }
}
