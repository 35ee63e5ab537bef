//! Core: reading the frames of log segments, hostile bytes until they open.

use std::sync::Arc;

use crate::crypto::{Link, SegmentSealer, VolumeKeys, next_head};
use crate::format::{
    CommitHeader, FRAME_HEAD_LEN, FrameHead, Op, Place, SEGMENT_LEN_MAX, SegmentKind, TAG_LEN,
    parse_commit,
};
use crate::store::{ObjectName, Store, StoreError};

use super::Position;

/// Reads frames of a volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameReader<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) keys: &'a VolumeKeys,
    pub(crate) alignment: u16,
}

/// What lies at a place of the log. That the store failed to say is an error, never one of these.
#[derive(Debug)]
pub(crate) enum Found {
    /// A commit.
    Frame(Box<Frame>),
    /// Zeros, or the end of the object: no commit was written there.
    Nothing,
    /// Bytes that do not open, of which so many were read to find out.
    Torn(u64),
}

/// A commit that opened.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) place: Place,
    pub(crate) head: FrameHead,
    pub(crate) header: CommitHeader,
    pub(crate) ops: Vec<Op>,
    /// The frame as stored.
    pub(crate) bytes: Vec<u8>,
}

impl FrameReader<'_> {
    /// Reads what lies at `place`.
    pub(crate) fn read(&self, place: Place) -> Result<Found, StoreError> {
        let name = ObjectName::Segment(SegmentKind::Log, place.segment.uid);
        let mut clear = [0; FRAME_HEAD_LEN];
        let got = self.store.get(name, place.offset, &mut clear)?;
        if clear.iter().all(|byte| *byte == 0) {
            return Ok(Found::Nothing);
        }
        let Ok(head) = FrameHead::parse(&clear, self.alignment) else {
            return Ok(Found::Torn(0));
        };
        let end = place.offset.saturating_add(u64::from(head.frame_len));
        // The length is bounded; but before it is allocated, the store must hold so much.
        if got < clear.len() || end > SEGMENT_LEN_MAX || self.store.len(name)? < end {
            return Ok(Found::Torn(0));
        }
        let mut bytes = vec![0; head.frame_len as usize];
        let got = self.store.get(name, place.offset, &mut bytes)?;
        let frame = if got < bytes.len() {
            None
        } else {
            self.open(place, head, bytes)
        };
        Ok(match frame {
            Some(frame) => Found::Frame(Box::new(frame)),
            None => Found::Torn(head.frame_len.into()),
        })
    }

    fn open(&self, place: Place, head: FrameHead, bytes: Vec<u8>) -> Option<Frame> {
        let (clear, sealed) = split(&bytes, &head)?;
        let at = (place.segment, place.offset);
        let plaintext = self.keys.open_commit(at, clear, sealed).ok()?;
        let (header, ops) = parse_commit(&plaintext).ok()?;
        Some(Frame {
            place,
            head,
            header,
            ops,
            bytes,
        })
    }

    /// Whether every inline chunk that the frame's commit names opens.
    pub(crate) fn inline_chunks_open(&self, frame: &Frame) -> bool {
        let own = frame.ops.iter().filter_map(|op| {
            if let Op::Write(written) = op {
                Some(&written.extents)
            } else {
                None
            }
        });
        let begin = frame.place.offset + frame.head.inline_begin();
        let end = begin + u64::from(frame.head.inline_len);
        let mut sealer: Option<Arc<SegmentSealer>> = None;
        own.flatten()
            .filter(|extent| (begin..end).contains(&extent.offset))
            .all(|extent| {
                let segment = frame.place.segment;
                let make = || Arc::new(self.keys.segment(SegmentKind::Log, segment));
                let sealer = sealer.get_or_insert_with(make);
                let (mut chunks, _) = extent.chunks(0, extent.live);
                chunks.all(|chunk| {
                    let from = usize::try_from(chunk.offset - frame.place.offset).ok();
                    let len = chunk.len as usize;
                    let unit = from.and_then(|from| frame.bytes.get(from..from + len + TAG_LEN));
                    let mut plaintext = vec![0; len];
                    let mut open =
                        |unit| sealer.open(chunk.offset, &extent.salt, unit, &mut plaintext);
                    unit.is_some_and(|unit: &[u8]| open(unit).is_ok())
                })
            })
    }
}

impl Frame {
    /// Whether this commit continues the chain at `position` in a segment of epoch `log_epoch`.
    pub(crate) fn continues(&self, position: &Position, log_epoch: u64) -> bool {
        self.place == position.next
            && Some(self.header.seq) == position.seq.checked_add(1)
            && self.header.log_epoch == log_epoch
            && self.header.prev_head == position.head.0
            && self.header.durable_seq < self.header.seq
    }

    /// Where the chain stands after this commit, which continues it at `position`.
    pub(crate) fn advance(&self, position: &Position) -> Position {
        let sealed = split(&self.bytes, &self.head).map_or(&[][..], |(_, sealed)| sealed);
        let link = Link {
            seq: self.header.seq,
            log_epoch: self.header.log_epoch,
            uid: self.place.segment.uid,
            offset: self.place.offset,
            sealed,
        };
        let offset = self.place.offset + u64::from(self.head.frame_len);
        Position {
            seq: self.header.seq,
            head: next_head(&position.head, &link),
            next: Place {
                offset,
                ..self.place
            },
        }
    }
}

fn split<'a>(bytes: &'a [u8], head: &FrameHead) -> Option<(&'a [u8], &'a [u8])> {
    let (clear, rest) = bytes.split_at_checked(FRAME_HEAD_LEN)?;
    Some((clear, rest.get(..head.sealed_len as usize)?))
}
