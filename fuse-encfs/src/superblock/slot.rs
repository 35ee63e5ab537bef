//! Core: what one superblock slot holds, and which of two to believe.

use std::sync::Arc;

use keys::{KekEpoch, VolumeId, VolumeMasterKey};

use super::{SlotState, Superblock, Unlock, UnlockWith, read_object};
use crate::crypto::{Aead, EpochKeys, KekSealer, SealError, VolumeKeys, unwrap_older};
use crate::error::OpenError;
use crate::format::{Body, ClearPart, ClearPartError, SUPERBLOCK_LEN};
use crate::store::Store;

/// What one slot holds.
pub(super) enum Slot {
    Absent,
    Damaged(&'static str),
    Good(Box<(Superblock, VolumeKeys)>),
    OtherKekEpoch(KekEpoch),
    OtherVersion,
    OtherVolume(VolumeId),
    /// Authentic, of this generation, and with features that this version does not know.
    UnknownFeatures(u64),
    WrongKey,
}

/// A superblock and its keys, and what is wrong with the other slot.
pub(super) type Chosen = (Box<(Superblock, VolumeKeys)>, Option<Slot>);

/// Why the clear part does not give a master key.
pub(super) enum NoVmk {
    Damaged,
    OtherKekEpoch(KekEpoch),
    WrongKey,
}

/// The newer of two slots, when it can be used.
///
/// A superblock that can be read stands in for one that cannot, for both lead to the same state.
/// But an authentic newer one that this version does not understand is never passed over: what was
/// written since must not be guessed at.
pub(super) fn choose(a: Slot, b: Slot) -> Result<Chosen, OpenError> {
    match (a, b) {
        (Slot::Good(a), Slot::Good(b)) => match a.generation().cmp(&b.generation()) {
            std::cmp::Ordering::Greater => Ok((a, None)),
            std::cmp::Ordering::Less => Ok((b, None)),
            std::cmp::Ordering::Equal => Err(OpenError::Tampered {
                what: "both superblock slots claim to be the newest".into(),
            }),
        },
        (Slot::Good(good), other) | (other, Slot::Good(good)) => {
            if other.is_newer_than(good.generation()) {
                return Err(OpenError::OtherFormat);
            }
            Ok((good, Some(other)))
        }
        (a, b) => Err(why_none(&a, &b)),
    }
}

/// Why neither slot can be used, the plainest reason first.
fn why_none(a: &Slot, b: &Slot) -> OpenError {
    match (a, b) {
        (Slot::OtherVolume(found), _) | (_, Slot::OtherVolume(found)) => {
            OpenError::OtherVolume { found: *found }
        }
        (Slot::OtherKekEpoch(found), _) | (_, Slot::OtherKekEpoch(found)) => {
            OpenError::OtherKekEpoch { found: *found }
        }
        (Slot::WrongKey, _) | (_, Slot::WrongKey) => OpenError::WrongKey,
        (Slot::UnknownFeatures(_), _) | (_, Slot::UnknownFeatures(_)) => OpenError::OtherFormat,
        (Slot::Damaged(_), _) | (_, Slot::Damaged(_)) => OpenError::Tampered {
            what: format!("superblock slot 0 {}, slot 1 {}", a.word(), b.word()),
        },
        (Slot::OtherVersion, _) | (_, Slot::OtherVersion) => OpenError::OtherFormat,
        (Slot::Absent | Slot::Good(_), _) => OpenError::NotAVolume,
    }
}

/// Reads one slot. Only a store that fails is an error.
pub(super) fn read(
    store: &dyn Store,
    aead: &Arc<dyn Aead>,
    unlock: &Unlock<'_>,
    expected: VolumeId,
    slot: u8,
) -> Result<Slot, OpenError> {
    let Some(object) = read_object(store, slot)? else {
        return Ok(Slot::Absent);
    };
    match open(&object, aead, unlock, expected, slot) {
        Ok(opened) | Err(Refusal::Slot(opened)) => Ok(opened),
        Err(Refusal::Keys(e)) => Err(e.into()),
    }
}

/// Why a slot is not a good one.
enum Refusal {
    Slot(Slot),
    Keys(SealError),
}

fn open(
    object: &[u8],
    aead: &Arc<dyn Aead>,
    unlock: &Unlock<'_>,
    expected: VolumeId,
    slot: u8,
) -> Result<Slot, Refusal> {
    let (clear, aad, sealed) =
        ClearPart::parse(object).map_err(|e| Refusal::Slot(why_unparsed(e, object.len())))?;
    // Before any key is derived: the store could exchange two volumes of one deployment.
    if clear.volume != expected {
        return Ok(Slot::OtherVolume(clear.volume));
    }
    let vmk = open_vmk(&clear, &**aead, unlock.with)?;
    let newest = EpochKeys::new(&vmk, clear.vmk.epoch, expected)?;
    if *newest.commitment() != clear.vmk_commitment {
        return Ok(match unlock.with {
            UnlockWith::Kek { .. } => Slot::Damaged(UNOPENED),
            UnlockWith::Vmk(_) => Slot::WrongKey,
        });
    }
    let older = match &clear.older {
        None => None,
        Some(wrap) => {
            let newer = (&vmk, clear.vmk.epoch);
            let Ok(vmk) = unwrap_older(&**aead, expected, newer, wrap) else {
                return Ok(Slot::Damaged(UNOPENED));
            };
            Some(EpochKeys::new(&vmk, wrap.epoch, expected)?)
        }
    };
    let Ok(body) = newest.open_body(&**aead, aad, sealed) else {
        return Ok(Slot::Damaged(UNOPENED));
    };
    let other_slot = 1_u8.saturating_sub(slot);
    let body = match Body::parse(&body, slot) {
        Ok(body) => body,
        Err(_) if Body::parse(&body, other_slot).is_ok() => {
            return Ok(Slot::Damaged("holds what belongs into the other one"));
        }
        Err(_) => return Ok(Slot::Damaged("is malformed")),
    };
    let oldest = clear
        .older
        .as_ref()
        .map_or(clear.vmk.epoch, |wrap| wrap.epoch);
    if body.vmk_epoch_min > oldest {
        return Ok(Slot::Damaged("has keys that are no longer in use"));
    }
    // Authenticated by now: such a volume is newer, not damaged.
    if clear.incompat != 0 || (clear.ro_compat != 0 && !unlock.read_only) {
        return Ok(Slot::UnknownFeatures(body.generation));
    }
    let keys = VolumeKeys::new(Arc::clone(aead), newest, older, body.name_key);
    Ok(Slot::Good(Box::new((Superblock { clear, body }, keys))))
}

const UNOPENED: &str = "does not open";

/// The newest master key. Whether it is the volume's says its commitment.
pub(super) fn open_vmk(
    clear: &ClearPart,
    aead: &dyn Aead,
    with: UnlockWith<'_>,
) -> Result<VolumeMasterKey, NoVmk> {
    let (kek, epoch) = match with {
        UnlockWith::Kek { kek, epoch } => (kek, epoch),
        UnlockWith::Vmk(vmk) => {
            let copied = VolumeMasterKey::fill_with(|bytes| {
                bytes.copy_from_slice(vmk.expose());
                Ok::<_, std::convert::Infallible>(())
            });
            let Ok(vmk) = copied;
            return Ok(vmk);
        }
    };
    let found = KekEpoch(clear.kek_epoch);
    if epoch.is_some_and(|epoch| epoch != found) {
        return Err(NoVmk::OtherKekEpoch(found));
    }
    let kek = KekSealer::new(kek, clear.volume, found);
    if kek.commitment() != clear.kek_commitment {
        return Err(NoVmk::WrongKey);
    }
    kek.unwrap(aead, &clear.vmk).map_err(|_| NoVmk::Damaged)
}

fn why_unparsed(e: ClearPartError, len: usize) -> Slot {
    match e {
        ClearPartError::OtherVersion => Slot::OtherVersion,
        ClearPartError::NotAVolume => Slot::Damaged("is no superblock"),
        ClearPartError::Malformed(_) if len < SUPERBLOCK_LEN => Slot::Damaged("is too short"),
        ClearPartError::Malformed(_) if len > SUPERBLOCK_LEN => Slot::Damaged("is too long"),
        ClearPartError::Malformed(_) => Slot::Damaged("is malformed"),
    }
}

trait Generation {
    fn generation(&self) -> u64;
}

impl Generation for (Superblock, VolumeKeys) {
    fn generation(&self) -> u64 {
        self.0.body.generation
    }
}

impl Slot {
    /// Whether it is authentic, newer, and not understood.
    fn is_newer_than(&self, generation: u64) -> bool {
        matches!(self, Self::UnknownFeatures(own) if *own > generation)
    }

