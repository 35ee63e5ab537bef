//! Core: what a test tells an emulator to do wrong, and for how long.

use std::collections::VecDeque;

use runtime::sync::Mutex;

/// A failure of the service as a whole, before it looks at the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Closes the connection without an answer.
    CloseConnection,
    /// Takes the request and never answers.
    Hang,
    /// Answers with this status and a `Retry-After` of so many seconds.
    RetryAfter {
        /// HTTP status.
        status: u16,
        /// Value of the header.
        seconds: u32,
    },
    /// Answers with this status.
    Status(u16),
}

/// Steps that are taken one a request; then all is well again.
#[derive(Debug)]
pub(super) struct Script<T>(Mutex<VecDeque<(u32, T)>>);

impl<T: Copy> Script<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// After what is planned already: `count` requests with `step`.
    pub(super) fn append(&self, count: u32, step: T) {
        if count > 0 {
            self.0.lock().push_back((count, step));
        }
    }

    /// Forgets what is planned.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// The step for the request at hand.
    pub(super) fn next(&self) -> Option<T> {
        let mut steps = self.0.lock();
        let (count, step) = steps.front_mut()?;
        let step = *step;
        *count -= 1;
        if *count == 0 {
            steps.pop_front();
        }
        Some(step)
    }
}
