//! Core: the first pass of recovery, which walks the chain to its end and judges what is behind it.

use super::path::{Step, read_open};
use super::{RecoverError, search, store_error};
use crate::crypto::Head;
use crate::format::{Op, Place, SEGMENT_BEGIN, SegmentRef};
use crate::log::Position;
use crate::log::frames::{Found, FrameReader};

/// The first pass.
pub(super) struct Walk<'a> {
    pub(super) frames: FrameReader<'a>,
    pub(super) heads: Vec<Head>,
    pub(super) position: Position,
    /// Oldest first.
    pub(super) path: Vec<Step>,
    /// The newest commit that is known to have been durable: by the superblock, by a commit of
    /// the chain, or by one behind its end that opens on its own.
    pub(super) durable: u64,
    pub(super) torn: bool,
    /// A segment that a ROLL names and in which nothing opens.
    pub(super) unread: Option<SegmentRef>,
}

impl Walk<'_> {
    /// Reads commits from the start to the end of the chain.
    pub(super) fn read_chain(&mut self) -> Result<(), RecoverError> {
        let mut at = 0;
        while let Some(step) = self.path.get(at) {
            let epoch = step.open.log_epoch;
            let cut = self
                .path
                .get(at + 1)
                .map(|next| (next.open.cut, next.open.cut_head));
            if at > 0 {
                self.position.next = step.begin();
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
                    self.heads.push(self.position.head);
                    self.durable = self.durable.max(frame.header.durable_seq);
                    if cut.is_none()
                        && let [Op::Roll(successor)] = frame.ops.as_slice()
                    {
                        return Ok(Some(*successor));
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
        const WHAT: &str = "rolled log segment";
        let place = Place {
            segment,
            offset: SEGMENT_BEGIN,
        };
        let found = self.frames.read(place).map_err(|e| store_error(e, WHAT))?;
        let Found::Frame(frame) = found else {
            self.torn |= matches!(found, Found::Torn(_));
            self.unread = Some(segment);
            return Ok(None);
        };
        let step = read_open(&frame, segment).filter(|step| {
            step.open.log_epoch > epoch
                && step.open.cut == self.position.next
                && step.open.cut_head == self.position.head.0
        });
        step.map(Some).ok_or(RecoverError::Tampered(WHAT))
    }

    /// Looks behind the end of the chain for commits that say more was durable.
    pub(super) fn search_behind(&mut self) -> Result<(), RecoverError> {
        let rolled = self.unread.map(|segment| Place {
            segment,
            offset: SEGMENT_BEGIN,
        });
        for place in [Some(self.position.next), rolled].into_iter().flatten() {
            let found = search::highest_durable(&self.frames, place)?;
            self.durable = self.durable.max(found);
        }
        Ok(())
    }
}
