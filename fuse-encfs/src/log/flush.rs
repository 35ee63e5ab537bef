//! Core: making what was appended durable, apart from appending.
//!
//! A frame is kept, as sealed, until it is durable: a write or a flush that fails may have dropped
//! it, and nothing else could write the same bytes again. Frames that are not durable all lie in
//! one segment: the log goes on in another only once the ROLL before is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use runtime::sync::Mutex;

use super::gate::{Failed, Flush, Gate, Parked, State};
use super::{LogError, Position, log_name};
use crate::format::{Extent, Place, SegmentRef};
use crate::store::{Appendable, StoreError};

/// Bytes of frames that are not durable, before who appends waits for them.
const KEPT_MAX: usize = 64 << 20;

/// The end of the log, for who wants something in it durable. Needs no lock of the log.
#[derive(Debug)]
pub(crate) struct LogFlush {
    store: Arc<dyn Appendable>,
    gate: Gate<Parked<State>>,
    tail: Mutex<Tail>,
}

#[derive(Debug)]
struct Tail {
    /// Where frames are appended.
    segment: SegmentRef,
    /// Where the chain stands after the newest commit that is known here to be durable.
    durable: Position,
    /// What was appended behind it, oldest first.
    frames: VecDeque<Kept>,
    bytes: usize,
    /// Why the log failed, for the first who asks.
    cause: Option<StoreError>,
}

/// A frame that is not known to be durable.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) place: Place,
    /// The whole frame as sealed.
    pub(super) frame: Arc<Vec<u8>>,
    /// Where the chain stands after it.
    pub(super) after: Position,
    /// Its inline records, whole.
    pub(super) records: Vec<Extent>,
    /// An OPEN or ROLL, which belongs to its segment alone.
    pub(super) is_structure: bool,
}

impl LogFlush {
    /// Over a log that is durable up to `position`.
    pub(super) fn new(store: Arc<dyn Appendable>, position: Position) -> Self {
        Self {
            gate: Gate::new(position.seq, store.lanes()),
            store,
            tail: Mutex::new(Tail {
                segment: position.next.segment,
                durable: position,
                frames: VecDeque::new(),
                bytes: 0,
                cause: None,
            }),
        }
    }

    /// Waits until commit `seq`, which was appended, and every one before it are flushed; flushes
    /// if nobody else does.
    ///
    /// After an error the log may go on in another segment, and what is not durable with it: the
    /// commit may be durable yet. Who gets one takes the lock of the log and looks whether somebody
    /// was there before ([`Log::has_failed`](super::Log::has_failed)); then he waits again.
    pub(crate) fn wait_durable(&self, seq: u64) -> Result<(), LogError> {
        let waited = self.gate.wait(seq, self);
        self.settle();
        waited.map_err(|Failed| match self.tail.lock().cause.take() {
            Some(cause) => LogError::Store(cause),
            None => LogError::Failed,
        })
    }

    /// Where the chain stands after the newest durable commit: what an anchor may be told.
    pub(crate) fn durable(&self) -> Position {
        self.settle();
        self.tail.lock().durable
    }

    /// Whether nothing becomes durable any more, until the log is opened anew.
    pub(crate) fn has_failed(&self) -> bool {
        self.gate.has_failed()
    }

    /// Whether so much is not durable that who appends waits for it.
    pub(super) fn is_behind(&self) -> bool {
        self.settle();
        self.tail.lock().bytes > KEPT_MAX
    }

    /// Writes a frame. A failure shows in [`LogFlush::wait_durable`].
    pub(super) fn write(&self, kept: Kept) {
        let (place, seq) = (kept.place, kept.after.seq);
        let frame = Arc::clone(&kept.frame);
        self.keep(kept);
        if self.has_failed() {
            // It will be sealed anew elsewhere.
            return;
        }
        if let Err(first) = self.write_at(place, &frame) {
            tracing::warn!(error = %first, "a commit was not written; writing the same bytes again");
            if let Err(e) = self.write_at(place, &frame) {
                self.fail(e);
                return;
            }
        }
        self.gate.note_written(seq);
    }

    /// Keeps a frame without writing it.
    pub(super) fn keep(&self, kept: Kept) {
        let mut tail = self.tail.lock();
        tail.bytes += kept.frame.len();
        tail.frames.push_back(kept);
    }

    /// Lets the frames that follow lie in `segment`, which was just made. All before are durable,
    /// or were taken away by [`LogFlush::stop`].
    pub(super) fn go_on_in(&self, segment: SegmentRef) {
        self.tail.lock().segment = segment;
    }

    /// Ends all flushes, and takes what did not become durable. Gives where the chain stands
    /// before it too.
    pub(super) fn stop(&self) -> (Position, Vec<Kept>) {
        self.gate.stop();
        self.settle();
        let mut tail = self.tail.lock();
        tail.bytes = 0;
        (tail.durable, tail.frames.drain(..).collect())
    }

    /// Writes and flushes all that is kept, after [`LogFlush::stop`], in two attempts.
    pub(super) fn write_anew(&self) -> Result<(), LogError> {
        let written = self.rewrite().or_else(|_| self.rewrite());
        written.map(|_| ()).map_err(LogError::Store)
    }

    /// Counts everything up to `position` as durable, after [`LogFlush::write_anew`].
    pub(super) fn restart(&self, position: Position) {
        self.tail.lock().cause = None;
        self.gate.restart(position.seq);
        self.settle();
    }

    /// Lets nothing become durable any more.
    pub(super) fn give_up(&self) {
        self.gate.fail();
    }

    fn fail(&self, cause: StoreError) {
        tracing::warn!(error = %cause, "the log's segment cannot be written");
        self.tail.lock().cause = Some(cause);
        self.gate.fail();
    }

    /// Forgets the frames that have become durable.
    fn settle(&self) {
        let durable = self.gate.durable();
        let mut tail = self.tail.lock();
        while let Some(kept) = tail.frames.pop_front_if(|kept| kept.after.seq <= durable) {
            tail.bytes = tail.bytes.saturating_sub(kept.frame.len());
            tail.durable = kept.after;
        }
    }

    /// Writes all that is kept once more and flushes it. Gives the last commit.
    fn rewrite(&self) -> Result<u64, StoreError> {
        let (segment, frames, durable) = {
            let tail = self.tail.lock();
            let frames: Vec<Kept> = tail.frames.iter().cloned().collect();
            (tail.segment, frames, tail.durable.seq)
        };
        for kept in &frames {
            self.write_at(kept.place, &kept.frame)?;
        }
        self.store.sync_by(log_name(segment), 0)?;
        Ok(frames.last().map_or(durable, |kept| kept.after.seq))
    }

    fn write_at(&self, place: Place, frame: &[u8]) -> Result<(), StoreError> {
        self.store
            .write_at(log_name(place.segment), place.offset, frame)
    }
}

impl Flush for LogFlush {
    fn flush(&self, lane: usize) -> bool {
        let segment = self.tail.lock().segment;
        match self.store.sync_by(log_name(segment), lane) {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!(error = %e, "a flush of the log failed; writing the same bytes again");
                false
            }
        }
    }

    fn mend(&self) -> Option<u64> {
        self.settle();
        // Another lane may have been told already of what this one is told first now.
        let again = |e| match self.store.lanes() {
            0 | 1 => Err(e),
            _ => self.rewrite(),
        };
        match self.rewrite().or_else(again) {
            Ok(upto) => Some(upto),
            Err(e) => {
                tracing::warn!(error = %e, "the log's segment cannot be flushed");
                self.tail.lock().cause = Some(e);
                None
            }
        }
    }
}
