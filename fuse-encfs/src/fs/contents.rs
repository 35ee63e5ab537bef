//! Core: holes, promises of space, and what ranges of files share.

use std::ops::{ControlFlow, Range};

use super::file::There;
use super::inode::FILE_LEN_MAX;
use super::{Fs, WriteMode, regular};
use crate::error::FsError;
use crate::format::{Ino, Mapped, Op, Shared, Timestamp};
use crate::journal::Change;
use crate::space::Need;
use crate::tables::Tables;

/// Extents that one operation shares.
const SHARE_SLICE: usize = 4096;
/// Bytes that are copied at once where nothing can be shared.
const COPY_LEN: usize = 1 << 20;

/// Bytes of a block: space is promised in them.
const BLOCK: u64 = 4096;

/// What is looked for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    Data,
    Hole,
}

impl Fs {
    /// Makes a range of a file a hole; with `grow` the file reaches to its end at least.
    pub(crate) fn punch(&self, ino: Ino, range: Range<u64>, grow: bool) -> Result<(), FsError> {
        self.reshape(ino, &range, grow, true, |time| {
            vec![Op::Punch {
                ino,
                start: range.start,
                end: range.end,
                time,
            }]
        })
    }

    /// Lets a range of a file read as zeros and have space promised.
    pub(crate) fn zero(&self, ino: Ino, range: Range<u64>, grow: bool) -> Result<(), FsError> {
        let (len, there) = self.blocks(ino, &range)?;
        self.admit(Need::of_contents(
            len.saturating_sub(there.promised),
            len.saturating_sub(there.all),
        ))?;
        self.reshape(ino, &range, grow, true, |time| {
            let punch = Op::Punch {
                ino,
                start: range.start,
                end: range.end,
                time,
            };
            vec![punch, allocate(ino, &range)]
        })
    }

    /// Promises space for the holes of a range.
    pub(crate) fn allocate(&self, ino: Ino, range: Range<u64>, grow: bool) -> Result<(), FsError> {
        let (len, there) = self.blocks(ino, &range)?;
        let more = len.saturating_sub(there.all);
        self.admit(Need::of_contents(more, more))?;
        // What is small lives in its record, and a promise ends that.
        self.drain(ino)?;
        self.reshape(ino, &range, grow, false, |_| vec![allocate(ino, &range)])
    }

