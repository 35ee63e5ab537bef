//! Core: what a file has that the map does not know of yet.
//!
//! **Invariants.** A piece of the overlay is newer than whatever the map has for its range. Pieces
//! do not overlap. They leave the overlay under the same lock under which the map learns of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::format::{Extent, RECORD_LEN_MAX, Timestamp};
use crate::segment::Record;

/// Bytes that were written and are not in the map.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pieces: BTreeMap<u64, Piece>,
    /// Bytes in buffers, and of all pieces.
    buffered: usize,
    bytes: u64,
    /// Bytes that the file has at least.
    size: u64,
    /// When it was written to last, unless the kernel keeps that.
    time: Option<Timestamp>,
    /// How often new bytes took the place of sealed ones.
    displaced: u64,
}

/// A run of bytes.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// In memory alone.
    Buffered(Vec<u8>),
    /// In a record that may not be durable yet.
    Sealed(Extent, Arc<Record>),
}

impl Piece {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Buffered(bytes) => bytes.len() as u64,
            Self::Sealed(extent, _) => u64::from(extent.live),
        }
    }

    fn keep(&mut self, n: u64) -> Option<()> {
        match self {
            Self::Buffered(bytes) => bytes.truncate(usize::try_from(n).ok()?),
            Self::Sealed(extent, _) => *extent = extent.keep(u32::try_from(n).ok()?)?,
        }
        (n > 0).then_some(())
    }

    fn skip(self, n: u64) -> Option<Self> {
        match self {
            Self::Buffered(mut bytes) => {
                let rest = bytes.split_off(usize::try_from(n).ok()?);
                (!rest.is_empty()).then_some(Self::Buffered(rest))
            }
            Self::Sealed(extent, record) => {
                let extent = extent.skip(u32::try_from(n).ok()?)?;
                Some(Self::Sealed(extent, record))
            }
        }
    }
}

