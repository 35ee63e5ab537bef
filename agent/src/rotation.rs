//! Core: renews the leaf at half of its life.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::identity::PodIdentity;
use crate::pki::Leaf;
use crate::telemetry::Chain;

/// Jitter around half life, in percent of it: replicas that started together drift apart.
const JITTER_PERCENT: u32 = 10;
/// The wall clock is looked at this often: a paused VM wakes up with an old leaf and a timer that
/// did not run.
const RECHECK: Duration = Duration::from_secs(30);
/// First pause after a failed renewal, doubled up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Renews leaves until dropped. Safe to drop at any point: issuing is synchronous.
pub async fn run(identity: Arc<PodIdentity>, now: impl Fn() -> i64) {
    let mut recheck = tokio::time::interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry: Option<(Instant, Duration)> = None;
    loop {
        let leaf = identity.leaf();
        let due_in = renewal_due_in(&leaf, now(), identity.lifetime(), jitter());
        let due = match retry {
            Some((at, _)) => at,
            None => Instant::now() + due_in,
        };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            _ = recheck.tick() => {
                let half_gone = renewal_due_in(&leaf, now(), identity.lifetime(), 0);
                if !half_gone.is_zero() || retry.is_some() {
                    continue;
                }
            }
        }
        // Someone may have rotated on demand in the meantime.
        if identity.leaf().not_after != leaf.not_after {
            continue;
        }
        retry = match identity.rotate() {
            Ok(view) => {
                tracing::info!(
                    serial = view.serial,
                    not_after = view.not_after,
                    "leaf renewed"
                );
                None
            }
            Err(error) => {
                let pause = retry.map_or(RETRY_FIRST, |(_, last)| (last * 2).min(RETRY_MAX));
                tracing::warn!(error_code = error.code(), error = %Chain(&error), "not renewed");
                Some((Instant::now() + pause, pause))
            }
        };
    }
}

/// Time until `leaf` is due: half of its life before its end, moved by `jitter_percent` of that
/// half. At once when it is not valid yet: the clock was ahead when it was issued.
fn renewal_due_in(leaf: &Leaf, now: i64, lifetime: Duration, jitter_percent: i32) -> Duration {
    if now < leaf.not_before.0 {
        return Duration::ZERO;
    }
    let half = i64::try_from(lifetime.as_secs() / 2).unwrap_or(i64::MAX);
    let jitter = half / 100 * i64::from(jitter_percent);
    let due = leaf.not_after.0.saturating_sub(half).saturating_add(jitter);
    Duration::from_secs(u64::try_from(due.saturating_sub(now)).unwrap_or(0))
}

/// A random number from -10 to 10.
fn jitter() -> i32 {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter, which is safe.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    let span = JITTER_PERCENT * 2 + 1;
    let number = u32::from_be_bytes(bytes) % span;
    i32::try_from(number).unwrap_or(0) - i32::try_from(JITTER_PERCENT).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use runtime::clock::UnixTime;

    use super::*;

    #[track_caller]
    fn check(now: i64, jitter_percent: i32, want_s: u64) {
        let leaf = Leaf {
            certificate_pem: Vec::new(),
            private_key_pem: zeroize::Zeroizing::default(),
            spki_der: Vec::new(),
            serial_hex: String::new(),
            not_before: UnixTime(9_700),
            not_after: UnixTime(13_600),
        };
        let got = renewal_due_in(&leaf, now, Duration::from_secs(3_600), jitter_percent);
        assert_eq!(got.as_secs(), want_s);
    }

    #[test]
    fn a_leaf_is_due_at_half_of_its_life_or_when_it_is_not_valid_yet() {
        check(10_000, 0, 1_800);
        check(10_000, 10, 1_980);
        check(10_000, -10, 1_620);
        check(11_800, 0, 0);
        check(99_999, 10, 0);
        check(9_700, 0, 2_100);
        check(9_699, 0, 0);
    }
}
