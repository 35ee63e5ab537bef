//! Core: moving what lives in sparse segments, so that these can be deleted.
//!
//! What lives is read, sealed anew at other addresses and flushed; then an operation lets the map
//! point there, where it still points to the old place. Readers that look at the old place find it
//! there until two checkpoints have passed. Pieces of a file that lie one behind the other become
//! one record, so a file that was written in small pieces comes together.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Journal;
use crate::error::FsError;
use crate::format::{Extent, Ino, Mapped, Op, RECORD_LEN_MAX, SegmentId, SegmentKind};
use crate::segment::{CLEANER_LANE, Record};
use crate::store::{ObjectName, StoreError};
use crate::tables::{SegmentEntry, Tables};

#[cfg(test)]
mod tests;

/// Bytes of garbage that are always tolerated.
const SLACK: u64 = if cfg!(test) { 1 << 20 } else { 96 << 20 };
/// They are at most this part of the store.
const SLACK_PART: u64 = 16;
/// Segments with a larger share of live bytes than this many hundredths are not worth a copy.
const FULL_PERCENT: u64 = 90;
/// What the store may hold beyond the live bytes and half as much again before everything is done
/// to make it less: a log that is made ahead takes most of it.
const OVERHEAD_MAX: u64 = if cfg!(test) { 4 << 20 } else { 160 << 20 };
/// Bytes of garbage that are tolerated however much else there is.
const SLACK_MIN: u64 = if cfg!(test) { 256 << 10 } else { 16 << 20 };
/// A segment that is being written is ended early for no less garbage than this.
const ENDED_MIN: u64 = if cfg!(test) { 64 << 10 } else { 4 << 20 };
/// Maps of one segment that are looked at in one go.
const MAPS_MAX: usize = 256;
/// Bytes that are moved with one flush, and extents that one change moves.
const BATCH_LEN: u64 = if cfg!(test) { 256 << 10 } else { 8 << 20 };
const BATCH_OPS: usize = if cfg!(test) { 64 } else { 4096 };
/// An extent of fewer bytes joins its neighbours when one of them is moved.
const FRAGMENT_LEN: u32 = 64 << 10;

/// What was done, and what there is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cleaned {
    /// Bytes of files that were copied.
    pub(crate) copied: u64,
    /// Bytes of segments that wait for checkpoints to be deleted.
    pub(crate) dead: u64,
    /// Bytes that the store holds more than it should.
    pub(crate) excess: u64,
    /// Bytes in segments whose keys come from a master key that is being replaced.
    pub(crate) stale: u64,
}

/// What is known of segments between two rounds.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    /// Bytes of segments that nobody writes any more.
    lens: BTreeMap<SegmentId, u64>,
    /// Segments with bytes that cannot be read.
    damaged: BTreeMap<SegmentId, u64>,
}

/// A segment with more garbage than it should have.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: SegmentId,
    live: u64,
    len: u64,
    is_stale: bool,
}

/// Extents of a map that lie one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    map: Ino,
    start: u64,
    extents: Vec<Extent>,
    len: u64,
}

/// What is sealed anew and not yet moved.
#[derive(Debug, Default)]
struct Batch {
    ops: Vec<Op>,
    /// They keep the segment that they are in until the map points there.
    records: Vec<Arc<Record>>,
    len: u64,
}

/// How the bytes of a volume are spread.
#[derive(Debug, Default)]
struct Spread {
    /// Bytes of segments that may be cleaned, and of those without anything alive.
    closed: u64,
    dead: u64,
    /// Bytes of all other segments that are not alive.
    overhead: u64,
    /// Bytes that are alive in files, and in nodes.
    live: u64,
    nodes: u64,
    /// Bytes of garbage that do not matter.
    slack: u64,
}

impl Spread {
    /// Garbage that can be had by copying.
    fn garbage(&self, live_elsewhere: u64) -> u64 {
        let live = self.live.saturating_sub(live_elsewhere);
        self.closed.saturating_sub(self.dead).saturating_sub(live)
    }

    /// How much of it may stay: less when the rest of the store is large.
    fn tolerated(&self) -> u64 {
        let usual = (self.live / 4).saturating_add(self.slack);
        let left = self.goal().saturating_sub(self.overhead);
        usual.min(left.max(SLACK_MIN.min(self.slack)))
    }

