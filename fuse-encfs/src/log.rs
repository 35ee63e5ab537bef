//! Core: the log, a hash-chained sequence of sealed commits.
//!
//! **Design.** Appending takes the log's lock, which its owner holds, and is a seal and a write.
//! Making durable is apart ([`LogFlush`]) and needs no lock of the log. A segment that cannot be
//! written any more is left behind ([`Log::reopen`]).
//!
//! **Invariants.** A commit is acknowledged only when it and every commit before it are flushed.
//! A log segment begins with OPEN; one that is followed by another of the same mount ends with
//! ROLL, unless it failed, and both are flushed before anything in the successor is acknowledged.
//! Nothing is ever appended to a log segment of an earlier mount.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::crypto::{Head, Link, ONCE_OVERHEAD, SealError, SegmentSealer, VolumeKeys, next_head};
use crate::format::{
    CommitHeader, FrameHead, Op, Open, PendingOps, Place, SEGMENT_BEGIN, SegmentId, SegmentKind,
    SegmentRef,
};
use crate::segment::MakeError;
use crate::store::{Appendable, ObjectName, StoreError};

mod flush;
mod frames;
mod gate;
mod inline;
mod next;
mod recover;
mod reopen;
#[cfg(test)]
mod tests;

pub(crate) use flush::LogFlush;
pub(crate) use inline::{INLINE_MAX, Planned};
pub(crate) use next::NextSegment;
pub(crate) use recover::{RecoverError, Recovered, read_chain};

use flush::Kept;
use next::{FIRST_LEN, LOG_LEN_MAX, len_after};

/// Bytes at the end of a segment that only ROLL may use.
const ROLL_ROOM: u64 = 4096;
/// Bytes before the end of the longest segment at which the log should go on in another: what is
/// pending then still fits.
const ROLL_EARLY: u64 = 8 << 20;

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
    keys: Arc<VolumeKeys>,
    alignment: u16,
    mount: [u8; 16],
    epoch: u64,
    position: Position,
    /// The current segment: its short name, how long it was made, and the key of its chunks.
    id: SegmentId,
    len: u64,
    sealer: SegmentSealer,
    flush: Arc<LogFlush>,
    /// Log segments that this mount has written or replayed, oldest first.
    path: Vec<SegmentRef>,
    /// Nothing can be appended any more: opening anew has failed too.
    is_over: bool,
}