    /// Where from `offset` on there is data, or a hole; the end of the file is one.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, FsError> {
        let vnode = self.vnodes.get(ino);
        let state = vnode.as_ref().map(|vnode| vnode.state.read());
        let tables = self.journal.tables();
        let record = regular(&tables, ino)?;
        let overlay = state.as_ref().map(|state| &state.overlay);
        let size = record.size.max(overlay.map_or(0, |overlay| overlay.size()));
        if offset >= size {
            return Err(FsError::NoData);
        }
        let mut data: Vec<Range<u64>> = Vec::new();
        data.push(0..record.inline.len() as u64);
        let wanted = offset..size;
        for (start, piece) in overlay.into_iter().flat_map(|o| o.overlapping(&wanted)) {
            data.push(start..start.saturating_add(piece.len()));
        }
        // Ascending, so that the first that does not follow ends the search.
        data.sort_unstable_by_key(|range| range.start);
        let mut at = offset;
        let mut ahead = data
            .into_iter()
            .filter(|range| range.end > offset)
            .peekable();
        let mut found = None;
        let mut meet = |range: Range<u64>| {
            match what {
                Seek::Data => found = found.or_else(|| Some(range.start.max(offset))),
                Seek::Hole if range.start > at => found = found.or(Some(at)),
                Seek::Hole => at = at.max(range.end),
            }
            found.is_some()
        };
        tables.mapped(ino, &(offset..size), |start, mapped| {
            let Mapped::Data(_) = mapped else {
                return ControlFlow::Continue(());
            };
            while let Some(range) = ahead.next_if(|range| range.start <= start) {
                if meet(range) {
                    return ControlFlow::Break(());
                }
            }
            if meet(start..start.saturating_add(mapped.live())) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        for range in ahead {
            if meet(range) {
                break;
            }
        }
        match (found, what) {
            (Some(found), _) if found < size => Ok(found),
            (_, Seek::Data) => Err(FsError::NoData),
            (_, Seek::Hole) => Ok(at.min(size)),
        }
    }

    /// Lets a range of a file hold what a range of a file holds, and gives of how many bytes: at
    /// least one, when the source has any there. What can be is shared, not copied.
    pub(crate) fn copy_range(
        &self,
        from: (Ino, u64),
        to: (Ino, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        if to.1.checked_add(len).is_none_or(|end| end > FILE_LEN_MAX) {
            return Err(FsError::TooLarge);
        }
        self.drain(from.0)?;
        self.drain(to.0)?;
        let tables = self.journal.tables();
        let (source, target) = (regular(&tables, from.0)?, regular(&tables, to.0)?);
        let len = len.min(source.size.saturating_sub(from.1));
        if len == 0 {
            return Ok(0);
        }
        let end = from.1.saturating_add(len);
        if from.0 == to.0 && from.1 < to.1.saturating_add(len) && to.1 < end {
            return Err(FsError::Invalid);
        }
        let is_small = !source.inline.is_empty() || !target.inline.is_empty();
        if is_small || self.is_pending(from.0) {
            return self.copy_bytes(from, to, len);
        }
        let len = shareable(&tables, from.0, from.1..end)?;
        self.admit(Need::CHANGE)?;
        let shared = Shared {
            from: from.0,
            from_start: from.1,
            to: to.0,
            to_start: to.1,
            len,
            // As the kernel stamps it: what it has in its cache stays true.
            time: Timestamp::of_tick(),
        };
        let vnode = self.vnodes.get_or_make(to.0);
        let mut state = vnode.state.write();
        let build = |tables: &Tables| {
            // It may have become small meanwhile.
            if regular(tables, to.0)?.inline.is_empty()
                && regular(tables, from.0)?.inline.is_empty()
            {
                Ok(Change {
                    ops: vec![Op::Share(shared)],
                    owes: Some(to.0),
                })
            } else {
                Err(FsError::Failed("a file changes while it is copied"))
            }
        };
        self.journal.change(build, |_| Ok(()))?;
        state.overlay.cut(&(to.1..to.1.saturating_add(len)));
        Ok(len)
    }

    fn copy_bytes(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64, FsError> {
        let len = usize::try_from(len).unwrap_or(COPY_LEN).min(COPY_LEN);
        let mut bytes = vec![0; len];
        let got = self.read(from.0, from.1, &mut bytes)?;
        self.write(
            to.0,
            to.1,
            bytes.get(..got).unwrap_or_default(),
            WriteMode::default(),
        )?;
        Ok(got as u64)
    }

    /// Changes what a range of a file holds, in the overlay and in the map.
    fn reshape(
        &self,
        ino: Ino,
        range: &Range<u64>,
        grow: bool,
        cuts: bool,
        ops: impl FnOnce(Timestamp) -> Vec<Op>,
    ) -> Result<(), FsError> {
        if range.end > FILE_LEN_MAX {
            return Err(FsError::TooLarge);
        }
        let time = Timestamp::of_tick();
        let vnode = self.vnodes.get_or_make(ino);
        let mut state = vnode.state.write();
        let pending = state.overlay.size();
        let build = |tables: &Tables| {
            let size = regular(tables, ino)?.size;
            let grows = grow && range.end > size.max(pending);
            // First: it would cut off what is promised of the last block.
            let grown = grows.then_some(Op::Truncate {
                ino,
                size: range.end,
                time: Some(time),
            });
            Ok(Change {
                ops: grown.into_iter().chain(ops(time)).collect(),
                owes: Some(ino),
            })
        };
        let changed = self.journal.change(build, |_| Ok(()));
        if changed.is_ok() && cuts {
            state.overlay.cut(range);
        }
        drop(state);
        drop(vnode);
        self.vnodes.release(ino);
        changed
    }

    /// How long a range is in whole blocks, and what of it is there.
    fn blocks(&self, ino: Ino, range: &Range<u64>) -> Result<(u64, There), FsError> {
        regular(&self.journal.tables(), ino)?;
        if range.end > FILE_LEN_MAX {
            return Err(FsError::TooLarge);
        }
        let range = whole_blocks(range);
        let len = range.end.saturating_sub(range.start);
        Ok((len, self.there(ino, &range)?))
    }
}

fn allocate(ino: Ino, range: &Range<u64>) -> Op {
    let Range { start, end } = whole_blocks(range);
    Op::Allocate { ino, start, end }
}

/// The blocks that a range lies in: the kernel writes pages, so a promise is for whole ones.
fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    range.start - range.start % BLOCK..range.end.next_multiple_of(BLOCK)
}

/// How much of a range one operation can share.
fn shareable(tables: &Tables, map: Ino, range: Range<u64>) -> Result<u64, FsError> {
    let (mut count, mut end) = (0, range.end);
    tables.mapped(map, &range, |start, mapped| {
        count += 1;
        if count < SHARE_SLICE {
            return ControlFlow::Continue(());
        }
        end = end.min(start.saturating_add(mapped.live()));
        ControlFlow::Break(())
    })?;
    Ok(end.saturating_sub(range.start))
}
