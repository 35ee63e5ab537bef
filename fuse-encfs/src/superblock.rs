//! Core: the two superblock slots, from which a mount starts and which it writes last.
//!
//! **Changing keys.** Each change is made to a [`Superblock`] in memory and takes effect when
//! [`Superblock::write`] has written both slots. A crash between the two leaves one slot with the
//! keys before and one with the keys after the change; both lead to the same state, so the volume
//! opens with either. A segment under a new master key is made only after both slots name that
//! key, and an old master key is given up only when no segment needs it: so whichever slot is
//! read, it has the keys of every segment.

use std::sync::Arc;

use keys::{KekEpoch, VolumeId, VolumeKek, VolumeMasterKey};

use crate::crypto::{
    Aead, Entropy, EpochKeys, KekSealer, OwnerKey, SealError, VolumeKeys, wrap_older,
};
use crate::error::OpenError;
use crate::format::{
    Body, CheckpointAddress, ClearPart, ClearPartError, NameKey, RecoveryWrap, SUPERBLOCK_LEN,
    SegmentRef,
};
use crate::store::{Lease, ObjectName, Store, StoreError};

mod slot;
#[cfg(test)]
mod tests;

const SLOTS: [u8; 2] = [0, 1];

/// The superblock as it was last read or written.
#[derive(Debug)]
pub(crate) struct Superblock {
    clear: ClearPart,
    body: Body,
}

/// What a new volume's superblock says.
#[derive(Debug)]
pub(crate) struct Genesis<'a> {
    pub(crate) volume: VolumeId,
    pub(crate) kek_epoch: KekEpoch,
    pub(crate) genesis: [u8; 32],
    pub(crate) log_alignment: u16,
    /// Who gets a copy of the master key.
    pub(crate) owner: Option<&'a OwnerKey>,
}

/// The key that a volume is opened with.
#[derive(Debug, Clone, Copy)]
pub enum UnlockWith<'a> {
    /// The key-encryption key, as always.
    Kek {
        /// The key.
        kek: &'a VolumeKek,
        /// The epoch that it was derived for; `None` for a key that knows no epochs. Another epoch
        /// in the store is an error that says so, and not just a wrong key.
        epoch: Option<KekEpoch>,
    },
    /// The newest master key, which an owner has from the volume's recovery wrap.
    Vmk(&'a VolumeMasterKey),
}

/// How a volume may be opened. Made from an [`UnlockWith`], or from just a KEK.
#[derive(Debug, Clone, Copy)]
pub struct Unlock<'a> {
    /// With which key.
    pub with: UnlockWith<'a>,
    /// Lowest epoch that the volume's newest master key may have: an older one was replaced, and
    /// the store shows an old copy. From measured configuration or an anchor.
    pub vmk_epoch_min: u32,
    /// Nothing will be written: features that forbid just that do not matter.
    pub read_only: bool,
}

/// The key-encryption key that master keys are to be wrapped with from now on.
#[derive(Debug, Clone, Copy)]
pub struct NewKek<'a> {
    /// The key.
    pub kek: &'a VolumeKek,
    /// Its epoch.
    pub epoch: KekEpoch,
}

/// What a superblock says of itself in the clear. Not authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) volume: VolumeId,
    pub(crate) kek_epoch: KekEpoch,
    pub(crate) vmk_epoch: u32,
    pub(crate) recovery: Option<RecoveryWrap>,
}

/// Why a superblock was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteSuperblockError {
    /// Sealing failed.
    #[error("the superblock cannot be sealed")]
    Seal(#[from] SealError),
    /// The store failed.
    #[error("the superblock cannot be written to the store")]
    Store(#[from] StoreError),
}

/// What the first slot that can be read claims.
pub(crate) fn claim(store: &dyn Store) -> Result<Claim, OpenError> {
    let (mut is_newer, mut is_damaged) = (false, false);
    for slot in SLOTS {
        let Some(object) = read_object(store, slot)? else {
            continue;
        };
        match ClearPart::parse(&object) {
            Ok((clear, ..)) => {
                return Ok(Claim {
                    volume: clear.volume,
                    kek_epoch: KekEpoch(clear.kek_epoch),
                    vmk_epoch: clear.vmk.epoch,
                    recovery: clear.recovery,
                });
            }
            Err(ClearPartError::OtherVersion) => is_newer = true,
            Err(ClearPartError::Malformed(_)) => is_damaged = true,
            Err(ClearPartError::NotAVolume) => {}
        }
    }
    Err(if is_newer {
        OpenError::OtherFormat
    } else if is_damaged {
        OpenError::Tampered {
            what: "both superblock slots are damaged".into(),
        }
    } else {
        OpenError::NotAVolume
    })
}

/// The volume that the superblock names, which is not authenticated before it is opened.
pub(crate) fn named_volume(store: &dyn Store) -> Result<VolumeId, OpenError> {
    Ok(claim(store)?.volume)
}

/// Reads both slots and takes the newest that opens. One that is damaged is reported: the other
/// one leads to the same state, and both are written anew by the mount.
pub(crate) fn read<'a>(
    store: &dyn Store,
    aead: &Arc<dyn Aead>,
    unlock: impl Into<Unlock<'a>>,
    expected: VolumeId,
) -> Result<(Superblock, VolumeKeys), OpenError> {
    let unlock = unlock.into();
    let [a, b] = SLOTS.map(|slot| slot::read(store, aead, &unlock, expected, slot));
    let (winner, other) = slot::choose(a?, b?)?;
    if let Some(other) = other {
        tracing::warn!(
            error_code = "fs.superblock_damaged",
            slot = other.word(),
            "one of the two superblock slots is not as written; the other one is used"
        );
    }
    let (superblock, keys) = *winner;
    let found = superblock.clear.vmk.epoch;
    if found < unlock.vmk_epoch_min {
        return Err(OpenError::StaleKeys { found });
    }
    Ok((superblock, keys))
}

