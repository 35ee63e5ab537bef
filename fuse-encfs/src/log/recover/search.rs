//! Core: looking behind the end of the chain for commits that open on their own.

use super::RecoverError;
use crate::format::{FRAME_HEAD_LEN, FrameHead, Place, SEGMENT_LEN_MAX};
use crate::log::frames::{Found, FrameReader};
use crate::log::log_name;

/// Bytes that are read in one call. Most of what lies behind the end was never written.
const PIECE: usize = 1 << 20;
/// Bytes of frames that are read at most, four times a whole segment: heads that overlap could
/// make it any multiple of one.
const TRIED_MAX: u64 = 4 * SEGMENT_LEN_MAX;

/// The highest `durable_seq` of the frames from `place` on that open on their own; 0 when there is
/// none.
pub(in crate::log) fn highest_durable(
    frames: &FrameReader<'_>,
    place: Place,
) -> Result<u64, RecoverError> {
    let name = log_name(place.segment);
    let len = frames.store.len(name).map_err(RecoverError::Store)?;
    let end = len.min(SEGMENT_LEN_MAX);
    let mut piece = vec![0; PIECE];
    let (mut highest, mut tried) = (0, 0_u64);
    let mut offset = place.offset;
    while offset < end {
        let got = frames.store.get(name, offset, &mut piece);
        let got = got.map_err(RecoverError::Store)?;
        for at in (0..got).step_by(usize::from(frames.alignment)) {
            if !may_begin(piece.get(at..got), frames.alignment) {
                continue;
            }
            let offset = offset + at as u64;
            match frames.read(Place { offset, ..place }) {
                Ok(Found::Frame(frame)) => {
                    highest = highest.max(frame.header.durable_seq);
                    tried += u64::from(frame.head.frame_len);
                }
                Ok(Found::Nothing) => {}
                Ok(Found::Torn(read)) => tried += read,
                Err(e) => return Err(RecoverError::Store(e)),
            }
            if tried > TRIED_MAX {
                return Err(RecoverError::Tampered("end of the log"));
            }
        }
        offset += PIECE as u64;
    }
    Ok(highest)
}

/// Whether bytes begin with the head of a frame. Zeros do not.
fn may_begin(bytes: Option<&[u8]>, alignment: u16) -> bool {
    bytes
        .and_then(|bytes| bytes.first_chunk::<FRAME_HEAD_LEN>())
        .is_some_and(|head| FrameHead::parse(head, alignment).is_ok())
}
