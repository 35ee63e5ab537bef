//! Core: reading and writing the contents of files.

use std::cell::RefCell;
use std::ops::{ControlFlow, Range};

use super::inode::FILE_LEN_MAX;
use super::overlay::Piece;
use super::vnode::Vnode;
use super::{Counters, Fs, regular};
use crate::error::FsError;
use crate::format::{Extent, Ino, InodeRecord, Mapped, RECORD_LEN_MAX, SegmentId, Timestamp};
use crate::segment::ReadError;
use crate::space::Need;
use crate::tables::{SegmentEntry, Tables, without_privileges};

/// Looking an extent up again is worth it only if it can have moved meanwhile.
const READ_TRIES: u32 = 3;
/// Writes of this many bytes are sealed at once; smaller ones are buffered, so that they become
/// records of some size or ride in the log.
const DIRECT_LEN: usize = 64 << 10;
/// Pieces of one file that wait for the map at most.
const PIECES_MAX: usize = if cfg!(test) { 64 } else { 32 << 10 };
/// Bytes of one file that are buffered at most.
const BUFFER_MAX: usize = 1 << 20;

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

/// Bytes that a range of a file has already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct There {
    /// In the map, promises included.
    pub(super) all: u64,
    /// Promised, and nothing is pending in their place.
    pub(super) promised: u64,
}

/// What a read takes out of records, and how many bytes it gives.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    parts: Vec<Part>,
    /// What is not zeros, of the bytes that it gives.
    covered: Vec<Range<usize>>,
    len: usize,
}

/// A part of an extent, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    extent: Extent,
    entry: SegmentEntry,
    from: u32,
    out: Range<usize>,
}