/// How a superblock slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotState {
    /// Its generation; `None` when it cannot be used.
    pub(crate) generation: Option<u64>,
    /// What follows "the slot".
    pub(crate) word: &'static str,
}

/// How both slots are, for tools.
pub(crate) fn slots(
    store: &dyn Store,
    aead: &Arc<dyn Aead>,
    unlock: Unlock<'_>,
    expected: VolumeId,
) -> Result<[SlotState; 2], OpenError> {
    let [a, b] = SLOTS.map(|slot| slot::read(store, aead, &unlock, expected, slot));
    Ok([a?.state(), b?.state()])
}

impl Superblock {
    /// The first superblock of a volume, to be written when there is a checkpoint to name. Draws
    /// the volume's master key.
    pub(crate) fn make(
        aead: &Arc<dyn Aead>,
        kek: &VolumeKek,
        new: &Genesis<'_>,
        entropy: &Entropy,
    ) -> Result<(Self, VolumeKeys), SealError> {
        let vmk_epoch = 0;
        let vmk = VolumeMasterKey::fill_with(|bytes| entropy.fill(bytes))?;
        let epoch_keys = EpochKeys::new(&vmk, vmk_epoch, new.volume)?;
        let kek = KekSealer::new(kek, new.volume, new.kek_epoch);
        let clear = ClearPart {
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            volume: new.volume,
            kek_epoch: new.kek_epoch.0,
            kek_commitment: kek.commitment(),
            vmk: kek.wrap(&**aead, entropy, &vmk, vmk_epoch)?,
            vmk_commitment: *epoch_keys.commitment(),
            older: None,
            recovery: new.owner.map(|owner| owner.wrap(&vmk)).transpose()?,
        };
        let name_key = NameKey(entropy.draw()?);
        let body = Body::first(new.genesis, vmk_epoch, new.log_alignment, name_key);
        let keys = VolumeKeys::new(Arc::clone(aead), epoch_keys, None, name_key);
        Ok((Self { clear, body }, keys))
    }

    /// What it says.
    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    /// Names a newer checkpoint; the one that was newest is kept as the previous one.
    pub(crate) fn name_checkpoint(&mut self, newest: CheckpointAddress) {
        let first = self.body.newest.seq == 0;
        self.body.previous = if first { newest } else { self.body.newest };
        self.body.newest = newest;
    }

    /// Names the checkpoint before as the newest: what a fall-back would start from.
    #[cfg(test)]
    pub(crate) fn fall_back(&mut self) {
        self.body.newest = self.body.previous;
    }

    /// Names the current log segment, and the newest commit in it that is flushed.
    pub(crate) fn name_log(&mut self, log: (SegmentRef, u64), durable_seq: u64) {
        (self.body.log, self.body.log_epoch) = log;
        self.body.durable_seq = durable_seq;
    }

    /// Epoch of the key-encryption key that the master key is wrapped with.
    pub(crate) fn kek_epoch(&self) -> KekEpoch {
        KekEpoch(self.clear.kek_epoch)
    }

    /// Notes that a lasting anchor has acknowledged a head, and says whether that is new.
    pub(crate) fn note_anchor(&mut self) -> bool {
        !std::mem::replace(&mut self.body.anchored_once, true)
    }

    /// Whether the volume is being re-encrypted: segments under the older master key are to be
    /// written anew under the newest.
    pub(crate) fn is_rekeying(&self) -> bool {
        self.clear.older.is_some()
    }

    /// Wraps the master key with another KEK. Limits future exposure only: who had the KEK before,
    /// and an old copy of the superblock, can still open the volume.
    pub(crate) fn rewrap(
        &mut self,
        keys: &VolumeKeys,
        with: UnlockWith<'_>,
        new: NewKek<'_>,
    ) -> Result<(), OpenError> {
        let vmk = slot::open_vmk(&self.clear, &**keys.aead(), with)?;
        self.wrap_newest(keys, &vmk, new)?;
        Ok(())
    }

