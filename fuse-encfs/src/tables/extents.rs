//! Core: cutting and placing what one map has, with the count of live bytes.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use super::{ApplyError, Inconsistent, Tables};
use crate::format::{Extent, Ino, Mapped, SegmentId};
use crate::schema;

/// A map while an operation changes it. What follows for the live bytes of segments is collected
/// and applied once, by [`FileMap::finish`].
pub(super) struct FileMap<'a> {
    tables: &'a mut Tables,
    map: Ino,
    live: BTreeMap<SegmentId, i64>,
    allocated: i64,
    unwritten: i64,
}

impl<'a> FileMap<'a> {
    pub(super) fn new(tables: &'a mut Tables, map: Ino) -> Self {
        Self {
            tables,
            map,
            live: BTreeMap::new(),
            allocated: 0,
            unwritten: 0,
        }
    }

    /// Makes a range a hole.
    pub(super) fn punch(&mut self, range: &Range<u64>) -> Result<(), ApplyError> {
        for (start, mapped) in self.overlapping(range)? {
            self.take(start, &mapped)?;
            let end = start.saturating_add(mapped.live());
            if let Some(kept) = range.start.checked_sub(start).filter(|kept| *kept > 0) {
                self.put(start, mapped.keep(kept))?;
            }
            if range.end < end {
                self.put(range.end, mapped.skip(range.end.saturating_sub(start)))?;
            }
        }
        Ok(())
    }

    /// Puts something at `start` in place of all that was there, and gives where it ends.
    pub(super) fn place(&mut self, start: u64, mapped: Mapped) -> Result<u64, ApplyError> {
        let end = start
            .checked_add(mapped.live())
            .ok_or(Inconsistent("offset"))?;
        self.punch(&(start..end))?;
        self.put(start, Some(mapped))?;
        Ok(end)
    }

    /// Promises space for what is a hole in a range.
    pub(super) fn allocate(&mut self, range: &Range<u64>) -> Result<(), ApplyError> {
        let mut at = range.start;
        for (start, mapped) in self.overlapping(range)? {
            if start > at {
                self.put(at, Some(Mapped::Unwritten(start - at)))?;
            }
            at = start.saturating_add(mapped.live());
        }
        if at < range.end {
            self.put(at, Some(Mapped::Unwritten(range.end - at)))?;
        }
        Ok(())
    }

    /// Where the map still points to `from`, which began at `start`, lets it point to `to`.
    pub(super) fn relocate(
        &mut self,
        start: u64,
        from: Extent,
        to: Extent,
    ) -> Result<(), ApplyError> {
        if from.live != to.live {
            return Err(Inconsistent("a move changes a length").into());
        }
        let range = start..start.saturating_add(u64::from(from.live));
        for (at, mapped) in self.overlapping(&range)? {
            let Mapped::Data(piece) = mapped else {
                continue;
            };
            let skipped = at.checked_sub(start).and_then(|n| u32::try_from(n).ok());
            let Some(skipped) = skipped else {
                continue;
            };
            let cut = |whole: Extent| {
                let rest = if skipped == 0 {
                    Some(whole)
                } else {
                    whole.skip(skipped)
                };
                rest?.keep(piece.live)
            };
            if cut(from) == Some(piece) {
                self.take(at, &mapped)?;
                self.put(at, cut(to).map(Mapped::Data))?;
                self.join_before(at)?;
            }
        }
        Ok(())
    }

    /// Lets what begins at `start` be one with what is before it, if that was one record.
    fn join_before(&mut self, start: u64) -> Result<(), ApplyError> {
        let Some(before) = start.checked_sub(1) else {
            return Ok(());
        };
        let here = self.tables.last_mapped(self.map, start)?;
        let before = self.tables.last_mapped(self.map, before)?;
        if let (Some((at, Mapped::Data(first))), Some((_, Mapped::Data(second)))) = (before, here)
            && at + u64::from(first.live) == start
            && let Some(whole) = first.joined(&second)
        {
            self.take(start, &Mapped::Data(second))?;
            self.take(at, &Mapped::Data(first))?;
            self.put(at, Some(Mapped::Data(whole)))?;
        }
        Ok(())
    }

    /// Removes at most `limit` things that begin at `from` or later, the last ones first. Returns
    /// whether that were all.
    pub(super) fn trim(&mut self, from: u64, limit: u32) -> Result<bool, ApplyError> {
        for _ in 0..limit {
            match self.tables.last_mapped(self.map, u64::MAX)? {
                Some((start, mapped)) if start >= from => self.take(start, &mapped)?,
                _ => return Ok(true),
            }
        }
        let last = self.tables.last_mapped(self.map, u64::MAX)?;
        Ok(last.is_none_or(|(start, _)| start < from))
    }

    /// Applies what follows for the segments. Gives by how much the map's bytes changed.
    pub(super) fn finish(self) -> Result<i64, ApplyError> {
        let Self {
            tables,
            map,
            live,
            allocated,
            unwritten,
        } = self;
        for (id, change) in live {
            tables.counters.live = added(tables.counters.live, change)?;
            let mut entry = tables
                .segment(id)?
                .ok_or(Inconsistent("an extent in an unknown segment"))?;
            entry.live = added(entry.live, change)?;
            tables.put(&schema::segment_key(id), &schema::segment_value(&entry))?;
            let key = schema::segref_key(id, map);
            let before = tables.value(&key, schema::parse_number)?.unwrap_or(0);
            match added(before, change)? {
                0 => tables.remove(&key)?,
                after => tables.put(&key, &schema::number_value(after))?,
            };
        }
        tables.counters.unwritten = added(tables.counters.unwritten, unwritten)?;
        Ok(allocated)
    }

    pub(super) fn overlapping(&self, range: &Range<u64>) -> Result<Vec<(u64, Mapped)>, ApplyError> {
        let mut found = Vec::new();
        self.tables.mapped(self.map, range, |start, mapped| {
            found.push((start, mapped));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn take(&mut self, start: u64, mapped: &Mapped) -> Result<(), ApplyError> {
        if !self.tables.remove(&schema::extent_key(self.map, start))? {
            return Err(Inconsistent("extent").into());
        }
        self.count(mapped, -1)
    }

    fn put(&mut self, start: u64, mapped: Option<Mapped>) -> Result<(), ApplyError> {
        let mapped = mapped.ok_or(Inconsistent("an extent was cut to nothing"))?;
        let value = schema::mapped_value(&mapped);
        self.tables
            .put(&schema::extent_key(self.map, start), &value)?;
        self.count(&mapped, 1)
    }

    fn count(&mut self, mapped: &Mapped, sign: i64) -> Result<(), ApplyError> {
        let len = i64::try_from(mapped.live()).map_err(|_| Inconsistent("length"))? * sign;
        self.allocated += len;
        match mapped {
            Mapped::Data(extent) => *self.live.entry(extent.segment).or_default() += len,
            Mapped::Unwritten(_) => self.unwritten += len,
        }
        Ok(())
    }
}

pub(super) fn added(n: u64, change: i64) -> Result<u64, Inconsistent> {
    n.checked_add_signed(change)
        .ok_or(Inconsistent("live bytes"))
}
