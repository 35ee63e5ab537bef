//! Core: the two superblock slots, from which a mount starts and which it writes last.

use std::sync::Arc;

use keys::{KekEpoch, Secret, VolumeId, VolumeKek};

use crate::crypto::{Aead, Entropy, KekSealer, SealError, VolumeKeys};
use crate::error::OpenError;
use crate::format::{
    Body, CheckpointAddress, ClearPart, ClearPartError, SUPERBLOCK_LEN, SegmentRef,
};
use crate::store::{Lease, ObjectName, Store, StoreError};

const SLOTS: [u8; 2] = [0, 1];

/// The superblock as it was last read or written.
#[derive(Debug)]
pub(crate) struct Superblock {
    clear: ClearPart,
    body: Body,
}

/// What a new volume's superblock says.
#[derive(Debug)]
pub(crate) struct Genesis {
    pub(crate) volume: VolumeId,
    pub(crate) genesis: [u8; 32],
    pub(crate) log_alignment: u16,
}

/// What one slot holds.
enum Slot {
    Absent,
    Damaged,
    Good(Box<(Superblock, VolumeKeys)>),
    OtherFormat,
    OtherVolume(VolumeId),
    WrongKey,
}

/// The volume that the superblock names, which is not authenticated before it is opened.
pub(crate) fn named_volume(store: &dyn Store) -> Result<VolumeId, OpenError> {
    for slot in SLOTS {
        if let Some(object) = read_object(store, slot)?
            && let Ok((clear, ..)) = ClearPart::parse(&object)
        {
            return Ok(clear.volume);
        }
    }
    Err(OpenError::NotAVolume)
}

/// Reads both slots and takes the newest that opens. One that is damaged is reported: the other
/// one leads to the same state, and both are written anew by the mount.
pub(crate) fn read(
    store: &dyn Store,
    aead: &Arc<dyn Aead>,
    kek: &VolumeKek,
    expected: VolumeId,
) -> Result<(Superblock, VolumeKeys), OpenError> {
    let [a, b] = SLOTS.map(|slot| read_slot(store, aead, kek, expected, slot));
    let (a, b) = (a?, b?);
    let (winner, other) = match (a, b) {
        (Slot::Good(a), Slot::Good(b)) => {
            let a_is_newer = a.0.body.generation > b.0.body.generation;
            return Ok(if a_is_newer { *a } else { *b });
        }
        (Slot::Good(good), other) | (other, Slot::Good(good)) => (good, other),
        (a, b) => return Err(why_none(&a, &b)),
    };
    tracing::warn!(
        error_code = "fs.superblock_damaged",
        damage = other.word(),
        "one of the two superblock slots is not as written; the other one is used"
    );
    Ok(*winner)
}

impl Superblock {
    /// The first superblock of a volume, to be written when there is a checkpoint to name. Draws
    /// the volume's master key.
    pub(crate) fn make(
        aead: &Arc<dyn Aead>,
        kek: &VolumeKek,
        new: &Genesis,
        entropy: &Entropy,
    ) -> Result<(Self, VolumeKeys), SealError> {
        let epoch = KekEpoch(0);
        let kek = KekSealer::new(kek, new.volume, epoch);
        let vmk = Secret::fill_with(|bytes| entropy.fill(bytes))?;
        let vmk_epoch = 0;
        let wrap = kek.wrap(&**aead, entropy, &vmk, vmk_epoch)?;
        let keys = VolumeKeys::new(Arc::clone(aead), &vmk, vmk_epoch, new.volume);
        let clear = ClearPart {
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            volume: new.volume,
            kek_epoch: epoch.0,
            commitment: kek.commitment(),
            wraps: [Some(wrap), None],
        };
        let body = Body::first(new.genesis, vmk_epoch, new.log_alignment);
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

    /// Writes both slots, one after the other, each durable before the next.
    pub(crate) fn write(
        &mut self,
        store: &dyn Store,
        keys: &VolumeKeys,
        lease: &dyn Lease,
    ) -> Result<(), WriteSuperblockError> {
        let clear = self.clear.bytes();
        for _ in SLOTS {
            lease.revalidate()?;
            self.body.generation += 1;
            let mut object = clear.clone();
            object.extend(keys.seal_body(&clear, &self.body.bytes())?);
            let slot = if self.body.generation.is_multiple_of(2) {
                0
            } else {
                1
            };
            store.put(ObjectName::Superblock(slot), &object)?;
        }
        Ok(())
    }
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

impl Slot {
    fn word(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Damaged => "damaged",
            Self::Good(_) => "good",
            Self::OtherFormat => "another format",
            Self::OtherVolume(_) => "another volume",
            Self::WrongKey => "another key",
        }
    }
}

/// Why neither slot can be used, the plainest reason first.
fn why_none(a: &Slot, b: &Slot) -> OpenError {
    match (a, b) {
        (Slot::OtherVolume(found), _) | (_, Slot::OtherVolume(found)) => {
            OpenError::OtherVolume { found: *found }
        }
        (Slot::WrongKey, _) | (_, Slot::WrongKey) => OpenError::WrongKey,
        (Slot::Damaged, _) | (_, Slot::Damaged) => OpenError::Tampered {
            what: "both superblock slots are damaged".into(),
        },
        (Slot::OtherFormat, _) | (_, Slot::OtherFormat) => OpenError::OtherFormat,
        (Slot::Absent | Slot::Good(_), _) => OpenError::NotAVolume,
    }
}

fn read_slot(
    store: &dyn Store,
    aead: &Arc<dyn Aead>,
    kek: &VolumeKek,
    expected: VolumeId,
    slot: u8,
) -> Result<Slot, OpenError> {
    let Some(object) = read_object(store, slot)? else {
        return Ok(Slot::Absent);
    };
    let (clear, aad, sealed) = match ClearPart::parse(&object) {
        Ok(parts) => parts,
        Err(ClearPartError::OtherVersion) => return Ok(Slot::OtherFormat),
        Err(ClearPartError::Malformed(_) | ClearPartError::NotAVolume) => return Ok(Slot::Damaged),
    };
    if clear.volume != expected {
        return Ok(Slot::OtherVolume(clear.volume));
    }
    let kek = KekSealer::new(kek, expected, KekEpoch(clear.kek_epoch));
    if kek.commitment() != clear.commitment {
        return Ok(Slot::WrongKey);
    }
    let Some(wrap) = clear.wraps.iter().flatten().max_by_key(|wrap| wrap.epoch) else {
        return Ok(Slot::Damaged);
    };
    let Ok(vmk) = kek.unwrap(&**aead, wrap) else {
        return Ok(Slot::Damaged);
    };
    let keys = VolumeKeys::new(Arc::clone(aead), &vmk, wrap.epoch, expected);
    let body = keys
        .open_body(aad, sealed)
        .ok()
        .and_then(|body| Body::parse(&body, slot).ok());
    let Some(body) = body.filter(|body| body.vmk_epoch_min <= wrap.epoch) else {
        return Ok(Slot::Damaged);
    };
    // Authenticated by now: such a volume is newer, not damaged.
    if clear.incompat != 0 || clear.ro_compat != 0 {
        return Ok(Slot::OtherFormat);
    }
    Ok(Slot::Good(Box::new((Superblock { clear, body }, keys))))
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