    /// Draws a new master key and keeps the one before until [`Superblock::finish_rekey`].
    ///
    /// Gives the keys to write this superblock with. Only when it is durable in both slots may they
    /// be taken into use ([`VolumeKeys::adopt`]).
    pub(crate) fn begin_rekey(
        &mut self,
        keys: &VolumeKeys,
        with: UnlockWith<'_>,
        new: NewKek<'_>,
    ) -> Result<VolumeKeys, OpenError> {
        if self.is_rekeying() {
            return Err(OpenError::NotNow("it is being re-encrypted already"));
        }
        let (aead, entropy, volume) = (&**keys.aead(), keys.entropy(), self.clear.volume);
        let before = slot::open_vmk(&self.clear, aead, with)?;
        let before = (&before, self.clear.vmk.epoch);
        let next_epoch = before.1.checked_add(1);
        let epoch = next_epoch.ok_or(OpenError::NotNow("it has had too many master keys"))?;
        let vmk = VolumeMasterKey::fill_with(|bytes| entropy.fill(bytes))?;
        let epoch_keys = EpochKeys::new(&vmk, epoch, volume)?;
        let older = wrap_older(aead, entropy, volume, (&vmk, epoch), before)?;
        let recovery = self.clear.recovery.as_ref();
        let recovery = recovery.map(|wrap| wrap.renew(&vmk)).transpose()?;

        // Taken over as a whole, so that an error leaves this superblock as it was.
        let mut clear = self.clear.clone();
        clear.vmk.epoch = epoch;
        clear.vmk_commitment = *epoch_keys.commitment();
        (clear.older, clear.recovery) = (Some(older), recovery);
        let mut next = Self {
            clear,
            body: self.body.clone(),
        };
        next.wrap_newest(keys, &vmk, new)?;
        *self = next;
        Ok(keys.with_newer(epoch_keys))
    }

    /// Gives up the older master key, under which no segment is left that anything points to. Once
    /// both slots are written the keys may be forgotten ([`VolumeKeys::forget_older`]).
    pub(crate) fn finish_rekey(&mut self) {
        self.clear.older = None;
        self.body.vmk_epoch_min = self.clear.vmk.epoch;
    }

    /// Writes both slots, one after the other, each durable before the next.
    pub(crate) fn write(
        &mut self,
        store: &dyn Store,
        keys: &VolumeKeys,
        lease: &dyn Lease,
    ) -> Result<(), WriteSuperblockError> {
        for _ in SLOTS {
            self.write_next(store, keys, lease)?;
        }
        Ok(())
    }

    /// Writes the slot that is the older one.
    fn write_next(
        &mut self,
        store: &dyn Store,
        keys: &VolumeKeys,
        lease: &dyn Lease,
    ) -> Result<(), WriteSuperblockError> {
        if keys.vmk_epoch() != self.clear.vmk.epoch {
            // Keys other than those that this superblock names could not be found again.
            return Err(SealError::Cipher.into());
        }
        lease.revalidate()?;
        self.body.generation += 1;
        let clear = self.clear.bytes();
        let mut object = clear.clone();
        object.extend(keys.seal_body(&clear, &self.body.bytes())?);
        let slot = if self.body.generation.is_multiple_of(2) {
            0
        } else {
            1
        };
        Ok(store.put(ObjectName::Superblock(slot), &object)?)
    }

    fn wrap_newest(
        &mut self,
        keys: &VolumeKeys,
        vmk: &VolumeMasterKey,
        new: NewKek<'_>,
    ) -> Result<(), SealError> {
        let kek = KekSealer::new(new.kek, self.clear.volume, new.epoch);
        let epoch = self.clear.vmk.epoch;
        self.clear.vmk = kek.wrap(&**keys.aead(), keys.entropy(), vmk, epoch)?;
        self.clear.kek_epoch = new.epoch.0;
        self.clear.kek_commitment = kek.commitment();
        Ok(())
    }
}

impl<'a> From<&'a VolumeKek> for Unlock<'a> {
    fn from(kek: &'a VolumeKek) -> Self {
        UnlockWith::Kek { kek, epoch: None }.into()
    }
}

impl<'a> From<UnlockWith<'a>> for Unlock<'a> {
    fn from(with: UnlockWith<'a>) -> Self {
        Self {
            with,
            vmk_epoch_min: 0,
            read_only: false,
        }
    }
}

fn read_object(store: &dyn Store, slot: u8) -> Result<Option<Vec<u8>>, OpenError> {
    // One byte more than a superblock has, so that a longer object is noticed.
    let mut object = vec![0; SUPERBLOCK_LEN + 1];
    match store.get(ObjectName::Superblock(slot), 0, &mut object) {
        Ok(got) => {
            object.truncate(got);
            Ok(Some(object))
        }
        Err(StoreError::Absent) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