    /// Bytes that the store should hold at most beyond those that are alive.
    fn goal(&self) -> u64 {
        (self.live.saturating_add(self.nodes) / 2).saturating_add(OVERHEAD_MAX)
    }
}

impl Journal {
    /// Moves about `budget` bytes out of the segments with the least in them, if the volume has
    /// more garbage than it should.
    pub(crate) fn clean(&self, budget: u64) -> Result<Cleaned, FsError> {
        let mut cleaner = self.cleaner.lock();
        let mut cleaned = Cleaned::default();
        let candidates = {
            let _kept = self.keep();
            self.candidates(&mut cleaner, &self.tables(), &mut cleaned)?
        };
        for candidate in candidates {
            if cleaned.copied >= budget || self.has_failed() {
                break;
            }
            let left = budget.saturating_sub(cleaned.copied);
            cleaned.copied += self.evacuate(&mut cleaner, candidate, left)?;
        }
        Ok(cleaned)
    }

    /// The segments to clean, the emptiest first.
    fn candidates(
        &self,
        cleaner: &mut Cleaner,
        tables: &Tables,
        cleaned: &mut Cleaned,
    ) -> Result<Vec<Candidate>, FsError> {
        let mut segments = BTreeMap::new();
        tables.segments(|id, entry| {
            segments.insert(id, entry);
        })?;
        let current: BTreeMap<SegmentId, u64> = self.data.current().into_iter().collect();
        let newest = self.keys.vmk_epoch();
        let log = self.log_segments();
        let mut spread = Spread {
            live: tables.counters().live,
            ..Spread::default()
        };
        let (mut candidates, mut live_elsewhere) = (Vec::new(), 0);
        for (id, entry) in &segments {
            let is_open = entry.kind == SegmentKind::Node
                || self.data.is_current(*id)
                || self.data.is_pinned(*id)
                || log.contains(&entry.segment);
            if is_open {
                let used = current.get(id).copied();
                let len = used.map_or_else(|| self.stored_len(entry), Ok)?;
                spread.overhead += len.saturating_sub(entry.live);
                live_elsewhere += entry.live;
                continue;
            }
            let len = self.len_of(cleaner, *id, entry)?;
            spread.closed += len;
            let is_stale = entry.segment.vmk_epoch != newest;
            if entry.live == 0 {
                spread.dead += len;
            } else if cleaner.damaged.get(id) != Some(&entry.live) {
                cleaned.stale += if is_stale { entry.live } else { 0 };
                candidates.push(Candidate {
                    id: *id,
                    live: entry.live,
                    len,
                    is_stale,
                });
            }
        }
        spread.slack = self.reserve.at_most(SLACK, SLACK_PART);
        spread.nodes = self.reserve.tree();
        spread.overhead = spread.overhead.saturating_sub(spread.nodes);
        cleaner.lens.retain(|id, _| segments.contains_key(id));
        cleaner.damaged.retain(|id, _| segments.contains_key(id));

        let (garbage, tolerated) = (spread.garbage(live_elsewhere), spread.tolerated());
        cleaned.dead = spread.dead;
        let beyond_live = garbage + spread.overhead + spread.dead;
        cleaned.excess = beyond_live.saturating_sub(spread.goal());
        if cleaned.excess > 0 {
            self.end_sparse(&segments, &current);
        }
        Ok(choose(candidates, garbage, tolerated))
    }

    /// Ends segments that are being written and hold much garbage already, so that they can be
    /// cleaned like others.
    fn end_sparse(
        &self,
        segments: &BTreeMap<SegmentId, SegmentEntry>,
        current: &BTreeMap<SegmentId, u64>,
    ) {
        self.data.end(|id| {
            // What is written and not yet named is no garbage.
            let live = segments.get(&id).map_or(u64::MAX, |entry| entry.live);
            let used = current.get(&id).copied().unwrap_or(0);
            let garbage = used.saturating_sub(live);
            !self.data.is_pinned(id) && garbage >= ENDED_MIN && garbage > used / 4
        });
    }

