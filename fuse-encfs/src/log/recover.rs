//! Core: from the winning superblock to the state that was committed.
//!
//! The path is read backwards, from the log segment that the superblock names through each OPEN's
//! predecessor to the segment that the checkpoint's replay begins in; then commits are read
//! forwards, along the cuts and, behind the last of them, along ROLL. Nothing is listed or guessed.
//!
//! The chain ends at the first place that can be read and holds no commit. What is behind it
//! decides: had a commit been durable that the chain does not reach, something was taken away, and
//! the volume is refused; else a crash tore the log there, as it may. A store that fails to answer,
//! and an object that is gone although the superblock, an OPEN or a ROLL names it, are no tears.
//!
//! **Design.** Two passes, so that memory holds a head a commit and not what was committed. The
//! first walks and judges the chain; the second applies it. A store that answers otherwise the
//! second time is found out by the heads. Neither writes anything.

use super::frames::{Frame, FrameReader};
use super::{Continuation, Position, log_name};
use crate::crypto::{Head, VolumeKeys};
use crate::format::{Body, Checkpoint, CheckpointAddress, Op, Place};
use crate::segment::ReadError;
use crate::store::{Appendable, Store, StoreError};
use crate::tables::{ApplyError, Inconsistent};

mod path;
mod search;
mod walk;

use path::{Step, named, walk_back};
#[cfg(test)]
pub(super) use search::highest_durable as search_behind;
use walk::Walk;

/// Why a volume cannot be brought to a committed state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    /// Something that an authenticated pointer names is altered or gone.
    #[error("the {0} is not what was written")]
    Tampered(&'static str),
    /// Commits that were durable are gone.
    #[error("commits {first} to {last} were durable and are gone")]
    Lost {
        /// The first that is gone.
        first: u64,
        /// The last that is known to have been durable.
        last: u64,
    },
    /// The operations do not fit each other.
    #[error("the log does not fit the volume")]
    Inconsistent(#[source] Inconsistent),
    /// The store failed.
    #[error("the volume cannot be read from the store")]
    Store(#[source] StoreError),
}

impl From<ReadError> for RecoverError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Tampered => Self::Tampered("tree"),
            ReadError::Store(e) => Self::Store(e),
        }
    }
}

impl From<ApplyError> for RecoverError {
    fn from(e: ApplyError) -> Self {
        match e {
            ApplyError::Inconsistent(e) => Self::Inconsistent(e),
            ApplyError::Read(e) => e.into(),
        }
    }
}

/// The chain of a volume from a checkpoint on, as it was walked and judged. Its operations are not
/// applied yet.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    frames: FrameReader<'a>,
    checkpoint: Checkpoint,
    /// The commit that the checkpoint's state is of.
    start: Position,
    /// Head after each commit behind it.
    heads: Vec<Head>,
    /// Log segments that hold them, oldest first.
    path: Vec<Step>,
    /// The newest commit that is known to have been durable.
    durable: u64,
    torn: bool,
}

/// The end of the chain, once its operations are applied.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The checkpoint that replay started from.
    pub(crate) checkpoint: Checkpoint,
    /// What a new log segment continues.
    pub(crate) log: Continuation,
    heads: Vec<Head>,
    alignment: u16,
    /// The newest commit that is known to have been durable.
    durable: u64,
    /// Where the commits behind it lie: so far they may be in a page cache alone.
    unsure: Vec<Place>,
}

/// Reads and judges the chain from the checkpoint at `from` on, which the winning superblock's
/// `body` names as the newest or the previous one.
pub(crate) fn read_chain<'a>(
    store: &'a dyn Store,
    keys: &'a VolumeKeys,
    body: &Body,
    from: &CheckpointAddress,
) -> Result<Chain<'a>, RecoverError> {
    let frames = FrameReader {
        store,
        keys,
        alignment: body.log_alignment,
    };
    let checkpoint = read_checkpoint(&frames, from)?;
    let path = walk_back(&frames, body, checkpoint.next.segment)?;
    let start = Position {
        seq: checkpoint.as_of,
        head: Head(checkpoint.head),
        next: checkpoint.next,
    };
    let mut walk = Walk {
        frames,
        heads: Vec::new(),
        position: start,
        path,
        // A checkpoint is written when its own commit is durable.
        durable: body.durable_seq.max(start.seq),
        torn: false,
        unread: None,
    };
    walk.read_chain()?;
    walk.search_behind()?;
    if walk.position.seq < walk.durable {
        return Err(RecoverError::Lost {
            first: walk.position.seq + 1,
            last: walk.durable,
        });
    }
    Ok(Chain {
        frames,
        checkpoint,
        start,
        heads: walk.heads,
        path: walk.path,
        durable: walk.durable,
        torn: walk.torn,
    })
}