impl Fs {
    /// Reads at `offset` until `out` is full or the file ends, and gives how much.
    pub(crate) fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize, FsError> {
        let mut plan = self.plan(ino, offset, out)?;
        for _ in 0..READ_TRIES {
            let Err(failed) = self.read_parts(&plan, out) else {
                Counters::add(&self.counters.bytes_read, plan.len);
                return Ok(plan.len);
            };
            // It may have moved since, and its segment may be gone.
            let again = self.plan(ino, offset, out)?;
            if again == plan {
                return Err(self.report(ino, failed.0, failed.1));
            }
            plan = again;
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
            .filter(|end| *end <= FILE_LEN_MAX)
            .ok_or(FsError::TooLarge)?;
        if self.journal.has_failed() {
            return Err(FsError::ReadOnly);
        }
        let record = regular(&self.journal.tables(), ino)?;
        if data.is_empty() {
            return Ok(false);
        }
        self.admit(self.need_of(ino, &record, offset..end)?)?;
        let vnode = self.vnodes.get_or_make(ino);
        self.take_in(ino, &vnode, offset, data)?;
        let time = (!mode.kernel_keeps_times).then(Timestamp::now);
        vnode.state.write().overlay.note(end, time);
        let pieces = vnode.state.read().overlay.count_pieces();
        drop(vnode);
        Counters::add(&self.counters.bytes_written, data.len());
        if pieces > PIECES_MAX {
            self.drain(ino)?;
        }
        if data.len() < DIRECT_LEN {
            self.note_buffered(data.len());
        }
        // Capabilities go with every write, the other privileges with that of who has none.
        self.kill_privileges(ino, &record, |record| match mode.kills_privileges {
            true => without_privileges(record.perm),
            false => record.perm,
        })
    }

    /// What writing a range of a file needs. What is there already makes the volume hold no more,
    /// and what was promised was taken off the store's space when it was.
    fn need_of(&self, ino: Ino, record: &InodeRecord, range: Range<u64>) -> Result<Need, FsError> {
        let len = range.end.saturating_sub(range.start);
        let tables = self.journal.tables();
        let matters = self.journal.reserve().is_limited() || tables.counters().unwritten > 0;
        if !matters || record.allocated == 0 {
            return Ok(Need::of_contents(len, len));
        }
        let there = self.there(ino, &range)?;
        Ok(Need::of_contents(
            len.saturating_sub(there.promised),
            len.saturating_sub(there.all),
        ))
    }

    /// What a range of a file has already.
    pub(super) fn there(&self, ino: Ino, range: &Range<u64>) -> Result<There, FsError> {
        let vnode = self.vnodes.get(ino);
        let state = vnode.as_ref().map(|vnode| vnode.state.read());
        let pending = |part: &Range<u64>| {
            let pieces = state
                .iter()
                .flat_map(|state| state.overlay.overlapping(part));
            let parts = pieces.map(|(start, piece)| {
                let end = start.saturating_add(piece.len()).min(part.end);
                end.saturating_sub(start.max(part.start))
            });
            parts.sum::<u64>()
        };
        let mut there = There::default();
        self.journal.tables().mapped(ino, range, |start, mapped| {
            let end = start.saturating_add(mapped.live()).min(range.end);
            let part = start.max(range.start)..end;
            let len = part.end.saturating_sub(part.start);
            there.all += len;
            if let Mapped::Unwritten(_) = mapped {
                there.promised += len.saturating_sub(pending(&part));
            }
            ControlFlow::Continue(())
        })?;
        Ok(there)
    }

    /// Takes bytes into the overlay.
    fn take_in(&self, ino: Ino, vnode: &Vnode, offset: u64, data: &[u8]) -> Result<(), FsError> {
        if data.len() < DIRECT_LEN {
            let mut state = vnode.state.write();
            state.overlay.buffer(offset, data);
            if state.overlay.buffered() >= BUFFER_MAX {
                self.seal_buffers(ino, &mut state)?;
            }
            return Ok(());
        }
        let mut sealed = Vec::new();
        for record in data.chunks(RECORD_LEN_MAX) {
            sealed.push(self.journal.write_record(ino, record)?);
        }
        let mut state = vnode.state.write();
        let mut at = offset;
        for (extent, record) in sealed {
            state.overlay.place(at, Piece::Sealed(extent, record));
            at += u64::from(extent.live);
        }
        Ok(())
    }

    /// Finds out what a read needs, and copies what is in memory already.
    fn plan(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<Plan, FsError> {
        let vnode = self.vnodes.get(ino);
        let state = vnode.as_ref().map(|vnode| vnode.state.read());
        let tables = self.journal.tables();
        let record = regular(&tables, ino)?;
        let overlay = state.as_ref().map(|state| &state.overlay);
        let size = record.size.max(overlay.map_or(0, |overlay| overlay.size()));
        let end = offset.saturating_add(out.len() as u64).min(size);
        let mut reader = Reader {
            tables: &tables,
            begin: offset,
            out,
            plan: Plan {
                parts: Vec::new(),
                covered: Vec::new(),
                len: usize::try_from(end.saturating_sub(offset)).map_err(|_| FsError::Invalid)?,
            },
        };
        let mut at = offset;
        if let Some(overlay) = overlay {
            for (start, piece) in overlay.overlapping(&(offset..end)) {
                reader.take_committed(ino, &record, at..start.max(at))?;
                at = start.saturating_add(piece.len()).min(end);
                let range = start.max(offset)..at;
                match piece {
                    Piece::Buffered(bytes) => reader.take_bytes(start, bytes, range),
                    Piece::Sealed(extent, _) => reader.take_extent(start, extent, range)?,
                }
            }
        }
        reader.take_committed(ino, &record, at..end)?;
        let plan = reader.plan;
        drop(state);
        self.note_access(ino, &record);
        Ok(plan)
    }

    fn read_parts(&self, plan: &Plan, out: &mut [u8]) -> Result<(), (SegmentId, ReadError)> {
        SCRATCH.with_borrow_mut(|scratch| {
            for part in &plan.parts {
                let id = part.extent.segment;
                let to = out
                    .get_mut(part.out.clone())
                    .ok_or((id, ReadError::Tampered))?;
                let segment = self.journal.segment(id, part.entry);
                self.journal
                    .read_extent(&segment, &part.extent, part.from, to, scratch)
                    .map_err(|e| (id, e))?;
            }
            let mut done = 0;
            for range in &plan.covered {
                if let Some(hole) = out.get_mut(done..range.start) {
                    hole.fill(0);
                }
                done = range.end;
            }
            if let Some(hole) = out.get_mut(done..plan.len) {
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

/// Collects what a read needs, in ascending order.
struct Reader<'a> {
    tables: &'a Tables,
    /// Offset of the first byte in the file.
    begin: u64,
    out: &'a mut [u8],
    plan: Plan,
}

impl Reader<'_> {
    /// What the map has for a range.
    fn take_committed(
        &mut self,
        ino: Ino,
        record: &InodeRecord,
        range: Range<u64>,
    ) -> Result<(), FsError> {
        if range.is_empty() {
            return Ok(());
        }
        if !record.inline.is_empty() {
            let end = range.end.min(record.inline.len() as u64);
            self.take_bytes(0, &record.inline, range.start..end);
        }
        if record.allocated == 0 {
            return Ok(());
        }
        let tables = self.tables;
        let mut taken = Ok(());
        tables.mapped(ino, &range, |start, mapped| {
            if let Mapped::Data(extent) = mapped {
                let end = start.saturating_add(mapped.live());
                let clipped = start.max(range.start)..end.min(range.end);
                taken = self.take_extent(start, &extent, clipped);
            }
            if taken.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        taken
    }

    /// The part `range` of an extent that begins at `start`.
    fn take_extent(
        &mut self,
        start: u64,
        extent: &Extent,
        range: Range<u64>,
    ) -> Result<(), FsError> {
        let Some(out) = self.out_range(&range) else {
            return Ok(());
        };
        let entry = self.tables.segment(extent.segment)?;
        let from = range.start.checked_sub(start);
        let part = |entry: SegmentEntry| {
            Some(Part {
                extent: *extent,
                // What lives in the segment changes all the time, and is of no concern here.
                entry: SegmentEntry { live: 0, ..entry },
                from: u32::try_from(from?).ok()?,
                out: out.clone(),
            })
        };
        let part = entry.and_then(part);
        self.plan
            .parts
            .push(part.ok_or(FsError::Failed("an extent leads nowhere"))?);
        self.plan.covered.push(out);
        Ok(())
    }

    /// The part `range` of bytes that begin at `start`.
    fn take_bytes(&mut self, start: u64, bytes: &[u8], range: Range<u64>) {
        let Some(out) = self.out_range(&range) else {
            return;
        };
        let from = range
            .start
            .checked_sub(start)
            .and_then(|n| usize::try_from(n).ok());
        let from = from.and_then(|from| bytes.get(from..from.checked_add(out.len())?));
        if let (Some(to), Some(from)) = (self.out.get_mut(out.clone()), from) {
            to.copy_from_slice(from);
            self.plan.covered.push(out);
        }
    }

    fn out_range(&self, range: &Range<u64>) -> Option<Range<usize>> {
        let place = |at: u64| usize::try_from(at.checked_sub(self.begin)?).ok();
        let out = place(range.start)?..place(range.end)?;
        (!out.is_empty()).then_some(out)
    }
}
