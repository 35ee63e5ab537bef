//! Core: cutting and placing the extents of one file, with the count of live bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Content, Inconsistent, Inode};
use crate::format::{Extent, Ino, SegmentId};

type SegRefs = BTreeMap<(SegmentId, Ino), u64>;

/// The extents of one file while an operation changes them.
pub(super) struct FileMap<'a> {
    ino: Ino,
    extents: &'a mut BTreeMap<u64, Extent>,
    live: &'a mut u64,
    segrefs: &'a mut SegRefs,
}

impl<'a> FileMap<'a> {
    pub(super) fn new(
        ino: Ino,
        inode: &'a mut Inode,
        segrefs: &'a mut SegRefs,
    ) -> Result<Self, Inconsistent> {
        match &mut inode.content {
            Content::Regular(extents) => Ok(Self {
                ino,
                extents,
                live: &mut inode.live,
                segrefs,
            }),
            Content::Directory(_) | Content::Nothing => Err(Inconsistent("extents of no file")),
        }
    }

    /// Makes a range a hole.
    pub(super) fn punch(&mut self, range: Range<u64>) -> Result<(), Inconsistent> {
        for (start, extent) in self.overlapping(&range) {
            self.take(start)?;
            let end = start.saturating_add(u64::from(extent.live));
            if start < range.start {
                let kept = short(range.start - start)?;
                self.put(start, extent.keep(kept))?;
            }
            if range.end < end {
                let skipped = short(range.end - start)?;
                self.put(range.end, extent.skip(skipped))?;
            }
        }
        Ok(())
    }

    /// Puts an extent at `start` in place of all that was there.
    pub(super) fn place(&mut self, start: u64, extent: Extent) -> Result<u64, Inconsistent> {
        let end = start
            .checked_add(u64::from(extent.live))
            .ok_or(Inconsistent("offset"))?;
        self.punch(start..end)?;
        self.put(start, Some(extent))?;
        Ok(end)
    }

    /// Where the map still points to `from`, which began at `start`, lets it point to `to`.
    pub(super) fn relocate(
        &mut self,
        start: u64,
        from: Extent,
        to: Extent,
    ) -> Result<(), Inconsistent> {
        if from.live != to.live {
            return Err(Inconsistent("a move changes a length"));
        }
        let range = start..start.saturating_add(u64::from(from.live));
        for (at, piece) in self.overlapping(&range) {
            let Some(skipped) = at.checked_sub(start) else {
                continue;
            };
            let cut = |whole: Extent| whole.skip(short(skipped).ok()?)?.keep(piece.live);
            let moved = if skipped == 0 {
                to.keep(piece.live)
            } else {
                cut(to)
            };
            let same = if skipped == 0 {
                from.keep(piece.live)
            } else {
                cut(from)
            };
            if same == Some(piece) {
                self.take(at)?;
                self.put(at, moved)?;
            }
        }
        Ok(())
    }

    /// Removes at most `limit` extents that begin at `from` or later, the last ones first.
    /// Returns whether there was any.
    pub(super) fn trim(&mut self, from: u64, limit: u32) -> Result<bool, Inconsistent> {
        let last = self.extents.range(from..).rev().take(limit as usize);
        let starts: Vec<u64> = last.map(|(start, _)| *start).collect();
        for start in &starts {
            self.take(*start)?;
        }
        Ok(!starts.is_empty())
    }

    fn overlapping(&self, range: &Range<u64>) -> Vec<(u64, Extent)> {
        let before = self.extents.range(..range.start).next_back();
        let reaching = before.filter(|(start, e)| **start + u64::from(e.live) > range.start);
        let inside = self.extents.range(range.clone());
        reaching
            .into_iter()
            .chain(inside)
            .map(|(start, extent)| (*start, *extent))
            .collect()
    }

    fn take(&mut self, start: u64) -> Result<(), Inconsistent> {
        let taken = self.extents.remove(&start).ok_or(Inconsistent("extent"))?;
        let key = (taken.segment, self.ino);
        let left = self
            .segrefs
            .get(&key)
            .and_then(|live| live.checked_sub(taken.live.into()));
        match left.ok_or(Inconsistent("live bytes"))? {
            0 => self.segrefs.remove(&key),
            left => self.segrefs.insert(key, left),
        };
        *self.live = self.live.saturating_sub(u64::from(taken.live));
        Ok(())
    }

    fn put(&mut self, start: u64, extent: Option<Extent>) -> Result<(), Inconsistent> {
        let extent = extent.ok_or(Inconsistent("an extent was cut to nothing"))?;
        self.extents.insert(start, extent);
        *self.segrefs.entry((extent.segment, self.ino)).or_default() += u64::from(extent.live);
        *self.live += u64::from(extent.live);
        Ok(())
    }
}

fn short(len: u64) -> Result<u32, Inconsistent> {
    u32::try_from(len).map_err(|_| Inconsistent("an extent is too long"))
}
