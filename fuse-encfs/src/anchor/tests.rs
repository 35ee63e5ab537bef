//! Core: anchors as a mount meets them.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::keys::{VolumeId, VolumeMasterKey};

use super::judge::{Acceptance, judge};
use super::{Anchored, Found, Refusal, Rules};
use crate::crypto::{EpochKeys, VolumeKeys};
use crate::format::NameKey;
use crate::testing::{ID, aead};

mod adapters;
mod keeping;
mod running;
mod simulation;

/// The pair of commit `seq` in the history named `branch`.
fn pair(seq: u64, branch: u8) -> Anchored {
    let mut head = [branch; 32];
    head[..8].copy_from_slice(&seq.to_le_bytes());
    Anchored {
        seq,
        head,
        vmk_epoch: 0,
    }
}

/// The master key of an epoch, each with bytes of its own.
fn epoch_keys(volume: VolumeId, epoch: u32, byte: u8) -> EpochKeys {
    let vmk = VolumeMasterKey::take_from(&mut [byte; 32]).unwrap();
    EpochKeys::new(&vmk, epoch, volume).unwrap()
}

fn keys_of(volume: VolumeId, byte: u8) -> Arc<VolumeKeys> {
    let newest = epoch_keys(volume, 0, byte);
    Arc::new(VolumeKeys::new(aead(), newest, None, NameKey([0; 16])))
}

fn keys() -> Arc<VolumeKeys> {
    keys_of(ID, 0x17)
}

/// A store whose starting checkpoint was taken at commit 10 and sealed the pair of commit 4, and
/// whose log goes to commit 12.
#[track_caller]
fn check(
    anchored: Option<Anchored>,
    (once, vmk_epoch): (bool, u32),
    rules: Rules,
    want: Result<Acceptance, &str>,
) {
    let met: BTreeSet<_> = (10..=12).map(|seq| (seq, pair(seq, 0).head)).collect();
    let found = Found {
        newest: (12, pair(12, 0).head),
        vmk_epoch,
        anchored_once: once,
        met: &|seq, head| met.contains(&(seq, *head)),
        sealed: &[(4, pair(4, 0).head)],
    };
    let got = judge(anchored.as_ref(), &found, &rules).map_err(|e: Refusal| e.code());
    assert_eq!(got, want, "{anchored:?} {rules:?}");
}

#[test]
fn a_state_is_accepted_only_if_it_went_through_the_anchored_head() {
    let plain = Rules::default();
    let all = (true, 0);
    check(Some(pair(12, 0)), all, plain, Ok(Acceptance::Met));
    check(Some(pair(11, 0)), all, plain, Ok(Acceptance::Met));
    check(Some(pair(10, 0)), all, plain, Ok(Acceptance::Met));
    check(Some(pair(4, 0)), all, plain, Ok(Acceptance::Sealed));
    // Older than the checkpoint and not sealed by it; the store was set back; forks, one of them
    // shorter than this history.
    check(Some(pair(5, 0)), all, plain, Err("fs.rolled_back"));
    check(Some(pair(13, 0)), all, plain, Err("fs.rolled_back"));
    check(Some(pair(11, 1)), all, plain, Err("fs.rolled_back"));
    check(Some(pair(4, 1)), all, plain, Err("fs.rolled_back"));
    // The right head under another number is another history too.
    let mut moved = pair(11, 0);
    moved.seq = 12;
    check(Some(moved), all, plain, Err("fs.rolled_back"));
}

#[test]
fn an_anchor_that_remembers_nothing_is_refused_once_there_was_one() {
    let plain = Rules::default();
    check(None, (false, 0), plain, Ok(Acceptance::New));
    check(None, (true, 0), plain, Err("fs.anchor_missing"));
}

#[test]
fn the_configuration_accepts_the_very_head_that_it_names() {
    let name = |seq, branch| Rules {
        accept_head: Some(pair(seq, branch).head),
        ..Rules::default()
    };
    let (fork, overridden) = (Some(pair(20, 1)), Ok(Acceptance::Overridden));
    check(fork, (true, 0), name(12, 0), overridden);
    check(None, (true, 0), name(12, 0), overridden);
    // Any other state of the same history is not the one that was named.
    check(fork, (true, 0), name(11, 0), Err("fs.rolled_back"));
    check(None, (true, 0), name(13, 0), Err("fs.anchor_missing"));
}

#[test]
fn a_master_key_older_than_the_anchored_or_configured_one_is_refused_without_override() {
    let mut renewed = pair(12, 0);
    renewed.vmk_epoch = 2;
    let least = |vmk_epoch_min| Rules {
        vmk_epoch_min,
        accept_head: Some(pair(12, 0).head),
    };
    check(Some(renewed), (true, 2), least(0), Ok(Acceptance::Met));
    check(Some(renewed), (true, 1), least(0), Err("fs.stale_keys"));
    check(None, (false, 1), least(2), Err("fs.stale_keys"));
    check(None, (false, 2), least(2), Ok(Acceptance::New));
}