    fn len_of(
        &self,
        cleaner: &mut Cleaner,
        id: SegmentId,
        entry: &SegmentEntry,
    ) -> Result<u64, FsError> {
        if let Some(len) = cleaner.lens.get(&id) {
            return Ok(*len);
        }
        let len = self.stored_len(entry)?;
        cleaner.lens.insert(id, len);
        Ok(len)
    }

    fn stored_len(&self, entry: &SegmentEntry) -> Result<u64, FsError> {
        let name = ObjectName::Segment(entry.kind, entry.segment.uid);
        match self.store.len(name) {
            Ok(len) => Ok(len),
            Err(StoreError::Absent) => Ok(0),
            Err(e) => Err(FsError::Store(e)),
        }
    }

    /// Moves what lives in one segment, up to about `budget` bytes, and gives how many bytes that
    /// were.
    fn evacuate(
        &self,
        cleaner: &mut Cleaner,
        candidate: Candidate,
        budget: u64,
    ) -> Result<u64, FsError> {
        let (mut moved, mut from, mut is_damaged) = (0, Some(Ino(0)), false);
        while let Some(first) = from.filter(|_| moved < budget) {
            let _kept = self.keep();
            let tables = self.tables();
            let mut maps = Vec::new();
            tables.segrefs(candidate.id, first, |map, _| {
                maps.push(map);
                if maps.len() < MAPS_MAX {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
            let mut batch = Batch::default();
            from = maps.last().and_then(|map| map.0.checked_add(1)).map(Ino);
            for map in maps {
                for run in runs(&tables, map, candidate.id)? {
                    is_damaged |= !self.reseal(&tables, candidate.id, &run, &mut batch)?;
                    if batch.is_full() || moved + batch.len >= budget {
                        moved += self.land(std::mem::take(&mut batch))?;
                    }
                    if moved >= budget {
                        return Ok(moved);
                    }
                }
            }
            moved += self.land(batch)?;
        }
        if is_damaged && from.is_none() {
            let left = self.tables().segment(candidate.id)?;
            let live = left.map_or(0, |entry| entry.live);
            cleaner.damaged.insert(candidate.id, live);
            tracing::error!(
                segment = candidate.id.0,
                error_code = "fs.tampered",
                "a segment has bytes that are not what was written; they stay where they are"
            );
        }
        Ok(moved)
    }

    /// Seals the bytes of a run anew. When some of them cannot be read, the others of `segment`
    /// are sealed without them, and false is given.
    fn reseal(
        &self,
        tables: &Tables,
        segment: SegmentId,
        run: &Run,
        batch: &mut Batch,
    ) -> Result<bool, FsError> {
        match self.reseal_whole(tables, run, batch) {
            Err(FsError::Tampered) => {}
            done => return done.map(|()| true),
        }
        let mut is_whole = true;
        for alone in run.apart().filter(|alone| alone.is_in(segment)) {
            match self.reseal_whole(tables, &alone, batch) {
                Ok(()) => {}
                Err(FsError::Tampered) => is_whole = false,
                Err(e) => return Err(e),
            }
        }
        Ok(is_whole)
    }

    fn reseal_whole(&self, tables: &Tables, run: &Run, batch: &mut Batch) -> Result<(), FsError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(run.len).unwrap_or(0)));
        let mut scratch = Vec::new();
        for extent in &run.extents {
            let entry = tables.segment(extent.segment)?.ok_or(FsError::Tampered)?;
            let segment = self.segment(extent.segment, entry);
            let begin = bytes.len();
            bytes.resize(begin + extent.live as usize, 0);
            let out = bytes.get_mut(begin..).unwrap_or_default();
            self.read_extent(&segment, extent, 0, out, &mut scratch)?;
        }
        let (whole, record) = self.write_record_in(CLEANER_LANE, &bytes)?;
        let (mut start, mut rest) = (run.start, Some(whole));
        for from in &run.extents {
            let to = rest.and_then(|rest| rest.keep(from.live));
            batch.ops.push(Op::Move {
                map: run.map,
                start,
                from: *from,
                to: to.ok_or(FsError::Failed("a move does not add up"))?,
            });
            rest = rest.and_then(|rest| rest.skip(from.live));
            start += u64::from(from.live);
        }
        batch.records.push(record);
        batch.len += run.len;
        Ok(())
    }

