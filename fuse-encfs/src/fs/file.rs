//! Core: the contents of files.

use std::cell::RefCell;
use std::ops::Range;

use super::inode::FILE_LEN_MAX;
use super::{CHANGE_COST, Counters, Fs, inode};
use crate::error::FsError;
use crate::format::{Extent, Ino, Op, RECORD_LEN_MAX, SegmentId, Timestamp, Written};
use crate::segment::ReadError;
use crate::tables::{SegmentEntry, Tables, without_privileges};

/// Looking an extent up again is worth it only if it can have moved meanwhile.
const READ_TRIES: u32 = 3;

thread_local! {
    /// Ciphertext of a read, kept from one to the next: a megabyte of fresh memory costs as much
    /// as opening it.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How a write is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WriteMode {
    /// It comes from the kernel's cache, which keeps the file's times itself.
    pub(crate) kernel_keeps_times: bool,
    /// The writer has no privilege: set-user-id and set-group-id go.
    pub(crate) kills_privileges: bool,
}

/// A part of a read: a piece of an extent, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    extent: Extent,
    entry: SegmentEntry,
    from: u32,
    out: Range<usize>,
}

impl Fs {
    /// Reads at `offset` until `out` is full or the file ends, and gives how much.
    pub(crate) fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize, FsError> {
        let (mut pieces, mut len) = self.plan(ino, offset, out.len())?;
        for _ in 0..READ_TRIES {
            let out = out.get_mut(..len).ok_or(FsError::Invalid)?;
            let failed = match self.read_pieces(&pieces, out) {
                Ok(()) => {
                    Counters::add(&self.counters.bytes_read, len);
                    return Ok(len);
                }
                Err((segment, e)) => (segment, e),
            };
            // What was read may have been written anew and its old place deleted meanwhile.
            let again = self.plan(ino, offset, out.len())?;
            if (&again.0, again.1) == (&pieces, len) {
                return Err(self.report(ino, failed.0, failed.1));
            }
            (pieces, len) = again;
        }
        Err(FsError::Failed("a file changes faster than it can be read"))
    }

    /// Writes all of `data` at `offset`. Says whether that took set-user-id or set-group-id away.
    pub(crate) fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<bool, FsError> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= FILE_LEN_MAX);
        end.ok_or(FsError::TooLarge)?;
        if data.is_empty() {
            return Ok(false);
        }
        self.journal.admit(data.len() as u64 + CHANGE_COST)?;
        let (mut extents, mut pins) = (Vec::new(), Vec::new());
        for record in data.chunks(RECORD_LEN_MAX) {
            let (extent, pin) = self.journal.write_data(record)?;
            extents.push(extent);
            pins.push(pin);
        }
        let time = (!mode.kernel_keeps_times).then(Timestamp::now);
        let mut kill_privileges = false;
        let build = |tables: &Tables| {
            let inode = inode(tables, ino)?;
            inode.extents().ok_or(FsError::Invalid)?;
            let perm = inode.record.perm;
            kill_privileges = mode.kills_privileges && without_privileges(perm) != perm;
            Ok(vec![Op::Write(Written {
                ino,
                start: offset,
                extents,
                time,
                kill_privileges,
            })])
        };
        self.journal.change(build, |_| Ok(()))?;
        drop(pins);
        Counters::add(&self.counters.bytes_written, data.len());
        Ok(kill_privileges)
    }

    /// Makes a range of a file a hole; with `grow` the file reaches to its end at least.
    pub(crate) fn punch(&self, ino: Ino, range: Range<u64>, grow: bool) -> Result<(), FsError> {
        if range.end > FILE_LEN_MAX {
            return Err(FsError::TooLarge);
        }
        let time = Timestamp::now();
        let build = |tables: &Tables| {
            let inode = inode(tables, ino)?;
            inode.extents().ok_or(FsError::Invalid)?;
            let mut ops = vec![Op::Punch {
                ino,
                start: range.start,
                end: range.end,
                time,
            }];
            if grow && range.end > inode.record.size {
                ops.push(Op::Truncate {
                    ino,
                    size: range.end,
                    time: Some(time),
                });
            }
            Ok(ops)
        };
        self.journal.change(build, |_| Ok(()))
    }

    /// Which pieces of which extents a read needs, and how many bytes it will give.
    fn plan(&self, ino: Ino, offset: u64, len: usize) -> Result<(Vec<Piece>, usize), FsError> {
        let live = self.journal.tables();
        let inode = inode(&live.tables, ino)?;
        let extents = inode.extents().ok_or(FsError::Invalid)?;
        let end = offset.saturating_add(len as u64).min(inode.record.size);
        if end <= offset {
            return Ok((Vec::new(), 0));
        }
        let first = extents
            .range(..=offset)
            .next_back()
            .map_or(offset, |(start, _)| *start);
        let mut pieces = Vec::new();
        for (start, extent) in extents.range(first..end) {
            let from = offset.max(*start);
            let to = end.min(*start + u64::from(extent.live));
            if from >= to {
                continue;
            }
            let entry = live.tables.segment(extent.segment);
            let within = |at: u64, base: u64| usize::try_from(at - base).ok();
            let piece = || {
                Some(Piece {
                    extent: *extent,
                    entry: entry?,
                    from: u32::try_from(from - start).ok()?,
                    out: within(from, offset)?..within(to, offset)?,
                })
            };
            pieces.push(piece().ok_or(FsError::Failed("an extent leads nowhere"))?);
        }
        let len = usize::try_from(end - offset).map_err(|_| FsError::Invalid)?;
        Ok((pieces, len))
    }

    fn read_pieces(&self, pieces: &[Piece], out: &mut [u8]) -> Result<(), (SegmentId, ReadError)> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut done = 0;
            for piece in pieces {
                let id = piece.extent.segment;
                if let Some(hole) = out.get_mut(done..piece.out.start) {
                    hole.fill(0);
                }
                let part = out
                    .get_mut(piece.out.clone())
                    .ok_or((id, ReadError::Tampered))?;
                let segment = self.journal.segment(id, piece.entry);
                self.journal
                    .read_extent(&segment, &piece.extent, piece.from, part, scratch)
                    .map_err(|e| (id, e))?;
                done = piece.out.end;
            }
            if let Some(hole) = out.get_mut(done..) {
                hole.fill(0);
            }
            Ok(())
        })
    }

    fn report(&self, ino: Ino, segment: SegmentId, e: ReadError) -> FsError {
        match e {
            ReadError::Store(e) => FsError::Store(e),
            ReadError::Tampered => {
                Counters::add(&self.counters.auth_failures, 1);
                tracing::error!(
                    inode = ino.0,
                    segment = segment.0,
                    error_code = "fs.tampered",
                    "contents of a file are not what was written"
                );
                FsError::Tampered
            }
        }
    }
}
