//! Core: making changes durable: the log takes them, and goes on elsewhere when its store fails.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime::sync::MutexGuard;

use super::{Committer, Journal};
use crate::error::{CommitError, FsError};
use crate::format::{
    Extent, Ino, Mapped, Op, PendingOps, SALT_LEN, SEGMENT_BEGIN, SegmentId, SegmentKind,
};
use crate::log::{Appended, NextSegment, Planned};
use crate::tables::{ApplyError, Tables};

impl Journal {
    /// Makes change number `wanted` durable, with all before it. Gives false, and does nothing,
    /// when contents of files are owed first.
    pub(crate) fn commit(&self, wanted: u64) -> Result<bool, CommitError> {
        let seq = {
            let mut committer = self.committer();
            self.still_writable()?;
            if self.is_durable(wanted) {
                return Ok(true);
            }
            if !self.changes.lock().owed.is_empty() {
                return Ok(false);
            }
            self.append_pending(&mut committer)?;
            committer.log.position().seq
        };
        self.wait(wanted, seq).map(|()| true)
    }

    /// Makes every change so far durable, whatever is owed.
    pub(crate) fn commit_submitted(&self) -> Result<(), CommitError> {
        let (wanted, seq) = {
            let mut committer = self.committer();
            self.append_pending(&mut committer)?;
            (committer.appended, committer.log.position().seq)
        };
        self.wait(wanted, seq)
    }

    /// Appends a commit in which `contents` of a file ride, with whatever is pending. `ops` makes
    /// the operations that name them out of their extents. `None` when they cannot ride.
    pub(crate) fn commit_inline(
        &self,
        contents: &[&[u8]],
        ops: impl Fn(Vec<Extent>) -> Vec<Op>,
    ) -> Result<Option<u64>, FsError> {
        let mut committer = self.committer();
        self.ready_log(&mut committer)?;
        let mut changes = self.changes.lock();
        let is_free = changes.owed.is_empty() && changes.pending.len() <= 1;
        let some_place = Extent::of_record(SegmentId(0), SEGMENT_BEGIN, 1, [0; SALT_LEN]);
        let Some(some_place) = some_place.filter(|_| is_free) else {
            return Ok(None);
        };
        let stand_ins = PendingOps::of_all(&ops(vec![some_place; contents.len()]));
        let pending = changes.pending.back().map_or(0, PendingOps::len);
        let planned = committer
            .log
            .plan_inline(pending + stand_ins.len(), contents)
            .map_err(CommitError::from)?;
        let Some(planned) = planned else {
            return Ok(None);
        };
        let ops = ops(planned.extents().collect());
        let mut tables = self.tables();
        for op in &ops {
            tables.apply(op).map_err(|e| self.not_applied(e))?;
        }
        let (mut batches, _) = changes.take();
        let mut batch = batches.pop_back().unwrap_or_default();
        ops.iter().for_each(|op| batch.push(op));
        changes.submitted += 1;
        *self.tables.write() = tables;
        let number = changes.submitted;
        drop(changes);
        self.append(&mut committer, &batch, Some(planned))?;
        committer.appended = number;
        Ok(Some(number))
    }

    /// Makes the segment that the log goes on in, if it is going to be needed soon.
    pub(crate) fn prepare_log(&self) -> Result<(), CommitError> {
        let (id, segment, len, pin) = {
            let mut committer = self.committer();
            if self.has_failed() || committer.next.is_some() || !committer.log.wants_next() {
                return Ok(());
            }
            let len = self.reserve.log_segment(committer.log.next_len());
            let (id, segment, pin) = self.announce(&mut committer, SegmentKind::Log)?;
            (id, segment, len, pin)
        };
        let _open = self.gate.pass();
        let next = NextSegment::make(&*self.store, &self.keys, (id, segment), len)?;
        self.log.lock().next = Some((next, pin));
        Ok(())
    }

