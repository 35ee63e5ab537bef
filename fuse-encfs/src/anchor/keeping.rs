//! Core: when the anchor is moved and what its answers mean, without doing any of it.
//!
//! The caller asks for the next [`Step`], takes it, and tells how it went. Time is an argument.

use std::time::Duration;

use super::{AdvanceError, AnchorError, Anchored};

/// How far the anchor lags behind in time, at most, while it answers.
const EVERY: Duration = Duration::from_secs(10);
/// How far it lags behind in commits.
const COMMITS_MAX: u64 = 1_000;
/// Pause after a first failure; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = EVERY;
/// Failures after which a closing volume gives the anchor up.
const CLOSING_TRIES: u32 = 3;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the anchor for this, and tell [`Keeping::advanced`].
    Advance { prev: Anchored, next: Anchored },
    /// Ask the anchor what it holds, and tell [`Keeping::loaded`].
    Load,
    /// Nothing before this moment, unless something changes; `None`: nothing at all.
    Wait(Option<Duration>),
    /// Nothing any more.
    End,
}

/// What is known of the anchor.
#[derive(Debug)]
pub(super) struct Keeping {
    /// What the anchor has acknowledged last.
    acked: Anchored,
    /// What it was asked for, with unknown outcome until it answers.
    in_flight: Option<Anchored>,
    /// Whether it held something else than expected, and is to be asked what.
    in_doubt: bool,
    /// The newest durable head.
    newest: Anchored,
    /// The number that somebody waits for.
    wanted: u64,
    /// When the anchor is moved next.
    due: Duration,
    /// When it may be asked again after a failure.
    retry: Duration,
    failures: u32,
    closing: bool,
    lost: bool,
}

impl Keeping {
    /// After the anchor has acknowledged the first head of a mount.
    pub(super) fn new(acked: Anchored, now: Duration) -> Self {
        Self {
            acked,
            in_flight: None,
            in_doubt: false,
            newest: acked,
            wanted: 0,
            due: now.saturating_add(EVERY),
            retry: Duration::ZERO,
            failures: 0,
            closing: false,
            lost: false,
        }
    }

    /// The commit `seq` and all before it are durable. Whether the next step is another one now.
    pub(super) fn durable(&mut self, seq: u64, head: [u8; 32]) -> bool {
        if seq <= self.newest.seq {
            return false;
        }
        let (before, was_idle) = (self.behind(), self.newest == self.acked);
        (self.newest.seq, self.newest.head) = (seq, head);
        was_idle || (before < COMMITS_MAX && self.behind() >= COMMITS_MAX)
    }

    /// The volume is written under a newer master key from now on.
    pub(super) fn renew(&mut self, vmk_epoch: u32) {
        self.newest.vmk_epoch = self.newest.vmk_epoch.max(vmk_epoch);
    }

    /// Somebody waits until `seq` is anchored.
    pub(super) fn want(&mut self, seq: u64) {
        self.wanted = self.wanted.max(seq);
    }

    /// Nothing more will be durable: move the anchor a last time, and end.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.retry = Duration::ZERO;
        self.failures = 0;
    }

    /// The volume ends without being closed: the anchor stays where it is.
    pub(super) fn abandon(&mut self) {
        self.newest = self.acked;
        self.in_flight = None;
        self.in_doubt = false;
    }

    /// What the anchor may hold: to be sealed in every CHECKPOINT.
    pub(super) fn pairs(&self) -> impl Iterator<Item = Anchored> {
        [Some(self.acked), self.in_flight].into_iter().flatten()
    }

    pub(super) fn acked(&self) -> Anchored {
        self.acked
    }

    pub(super) fn newest(&self) -> Anchored {
        self.newest
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the anchor is known to hold a state that this mount never had.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// What to do now. A new pair counts as in flight from here on, before it is sent.
    pub(super) fn step(&mut self, now: Duration) -> Step {
        if self.lost || (self.closing && self.failures >= CLOSING_TRIES) {
            return if self.closing {
                Step::End
            } else {
                Step::Wait(None)
            };
        }
        if now < self.retry {
            return Step::Wait(Some(self.retry));
        }
        if self.in_doubt {
            return Step::Load;
        }
        let next = match self.in_flight {
            // The same pair again and no newer one: else what the anchor holds could be a pair that
            // no checkpoint carries.
            Some(pair) => pair,
            None if self.newest == self.acked => {
                return if self.closing {
                    Step::End
                } else {
                    Step::Wait(None)
                };
            }
            None if !self.is_due(now) => return Step::Wait(Some(self.due)),
            None => self.newest,
        };
        self.in_flight = Some(next);
        Step::Advance {
            prev: self.acked,
            next,
        }
    }

    /// How [`Step::Advance`] went.
    pub(super) fn advanced(&mut self, outcome: &Result<(), AdvanceError>, now: Duration) {
        match outcome {
            Ok(()) => self.acknowledge(now),
            Err(AdvanceError::Conflict) => self.in_doubt = true,
            Err(AdvanceError::Unknown(_)) => self.fail(now),
        }
    }

    /// How [`Step::Load`] went.
    pub(super) fn loaded(
        &mut self,
        outcome: &Result<Option<Anchored>, AnchorError>,
        now: Duration,
    ) {
        match outcome {
            Ok(Some(held)) if self.in_flight == Some(*held) => self.acknowledge(now),
            // It refused, and yet holds what it was expected to: it answered from an older state.
            Ok(Some(held)) if *held == self.acked => {
                self.in_doubt = false;
                self.fail(now);
            }
            Ok(_) => self.lost = true,
            Err(e) if e.is_final() => self.lost = true,
            Err(_) => self.fail(now),
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        let is_renewed = self.newest.vmk_epoch > self.acked.vmk_epoch;
        let is_wanted = self.closing || is_renewed || self.wanted > self.acked.seq;
        is_wanted || self.behind() >= COMMITS_MAX || now >= self.due
    }

    fn behind(&self) -> u64 {
        self.newest.seq.saturating_sub(self.acked.seq)
    }

    fn acknowledge(&mut self, now: Duration) {
        if let Some(taken) = self.in_flight.take() {
            self.acked = taken;
        }
        self.in_doubt = false;
        self.failures = 0;
        self.due = now.saturating_add(EVERY);
    }

    fn fail(&mut self, now: Duration) {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.retry = now.saturating_add(pause.min(RETRY_MAX));
    }
}
