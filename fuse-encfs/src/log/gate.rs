//! Core: who flushes the log, and from when on a commit counts as durable.
//!
//! **Design.** Who waits for a commit that no flush under way covers flushes himself, for all that
//! was written until then; everybody else waits. Where the store has more than one lane for
//! flushes, that many may be under way at once, so that who comes during one need not wait for its
//! end before his own begins.
//!
//! **Invariants.** A commit is durable when a flush that began behind its write has ended well,
//! *and every flush that began before that one has too*: a flush that fails may have dropped what
//! a later one then finds nothing to do for. When one fails, what the others say does not count
//! either; all that is not durable is written once more, as it was, and flushed alone.
//!
//! The lock is a parameter, so that a model checker can put its own in.

use std::collections::VecDeque;
use std::ops::DerefMut;

use runtime::sync::{Condvar, Mutex, MutexGuard};

/// Flushes under way at once, however many lanes the store has.
const IN_FLIGHT_MAX: usize = 2;

/// A lock with a condition to wait for.
pub(super) trait Monitor<S> {
    type Guard<'a>: DerefMut<Target = S>
    where
        Self: 'a;
    fn new(state: S) -> Self;
    fn lock(&self) -> Self::Guard<'_>;
    /// Gives the lock free until somebody notifies.
    fn wait<'a>(&'a self, guard: Self::Guard<'a>) -> Self::Guard<'a>;
    fn notify_all(&self);
}

/// The monitor of the product.
#[derive(Debug)]
pub(super) struct Parked<S> {
    state: Mutex<S>,
    changed: Condvar,
}

/// What is behind the gate.
pub(super) trait Flush {
    /// Flushes all that was written before the call, by a lane that nobody else uses then, and says
    /// whether that worked and nothing has failed since the lane was used last.
    fn flush(&self, lane: usize) -> bool;
    /// Writes everything that is not durable again, as it was, and flushes it; no flush is under
    /// way. Gives the number of the last commit that is durable then; `None` when it failed again.
    fn mend(&self) -> Option<u64>;
}

/// Nothing becomes durable any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed;

/// Lets through who waits for a commit once it is durable.
#[derive(Debug)]
pub(super) struct Gate<M> {
    monitor: M,
}

/// What is written, under way and durable, by numbers of commits.
#[derive(Debug)]
pub(super) struct State {
    written: u64,
    durable: u64,
    /// Oldest first.
    flights: VecDeque<Flight>,
    lanes: usize,
    /// Flushes that were ever begun.
    begun: u64,
    mending: bool,
    failed: bool,
}

/// A flush under way.
#[derive(Debug)]
struct Flight {
    number: u64,
    lane: usize,
    /// The last commit that it covers.
    upto: u64,
    /// It ended well, but one that began before it has not ended yet.
    landed: bool,
}

impl<M: Monitor<State>> Gate<M> {
    /// A gate over a log whose commits are all durable, on a store with so many lanes.
    pub(super) fn new(durable: u64, lanes: usize) -> Self {
        Self {
            monitor: M::new(State {
                written: durable,
                durable,
                flights: VecDeque::with_capacity(IN_FLIGHT_MAX),
                lanes: lanes.clamp(1, IN_FLIGHT_MAX),
                begun: 0,
                mending: false,
                failed: false,
            }),
        }
    }

    /// The newest commit that is durable with all before it.
    pub(super) fn durable(&self) -> u64 {
        self.monitor.lock().durable
    }

    /// Whether nothing becomes durable any more.
    pub(super) fn has_failed(&self) -> bool {
        self.monitor.lock().failed
    }

    /// Notes that a commit was written, whose number follows that of the one before.
    pub(super) fn note_written(&self, seq: u64) {
        self.monitor.lock().written = seq;
        self.monitor.notify_all();
    }

