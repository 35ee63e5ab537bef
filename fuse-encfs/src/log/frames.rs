//! Core: reading the frames of log segments, hostile bytes until they open.

use zeroize::Zeroizing;

use super::{Position, log_name};
use crate::crypto::{Link, SegmentSealer, VolumeKeys, next_head};
use crate::format::{
    CommitHeader, Extent, FRAME_HEAD_LEN, FrameHead, Op, Place, SEGMENT_LEN_MAX, SegmentId,
    SegmentKind, TAG_LEN, extents_mut, parse_commit,
};
use crate::store::{Store, StoreError};

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
        let name = log_name(place.segment);
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
            Frame::open(self.keys, place, head, bytes)
        };
        Ok(match frame {
            Some(frame) => Found::Frame(Box::new(frame)),
            None => Found::Torn(head.frame_len.into()),
        })
    }

    /// Whether every inline chunk that the frame's commit names opens; `id` is the short name of
    /// its segment.
    pub(crate) fn inline_chunks_open(&self, frame: &mut Frame, id: SegmentId) -> bool {
        if frame.head.inline_len == 0 {
            return true;
        }
        let begin = frame.place.offset + frame.head.inline_begin();
        let end = begin + u64::from(frame.head.inline_len);
        let named: Vec<Extent> = frame
            .ops
            .iter_mut()
            .flat_map(extents_mut)
            .map(|extent| *extent)
            .collect();
        let mut own = named
            .iter()
            .filter(|extent| extent.segment == id && (begin..end).contains(&extent.offset));
        let sealer = self.keys.segment(SegmentKind::Log, frame.place.segment);
        own.all(|extent| frame.inline_record(&sealer, extent).is_some())
    }
}

impl Frame {
    /// Opens a frame that was read at `place`.
    pub(crate) fn open(
        keys: &VolumeKeys,
        place: Place,
        head: FrameHead,
        bytes: Vec<u8>,
    ) -> Option<Self> {
        let (clear, sealed) = split(&bytes, &head)?;
        let at = (place.segment, place.offset);
        let plaintext = Zeroizing::new(keys.open_commit(at, clear, sealed).ok()?);
        let (header, ops) = parse_commit(&plaintext).ok()?;
        Some(Self {
            place,
            head,
            header,
            ops,
            bytes,
        })
    }

    /// What the chunks of the frame hold that `extent` names; `None` when they do not open.
    pub(crate) fn inline_record(
        &self,
        sealer: &SegmentSealer,
        extent: &Extent,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let (chunks, skip) = extent.chunks(0, extent.live);
        let mut contents = Zeroizing::new(Vec::with_capacity(extent.sealed as usize));
        for chunk in chunks {
            let from = usize::try_from(chunk.offset.checked_sub(self.place.offset)?).ok()?;
            let len = chunk.len as usize;
            let unit = self.bytes.get(from..from.checked_add(len + TAG_LEN)?)?;
            let begin = contents.len();
            contents.resize(begin + len, 0);
            let out = contents.get_mut(begin..)?;
            sealer.open(chunk.offset, &extent.salt, unit, out).ok()?;
        }
        let begin = skip as usize;
        let wanted = contents.get(begin..begin.checked_add(extent.live as usize)?)?;
        Some(Zeroizing::new(wanted.to_vec()))
    }

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