impl Overlay {
    /// Whether the map knows all there is.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.size == 0 && self.time.is_none()
    }

    /// Bytes in buffers.
    pub(super) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many pieces there are.
    pub(super) fn count_pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes that the file has at least.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// When it was written to last.
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.time
    }

    /// How often new bytes took the place of sealed ones: whoever made those durable has then not
    /// made durable what the file held.
    pub(super) fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Notes a write that reaches to `end`.
    pub(super) fn note(&mut self, end: u64, time: Option<Timestamp>) {
        self.size = self.size.max(end);
        self.time = time.or(self.time);
    }

    /// The file's times are set otherwise.
    pub(super) fn forget_time(&mut self) {
        self.time = None;
    }

    /// Cuts the file to `size`.
    pub(super) fn truncate(&mut self, size: u64) {
        self.cut(&(size..u64::MAX));
        self.size = self.size.min(size);
    }

    /// Forgets what it has for a range.
    pub(super) fn cut(&mut self, range: &Range<u64>) {
        for start in self.starts(range) {
            let Some(mut piece) = self.pieces.remove(&start) else {
                continue;
            };
            self.count(&piece, -1);
            let end = start.saturating_add(piece.len());
            let rest = end
                .checked_sub(range.end)
                .filter(|rest| *rest > 0)
                .and_then(|_| piece.clone().skip(range.end - start));
            if start < range.start && piece.keep(range.start - start).is_some() {
                self.insert(start, piece);
            }
            if let Some(rest) = rest {
                self.insert(range.end, rest);
            }
        }
    }

    /// Copies `data` into buffers at `start`.
    pub(super) fn buffer(&mut self, start: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = start + data.len() as u64;
        let before = self.pieces.range_mut(..=start).next_back();
        if let Some((at, Piece::Buffered(bytes))) = before {
            let skipped = usize::try_from(start - at).unwrap_or(usize::MAX);
            // Over what is buffered already, or right behind it.
            if let Some(to) = skipped
                .checked_add(data.len())
                .and_then(|end| bytes.get_mut(skipped..end))
            {
                to.copy_from_slice(data);
                return;
            }
            if skipped == bytes.len() && bytes.len() + data.len() <= RECORD_LEN_MAX {
                let at = *at;
                self.displace(&(start..end));
                if let Some(Piece::Buffered(bytes)) = self.pieces.get_mut(&at) {
                    bytes.extend_from_slice(data);
                    self.buffered += data.len();
                    self.bytes += data.len() as u64;
                }
                return;
            }
        }
        self.place(start, Piece::Buffered(data.to_vec()));
    }

    /// Puts a piece in the place of whatever was there.
    pub(super) fn place(&mut self, start: u64, piece: Piece) {
        self.displace(&(start..start.saturating_add(piece.len())));
        self.insert(start, piece);
    }

    fn displace(&mut self, range: &Range<u64>) {
        let is_sealed = |(_, piece): (u64, &Piece)| matches!(piece, Piece::Sealed(..));
        if self.overlapping(range).any(is_sealed) {
            self.displaced += 1;
        }
        self.cut(range);
    }

    /// The pieces that overlap a range, in ascending order.
    pub(super) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.first(range);
        self.pieces
            .range(first..range.end.max(first))
            .map(|(start, piece)| (*start, piece))
    }

    /// All pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, &Piece)> {
        self.pieces.iter().map(|(start, piece)| (*start, piece))
    }

    /// Forgets a piece, and gives it.
    pub(super) fn take(&mut self, start: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&start)?;
        self.count(&piece, -1);
        Some(piece)
    }

    /// The map knows all there is.
    pub(super) fn clear(&mut self) {
        *self = Self {
            displaced: self.displaced,
            ..Self::default()
        };
    }

    /// The map knows the file's size and times now.
    pub(super) fn forget_attributes(&mut self) {
        self.size = 0;
        self.time = None;
    }

    fn insert(&mut self, start: u64, piece: Piece) {
        self.count(&piece, 1);
        self.pieces.insert(start, piece);
    }

    fn count(&mut self, piece: &Piece, sign: isize) {
        self.bytes = if sign > 0 {
            self.bytes.saturating_add(piece.len())
        } else {
            self.bytes.saturating_sub(piece.len())
        };
        if let Piece::Buffered(bytes) = piece {
            let len = bytes.len();
            self.buffered = if sign > 0 {
                self.buffered + len
            } else {
                self.buffered.saturating_sub(len)
            };
        }
    }

    /// Where the first piece begins that reaches into a range.
    fn first(&self, range: &Range<u64>) -> u64 {
        let before = self.pieces.range(..range.start).next_back();
        match before {
            Some((start, piece)) if start.saturating_add(piece.len()) > range.start => *start,
            _ => range.start,
        }
    }

    fn starts(&self, range: &Range<u64>) -> Vec<u64> {
        if self.pieces.is_empty() {
            return Vec::new();
        }
        self.overlapping(range).map(|(start, _)| start).collect()
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "offsets of a small model")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Buffers and cuts have the effect that they have on bytes.
        #[test]
        fn behaves_like_bytes(steps in prop::collection::vec(
            (0..300_u64, 0..120_usize, any::<Option<u8>>()), 1..40)
        ) {
            let mut overlay = Overlay::default();
            let mut model = vec![None; 600];
            for (start, len, byte) in steps {
                let range = start..start + len as u64;
                match byte {
                    Some(byte) => overlay.buffer(start, &vec![byte; len]),
                    None => overlay.cut(&range),
                }
                model[start as usize..range.end as usize].fill(byte);
                let mut seen = vec![None; 600];
                for (start, piece) in overlay.pieces() {
                    let Piece::Buffered(bytes) = piece else { unreachable!() };
                    for (i, byte) in bytes.iter().enumerate() {
                        let at = start as usize + i;
                        prop_assert!(seen[at].is_none(), "pieces overlap");
                        seen[at] = Some(*byte);
                    }
                }
                prop_assert_eq!(&seen, &model);
                let count = model.iter().flatten().count();
                prop_assert_eq!(overlay.buffered(), count);
                prop_assert_eq!(overlay.bytes(), count as u64);
            }
        }
    }
}