    /// Lets nothing become durable any more, and tells everybody who waits.
    pub(super) fn fail(&self) {
        self.monitor.lock().failed = true;
        self.monitor.notify_all();
    }

    /// As [`Gate::fail`], and waits until no flush is under way.
    pub(super) fn stop(&self) {
        let mut state = self.monitor.lock();
        state.failed = true;
        self.monitor.notify_all();
        while state.mending || !state.flights.is_empty() {
            state = self.monitor.wait(state);
        }
    }

    /// Begins anew behind commit `durable`, after [`Gate::stop`].
    pub(super) fn restart(&self, durable: u64) {
        let mut state = self.monitor.lock();
        state.written = durable;
        state.durable = durable;
        state.failed = false;
        drop(state);
        self.monitor.notify_all();
    }

    /// Waits until commit `seq` is durable, flushing if nobody else does.
    pub(super) fn wait(&self, seq: u64, work: &impl Flush) -> Result<(), Failed> {
        let mut state = self.monitor.lock();
        loop {
            if state.durable >= seq {
                return Ok(());
            }
            if state.failed {
                return Err(Failed);
            }
            let Some((flight, lane)) = state.begin(seq) else {
                state = self.monitor.wait(state);
                continue;
            };
            drop(state);
            let flushed = work.flush(lane);
            state = self.monitor.lock();
            let must_mend = state.end(flight, flushed);
            self.monitor.notify_all();
            if must_mend {
                state = self.mend(state, work);
            }
        }
    }

    /// By who first saw a flush fail, once the others have ended.
    fn mend<'a>(&'a self, mut state: M::Guard<'a>, work: &impl Flush) -> M::Guard<'a> {
        while !state.flights.is_empty() {
            state = self.monitor.wait(state);
        }
        drop(state);
        let mended = work.mend();
        let mut state = self.monitor.lock();
        state.mending = false;
        match mended {
            Some(upto) => state.durable = state.durable.max(upto),
            None => state.failed = true,
        }
        self.monitor.notify_all();
        state
    }
}

impl State {
    /// Begins a flush when commit `seq` needs one and there is a lane for it. Gives its number and
    /// lane.
    fn begin(&mut self, seq: u64) -> Option<(u64, usize)> {
        let newest = self.flights.back().map_or(0, |flight| flight.upto);
        let covered = newest.max(self.durable);
        let useful = covered < seq && seq <= self.written;
        if !useful || self.mending {
            return None;
        }
        let is_free = |lane: &usize| self.flights.iter().all(|flight| flight.lane != *lane);
        let lane = (0..self.lanes).find(is_free)?;
        self.begun += 1;
        self.flights.push_back(Flight {
            number: self.begun,
            lane,
            upto: self.written,
            landed: false,
        });
        Some((self.begun, lane))
    }

    /// Ends a flush. Says whether its caller must mend what it may have dropped.
    fn end(&mut self, number: u64, flushed: bool) -> bool {
        let is_it = |flight: &Flight| flight.number == number;
        if !flushed || self.mending || self.failed {
            let is_first = !flushed && !self.mending && !self.failed;
            self.mending |= is_first;
            self.flights
                .retain(|flight| !is_it(flight) && !flight.landed);
            return is_first;
        }
        if let Some(flight) = self.flights.iter_mut().find(|flight| is_it(flight)) {
            flight.landed = true;
        }
        while let Some(first) = self.flights.pop_front_if(|flight| flight.landed) {
            self.durable = self.durable.max(first.upto);
        }
        false
    }
}

impl<S> Monitor<S> for Parked<S> {
    type Guard<'a>
        = MutexGuard<'a, S>
    where
        S: 'a;

    fn new(state: S) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> Self::Guard<'_> {
        self.state.lock()
    }

    fn wait<'a>(&'a self, mut guard: Self::Guard<'a>) -> Self::Guard<'a> {
        self.changed.wait(&mut guard);
        guard
    }

    fn notify_all(&self) {
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
