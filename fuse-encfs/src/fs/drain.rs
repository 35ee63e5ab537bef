//! Core: from the overlay of a file into the map.
//!
//! The order is what makes a crash harmless: bytes are sealed and written, their segments flushed,
//! and only then does an operation name them. None of the slow steps holds the inode's lock.

use std::sync::Arc;

use super::Fs;
use super::overlay::Piece;
use super::vnode::State;
use crate::error::FsError;
use crate::format::{
    Extent, FileKind, INLINE_FILE_LEN_MAX, Ino, InodeRecord, Op, RECORD_LEN_MAX, Written,
};
use crate::log::INLINE_MAX;
use crate::segment::Record;
use crate::store::StoreError;
use crate::tables::Tables;

/// Extents that one change names at most: it goes into one commit, however long.
const NAMED_MAX: usize = if cfg!(test) { 16 } else { 8192 };
/// How often contents are sealed anew in another segment after one could not be flushed.
const RESCUES: u32 = 1;

impl Fs {
    /// Whether the map does not know yet what was written to a file.
    pub(super) fn is_pending(&self, ino: Ino) -> bool {
        let vnode = self.vnodes.get(ino);
        vnode.is_some_and(|vnode| !vnode.state.read().overlay.is_empty())
    }

    /// Seals and writes what waits in buffers of a file, or lets it live in the inode's record if it
    /// is that little. Who is about to drain many files does this to all of them first: then
    /// the first flush is that of all.
    pub(super) fn prepare(&self, ino: Ino) -> Result<(), FsError> {
        let Some(vnode) = self.vnodes.get(ino) else {
            return Ok(());
        };
        let mut state = vnode.state.write();
        if state.overlay.buffered() == 0 || self.drain_small(ino, &mut state)? {
            return Ok(());
        }
        self.seal_buffers(ino, &mut state)
    }

    /// Lets the map know of all that was written to a file so far.
    pub(super) fn drain(&self, ino: Ino) -> Result<(), FsError> {
        let Some(vnode) = self.vnodes.get(ino) else {
            return Ok(());
        };
        let (mut rescues, mut is_outrun) = (0, false);
        loop {
            let mut state = vnode.state.write();
            if state.overlay.is_empty() || self.drain_small(ino, &mut state)? {
                return Ok(());
            }
            self.seal_buffers(ino, &mut state)?;
            let (records, displaced) = (unflushed(&state), state.overlay.displaced());
            // Nobody waits for a flush, unless he was faster than the one before.
            let held = is_outrun.then_some(state);
            let flushed = self.flush_all(&records);
            let mut state = held.unwrap_or_else(|| vnode.state.write());
            match flushed {
                Ok(()) if state.overlay.displaced() == displaced => {
                    return self.submit(ino, &mut state);
                }
                // What is durable is not what the file holds: in place of what was overwritten
                // meanwhile a crash would show what was there long ago, or nothing.
                Ok(()) => is_outrun = true,
                Err(e) if rescues == RESCUES => {
                    self.journal.fail(&e);
                    return Err(FsError::Store(e));
                }
                Err(e) => {
                    rescues += 1;
                    self.rescue(ino, &mut state, &e)?;
                }
            }
        }
    }

    fn flush_all(&self, records: &[Arc<Record>]) -> Result<(), StoreError> {
        let mut flushed = Ok(());
        for record in records {
            let done = self.journal.flush_record(record);
            flushed = flushed.and(done);
        }
        flushed
    }

    /// Lets the little that was written to a file ride in the log, and gives the number of that
    /// change: one flush makes it durable, where a data segment would want a flush of its own.
    /// `None` when it is not little.
    pub(super) fn ride(&self, ino: Ino) -> Result<Option<u64>, FsError> {
        let Some(vnode) = self.vnodes.get(ino) else {
            return Ok(None);
        };
        let mut state = vnode.state.write();
        if state.overlay.is_empty() {
            return Ok(None);
        }
        if self.drain_small(ino, &mut state)? {
            return Ok(Some(self.journal.submitted()));
        }
        let is_buffered = |(_, piece): (u64, &Piece)| matches!(piece, Piece::Buffered(_));
        if state.overlay.buffered() > INLINE_MAX || !state.overlay.pieces().all(is_buffered) {
            return Ok(None);
        }
        let runs = buffered_runs(&state);
        let contents: Vec<Vec<u8>> = runs.iter().map(|(_, run)| joined(&state, run)).collect();
        let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        let before = self
            .journal
            .tables()
            .inode(ino)?
            .map_or(0, |record| record.size);
        let (size, time) = (state.overlay.size(), state.overlay.time());
        let written = runs.iter().zip(&contents);
        let end = written.map(|((start, _), run)| start.saturating_add(run.len() as u64));
        let end = end.max().unwrap_or(0).max(before);
        // Of one length whatever the extents are: the place of the contents follows from it.
        let ops = |extents: Vec<Extent>| {
            let mut ops: Vec<Op> = Vec::with_capacity(extents.len() + 1);
            for ((start, _), extent) in runs.iter().zip(extents) {
                ops.push(Op::Write(Written {
                    ino,
                    start: *start,
                    extents: vec![extent],
                    time,
                    kill_privileges: false,
                }));
            }
            if size > end {
                ops.push(Op::Truncate {
                    ino,
                    size,
                    time: None,
                });
            }
            ops
        };
        let number = self.journal.commit_inline(&contents, ops)?;
        if number.is_some() {
            state.overlay.clear();
        }
        Ok(number)
    }