    /// The end of the log, for who is going to change the store. Waits while the volume is frozen.
    pub(super) fn committer(&self) -> MutexGuard<'_, Committer> {
        loop {
            self.gate.wait_for_log();
            let committer = self.log.lock();
            if !self.gate.is_log_frozen() {
                return committer;
            }
        }
    }

    pub(super) fn is_durable(&self, number: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= number
    }

    /// Waits until commit `seq`, which has change number `number`, is durable.
    pub(super) fn wait(&self, number: u64, seq: u64) -> Result<(), CommitError> {
        let flusher = Arc::clone(self.log.lock().log.flusher());
        if flusher.wait_durable(seq).is_ok() {
            self.remember(flusher.durable());
            self.durable.fetch_max(number, Ordering::AcqRel);
            return Ok(());
        }
        let mut committer = self.committer();
        if committer.log.has_failed() {
            self.reopen(&mut committer)?;
        }
        // Whoever opened the log anew made all of it durable.
        self.still_writable()
    }

    /// Sees to it that the log has room for commits.
    pub(super) fn ready_log(&self, committer: &mut Committer) -> Result<(), CommitError> {
        self.still_writable()?;
        if committer.log.has_failed() {
            self.reopen(committer)?;
        }
        if committer.log.is_long() {
            self.roll(committer)?;
        }
        Ok(())
    }

    /// Appends all that is pending to the log.
    pub(super) fn append_pending(&self, committer: &mut Committer) -> Result<(), CommitError> {
        self.ready_log(committer)?;
        let (batches, upto) = self.changes.lock().take();
        self.append_batches(committer, &batches, upto)
    }

    pub(super) fn append_batches(
        &self,
        committer: &mut Committer,
        batches: &VecDeque<PendingOps>,
        upto: u64,
    ) -> Result<(), CommitError> {
        for ops in batches {
            self.append(committer, ops, None)?;
        }
        committer.appended = upto;
        Ok(())
    }

    /// Appends one commit. What was taken to be logged cannot be put back, so an error is the end.
    pub(super) fn append(
        &self,
        committer: &mut Committer,
        ops: &PendingOps,
        inline: Option<Planned>,
    ) -> Result<Appended, CommitError> {
        let appended = committer.log.append(ops, inline);
        let appended = appended.map_err(CommitError::from);
        let appended = appended.inspect_err(|e| self.fail(e))?;
        committer.log_bytes += u64::from(appended.len);
        Ok(appended)
    }

    /// Makes durable a commit that was just appended, with the log's lock held. Gives where it lies.
    pub(super) fn make_durable(
        &self,
        committer: &mut Committer,
        appended: Appended,
    ) -> Result<Appended, CommitError> {
        if self.flush(committer)? {
            return Ok(appended);
        }
        let moved = self.reopen(committer)?;
        let found = moved.into_iter().find(|(seq, _)| *seq == appended.seq);
        let (_, appended) = found.ok_or(CommitError::Bug("a commit got lost"))?;
        Ok(appended)
    }

    /// Makes all of the log durable, with its lock held. Gives false when it is to be opened anew.
    pub(super) fn flush(&self, committer: &Committer) -> Result<bool, CommitError> {
        if committer.log.flush().is_ok() {
            self.remember(committer.log.flusher().durable());
            self.durable.fetch_max(committer.appended, Ordering::AcqRel);
            return Ok(true);
        }
        if committer.log.has_failed() {
            return Ok(false);
        }
        self.still_writable().map(|()| true)
    }

    /// Lets the log go on in another segment after a failure, with all that is not durable. When
    /// that fails too, the volume is read-only.
    pub(super) fn reopen(
        &self,
        committer: &mut Committer,
    ) -> Result<Vec<(u64, Appended)>, CommitError> {
        self.try_reopen(committer).inspect_err(|e| self.fail(e))
    }

    pub(super) fn try_reopen(
        &self,
        committer: &mut Committer,
    ) -> Result<Vec<(u64, Appended)>, CommitError> {
        committer.next = None;
        let id = self.tables().counters().next_segment;
        let segment = committer.log.draw_segment()?;
        let len = self.reserve.log_segment(committer.log.next_len());
        let next = NextSegment::make(&*self.store, &self.keys, (id, segment), len)?;
        let reopened = committer.log.reopen(next)?;
        self.apply_logged(|tables| {
            tables.apply(&reopened.open)?;
            if reopened.has_moved() {
                follow_moved(tables, |extent| reopened.translate(extent))?;
            }
            Ok(())
        })?;
        self.write_superblock(committer, reopened.position.seq)?;
        let (commits, position) = (reopened.commits.clone(), reopened.position);
        reopened.acknowledge();
        self.remember(position);
        self.durable.fetch_max(committer.appended, Ordering::AcqRel);
        Ok(commits)
    }

    pub(super) fn roll(&self, committer: &mut Committer) -> Result<(), CommitError> {
        let (next, _pin) = match committer.next.take() {
            Some(next) => next,
            None => {
                let len = self.reserve.log_segment(committer.log.next_len());
                let (id, segment, pin) = self.announce(committer, SegmentKind::Log)?;
                (
                    NextSegment::make(&*self.store, &self.keys, (id, segment), len)?,
                    pin,
                )
            }
        };
        if !self.flush(committer)? {
            // It goes on in another segment by that.
            return self.reopen(committer).map(|_| ());
        }
        match committer.log.roll(next) {
            Ok(open) => self.apply_logged(|tables| tables.apply(&open)),
            Err(_) if committer.log.has_failed() => self.reopen(committer).map(|_| ()),
            Err(e) => Err(e.into()),
        }
        .inspect_err(|e| self.fail(e))
    }

    /// Applies what is in the log already.
    pub(super) fn apply_logged(
        &self,
        apply: impl FnOnce(&mut Tables) -> Result<(), ApplyError>,
    ) -> Result<(), CommitError> {
        let _changes = self.changes.lock();
        let mut tables = self.tables();
        apply(&mut tables)?;
        *self.tables.write() = tables;
        Ok(())
    }
}

/// Lets the map point to where inline records are now that moved with the log.
fn follow_moved(
    tables: &mut Tables,
    translate: impl Fn(&Extent) -> Option<Extent>,
) -> Result<(), ApplyError> {
    let mut logs = Vec::new();
    tables.segments(|id, entry| {
        if entry.kind == SegmentKind::Log && entry.live > 0 {
            logs.push(id);
        }
    })?;
    let mut moves = Vec::new();
    for id in logs {
        let mut maps = Vec::new();
        tables.segrefs(id, Ino(0), |map, _| {
            maps.push(map);
            ControlFlow::Continue(())
        })?;
        for map in maps {
            tables.mapped(map, &(0..u64::MAX), |start, mapped| {
                if let Mapped::Data(from) = mapped
                    && let Some(to) = translate(&from)
                {
                    moves.push(Op::Move {
                        map,
                        start,
                        from,
                        to,
                    });
                }
                ControlFlow::Continue(())
            })?;
        }
    }
    moves.iter().try_for_each(|op| tables.apply(op))
}
