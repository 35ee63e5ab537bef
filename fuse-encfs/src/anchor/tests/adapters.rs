//! Adapter: every anchor behaves alike; what is particular to files and to the guest.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use ::keys::VolumeId;
use proptest::prelude::*;

use super::super::file::FileAnchor;
use super::super::guest::GuestAnchor;
use super::super::record::{Coder, FILE_LEN, Record, RecordKind};
use super::super::testing::FakeAnchor;
use super::super::{AdvanceError, Anchor, AnchorError, Anchored, guest_anchor_path};
use super::{epoch_keys, keys, keys_of, pair};
use crate::crypto::VolumeKeys;
use crate::testing::ID;

/// A directory on a tmpfs.
fn volatile() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn file(path: &Path) -> FileAnchor {
    FileAnchor::open(path, keys(), false).unwrap()
}

fn guest(path: &Path) -> GuestAnchor {
    GuestAnchor::open(path, keys()).unwrap()
}

fn is_conflict(done: &Result<(), AdvanceError>) -> bool {
    matches!(done, Err(AdvanceError::Conflict))
}

/// What every anchor does. `anew` opens it as another process would.
fn check(anew: &dyn Fn() -> Arc<dyn Anchor>) {
    let anchor = anew();
    assert_eq!(anchor.load().unwrap(), None);
    assert!(is_conflict(&anchor.advance(Some(&pair(1, 0)), &pair(2, 0))));
    anchor.advance(None, &pair(1, 0)).unwrap();
    assert_eq!(anew().load().unwrap(), Some(pair(1, 0)));
    assert!(is_conflict(&anew().advance(None, &pair(2, 0))));
    assert!(is_conflict(&anchor.advance(Some(&pair(1, 1)), &pair(2, 0))));
    assert_eq!(anchor.load().unwrap(), Some(pair(1, 0)));
    anchor.advance(Some(&pair(1, 0)), &pair(9, 0)).unwrap();
    assert!(is_conflict(&anchor.advance(Some(&pair(1, 0)), &pair(9, 0))));
    // An accepted older state, and a newer master key.
    let renewed = Anchored {
        vmk_epoch: 0,
        ..pair(3, 1)
    };
    anew().advance(Some(&pair(9, 0)), &renewed).unwrap();
    anchor.advance(Some(&renewed), &pair(4, 1)).unwrap();
    assert_eq!(anew().load().unwrap(), Some(pair(4, 1)));
}

#[test]
fn every_anchor_compares_and_swaps() {
    let dir = volatile();
    let path = dir.path().join("a");
    check(&|| Arc::new(file(&path)));
    let fake = Arc::new(FakeAnchor::default());
    check(&|| Arc::clone(&fake) as Arc<dyn Anchor>);
}

#[test]
fn a_file_is_an_anchor_only_on_a_tmpfs_or_where_somebody_vouches_for_it() {
    let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = disk.path().join("a");
    let refused = FileAnchor::open(&path, keys(), false).unwrap_err();
    assert_eq!(refused.code(), "fs.anchor_not_volatile");
    let vouched = FileAnchor::open(&path, keys(), true).unwrap();
    assert!(vouched.is_lasting());
    let dir = volatile();
    assert!(!file(&dir.path().join("a")).is_lasting());
    let refused = GuestAnchor::open(&path, keys()).unwrap_err();
    assert_eq!(refused.code(), "fs.anchor_not_volatile");
}

#[test]
fn a_file_is_private_and_no_link_is_followed_to_it() {
    let dir = volatile();
    let path = dir.path().join("a");
    file(&path).advance(None, &pair(1, 0)).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let link = dir.path().join("b");
    symlink(&path, &link).unwrap();
    let refused = file(&link).load().unwrap_err();
    assert_eq!(refused.code(), "fs.anchor_unavailable");
}

#[track_caller]
fn check_bytes(change: impl Fn(&mut Vec<u8>), want: Result<u64, &str>) {
    let dir = volatile();
    let path = dir.path().join("a");
    let anchor = file(&path);
    anchor.advance(None, &pair(1, 0)).unwrap();
    anchor.advance(Some(&pair(1, 0)), &pair(2, 0)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), FILE_LEN);
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let got = anchor.load();
    let got = got
        .as_ref()
        .map(|held| held.unwrap().seq)
        .map_err(AnchorError::code);
    assert_eq!(got, want);
}

#[test]
fn a_record_that_is_not_authentic_does_not_count() {
    check_bytes(|_| {}, Ok(2));
    // Commit 2 is in the second slot. A write of it that was cut short leaves the first.
    for at in [4096, 4104, 4128, 4136, 4172, 4176, 4207, 4208, 8191] {
        check_bytes(|bytes| bytes[at] ^= 1, Ok(1));
    }
    check_bytes(|bytes| bytes[4150..4208].fill(0), Ok(1));
    check_bytes(|bytes| bytes[4096..].fill(0), Ok(1));
    check_bytes(|bytes| bytes[..4096].fill(0), Ok(2));
    for broken in [
        |bytes: &mut Vec<u8>| bytes.iter_mut().for_each(|byte| *byte ^= 1),
        |bytes: &mut Vec<u8>| bytes.fill(0),
        |bytes: &mut Vec<u8>| bytes.truncate(FILE_LEN - 1),
        |bytes: &mut Vec<u8>| bytes.clear(),
        |bytes: &mut Vec<u8>| bytes.push(0),
        // A slot in the other's place.
        |bytes: &mut Vec<u8>| bytes.rotate_left(4096),
    ] {
        check_bytes(broken, Err("fs.anchor_damaged"));
    }
    check_bytes(|bytes| bytes[4112] ^= 1, Err("fs.anchor_other_volume"));
    // It claims a newer master key than the volume's.
    check_bytes(|bytes| bytes[4168] ^= 1, Err("fs.stale_keys"));
}