    /// Turns the buffers of a file into records.
    pub(super) fn seal_buffers(&self, ino: Ino, state: &mut State) -> Result<(), FsError> {
        for (start, run) in buffered_runs(state) {
            let mut bytes = Vec::new();
            for at in run {
                if let Some(Piece::Buffered(piece)) = state.overlay.take(at) {
                    if bytes.is_empty() {
                        bytes = piece;
                    } else {
                        bytes.extend(piece);
                    }
                }
            }
            match self.journal.write_record(ino, &bytes) {
                Ok((extent, record)) => state.overlay.place(start, Piece::Sealed(extent, record)),
                Err(e) => {
                    state.overlay.place(start, Piece::Buffered(bytes));
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Lets a small file live in its inode's record.
    fn drain_small(&self, ino: Ino, state: &mut State) -> Result<bool, FsError> {
        let tables = self.journal.tables();
        let Some(record) = tables.inode(ino)? else {
            // It was reaped: nobody will ask.
            state.overlay.clear();
            return Ok(true);
        };
        let size = record.size.max(state.overlay.size());
        let is_buffered = |(_, piece): (u64, &Piece)| matches!(piece, Piece::Buffered(_));
        let len = usize::try_from(size).ok().filter(|len| {
            *len <= INLINE_FILE_LEN_MAX
                && record.kind == FileKind::Regular
                && record.allocated == 0
                && state.overlay.pieces().all(is_buffered)
        });
        let Some(len) = len else {
            self.take_inline(&record, state);
            return Ok(false);
        };
        let mut bytes = record.inline;
        bytes.resize(len, 0);
        for (start, piece) in state.overlay.pieces() {
            let at = usize::try_from(start).unwrap_or(usize::MAX);
            if let Piece::Buffered(piece) = piece
                && let Some(to) = at
                    .checked_add(piece.len())
                    .and_then(|end| bytes.get_mut(at..end))
            {
                to.copy_from_slice(piece);
            }
        }
        // Zeros at the end need no bytes.
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        bytes.truncate(used);
        let op = Op::Inline {
            ino,
            bytes,
            size,
            time: state.overlay.time(),
            kill_privileges: false,
        };
        // Reaped since the tables were looked at, it may be gone.
        let build = |tables: &Tables| {
            let is_there = tables.inode(ino)?.is_some();
            Ok(Vec::from_iter(is_there.then_some(op)))
        };
        self.journal.change(build, |_| Ok(()))?;
        state.overlay.clear();
        Ok(true)
    }

    /// Puts what a file that is small no more had in its record into the overlay, where the
    /// overlay has nothing newer.
    fn take_inline(&self, record: &InodeRecord, state: &mut State) {
        if record.kind != FileKind::Regular || record.inline.is_empty() {
            return;
        }
        let len = record.inline.len() as u64;
        let newer: Vec<(u64, u64)> = state
            .overlay
            .overlapping(&(0..len))
            .map(|(start, piece)| (start, start.saturating_add(piece.len())))
            .collect();
        let mut at = 0;
        for (start, end) in newer.into_iter().chain([(len, len)]) {
            let gap = usize::try_from(at).unwrap_or(usize::MAX)
                ..usize::try_from(start.min(len)).unwrap_or(usize::MAX);
            if let Some(bytes) = record.inline.get(gap).filter(|bytes| !bytes.is_empty()) {
                state.overlay.buffer(at, bytes);
            }
            at = at.max(end);
        }
    }

    /// Names what is durable to the map, in changes that fit a commit each.
    fn submit(&self, ino: Ino, state: &mut State) -> Result<(), FsError> {
        while !self.submit_some(ino, state)? {}
        Ok(())
    }

    /// Names at most [`NAMED_MAX`] durable pieces to the map; says whether those were all.
    fn submit_some(&self, ino: Ino, state: &mut State) -> Result<bool, FsError> {
        let mut writes: Vec<Written> = Vec::new();
        let (mut starts, mut end) = (Vec::new(), 0);
        let is_durable = |(_, piece): &(u64, &Piece)| match piece {
            Piece::Sealed(_, record) => record.is_flushed(),
            Piece::Buffered(_) => false,
        };
        let mut durable = state.overlay.pieces().filter(is_durable).peekable();
        for (start, piece) in durable.by_ref().take(NAMED_MAX) {
            let Piece::Sealed(extent, _) = piece else {
                continue;
            };
            starts.push(start);
            match writes.last_mut().filter(|_| start == end) {
                Some(last) => last.extents.push(*extent),
                None => writes.push(Written {
                    ino,
                    start,
                    extents: vec![*extent],
                    time: None,
                    kill_privileges: false,
                }),
            }
            end = start.saturating_add(piece.len());
        }
        let is_last = durable.peek().is_none();
        drop(durable);
        let is_all = starts.len() == state.overlay.count_pieces();
        let (size, time) = (state.overlay.size(), state.overlay.time());
        let build = |tables: &Tables| {
            let Some(record) = tables.inode(ino)? else {
                return Ok(Vec::new());
            };
            if let Some(last) = writes.last_mut() {
                last.time = time;
            }
            let written = record.size.max(end);
            let mut ops: Vec<Op> = writes.into_iter().map(Op::Write).collect();
            if is_all && size > written {
                ops.push(Op::Truncate {
                    ino,
                    size,
                    time: None,
                });
            }
            Ok(ops)
        };
        self.journal.change(build, |_| Ok(()))?;
        for start in starts {
            state.overlay.take(start);
        }
        if is_all {
            state.overlay.forget_attributes();
        }
        Ok(is_last)
    }

    /// Seals what could not be flushed anew, at other addresses.
    fn rescue(&self, ino: Ino, state: &mut State, e: &StoreError) -> Result<(), FsError> {
        tracing::warn!(
            inode = ino.0,
            error = %e,
            error_code = "fs.rescued",
            "a segment cannot be flushed; its data is sealed anew in another"
        );
        let lost: Vec<(u64, Piece)> = state
            .overlay
            .pieces()
            .filter(|(_, piece)| matches!(piece, Piece::Sealed(_, record) if !record.is_flushed()))
            .map(|(start, piece)| (start, piece.clone()))
            .collect();
        for (start, piece) in lost {
            let Piece::Sealed(extent, record) = piece else {
                continue;
            };
            let bytes = record.reopen(&extent)?;
            record.abandon(self.journal.data());
            let (extent, record) = self.journal.write_record(ino, &bytes)?;
            state.overlay.place(start, Piece::Sealed(extent, record));
        }
        Ok(())
    }
}

/// Buffered pieces that lie one behind the other and fit a record, by their starts.
fn buffered_runs(state: &State) -> Vec<(u64, Vec<u64>)> {
    let mut runs: Vec<(u64, Vec<u64>)> = Vec::new();
    let (mut end, mut len) = (u64::MAX, 0);
    for (start, piece) in state.overlay.pieces() {
        let Piece::Buffered(bytes) = piece else {
            continue;
        };
        let fits = start == end && len + bytes.len() <= RECORD_LEN_MAX;
        match runs.last_mut().filter(|_| fits) {
            Some((_, run)) => {
                run.push(start);
                len += bytes.len();
            }
            None => {
                runs.push((start, vec![start]));
                len = bytes.len();
            }
        }
        end = start.saturating_add(bytes.len() as u64);
    }
    runs
}

/// The bytes of a run of pieces, which is in ascending order.
fn joined(state: &State, run: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (start, piece) in state.overlay.pieces() {
        if let Piece::Buffered(piece) = piece
            && run.binary_search(&start).is_ok()
        {
            bytes.extend(piece);
        }
    }
    bytes
}

/// Records of a file that are not durable, one of each segment.
fn unflushed(state: &State) -> Vec<Arc<Record>> {
    let mut records: Vec<Arc<Record>> = Vec::new();
    for (_, piece) in state.overlay.pieces() {
        if let Piece::Sealed(_, record) = piece
            && !record.is_flushed()
            && !records.iter().any(|other| other.is_beside(record))
        {
            records.push(Arc::clone(record));
        }
    }
    records
}