/// Why the log cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// It failed before.
    #[error("the log has failed")]
    Failed,
    /// A commit that was sealed is not what is in memory any more; a bug.
    #[error("a commit in memory does not open")]
    Lost,
    /// A plan was made for another place; a bug.
    #[error("contents were planned for another commit")]
    Moved,
    /// Sealing failed.
    #[error("a commit cannot be sealed")]
    Seal(#[from] SealError),
    /// The object of a segment cannot be made.
    #[error("a segment of the log cannot be made")]
    Make(#[from] MakeError),
    /// The store refused, twice.
    #[error("a commit cannot be written to the store")]
    Store(#[from] StoreError),
    /// A commit or a segment exceeds a bound of the format.
    #[error("a commit is too large")]
    TooLarge,
}

/// What a new log segment continues.
#[derive(Debug, Clone)]
pub(crate) struct Continuation {
    pub(crate) position: Position,
    /// Epoch of the log segment before.
    pub(crate) epoch: u64,
    pub(crate) path: Vec<SegmentRef>,
}

/// Where a commit was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Its number: what to wait for.
    pub(crate) seq: u64,
    /// Where its frame begins.
    pub(crate) place: Place,
    /// Bytes of the frame.
    pub(crate) len: u32,
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
        let segment = keys.new_segment(&from.position.head)?;
        let next = NextSegment::make(&*store, &keys, (id, segment), FIRST_LEN)?;
        let mut log = Self {
            mount: keys.entropy().draw()?,
            alignment,
            epoch: from.epoch,
            position: from.position,
            id,
            len: next.len,
            sealer: keys.segment(SegmentKind::Log, segment),
            flush: Arc::new(LogFlush::new(store, from.position)),
            path: from.path,
            is_over: false,
            keys,
        };
        let open = log.begin(next)?;
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
        let position = Position { seq: 0, head, next };
        let made = NextSegment::make(&*store, &keys, (id, segment), FIRST_LEN)?;
        let mut log = Self {
            mount: keys.entropy().draw()?,
            alignment,
            epoch: 0,
            position,
            id,
            len: made.len,
            sealer: keys.segment(SegmentKind::Log, segment),
            flush: Arc::new(LogFlush::new(store, position)),
            path: Vec::new(),
            is_over: false,
            keys,
        };
        let open = log.begin(made)?;
        log.flush()?;
        Ok((log, open))
    }

    /// Where the chain stands.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// What makes commits durable.
    pub(crate) fn flusher(&self) -> &Arc<LogFlush> {
        &self.flush
    }

    /// The newest commit that is flushed.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.flush.durable().seq
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
        self.position.next.offset >= self.len.min(LOG_LEN_MAX - ROLL_EARLY)
    }

    /// Whether the next segment should be made, so that it is there when the log goes on in it.
    pub(crate) fn wants_next(&self) -> bool {
        self.position.next.offset >= self.len / 2
    }

    /// Bytes that the next segment should be made with.
    pub(crate) fn next_len(&self) -> u64 {
        len_after(self.len)
    }

    /// Draws a segment for the log. It is announced, durably, before its object is made.
    pub(crate) fn draw_segment(&self) -> Result<SegmentRef, SealError> {
        self.keys.new_segment(&self.position.head)
    }

    /// Whether what was appended last does not become durable: the log is to be opened anew.
    pub(crate) fn has_failed(&self) -> bool {
        self.flush.has_failed()
    }

    /// Seals a commit, with what was planned for it, and writes it without flushing it. That the
    /// store refuses shows when somebody waits for it to be durable.
    pub(crate) fn append(
        &mut self,
        ops: &PendingOps,
        inline: Option<Planned>,
    ) -> Result<Appended, LogError> {
        if self.is_over {
            return Err(LogError::Failed);
        }
        if self.flush.is_behind() {
            // So that what is kept is bounded. An error shows to who waits, in a moment.
            let _ = self.flush();
        }
        let (appended, kept) = self.seal(ops, inline, false)?;
        self.flush.write(kept);
        Ok(appended)
    }

    /// Makes durable all that was appended.
    pub(crate) fn flush(&self) -> Result<(), LogError> {
        self.flush.wait_durable(self.position.seq)
    }

    /// Goes on in a new segment. Gives its OPEN, for the map.
    pub(crate) fn roll(&mut self, next: NextSegment) -> Result<Op, LogError> {
        let roll = PendingOps::of(&Op::Roll(next.segment));
        let (_, kept) = self.seal(&roll, None, true)?;
        self.flush.write(kept);
        self.flush()?;
        let open = self.begin(next)?;
        self.flush()?;
        Ok(open)
    }

    /// Makes `next` the current segment, which continues where the chain stands.
    fn begin(&mut self, next: NextSegment) -> Result<Op, LogError> {
        let (open, kept) = self.seal_open(next)?;
        self.flush.write(kept);
        Ok(open)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a segment is begun once")]
    fn seal_open(&mut self, next: NextSegment) -> Result<(Op, Kept), LogError> {
        let NextSegment { id, segment, len } = next;
        self.epoch += 1;
        let open = Op::Open(Open {
            log_epoch: self.epoch,
            mount: self.mount,
            id,
            segment,
            cut: self.position.next,
            cut_head: self.position.head.0,
        });
        self.position.next = Place {
            segment,
            offset: SEGMENT_BEGIN,
        };
        self.id = id;
        self.len = len;
        self.sealer = self.keys.segment(SegmentKind::Log, segment);
        self.path.push(segment);
        self.flush.go_on_in(segment);
        match self.seal(&PendingOps::of(&open), None, true) {
            Ok((_, kept)) => Ok((open, kept)),
            Err(e) => {
                // The segment has no OPEN, so nothing may follow in it.
                self.is_over = true;
                self.flush.give_up();
                Err(e)
            }
        }
    }

    /// Seals a commit at the end of the chain.
    fn seal(
        &mut self,
        ops: &PendingOps,
        inline: Option<Planned>,
        is_structure: bool,
    ) -> Result<(Appended, Kept), LogError> {
        let Position { seq, head, next } = self.position;
        let seq = seq + 1;
        let header = CommitHeader {
            seq,
            log_epoch: self.epoch,
            prev_head: head.0,
            durable_seq: self.flush.durable().seq,
        };
        let plaintext = ops.encode(&header, self.alignment).map(Zeroizing::new);
        let plaintext = plaintext.ok_or(LogError::TooLarge)?;
        let frame_head = self.frame_head(plaintext.len(), inline.as_ref())?;
        if !is_structure && !self.has_room(frame_head.frame_len) {
            return Err(LogError::TooLarge);
        }
        let clear = frame_head.bytes();
        let at = (next.segment, next.offset);
        let sealed = self.keys.seal_commit(at, &clear, &plaintext)?;
        let link = Link {
            seq,
            log_epoch: self.epoch,
            uid: next.segment.uid,
            offset: next.offset,
            sealed: &sealed,
        };
        let head = next_head(&head, &link);
        let mut frame = Vec::with_capacity(frame_head.frame_len as usize);
        frame.extend(clear);
        frame.extend(&sealed);
        let records = match inline {
            Some(planned) => planned.seal(&self.sealer, &mut frame)?,
            None => Vec::new(),
        };
        frame.resize(frame_head.frame_len as usize, 0);
        let offset = next.offset + u64::from(frame_head.frame_len);
        self.position = Position {
            seq,
            head,
            next: Place { offset, ..next },
        };
        let kept = Kept {
            place: next,
            frame: Arc::new(frame),
            after: self.position,
            records,
            is_structure,
        };
        let appended = Appended {
            seq,
            place: next,
            len: frame_head.frame_len,
        };
        Ok((appended, kept))
    }

    fn frame_head(
        &self,
        plaintext_len: usize,
        inline: Option<&Planned>,
    ) -> Result<FrameHead, LogError> {
        let sealed_len = u32::try_from(plaintext_len + ONCE_OVERHEAD).ok();
        let sealed_len = sealed_len.ok_or(LogError::TooLarge)?;
        match inline {
            None => FrameHead::new(sealed_len, 0, self.alignment).ok_or(LogError::TooLarge),
            Some(planned) => {
                let fits =
                    planned.at == self.position.next && planned.head.sealed_len == sealed_len;
                fits.then_some(planned.head).ok_or(LogError::Moved)
            }
        }
    }

    /// Whether a frame of this length fits the segment, ROLL behind it included.
    fn has_room(&self, frame_len: u32) -> bool {
        self.position.next.offset + u64::from(frame_len) <= LOG_LEN_MAX - ROLL_ROOM
    }
}

fn log_name(segment: SegmentRef) -> ObjectName {
    ObjectName::Segment(SegmentKind::Log, segment.uid)
}
