//! Core: the log segments that replay reads, found backwards from the superblock.

use super::{RecoverError, store_error};
use crate::format::{Body, Op, Open, Place, SEGMENT_BEGIN, SegmentRef};
use crate::log::frames::{Found, Frame, FrameReader};

/// Log segments on the path at most: a checkpoint at each unmount keeps it at a few.
const PATH_MAX: usize = 1 << 16;

/// A log segment on the path, with its OPEN.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) segment: SegmentRef,
    pub(super) open: Open,
}

impl Step {
    /// Where its OPEN is.
    pub(super) fn begin(&self) -> Place {
        Place {
            segment: self.segment,
            offset: SEGMENT_BEGIN,
        }
    }
}

/// The log segments from `first` to the one that the superblock names, oldest first.
pub(super) fn walk_back(
    frames: &FrameReader<'_>,
    body: &Body,
    first: SegmentRef,
) -> Result<Vec<Step>, RecoverError> {
    const WHAT: &str = "beginning of a log segment";
    let step = |segment| {
        let place = Place {
            segment,
            offset: SEGMENT_BEGIN,
        };
        let frame = named(frames, place, WHAT)?;
        read_open(&frame, segment).ok_or(RecoverError::Tampered(WHAT))
    };
    let mut path = vec![step(body.log)?];
    while let Some(newer) = path.last() {
        if newer.segment == first {
            break;
        }
        let before = step(newer.open.cut.segment)?;
        if before.open.log_epoch >= newer.open.log_epoch || path.len() >= PATH_MAX {
            return Err(RecoverError::Tampered(WHAT));
        }
        path.push(before);
    }
    let newest = path.first();
    if newest.is_none_or(|step| step.open.log_epoch != body.log_epoch) {
        return Err(RecoverError::Tampered(WHAT));
    }
    path.reverse();
    Ok(path)
}

/// The OPEN that a segment's first frame must be.
pub(super) fn read_open(frame: &Frame, segment: SegmentRef) -> Option<Step> {
    match frame.ops.as_slice() {
        [Op::Open(open)] if open.segment == segment => Some(Step {
            segment,
            open: *open,
        }),
        _ => None,
    }
}

/// The frame at a place that an authenticated pointer names: there it must be.
pub(super) fn named(
    frames: &FrameReader<'_>,
    place: Place,
    what: &'static str,
) -> Result<Frame, RecoverError> {
    match frames.read(place).map_err(|e| store_error(e, what))? {
        Found::Frame(frame) => Ok(*frame),
        Found::Nothing | Found::Torn(_) => Err(RecoverError::Tampered(what)),
    }
}
