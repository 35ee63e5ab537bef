//! Core: from the winning superblock to the state that was committed.
//!
//! The path is read backwards, from the log segment that the superblock names through each OPEN's
//! predecessor to the segment that the checkpoint's replay begins in; then commits are read
//! forwards, along the cuts and, behind the last of them, along ROLL. Nothing is listed or guessed.
//!
//! Replay ends at the first place that can be read and holds no commit. What is behind it decides:
//! had a commit been durable that replay did not reach, something was taken away, and the volume
//! is refused; else a crash tore the log there, as it may. A store that fails to answer, and an
//! object that is gone although the superblock, an OPEN or a ROLL names it, are no tears.

use std::collections::BTreeSet;

use super::frames::{Found, Frame, FrameReader};
use super::{Continuation, Position};
use crate::crypto::{Head, VolumeKeys};
use crate::format::{
    Body, Checkpoint, CheckpointAddress, Op, Open, Place, SEGMENT_BEGIN, SEGMENT_LEN_MAX,
    SegmentId, SegmentKind, SegmentRef,
};
use crate::segment::ReadError;
use crate::store::{Appendable, ObjectName, StoreError};
use crate::tables::{Inconsistent, Tables};
use crate::tree;

/// Log segments on the path at most: a checkpoint at each unmount keeps it at a few.
const PATH_MAX: usize = 1 << 16;
/// Bytes of frames that the search behind a tear reads at most: four times a whole segment.
const SEARCH_MAX: u64 = 4 * SEGMENT_LEN_MAX;

