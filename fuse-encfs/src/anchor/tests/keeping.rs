//! Core: when the anchor is moved, step by step and without a clock.

use std::io;
use std::time::Duration;

use super::super::keeping::{Keeping, Step};
use super::super::{AdvanceError, AnchorError, Anchored};
use super::pair;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn keeping() -> Keeping {
    Keeping::new(pair(1, 0), at(0))
}

fn durable(keeping: &mut Keeping, seq: u64) -> bool {
    keeping.durable(seq, pair(seq, 0).head)
}

fn advance(prev: u64, next: u64) -> Step {
    Step::Advance {
        prev: pair(prev, 0),
        next: pair(next, 0),
    }
}

fn unknown() -> Result<(), AdvanceError> {
    Err(AdvanceError::unknown(io::Error::other("timed out")))
}

fn unreachable() -> Result<Option<Anchored>, AnchorError> {
    Err(AnchorError::unavailable(io::Error::other("down")))
}

fn sealed(keeping: &Keeping) -> Vec<u64> {
    keeping.pairs().map(|pair| pair.seq).collect()
}

#[test]
fn the_anchor_moves_after_ten_seconds_or_a_thousand_commits() {
    let mut k = keeping();
    assert_eq!(k.step(at(60_000)), Step::Wait(None), "nothing is new");
    let mut k = keeping();
    assert!(durable(&mut k, 2), "the keeper waits for it");
    assert!(!durable(&mut k, 3));
    assert_eq!(k.step(at(9_999)), Step::Wait(Some(at(10_000))));
    assert_eq!(k.step(at(10_000)), advance(1, 3));
    k.advanced(&Ok(()), at(10_500));
    assert!(durable(&mut k, 1_002));
    assert_eq!(k.step(at(10_500)), Step::Wait(Some(at(20_500))));
    assert!(durable(&mut k, 1_003), "the thousandth");
    assert_eq!(k.step(at(10_500)), advance(3, 1_003));
    // What was overtaken is nothing new.
    assert!(!durable(&mut k, 1_000));
    k.advanced(&Ok(()), at(10_600));
    assert_eq!(k.step(at(90_000)), Step::Wait(None));
}

#[test]
fn who_waits_moves_the_anchor_at_once_and_to_the_newest() {
    let mut k = keeping();
    durable(&mut k, 2);
    durable(&mut k, 5);
    k.want(2);
    assert_eq!(k.step(at(0)), advance(1, 5));
    k.advanced(&Ok(()), at(1));
    k.want(4);
    assert_eq!(k.step(at(2)), Step::Wait(None));
}

#[test]
fn an_unknown_outcome_is_repeated_with_the_same_pair_until_it_is_known() {
    let mut k = keeping();
    durable(&mut k, 2);
    let mut now = at(10_000);
    let mut pauses = Vec::new();
    for seq in 3..13 {
        assert_eq!(k.step(now), advance(1, 2), "never a newer one");
        assert_eq!(sealed(&k), [1, 2], "registered before it is sent");
        k.advanced(&unknown(), now);
        durable(&mut k, seq);
        let Step::Wait(Some(until)) = k.step(now) else {
            panic!("no pause")
        };
        pauses.push((until - now).as_millis());
        now = until;
    }
    assert_eq!(
        pauses,
        [
            100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000
        ]
    );
    // It had been taken: compare and swap refuses, and what is held is the pair itself.
    assert_eq!(k.step(now), advance(1, 2));
    k.advanced(&Err(AdvanceError::Conflict), now);
    assert_eq!(k.step(now), Step::Load);
    k.loaded(&Ok(Some(pair(2, 0))), now);
    assert_eq!(sealed(&k), [2]);
    assert_eq!(k.step(now + at(10_000)), advance(2, 12));
}

#[track_caller]
fn check_conflict(held: &Result<Option<Anchored>, AnchorError>, lost: bool, then: Step) {
    let mut k = keeping();
    durable(&mut k, 2);
    k.want(2);
    assert_eq!(k.step(at(0)), advance(1, 2));
    k.advanced(&Err(AdvanceError::Conflict), at(0));
    assert_eq!(k.step(at(0)), Step::Load);
    k.loaded(held, at(0));
    assert_eq!(k.is_lost(), lost, "{held:?}");
    assert_eq!(k.step(at(200)), then, "{held:?}");
}

#[test]
fn after_a_conflict_only_a_registered_pair_is_ours() {
    let idle = Step::Wait(None);
    check_conflict(&Ok(Some(pair(2, 0))), false, idle);
    check_conflict(&Ok(Some(pair(1, 0))), false, advance(1, 2));
    check_conflict(&Ok(Some(pair(2, 1))), true, idle);
    check_conflict(&Ok(Some(pair(3, 0))), true, idle);
    check_conflict(&Ok(None), true, idle);
    check_conflict(&unreachable(), false, Step::Load);
    check_conflict(&Err(AnchorError::Damaged), true, idle);
}

#[test]
fn a_closing_volume_moves_the_anchor_once_more_and_gives_up_in_the_end() {
    let mut k = keeping();
    k.close();
    assert_eq!(k.step(at(0)), Step::End, "nothing is new");

    let mut k = keeping();
    durable(&mut k, 2);
    k.close();
    assert_eq!(k.step(at(0)), advance(1, 2));
    k.advanced(&Ok(()), at(1));
    assert_eq!(k.step(at(1)), Step::End);

    let mut k = keeping();
    durable(&mut k, 2);
    k.close();
    for now in [at(0), at(1_000), at(2_000)] {
        assert_eq!(k.step(now), advance(1, 2));
        k.advanced(&unknown(), now);
    }
    assert_eq!(k.step(at(2_000)), Step::End);
    assert_eq!((k.acked().seq, k.newest().seq), (1, 2));
}

#[test]
fn a_newer_master_key_is_anchored_at_once() {
    let mut k = keeping();
    k.renew(1);
    let Step::Advance { prev, next } = k.step(at(0)) else {
        panic!("it waits")
    };
    assert_eq!((prev.vmk_epoch, next.vmk_epoch), (0, 1));
    assert_eq!((prev.seq, next.seq), (1, 1));
}
