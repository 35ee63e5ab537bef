//! Core: leaving a log segment behind that cannot be written any more.
//!
//! The new segment continues at the last commit that is *durable*: nothing behind it was
//! acknowledged, and whether the store has it nobody knows. Those commits are sealed once more in
//! the new segment, from what was kept of them. Their inline records get new addresses by that, so
//! every extent that named the old ones is replaced, in the commits themselves: one that is read
//! later names chunks that ride with it, as every other does, and no address behind the cut is
//! ever mentioned. (A Move behind each Write would be as right for the map, but replay would first
//! have to believe in a void address, and could not see that a torn chunk tears its commit.)
//!
//! Until the superblock names the new segment, a mount finds the old one, with or without what was
//! not acknowledged; from then on its tail is behind the cut, and void for ever.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::flush::Kept;
use super::frames::Frame;
use super::{Appended, Log, LogError, LogFlush, NextSegment, Position};
use crate::crypto::SegmentSealer;
use crate::format::{Extent, FRAME_HEAD_LEN, FrameHead, Op, PendingOps, SegmentKind, SegmentRef};

/// The log has gone on in another segment, and all is flushed; but no commit is acknowledged
/// before both superblock slots name that segment.
#[must_use = "nothing is acknowledged before this is told that the superblock is written"]
#[derive(Debug)]
pub(crate) struct Reopened {
    /// OPEN of the new segment, for the map.
    pub(crate) open: Op,
    /// Where the chain stands: all of it is flushed.
    pub(crate) position: Position,
    /// Commits that were sealed anew, with the numbers that they had.
    pub(crate) commits: Vec<(u64, Appended)>,
    /// Inline records, whole, where they were and where they are.
    moved: Vec<(Extent, Extent)>,
    flush: Arc<LogFlush>,
}

/// A commit that is to be sealed anew.
struct Unsealed {
    seq: u64,
    ops: Vec<Op>,
    /// Its inline records, each with its plaintext.
    records: Vec<(Extent, Zeroizing<Vec<u8>>)>,
}

impl Reopened {
    /// Where an extent is now that named an inline record, or part of it, which has moved. The
    /// map, what is pending, and whoever else holds extents must follow.
    pub(crate) fn translate(&self, extent: &Extent) -> Option<Extent> {
        translate(&self.moved, extent)
    }

    /// Whether any extent has moved.
    pub(crate) fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// After both superblock slots name the new segment: lets those through who wait.
    pub(crate) fn acknowledge(self) {
        self.flush.restart(self.position);
    }
}

impl Log {
    /// After a failure, goes on in `next` from the last durable commit and seals anew what is
    /// behind it. An error is the end: the log appends nothing any more.
    pub(crate) fn reopen(&mut self, next: NextSegment) -> Result<Reopened, LogError> {
        if self.is_over {
            return Err(LogError::Failed);
        }
        self.is_over = true;
        let reopened = self.try_reopen(next)?;
        self.is_over = false;
        tracing::warn!(
            segment = %reopened.position.next.segment.uid,
            commits = reopened.commits.len(),
            error_code = "fs.log_reopened",
            "the log goes on in another segment after a failure"
        );
        Ok(reopened)
    }

    fn try_reopen(&mut self, next: NextSegment) -> Result<Reopened, LogError> {
        let (durable, kept) = self.flush.stop();
        let mut unsealed = Vec::new();
        for kept in kept.iter().filter(|kept| !kept.is_structure) {
            unsealed.push(self.unseal(kept).ok_or(LogError::Lost)?);
        }
        // A segment that was begun, and whose OPEN is not durable, is not on the path.
        let last = |segment: &SegmentRef| *segment == durable.next.segment;
        let known = self.path.iter().rposition(last).map_or(0, |at| at + 1);
        self.path.truncate(known);
        self.position = durable;
        let (open, kept) = self.seal_open(next)?;
        self.flush.keep(kept);

        let (mut commits, mut moved) = (Vec::new(), Vec::new());
        for Unsealed { seq, ops, records } in unsealed {
            commits.push((seq, self.seal_anew(&ops, &records, &mut moved)?));
        }
        self.flush.write_anew()?;
        Ok(Reopened {
            open,
            position: self.position,
            commits,
            moved,
            flush: Arc::clone(&self.flush),
        })
    }

    /// Opens a frame that was kept. What only ciphertext was kept of is in memory shortly.
    fn unseal(&self, kept: &Kept) -> Option<Unsealed> {
        let clear = kept.frame.first_chunk::<FRAME_HEAD_LEN>()?;
        let head = FrameHead::parse(clear, self.alignment).ok()?;
        let frame = Frame::open(&self.keys, kept.place, head, kept.frame.to_vec())?;
        let segment = kept.place.segment;
        let sealer: SegmentSealer = self.keys.segment(SegmentKind::Log, segment);
        let mut records = Vec::with_capacity(kept.records.len());
        for extent in &kept.records {
            records.push((*extent, frame.inline_record(&sealer, extent)?));
        }
        Some(Unsealed {
            seq: frame.header.seq,
            ops: frame.ops,
            records,
        })
    }

    fn seal_anew(
        &mut self,
        ops: &[Op],
        records: &[(Extent, Zeroizing<Vec<u8>>)],
        moved: &mut Vec<(Extent, Extent)>,
    ) -> Result<Appended, LogError> {
        let ops = PendingOps::of_all(ops);
        let contents: Vec<&[u8]> = records.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let planned = if contents.is_empty() {
            None
        } else {
            let planned = self.plan_inline(ops.len(), &contents)?;
            Some(planned.ok_or(LogError::TooLarge)?)
        };
        let old = records.iter().map(|(extent, _)| *extent);
        moved.extend(old.zip(planned.iter().flat_map(|planned| planned.extents())));
        // Extents of other commits' records too: a copy may share them.
        let ops = ops.with_extents(|extent| translate(moved, extent));
        let (appended, kept) = self.seal(&ops.map_err(|_| LogError::Lost)?, planned, false)?;
        self.flush.keep(kept);
        Ok(appended)
    }
}

/// A record that is sealed anew has the same chunks, so a part of it is where it was within it.
fn translate(moved: &[(Extent, Extent)], extent: &Extent) -> Option<Extent> {
    let holds = |record: &Extent| {
        record.segment == extent.segment
            && record.salt == extent.salt
            && record.offset <= extent.offset
            && record.end().is_some_and(|end| extent.offset < end)
    };
    let (from, to) = moved.iter().find(|(from, _)| holds(from))?;
    Some(Extent {
        segment: to.segment,
        offset: to.offset + (extent.offset - from.offset),
        salt: to.salt,
        ..*extent
    })
}