/// The state of a volume as it was committed.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) tables: Tables,
    /// The checkpoint that replay started from.
    pub(crate) checkpoint: Checkpoint,
    /// Data and log segments without live bytes in that checkpoint.
    pub(crate) dead: BTreeSet<SegmentId>,
    /// What a new log segment continues.
    pub(crate) log: Continuation,
    /// Commits that may be in a page cache alone: they are to be written again as they are.
    rewrite: Vec<(Place, Vec<u8>)>,
}

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
    Inconsistent(#[from] Inconsistent),
    /// The store failed.
    #[error("the volume cannot be read from the store")]
    Store(#[source] StoreError),
}

/// Recovers a volume from the body of its winning superblock. Writes nothing.
pub(crate) fn recover(
    store: &dyn Appendable,
    keys: &VolumeKeys,
    body: &Body,
) -> Result<Recovered, RecoverError> {
    let frames = FrameReader {
        store,
        keys,
        alignment: body.log_alignment,
    };
    let checkpoint = read_checkpoint(&frames, &body.newest)?;
    let mut tables = Tables::empty(keys.name_hasher());
    tree::load(store, keys, &checkpoint, &mut tables).map_err(|e| match e {
        ReadError::Tampered => RecoverError::Tampered("tree"),
        ReadError::Store(e) => RecoverError::Store(e),
    })?;
    let dead = dead_segments(&tables);

    let path = walk_back(&frames, body, checkpoint.next.segment)?;
    let start = Position {
        seq: checkpoint.as_of,
        head: Head(checkpoint.head),
        next: checkpoint.next,
    };
    let mut replay = Replay {
        frames,
        commits: Vec::new(),
        position: start,
        path,
        torn: false,
        unread: None,
    };
    replay.read_chain()?;
    let durable = replay.highest_durable(body.durable_seq)?;
    replay.drop_torn_inline(start, durable);
    if replay.position.seq < durable {
        return Err(RecoverError::Lost {
            first: replay.position.seq + 1,
            last: durable,
        });
    }
    replay.report_tear();

    let mut rewrite = Vec::new();
    for frame in replay.commits {
        for op in &frame.ops {
            tables.apply(op, 0)?;
        }
        if frame.header.seq > durable {
            rewrite.push((frame.place, frame.bytes));
        }
    }
    let epoch = replay
        .path
        .last()
        .map_or(body.log_epoch, |step| step.open.log_epoch);
    let path = replay.path.iter().map(|step| step.segment).collect();
    let log = Continuation {
        position: replay.position,
        epoch,
        path,
    };
    Ok(Recovered {
        tables,
        checkpoint,
        dead,
        log,
        rewrite,
    })
}

impl Recovered {
    /// Makes durable what was read: a commit may so far be in a page cache alone, and what the
    /// new mount acknowledges must not rest on it.
    pub(crate) fn settle(&mut self, store: &dyn Appendable) -> Result<(), StoreError> {
        for (place, bytes) in self.rewrite.drain(..) {
            store.write_at(log_name(place.segment), place.offset, &bytes)?;
        }
        self.log
            .path
            .iter()
            .try_for_each(|segment| store.sync(log_name(*segment)))
    }
}

/// A log segment on the path, with its OPEN.
struct Step {
    segment: SegmentRef,
    open: Open,
}

struct Replay<'a> {
    frames: FrameReader<'a>,
    commits: Vec<Frame>,
    position: Position,
    /// Oldest first.
    path: Vec<Step>,
    torn: bool,
    /// A segment that a ROLL names and in which nothing opens.
    unread: Option<SegmentRef>,
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

/// Data and log segments without live bytes.
fn dead_segments(tables: &Tables) -> BTreeSet<SegmentId> {
    let nodes = SegmentKind::Node;
    let dead = tables
        .segments()
        .filter(|(id, e)| e.kind != nodes && !tables.is_referenced(*id));
    dead.map(|(id, _)| id).collect()
}

/// The log segments from `first` to the one that the superblock names, oldest first.
fn walk_back(
    frames: &FrameReader<'_>,
    body: &Body,
    first: SegmentRef,
) -> Result<Vec<Step>, RecoverError> {
    const WHAT: &str = "beginning of a log segment";
    let mut path = vec![read_open(frames, body.log)?];
    while let Some(step) = path.last() {
        if step.segment == first {
            break;
        }
        let before = read_open(frames, step.open.cut.segment)?;
        if before.open.log_epoch >= step.open.log_epoch || path.len() >= PATH_MAX {
            return Err(RecoverError::Tampered(WHAT));
        }
        path.push(before);
    }
    if path
        .first()
        .is_none_or(|step| step.open.log_epoch != body.log_epoch)
    {
        return Err(RecoverError::Tampered(WHAT));
    }
    path.reverse();
    Ok(path)
}

fn read_open(frames: &FrameReader<'_>, segment: SegmentRef) -> Result<Step, RecoverError> {
    let place = Place {
        segment,
        offset: SEGMENT_BEGIN,
    };
    let frame = named(frames, place, "beginning of a log segment")?;
    match frame.ops.as_slice() {
        [Op::Open(open)] if open.segment == segment => Ok(Step {
            segment,
            open: *open,
        }),
        _ => Err(RecoverError::Tampered("beginning of a log segment")),
    }
}

/// The frame at a place that an authenticated pointer names: there it must be.
fn named(
    frames: &FrameReader<'_>,
    place: Place,
    what: &'static str,
) -> Result<Frame, RecoverError> {
    match frames.read(place).map_err(|e| store_error(e, what))? {
        Found::Frame(frame) => Ok(*frame),
        Found::Nothing | Found::Torn(_) => Err(RecoverError::Tampered(what)),
    }
}

fn store_error(e: StoreError, what: &'static str) -> RecoverError {
    match e {
        StoreError::Absent | StoreError::NotAnObject => RecoverError::Tampered(what),
        StoreError::Busy
        | StoreError::Exists
        | StoreError::Full
        | StoreError::Io(_)
        | StoreError::LeaseLost => RecoverError::Store(e),
    }
}

impl Replay<'_> {
    /// Reads commits from the start to the end of the chain.
    fn read_chain(&mut self) -> Result<(), RecoverError> {
        let mut at = 0;
        while let Some(step) = self.path.get(at) {
            let epoch = step.open.log_epoch;
            let cut = self
                .path
                .get(at + 1)
                .map(|next| (next.open.cut, next.open.cut_head));
            if at > 0 {
                self.position.next = Place {
                    segment: step.segment,
                    offset: SEGMENT_BEGIN,
                };
            }
            match self.read_segment(epoch, cut)? {
                Some(successor) => match self.read_successor(successor, epoch)? {
                    Some(step) => self.path.push(step),
                    None => return Ok(()),
                },
                None if cut.is_none() => return Ok(()),
                None => {}
            }
            at += 1;
        }
        Ok(())
    }

    /// Reads the commits of one segment, up to the cut if the path goes on. Gives the segment that
    /// a ROLL at the end of the path names.
    fn read_segment(
        &mut self,
        epoch: u64,
        cut: Option<(Place, [u8; 32])>,
    ) -> Result<Option<SegmentRef>, RecoverError> {
        loop {
            if let Some((place, head)) = cut
                && self.position.next.offset >= place.offset
            {
                let met = self.position.next == place && self.position.head.0 == head;
                return if met {
                    Ok(None)
                } else {
                    Err(RecoverError::Tampered("log"))
                };
            }
            let found = self.frames.read(self.position.next);
            match found.map_err(|e| store_error(e, "log"))? {
                Found::Frame(frame) => {
                    if !frame.continues(&self.position, epoch) {
                        return Err(RecoverError::Tampered("log"));
                    }
                    self.position = frame.advance(&self.position);
                    let rolls_to = match frame.ops.as_slice() {
                        [Op::Roll(successor)] => Some(*successor),
                        _ => None,
                    };
                    self.commits.push(*frame);
                    if cut.is_none() && rolls_to.is_some() {
                        return Ok(rolls_to);
                    }
                }
                // Below a cut every commit was durable before the cut was made.
                Found::Nothing | Found::Torn(_) if cut.is_some() => {
                    return Err(RecoverError::Tampered("log"));
                }
                Found::Nothing => return Ok(None),
                Found::Torn(_) => {
                    self.torn = true;
                    return Ok(None);
                }
            }
        }
    }

    /// The segment that a ROLL names, when anything was committed in it.
    fn read_successor(
        &mut self,
        segment: SegmentRef,
        epoch: u64,
    ) -> Result<Option<Step>, RecoverError> {
        let place = Place {
            segment,
            offset: SEGMENT_BEGIN,
        };
        let found = self
            .frames
            .read(place)
            .map_err(|e| store_error(e, "rolled log segment"))?;
        let Found::Frame(frame) = found else {
            self.torn |= matches!(found, Found::Torn(_));
            self.unread = Some(segment);
            return Ok(None);
        };
        match frame.ops.as_slice() {
            [Op::Open(open)]
                if open.segment == segment
                    && open.log_epoch > epoch
                    && open.cut == self.position.next
                    && open.cut_head == self.position.head.0 =>
            {
                Ok(Some(Step {
                    segment,
                    open: *open,
                }))
            }
            _ => Err(RecoverError::Tampered("rolled log segment")),
        }
    }

    /// The highest commit that is known to have been durable: by the superblock, by a commit of
    /// the chain, or by one behind its end that opens on its own.
    fn highest_durable(&self, by_superblock: u64) -> Result<u64, RecoverError> {
        let by_chain = self
            .commits
            .iter()
            .map(|frame| frame.header.durable_seq)
            .max();
        let mut highest = by_superblock.max(by_chain.unwrap_or(0));
        let rolled = self.unread.map(|segment| Place {
            segment,
            offset: SEGMENT_BEGIN,
        });
        for place in [Some(self.position.next), rolled].into_iter().flatten() {
            highest = highest.max(self.search(place)?);
        }
        Ok(highest)
    }

    /// The highest `durable_seq` of the frames from `place` on that open on their own.
    fn search(&self, mut place: Place) -> Result<u64, RecoverError> {
        let len = self
            .frames
            .store
            .len(log_name(place.segment))
            .map_err(RecoverError::Store)?;
        let (mut highest, mut searched) = (0, 0_u64);
        while place.offset < len.min(SEGMENT_LEN_MAX) {
            match self.frames.read(place).map_err(RecoverError::Store)? {
                Found::Frame(frame) => {
                    highest = highest.max(frame.header.durable_seq);
                    searched += u64::from(frame.head.frame_len);
                }
                Found::Nothing => {}
                Found::Torn(read) => searched += read,
            }
            if searched > SEARCH_MAX {
                return Err(RecoverError::Tampered("end of the log"));
            }
            place.offset += u64::from(self.frames.alignment);
        }
        Ok(highest)
    }

    /// A commit that may not have been durable counts as torn when an inline chunk of it does not
    /// open; one that was durable stands, and the range of the file is damaged.
    fn drop_torn_inline(&mut self, start: Position, durable: u64) {
        let unsure = |frame: &Frame| frame.header.seq > durable && frame.head.inline_len > 0;
        let torn = |frame: &Frame| unsure(frame) && !self.frames.inline_chunks_open(frame);
        let Some(first) = self.commits.iter().position(torn) else {
            return;
        };
        self.commits.truncate(first);
        self.position = start;
        for frame in &self.commits {
            self.position = frame.advance(&self.position);
        }
        self.torn = true;
    }

    fn report_tear(&self) {
        if self.torn {
            tracing::warn!(
                segment = %self.position.next.segment.uid,
                offset = self.position.next.offset,
                seq = self.position.seq,
                error_code = "fs.torn_tail",
                "the log ends in bytes that do not open: a crash, or what looks like one"
            );
        }
    }
}

fn log_name(segment: SegmentRef) -> ObjectName {
    ObjectName::Segment(SegmentKind::Log, segment.uid)
}