proptest! {
    #[test]
    fn whatever_a_file_holds_it_is_a_pair_that_was_written_or_an_error(
        edits in prop::collection::vec((0..FILE_LEN, any::<u8>()), 0..12),
        copy in prop::option::of((0..FILE_LEN, 0..FILE_LEN, 0..256_usize)),
        len in prop::option::of(0..FILE_LEN + 2),
    ) {
        let coder = Coder::new(keys(), RecordKind::File);
        let [a, b] = [(6, 1), (7, 2)].map(|(counter, seq)| {
            let anchored = pair(seq, 0);
            coder.file(&Record { counter, anchored }).unwrap()
        });
        let mut file: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a | b).collect();
        if let Some((from, to, len)) = copy {
            let len = len.min(FILE_LEN - from.max(to));
            file.copy_within(from..from + len, to);
        }
        for (at, byte) in edits {
            file[at] = byte;
        }
        file.resize(len.unwrap_or(FILE_LEN), 0);
        if let Ok(Some(record)) = coder.newest(&file) {
            let written = [(6, pair(1, 0)), (7, pair(2, 0))];
            prop_assert!(written.contains(&(record.counter, record.anchored)));
        }
    }
}

#[test]
fn a_record_of_another_volume_kind_or_key_is_an_error_and_not_nothing() {
    let dir = volatile();
    let path = dir.path().join("a");
    file(&path).advance(None, &pair(1, 0)).unwrap();
    let open = |keys: Arc<VolumeKeys>| FileAnchor::open(&path, keys, false).unwrap();

    let other = open(keys_of(VolumeId([1; 16]), 0x17));
    let refused = other.load().unwrap_err();
    assert!(matches!(refused, AnchorError::OtherVolume { found } if found == ID));
    let wrong_key = open(keys_of(ID, 0x18));
    assert_eq!(wrong_key.load().unwrap_err().code(), "fs.anchor_damaged");
    assert!(is_conflict(&wrong_key.advance(None, &pair(2, 0))));
    let as_guest = GuestAnchor::open(&path, keys()).unwrap_err();
    assert_eq!(as_guest.code(), "fs.anchor_damaged");
}

#[test]
fn an_older_superblock_does_not_make_the_older_of_two_records_count() {
    let dir = volatile();
    let path = dir.path().join("a");
    let keys = keys();
    let anchor = FileAnchor::open(&path, Arc::clone(&keys), false).unwrap();
    anchor.advance(None, &pair(1, 0)).unwrap();
    let renewed = Anchored {
        vmk_epoch: 1,
        ..pair(2, 0)
    };
    let unknown = anchor.advance(Some(&pair(1, 0)), &renewed).unwrap_err();
    assert!(matches!(unknown, AdvanceError::Unknown(_)), "no key yet");
    keys.adopt(&keys.with_newer(epoch_keys(ID, 1, 9)));
    anchor.advance(Some(&pair(1, 0)), &renewed).unwrap();
    keys.forget_older();
    assert_eq!(anchor.load().unwrap(), Some(renewed));
    // The first record would open under the keys of the superblock before.
    assert_eq!(file(&path).load().unwrap_err().code(), "fs.stale_keys");
}

#[test]
fn the_guest_remembers_over_restarts_of_the_daemon_and_never_goes_back_within_one() {
    let dir = volatile();
    let path = dir.path().join("made/too/a");
    let first = guest(&path);
    assert_eq!(first.last(), None);
    for seq in [5, 6, 4, 6, 9, 8] {
        first.record(pair(seq, 0));
    }
    assert_eq!(first.last(), Some(pair(9, 0)));
    drop(first);
    let second = guest(&path);
    assert_eq!(second.last(), Some(pair(9, 0)));
    // The first head of a mount counts, also that of an older state which was accepted.
    second.record(pair(7, 1));
    assert_eq!(guest(&path).last(), Some(pair(7, 1)));
}

#[test]
fn a_start_that_was_cut_short_left_nothing_and_a_damaged_memory_is_an_error() {
    let dir = volatile();
    let path = dir.path().join("a");
    fs::write(&path, [0; 100]).unwrap();
    let anchor = guest(&path);
    assert_eq!(anchor.last(), None);
    anchor.record(pair(1, 0));
    let raw = OpenOptions::new().write(true).open(&path).unwrap();
    raw.write_all_at(&[1], 50).unwrap();
    let refused = GuestAnchor::open(&path, keys()).unwrap_err();
    assert_eq!(refused.code(), "fs.anchor_damaged");
}

#[test]
fn a_store_has_one_memory_however_its_path_is_written_out_but_links_are_not_followed() {
    let path = |store: &str| guest_anchor_path(Path::new("/run/x"), ID, Path::new(store)).unwrap();
    assert_eq!(path("/srv/store"), path("/srv//store/"));
    assert_ne!(path("/srv/store"), path("/srv/copy"));
    let name = path("/srv/store");
    let name = name.file_name().unwrap().to_str().unwrap();
    assert!(
        name.starts_with(&ID.to_string()) && name.ends_with(".anchor"),
        "{name}"
    );
}
