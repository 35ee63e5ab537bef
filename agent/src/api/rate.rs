//! Core: a token bucket, so that a caller cannot keep the secure processor busy.

use std::time::{Duration, Instant};

use runtime::sync::Mutex;

/// Admits bursts of `burst` and one more each `refill`.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    refill: Duration,
    state: Mutex<(u32, Instant)>,
}

/// The caller has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl RateLimit {
    /// A full bucket.
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            state: Mutex::new((burst, Instant::now())),
        }
    }

    /// Takes one token at the moment `now`.
    pub fn admit(&self, now: Instant) -> Result<(), TooMany> {
        let mut state = self.state.lock();
        let (tokens, since) = *state;
        let elapsed = now.saturating_duration_since(since);
        let refilled = elapsed.as_nanos() / self.refill.as_nanos().max(1);
        let refilled = u32::try_from(refilled).unwrap_or(u32::MAX);
        let full = refilled >= self.burst - tokens.min(self.burst);
        let since = if full {
            now
        } else {
            since + self.refill * refilled
        };
        let tokens = tokens.saturating_add(refilled).min(self.burst);
        let left = tokens.checked_sub(1).ok_or(TooMany);
        *state = (*left.as_ref().unwrap_or(&0), since);
        left.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let start = Instant::now();
        let limit = RateLimit::new(2, Duration::from_secs(1));
        let admitted = |after_ms: u64| limit.admit(start + Duration::from_millis(after_ms)).is_ok();
        assert_eq!([0, 1, 2].map(admitted), [true, true, false]);
        assert_eq!([1_100, 1_200].map(admitted), [true, false]);
        assert_eq!([9_000, 9_001, 9_002].map(admitted), [true, true, false]);
    }
}
