//! Core: mounting with an anchor that fails, and keeping it on the keeper's own thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::super::testing::{FakeAnchor, Fate};
use super::super::{
    Anchor, AnchorKeeper, Anchored, Anchors, Found, FreshnessError, Rules, admit, anchor_mount,
};
use super::pair;

const PATIENCE: Duration = Duration::from_secs(20);

fn anchors(anchor: &Arc<FakeAnchor>, strict: bool) -> Anchors {
    Anchors {
        guest: None,
        anchor: Arc::clone(anchor) as Arc<dyn Anchor>,
        strict,
    }
}

fn anchored_at(held: Anchored) -> Arc<FakeAnchor> {
    let anchor = Arc::new(FakeAnchor::default());
    anchor.set(Some(held));
    anchor
}

/// Mounts a volume whose log goes from commit 1 to 5 and whose mount writes commit 6. `pause` is
/// called between tries.
fn mount(anchor: &Arc<FakeAnchor>, pause: &dyn Fn(u32)) -> Result<(), FreshnessError> {
    let met: BTreeSet<_> = (1..=5).map(|seq| (seq, pair(seq, 0).head)).collect();
    let found = Found {
        newest: (5, pair(5, 0).head),
        vmk_epoch: 0,
        anchored_once: true,
        met: &|seq, head| met.contains(&(seq, *head)),
        sealed: &[],
    };
    let (anchors, rules) = (anchors(anchor, false), Rules::default());
    let loaded = admit(&anchors, &found, &rules, pause)?;
    anchor_mount(&anchors, loaded, pair(6, 0), (&found, &rules), pause)
}

#[track_caller]
fn check(held: Option<Anchored>, loads_fail: usize, fates: &[Fate], want: Result<(), &str>) {
    let anchor = Arc::new(FakeAnchor::default());
    anchor.set(held);
    anchor.fail_loads(loads_fail);
    anchor.fates(fates);
    let got = mount(&anchor, &|_| {}).map_err(|e| e.code());
    assert_eq!(got, want, "{held:?} {loads_fail} {fates:?}");
    if want.is_ok() {
        assert_eq!(anchor.held(), Some(pair(6, 0)));
    }
}

#[test]
fn a_mount_is_served_only_once_the_anchor_has_taken_its_state() {
    use Fate::{Dropped, Unanswered};
    let held = Some(pair(4, 0));
    check(held, 0, &[], Ok(()));
    check(held, 4, &[], Ok(()));
    check(held, 5, &[], Err("fs.anchor_unavailable"));
    check(held, 0, &[Dropped; 4], Ok(()));
    check(held, 0, &[Dropped; 5], Err("fs.anchor_unavailable"));
    check(held, 0, &[Unanswered, Dropped], Ok(()));
    check(Some(pair(4, 1)), 0, &[], Err("fs.rolled_back"));
    check(Some(pair(7, 0)), 0, &[], Err("fs.rolled_back"));
    check(None, 0, &[], Err("fs.anchor_missing"));
}

#[test]
fn a_late_request_of_the_mount_before_is_no_conflict() {
    // It arrives after the anchor was read and before it is moved.
    let anchor = anchored_at(pair(2, 0));
    anchor.fates(&[Fate::Late]);
    anchor.advance(Some(&pair(2, 0)), &pair(5, 0)).unwrap_err();
    anchor.fates(&[Fate::Dropped]);
    mount(&anchor, &|_| anchor.deliver()).unwrap();
    assert_eq!(anchor.held(), Some(pair(6, 0)));
}

#[test]
fn an_anchor_that_moves_elsewhere_during_the_mount_refuses_it() {
    let anchor = anchored_at(pair(2, 0));
    anchor.fates(&[Fate::Dropped]);
    let refused = mount(&anchor, &|_| anchor.set(Some(pair(9, 1)))).unwrap_err();
    assert_eq!(refused.code(), "fs.rolled_back");
    assert_eq!(anchor.held(), Some(pair(9, 1)));
}

#[test]
fn a_strict_wait_returns_once_the_anchor_holds_the_commit() {
    let anchor = anchored_at(pair(1, 0));
    let keeper = AnchorKeeper::start(anchors(&anchor, true), pair(1, 0), || {}).unwrap();
    anchor.fates(&[Fate::Dropped, Fate::Unanswered]);
    keeper.durable(2, pair(2, 0).head);
    keeper.wait(2).unwrap();
    assert_eq!(anchor.held(), Some(pair(2, 0)));
    assert_eq!(keeper.pairs().to_vec(), [(2, pair(2, 0).head)]);
    keeper.durable(3, pair(3, 0).head);
    keeper.close().unwrap();
    assert_eq!(anchor.held(), Some(pair(3, 0)));
    // The first pair was sent until it was known to be taken, then the newest.
    let asked: Vec<u64> = anchor.asked().iter().map(|(_, next)| next.seq).collect();
    assert_eq!(asked, [2, 2, 2, 3]);
}

#[test]
fn without_strict_nobody_waits_and_a_dropped_keeper_leaves_the_anchor_as_it_is() {
    let anchor = anchored_at(pair(1, 0));
    let keeper = AnchorKeeper::start(anchors(&anchor, false), pair(1, 0), || {}).unwrap();
    keeper.durable(2, pair(2, 0).head);
    keeper.wait(2).unwrap();
    drop(keeper);
    assert_eq!(anchor.held(), Some(pair(1, 0)));
}

#[test]
fn a_conflict_while_mounted_ends_all_writing() {
    let anchor = anchored_at(pair(1, 0));
    let (tell, told) = mpsc::channel();
    let lost = move || tell.send(()).unwrap();
    let keeper = AnchorKeeper::start(anchors(&anchor, true), pair(1, 0), lost).unwrap();
    anchor.set(Some(pair(2, 1)));
    keeper.durable(2, pair(2, 0).head);
    keeper.wait(2).unwrap_err();
    told.recv_timeout(PATIENCE).unwrap();
    assert!(keeper.is_lost());
    keeper.close().unwrap_err();
    assert_eq!(anchor.held(), Some(pair(2, 1)), "it is left alone");
}

#[test]
fn nothing_is_sent_while_a_checkpoint_is_sealed() {
    let anchor = anchored_at(pair(1, 0));
    let keeper = AnchorKeeper::start(anchors(&anchor, true), pair(1, 0), || {}).unwrap();
    keeper.durable(2, pair(2, 0).head);
    std::thread::scope(|scope| {
        let pairs = keeper.pairs();
        let waiting = scope.spawn(|| keeper.wait(2));
        assert_eq!(pairs.to_vec(), [(1, pair(1, 0).head)]);
        assert_eq!(anchor.asked(), []);
        drop(pairs);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(anchor.held(), Some(pair(2, 0)));
}