    /// Makes a batch durable and lets the map point to it; gives its bytes.
    fn land(&self, batch: Batch) -> Result<u64, FsError> {
        for record in &batch.records {
            // One flush is that of all which lie beside it.
            self.flush_record(record).map_err(FsError::Store)?;
        }
        if !batch.ops.is_empty() {
            self.change(|_| Ok(batch.ops), |_| Ok(()))?;
        }
        Ok(batch.len)
    }
}

#[cfg(any(test, fuzzing))]
impl Journal {
    /// Moves all that lives in any segment which nobody writes, needed or not.
    pub(crate) fn clean_all(&self) -> Result<(), FsError> {
        self.data.end(|id| !self.data.is_pinned(id));
        let mut cleaner = self.cleaner.lock();
        let (tables, log) = (self.tables(), self.log_segments());
        let mut all = Vec::new();
        tables.segments(|id, entry| {
            let is_open = entry.kind == SegmentKind::Node
                || self.data.is_current(id)
                || self.data.is_pinned(id)
                || log.contains(&entry.segment);
            if !is_open && entry.live > 0 {
                all.push((id, entry.live));
            }
        })?;
        for (id, live) in all {
            let candidate = Candidate {
                id,
                live,
                len: live,
                is_stale: true,
            };
            self.evacuate(&mut cleaner, candidate, u64::MAX)?;
        }
        Ok(())
    }
}

impl Batch {
    fn is_full(&self) -> bool {
        self.len >= BATCH_LEN || self.ops.len() >= BATCH_OPS
    }
}

impl Run {
    fn of_one(map: Ino, start: u64, extent: Extent) -> Self {
        Self {
            map,
            start,
            extents: vec![extent],
            len: u64::from(extent.live),
        }
    }

    /// Adds what begins at `start`, if that is its end and a record has room for both.
    fn take(&mut self, start: u64, extent: Extent) -> bool {
        let len = self.len + u64::from(extent.live);
        let fits = self.start + self.len == start && len <= RECORD_LEN_MAX as u64;
        if fits {
            self.extents.push(extent);
            self.len = len;
        }
        fits
    }

    fn is_in(&self, segment: SegmentId) -> bool {
        self.extents.iter().any(|extent| extent.segment == segment)
    }

    /// Each extent for itself.
    fn apart(&self) -> impl Iterator<Item = Self> {
        let mut start = self.start;
        self.extents.iter().map(move |extent| {
            let one = Self::of_one(self.map, start, *extent);
            start += one.len;
            one
        })
    }
}

/// Of the segments that could be cleaned those that should be, the emptiest first: as many as bring
/// the garbage down to what is tolerated.
fn choose(mut candidates: Vec<Candidate>, garbage: u64, tolerated: u64) -> Vec<Candidate> {
    let mut excess = garbage.saturating_sub(tolerated);
    candidates.sort_by_key(|c| (c.live.saturating_mul(1000) / c.len.max(1), c.id));
    candidates.retain(|c| {
        let is_sparse = c.live.saturating_mul(100) < c.len.saturating_mul(FULL_PERCENT);
        let is_wanted = c.is_stale || (excess > 0 && is_sparse);
        if is_wanted {
            excess = excess.saturating_sub(c.len.saturating_sub(c.live));
        }
        is_wanted
    });
    candidates
}

/// What a map has in a segment, in runs that fit a record. Small pieces of other segments that lie
/// between or beside come along: so a file that was written in small pieces comes together.
fn runs(tables: &Tables, map: Ino, segment: SegmentId) -> Result<Vec<Run>, FsError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open: Option<Run> = None;
    tables.mapped(map, &(0..u64::MAX), |start, mapped| {
        let Mapped::Data(extent) = mapped else {
            return ControlFlow::Continue(());
        };
        let belongs = extent.segment == segment || extent.live < FRAGMENT_LEN;
        let taken = belongs && open.as_mut().is_some_and(|run| run.take(start, extent));
        if !taken {
            let next = belongs.then(|| Run::of_one(map, start, extent));
            let ended = std::mem::replace(&mut open, next);
            runs.extend(ended.filter(|run| run.is_in(segment)));
        }
        ControlFlow::Continue(())
    })?;
    runs.extend(open.filter(|run| run.is_in(segment)));
    Ok(runs)
}
