//! Port: the time of day, so that tests can move it.

use std::fmt::Debug;
use std::time::Duration;
#[expect(
    clippy::disallowed_types,
    reason = "this is the one file that reads the system's clock"
)]
use std::time::SystemTime;

use crate::sync::Mutex;

/// Seconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// The moment `duration` later, in whole seconds; the end of time when that overflows.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add_unsigned(duration.as_secs()))
    }

    /// The moment `duration` earlier, in whole seconds.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub_unsigned(duration.as_secs()))
    }
}

/// A source of the time of day.
///
/// The guest's clock is set by the host, who is an adversary: whoever decides by it says in his
/// documentation what a wrong clock can do.
pub trait Clock: Debug + Send + Sync {
    /// The time of day now.
    fn now(&self) -> UnixTime;
}

/// Adapter: the clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// A clock that stands still until it is moved: for tests.
#[derive(Debug)]
pub struct ManualClock(Mutex<UnixTime>);

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_types,
        reason = "this is the one file that reads the clock"
    )]
    fn now(&self) -> UnixTime {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock before 1970 is wrong in any case; zero makes every certificate not yet valid.
        UnixTime(since_epoch.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)))
    }
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: UnixTime) -> Self {
        Self(Mutex::new(now))
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock();
        *now = now.plus(by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixTime {
        *self.0.lock()
    }
}