    /// How it is.
    pub(super) fn state(&self) -> SlotState {
        let generation = match self {
            Self::Good(good) => Some(good.generation()),
            Self::UnknownFeatures(generation) => Some(*generation),
            Self::Absent
            | Self::Damaged(_)
            | Self::OtherKekEpoch(_)
            | Self::OtherVersion
            | Self::OtherVolume(_)
            | Self::WrongKey => None,
        };
        SlotState {
            generation,
            word: self.word(),
        }
    }

    /// What follows "the slot".
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Absent => "is missing",
            Self::Damaged(how) => how,
            Self::Good(_) => "is good",
            Self::OtherKekEpoch(_) | Self::WrongKey => "has another key",
            Self::OtherVersion => "has another format version",
            Self::OtherVolume(_) => "is of another volume",
            Self::UnknownFeatures(_) => "has unknown features",
        }
    }
}

impl From<NoVmk> for Refusal {
    fn from(e: NoVmk) -> Self {
        Self::Slot(match e {
            NoVmk::Damaged => Slot::Damaged(UNOPENED),
            NoVmk::OtherKekEpoch(found) => Slot::OtherKekEpoch(found),
            NoVmk::WrongKey => Slot::WrongKey,
        })
    }
}

impl From<SealError> for Refusal {
    fn from(e: SealError) -> Self {
        Self::Keys(e)
    }
}

impl From<NoVmk> for OpenError {
    fn from(e: NoVmk) -> Self {
        match e {
            NoVmk::Damaged => Self::Tampered {
                what: "the wrapped master key does not open".into(),
            },
            NoVmk::OtherKekEpoch(found) => Self::OtherKekEpoch { found },
            NoVmk::WrongKey => Self::WrongKey,
        }
    }
}
