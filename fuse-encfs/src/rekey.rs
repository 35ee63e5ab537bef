//! Core: changing the keys of a volume that nobody has open.

use std::path::Path;
use std::time::Duration;

use keys::{KekEpoch, VolumeId};

use crate::crypto::fastest;
use crate::error::OpenError;
use crate::store::{self, Appendable};
use crate::superblock::{self, NewKek, UnlockWith};

/// A volume's master key as only the owner can read it. Not authenticated: a forged one gives a
/// key that does not open the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryCopy {
    /// Whose key it is.
    pub volume: VolumeId,
    /// Epoch of the master key.
    pub vmk_epoch: u32,
    /// SHA-256 of the owner's SubjectPublicKeyInfo.
    pub owner_sha256: [u8; 32],
    /// RSAES-OAEP (RFC 8017), SHA-256, empty label, of the 32 bytes of the key.
    pub encrypted: Vec<u8>,
}

/// The master key's copy for an owner, of the volume in the directory `store`; `None` when the
/// volume was made without an owner.
pub fn recovery_copy(store: &Path) -> Result<Option<RecoveryCopy>, OpenError> {
    let claim = superblock::claim(&*store::open(store)?)?;
    Ok(claim.recovery.map(|wrap| RecoveryCopy {
        volume: claim.volume,
        vmk_epoch: claim.vmk_epoch,
        owner_sha256: wrap.owner_sha256(),
        encrypted: wrap.encrypted,
    }))
}

/// The KEK epoch that the volume in the directory `store` claims to need. Not authenticated: the
/// store can ask for an epoch, but only the right key opens the volume.
pub fn claimed_kek_epoch(store: &Path) -> Result<KekEpoch, OpenError> {
    Ok(superblock::claim(&*store::open(store)?)?.kek_epoch)
}

/// Wraps the master key of the volume `expected` with another KEK. Blocking.
///
/// Limits future exposure only: who had the KEK before, and has an old copy of the store, can
/// still read that copy. After a compromise [`begin_rekey`].
pub fn change_kek(
    store: &Path,
    with: UnlockWith<'_>,
    new: NewKek<'_>,
    expected: VolumeId,
) -> Result<(), OpenError> {
    change_on(&*store::open(store)?, Change::Kek, with, new, expected)
}

/// Gives the volume `expected` a new master key, wrapped with `new`. Blocking.
///
/// From the next mount on everything is sealed under it, and what lies there under the old one is
/// written anew in the background. What the store's host has copied before stays readable to who
/// has the old key.
pub fn begin_rekey(
    store: &Path,
    with: UnlockWith<'_>,
    new: NewKek<'_>,
    expected: VolumeId,
) -> Result<(), OpenError> {
    change_on(&*store::open(store)?, Change::Vmk, with, new, expected)
}

/// Which key is changed.
#[derive(Debug, Clone, Copy)]
enum Change {
    Kek,
    Vmk,
}

fn change_on(
    store: &dyn Appendable,
    change: Change,
    with: UnlockWith<'_>,
    new: NewKek<'_>,
    expected: VolumeId,
) -> Result<(), OpenError> {
    let lease = store.lease(Duration::ZERO)?;
    let (mut superblock, keys) = superblock::read(store, &fastest(), with, expected)?;
    let keys = match change {
        Change::Kek => {
            superblock.rewrap(&keys, with, new)?;
            keys
        }
        Change::Vmk => superblock.begin_rekey(&keys, with, new)?,
    };
    superblock.write(store, &keys, &*lease)?;
    tracing::info!(volume = %expected, kek_epoch = new.epoch.0, vmk_epoch = keys.vmk_epoch(), "keys changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use keys::VolumeKek;

    use super::*;
    use crate::testing::{ID, pattern, put_file, walk};
    use crate::volume::{Volume, init};

    fn kek(byte: u8) -> VolumeKek {
        VolumeKek::take_from(&mut [byte; 32]).unwrap()
    }

    fn new(kek: &VolumeKek, epoch: u32) -> NewKek<'_> {
        NewKek {
            kek,
            epoch: KekEpoch(epoch),
        }
    }

    #[test]
    fn a_volume_shows_the_same_files_whatever_was_done_to_its_keys() {
        let folder = tempfile::tempdir().unwrap();
        let (store, all) = (folder.path().join("store"), [kek(1), kek(2), kek(3)]);
        let with = |i: usize| UnlockWith::Kek {
            kek: &all[i],
            epoch: None,
        };
        init(&store, &all[0], ID).unwrap();
        let mut want = None;
        // Opens with a key, compares, and adds a file under the newest master key.
        let mut visit = |i: usize, name: &str| {
            let volume = Volume::unlock(&store, with(i).into(), ID).unwrap();
            assert!(want.is_none() || want == Some(walk(volume.fs())), "{name}");
            put_file(volume.fs(), name, &pattern(7, 100_000));
            want = Some(walk(volume.fs()));
            volume.close().unwrap();
        };
        visit(0, "first");
        change_kek(&store, with(0), new(&all[1], 1), ID).unwrap();
        assert_eq!(claimed_kek_epoch(&store).unwrap(), KekEpoch(1));
        visit(1, "under another key");
        begin_rekey(&store, with(1), new(&all[2], 2), ID).unwrap();
        visit(2, "under another master key");
        visit(2, "and again");

        let refused = |i, epoch: Option<u32>| {
            let with = UnlockWith::Kek {
                kek: &all[i],
                epoch: epoch.map(KekEpoch),
            };
            Volume::unlock(&store, with.into(), ID).unwrap_err().code()
        };
        assert_eq!(refused(0, None), "fs.wrong_key");
        assert_eq!(refused(1, None), "fs.wrong_key");
        assert_eq!(refused(2, Some(1)), "fs.other_kek_epoch");
        let twice = begin_rekey(&store, with(2), new(&all[2], 3), ID);
        assert_eq!(twice.unwrap_err().code(), "fs.rekey_refused");
        assert_eq!(recovery_copy(&store).unwrap(), None);

        let volume = Volume::unlock(&store, with(2).into(), ID).unwrap();
        let in_use = change_kek(&store, with(2), new(&all[0], 3), ID);
        assert_eq!(in_use.unwrap_err().code(), "fs.in_use");
        volume.close().unwrap();
        visit(2, "nothing was changed");
    }
}