impl Chain<'_> {
    /// The checkpoint whose state the operations are applied to.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Applies the operations of every commit behind the checkpoint, in their order.
    ///
    /// A commit that may not have been durable ends the chain when an inline chunk of it does not
    /// open; one that was durable stands, and that range of the file is damaged.
    pub(crate) fn replay<E: From<RecoverError>>(
        mut self,
        apply: &mut dyn FnMut(&Op) -> Result<(), E>,
    ) -> Result<Recovered, E> {
        let (mut position, mut at) = (self.start, 0);
        let mut unsure = Vec::new();
        for (n, head) in self.heads.iter().enumerate() {
            at = self.enter_segment(&mut position, at);
            let mut frame = self.read_again(&position, at, head)?;
            if frame.header.seq > self.durable {
                let id = self.path.get(at).map(|step| step.open.id);
                if id.is_some_and(|id| !self.frames.inline_chunks_open(&mut frame, id)) {
                    self.heads.truncate(n);
                    self.torn = true;
                    break;
                }
                unsure.push(frame.place);
            }
            frame.ops.iter().try_for_each(&mut *apply)?;
            position = frame.advance(&position);
        }
        if self.torn {
            report_tear(&position);
        }
        let epochs = self.path.iter().map(|step| step.open.log_epoch);
        let epoch = epochs.max().unwrap_or_default();
        let replayed = self.path.iter().take(at + 1);
        let log = Continuation {
            position,
            epoch,
            path: replayed.map(|step| step.segment).collect(),
        };
        Ok(Recovered {
            checkpoint: self.checkpoint,
            log,
            heads: self.heads,
            alignment: self.frames.alignment,
            durable: self.durable,
            unsure,
        })
    }

    /// Goes over to the next segments of the path where they continue this place.
    fn enter_segment(&self, position: &mut Position, mut at: usize) -> usize {
        while let Some(step) = self.path.get(at + 1)
            && step.open.cut == position.next
        {
            position.next = step.begin();
            at += 1;
        }
        at
    }

    /// A commit that the first pass has read.
    fn read_again(
        &self,
        position: &Position,
        at: usize,
        head: &Head,
    ) -> Result<Frame, RecoverError> {
        let frame = named(&self.frames, position.next, "log")?;
        let epoch = self.path.get(at).map(|step| step.open.log_epoch);
        let same = epoch.is_some_and(|epoch| frame.continues(position, epoch))
            && frame.advance(position).head == *head;
        same.then_some(frame).ok_or(RecoverError::Tampered("log"))
    }
}

impl Recovered {
    /// Whether the chain has this commit with this head after it, the checkpoint's own included.
    pub(crate) fn met(&self, seq: u64, head: &[u8; 32]) -> bool {
        let Some(behind) = seq.checked_sub(self.checkpoint.as_of) else {
            return false;
        };
        let found = match behind.checked_sub(1) {
            None => Some(&self.checkpoint.head),
            Some(n) => usize::try_from(n)
                .ok()
                .and_then(|n| self.heads.get(n))
                .map(|head| &head.0),
        };
        found == Some(head)
    }

    /// Makes durable what was read: a commit may so far be in a page cache alone, and what the
    /// new mount acknowledges must not rest on it. Commits that may not have been durable are
    /// written again with the same bytes; not done by who mounts read-only.
    pub(crate) fn settle(
        &self,
        store: &dyn Appendable,
        keys: &VolumeKeys,
    ) -> Result<(), RecoverError> {
        let frames = FrameReader {
            store,
            keys,
            alignment: self.alignment,
        };
        for (place, seq) in self.unsure.iter().zip(self.durable + 1..) {
            let frame = named(&frames, *place, "log")?;
            let before = Position {
                seq: seq - 1,
                head: Head(frame.header.prev_head),
                next: *place,
            };
            if !self.met(seq - 1, &before.head.0) || !self.met(seq, &frame.advance(&before).head.0)
            {
                return Err(RecoverError::Tampered("log"));
            }
            store
                .write_at(log_name(place.segment), place.offset, &frame.bytes)
                .map_err(RecoverError::Store)?;
        }
        let mut segments = self.log.path.iter();
        segments
            .try_for_each(|segment| store.sync(log_name(*segment)))
            .map_err(RecoverError::Store)
    }
}

fn read_checkpoint(
    frames: &FrameReader<'_>,
    address: &CheckpointAddress,
) -> Result<Checkpoint, RecoverError> {
    let place = Place {
        segment: address.segment,
        offset: address.offset,
    };
    let frame = named(frames, place, "checkpoint")?;
    match (frame.header.seq == address.seq, frame.ops.as_slice()) {
        (true, [Op::Checkpoint(checkpoint)]) if checkpoint.as_of < address.seq => {
            Ok((**checkpoint).clone())
        }
        _ => Err(RecoverError::Tampered("checkpoint")),
    }
}

fn report_tear(position: &Position) {
    tracing::warn!(
        segment = %position.next.segment.uid,
        offset = position.next.offset,
        seq = position.seq,
        error_code = "fs.torn_tail",
        "the log ends in bytes that do not open: a crash, or what looks like one"
    );
}

fn store_error(e: StoreError, what: &'static str) -> RecoverError {
    match e {
        StoreError::Absent | StoreError::NotAnObject => RecoverError::Tampered(what),
        StoreError::Busy
        | StoreError::Changed
        | StoreError::Exists
        | StoreError::Full
        | StoreError::Io(_)
        | StoreError::LeaseLost
        | StoreError::Malformed(_)
        | StoreError::NotEmpty
        | StoreError::TooSmall => RecoverError::Store(e),
    }
}
