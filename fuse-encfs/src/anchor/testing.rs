//! Adapter: an anchor in memory for tests, which records what it is asked and fails as it is told.

use std::collections::VecDeque;
use std::io;

use runtime::sync::Mutex;

use super::{AdvanceError, Anchor, AnchorError, Anchored};

/// How one request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It works.
    Works,
    /// It is not done, and nobody says so.
    Dropped,
    /// It is done, and the answer is lost.
    Unanswered,
    /// It is on its way until [`FakeAnchor::deliver`].
    Late,
}

/// Remembers in memory.
#[derive(Debug, Default)]
pub(crate) struct FakeAnchor {
    state: Mutex<State>,
    pub(crate) lasting: bool,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Anchored>,
    fates: VecDeque<Fate>,
    late: Vec<(Option<Anchored>, Anchored)>,
    asked: Vec<(Option<Anchored>, Anchored)>,
    loads_fail: usize,
}

impl FakeAnchor {
    /// How the next requests go; the ones after them work.
    pub(crate) fn fates(&self, fates: &[Fate]) {
        self.state.lock().fates = fates.iter().copied().collect();
    }

    /// The next `count` loads fail.
    pub(crate) fn fail_loads(&self, count: usize) {
        self.state.lock().loads_fail = count;
    }

    /// The requests that were on their way arrive, in order.
    pub(crate) fn deliver(&self) {
        let mut state = self.state.lock();
        for (prev, next) in std::mem::take(&mut state.late) {
            if state.held == prev {
                state.held = Some(next);
            }
        }
    }

    /// Somebody else, or nobody, set it to this.
    pub(crate) fn set(&self, held: Option<Anchored>) {
        self.state.lock().held = held;
    }

    pub(crate) fn held(&self) -> Option<Anchored> {
        self.state.lock().held
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<(Option<Anchored>, Anchored)> {
        self.state.lock().asked.clone()
    }
}

impl Anchor for FakeAnchor {
    fn load(&self) -> Result<Option<Anchored>, AnchorError> {
        let mut state = self.state.lock();
        if state.loads_fail > 0 {
            state.loads_fail -= 1;
            return Err(AnchorError::unavailable(io::Error::other("down")));
        }
        Ok(state.held)
    }

    fn advance(&self, prev: Option<&Anchored>, next: &Anchored) -> Result<(), AdvanceError> {
        let mut state = self.state.lock();
        state.asked.push((prev.copied(), *next));
        let fate = state.fates.pop_front().unwrap_or(Fate::Works);
        if fate == Fate::Late {
            state.late.push((prev.copied(), *next));
        }
        let done = matches!(fate, Fate::Unanswered | Fate::Works);
        let fits = state.held.as_ref() == prev;
        if done && fits {
            state.held = Some(*next);
        }
        match fate {
            Fate::Works if fits => Ok(()),
            Fate::Works => Err(AdvanceError::Conflict),
            Fate::Dropped | Fate::Late | Fate::Unanswered => {
                Err(AdvanceError::unknown(io::Error::other("timed out")))
            }
        }
    }

    fn is_lasting(&self) -> bool {
        self.lasting
    }

    fn kind(&self) -> &'static str {
        "fake"
    }
}
