//! Core: when a failed request is worth another try, and how long to wait before it.

use std::time::Duration;

/// First pause, doubled with each further try.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// No pause is shorter than this: a server that says "now" must not be asked in a tight loop.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// No pause is longer than this, whatever a server asks for.
const BACKOFF_MAX: Duration = Duration::from_secs(16);

/// What to do after a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The answer will not change.
    Never,
    /// The failure may pass; the server did not say when.
    Backoff,
    /// The server asked for this pause.
    After(Duration),
}

impl Retry {
    /// By HTTP status: 408, 429 and the 5xx may pass. `retry_after` is the header's text.
    pub fn from_status(status: u16, retry_after: Option<&str>) -> Self {
        match status {
            408 | 429 | 500..=599 => match retry_after.and_then(|text| text.trim().parse().ok()) {
                Some(seconds) => Self::After(Duration::from_secs(seconds)),
                None => Self::Backoff,
            },
            _ => Self::Never,
        }
    }
}

/// The time that all tries of one request may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// All tries and the pauses between them.
    pub total: Duration,
    /// One try, from the connection to the last byte of the answer.
    pub per_try: Duration,
}

impl RetryBudget {
    /// The pause before the next try, or `None` when there is none: the failure is final, or the
    /// pause would overrun the budget. `failed_tries` counts from 1; `jitter` is a random byte.
    pub fn pause(
        &self,
        retry: Retry,
        failed_tries: u32,
        spent: Duration,
        jitter: u8,
    ) -> Option<Duration> {
        let pause = match retry {
            Retry::Never => return None,
            Retry::After(asked) => asked.min(BACKOFF_MAX),
            // Full jitter: pods that failed together must not come back together.
            Retry::Backoff => {
                let doublings = failed_tries.saturating_sub(1).min(16);
                let ceiling = BACKOFF_FIRST
                    .saturating_mul(1 << doublings)
                    .min(BACKOFF_MAX);
                ceiling.mul_f64(f64::from(jitter) / 255.0)
            }
        };
        let pause = pause.max(PAUSE_MIN);
        (spent.saturating_add(pause) < self.total).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_status(status: u16, header: Option<&str>, want: Retry) {
        assert_eq!(
            Retry::from_status(status, header),
            want,
            "{status} {header:?}"
        );
    }

    #[test]
    fn only_passing_failures_are_retried() {
        check_status(400, None, Retry::Never);
        check_status(401, Some("1"), Retry::Never);
        check_status(403, None, Retry::Never);
        check_status(408, None, Retry::Backoff);
        check_status(429, Some("7"), Retry::After(Duration::from_secs(7)));
        check_status(429, Some("Wed, 21 Oct 2015 07:28:00 GMT"), Retry::Backoff);
        check_status(503, Some(" 0 "), Retry::After(Duration::ZERO));
    }

    #[track_caller]
    fn check_pause(retry: Retry, tries: u32, spent_ms: u64, jitter: u8, want_ms: Option<u64>) {
        let budget = RetryBudget {
            total: Duration::from_secs(20),
            per_try: Duration::from_secs(5),
        };
        let got = budget.pause(retry, tries, Duration::from_millis(spent_ms), jitter);
        assert_eq!(got, want_ms.map(Duration::from_millis));
    }

    #[test]
    fn pauses_double_up_to_a_ceiling_and_stay_within_the_budget() {
        check_pause(Retry::Never, 1, 0, 255, None);
        check_pause(Retry::Backoff, 1, 0, 255, Some(200));
        check_pause(Retry::Backoff, 3, 0, 255, Some(800));
        check_pause(Retry::Backoff, 3, 0, 0, Some(50));
        check_pause(Retry::After(Duration::ZERO), 1, 0, 0, Some(50));
        check_pause(Retry::Backoff, 40, 0, 255, Some(16_000));
        check_pause(Retry::Backoff, 40, 5_000, 255, None);
        check_pause(
            Retry::After(Duration::from_secs(3)),
            1,
            16_999,
            0,
            Some(3_000),
        );
        check_pause(Retry::After(Duration::from_secs(3)), 1, 17_000, 0, None);
    }
}
