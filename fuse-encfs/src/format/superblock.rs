//! Core: the superblock, one object a slot.
//!
//! A clear part, which is the AAD of the sealed body behind it. Both have a fixed length, so the
//! object has no byte that is not authenticated.

use std::fmt;

use keys::VolumeId;

use super::codec::{Malformed, Reader};
use super::op::SegmentRef;
use super::{FORMAT_VERSION, SegmentUid, TAG_LEN};

const MAGIC: [u8; 8] = *b"encfs1sb";
/// Salt, key and tag.
pub(crate) const WRAPPED_VMK_LEN: usize = 32 + 32 + TAG_LEN;
/// Bytes of the longest public key that can be an owner's: RSA with 4096 bits.
pub(crate) const OWNER_KEY_LEN_MAX: usize = 552;
/// Bytes of what such a key encrypts.
pub(crate) const RECOVERY_LEN_MAX: usize = 512;
const RECOVERY_AT: usize = 296;
const CLEAR_LEN: usize = RECOVERY_AT + 8 + OWNER_KEY_LEN_MAX + RECOVERY_LEN_MAX;
const CLEAR_LEN_U32: u32 = 1368;
const LABEL_LEN: usize = 64;
const ADDRESS_LEN: usize = 36;
const NAME_KEY_LEN: usize = 16;
const BODY_LEN: usize =
    8 + 32 + 2 * ADDRESS_LEN + SegmentRef::LEN + 8 + 8 + 4 + 4 + LABEL_LEN + NAME_KEY_LEN;
/// Bytes of a superblock object.
pub(crate) const SUPERBLOCK_LEN: usize = CLEAR_LEN + 32 + BODY_LEN + TAG_LEN;

const HAS_OLDER: u32 = 1;
const HAS_RECOVERY: u32 = 2;

/// The clear part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClearPart {
    /// Features that an implementation may ignore.
    pub(crate) compat: u64,
    /// Features that an implementation which does not know them may only read around.
    pub(crate) ro_compat: u64,
    /// Features that an implementation must know.
    pub(crate) incompat: u64,
    /// Whose volume it is.
    pub(crate) volume: VolumeId,
    /// Epoch of the KEK that the newest VMK is wrapped with.
    pub(crate) kek_epoch: u32,
    /// Commitment to that KEK.
    pub(crate) kek_commitment: [u8; 32],
    /// The newest VMK, wrapped with the KEK.
    pub(crate) vmk: VmkWrap,
    /// Commitment to the newest VMK.
    pub(crate) vmk_commitment: [u8; 32],
    /// While the volume is re-encrypted: the VMK before, wrapped with the newest.
    pub(crate) older: Option<VmkWrap>,
    /// The newest VMK, encrypted to an owner.
    pub(crate) recovery: Option<RecoveryWrap>,
}

/// Why a clear part cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClearPartError {
    /// It is no superblock of this filesystem.
    #[error("the object is not a superblock")]
    NotAVolume,
    /// It is a superblock of another format version.
    #[error("the superblock has another format version")]
    OtherVersion,
    /// It is damaged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// A volume master key, wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmkWrap {
    /// Epoch of the key inside.
    pub(crate) epoch: u32,
    /// The key, sealed.
    pub(crate) sealed: [u8; WRAPPED_VMK_LEN],
}

/// A volume master key, encrypted to the public key of an owner.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RecoveryWrap {
    /// The owner's SubjectPublicKeyInfo (RFC 5280), DER.
    pub(crate) owner: Vec<u8>,
    /// RSAES-OAEP with SHA-256 and an empty label (RFC 8017) of the key.
    pub(crate) encrypted: Vec<u8>,
}

/// The key that names of directory entries are hashed with.
///
/// Random, and the same for the life of a volume: the map is sorted by these hashes. It keeps who
/// chooses names from making them collide and guards nothing else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameKey(pub(crate) [u8; NAME_KEY_LEN]);

/// Where a CHECKPOINT commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckpointAddress {
    /// Log segment that holds it.
    pub(crate) segment: SegmentRef,
    /// First byte of its frame.
    pub(crate) offset: u64,
    /// Its number.
    pub(crate) seq: u64,
}

/// The sealed body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body {
    /// Rises with each superblock that is written; its lowest bit is the slot.
    pub(crate) generation: u64,
    /// Random bytes that the chain of this volume begins with.
    pub(crate) genesis: [u8; 32],
    /// The checkpoint that a mount starts from.
    pub(crate) newest: CheckpointAddress,
    /// The checkpoint before it, the same at first.
    pub(crate) previous: CheckpointAddress,
    /// The log segment that was current.
    pub(crate) log: SegmentRef,
    /// Its epoch.
    pub(crate) log_epoch: u64,
    /// The newest commit that was known to be flushed: replay must reach it.
    pub(crate) durable_seq: u64,
    /// No VMK of a lower epoch is in use.
    pub(crate) vmk_epoch_min: u32,
    /// Whether a lasting anchor ever acknowledged a head of this volume.
    pub(crate) anchored_once: bool,
    /// Frames begin on multiples of this.
    pub(crate) log_alignment: u16,
    /// For people; not used.
    pub(crate) label: [u8; LABEL_LEN],
    /// What names are hashed with.
    pub(crate) name_key: NameKey,
}

impl ClearPart {
    /// The encoded clear part.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CLEAR_LEN);
        out.extend(MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend(CLEAR_LEN_U32.to_le_bytes());
        for features in [self.compat, self.ro_compat, self.incompat] {
            out.extend(features.to_le_bytes());
        }
        out.extend(self.volume.0);
        out.extend(self.kek_epoch.to_le_bytes());
        out.extend(self.vmk.epoch.to_le_bytes());
        out.extend(self.kek_commitment);
        out.extend(self.vmk_commitment);
        out.extend(self.vmk.sealed);
        let mut has = 0;
        if self.older.is_some() {
            has |= HAS_OLDER;
        }
        if self.recovery.is_some() {
            has |= HAS_RECOVERY;
        }
        out.extend(has.to_le_bytes());
        if let Some(older) = &self.older {
            out.extend(older.epoch.to_le_bytes());
            out.extend(older.sealed);
        }
        out.resize(RECOVERY_AT, 0);
        if let Some(recovery) = &self.recovery {
            recovery.put(&mut out);
        }
        out.resize(CLEAR_LEN, 0);
        out
    }

    /// Splits a superblock object and parses its clear part. Gives the clear part's bytes, which
    /// are the AAD, and the sealed body too.
    pub(crate) fn parse(object: &[u8]) -> Result<(Self, &[u8], &[u8]), ClearPartError> {
        let mut r = Reader::new(object, "superblock");
        if r.array::<8>()? != MAGIC {
            return Err(ClearPartError::NotAVolume);
        }
        if r.u32()? != FORMAT_VERSION {
            return Err(ClearPartError::OtherVersion);
        }
        if r.u32()? != CLEAR_LEN_U32 {
            return Err(r.malformed().into());
        }
        let mut whole = Reader::new(object, "superblock");
        let clear = whole.bytes(CLEAR_LEN)?;
        let sealed = whole.bytes(BODY_LEN.saturating_add(32 + TAG_LEN))?;
        whole.end()?;
        let mut r = Reader::new(clear, "superblock");
        r.bytes(16)?;
        Ok((Self::fields(r)?, clear, sealed))
    }

    /// What is behind the magic, the version and the length.
    fn fields(mut r: Reader<'_>) -> Result<Self, Malformed> {
        let (compat, ro_compat, incompat) = (r.u64()?, r.u64()?, r.u64()?);
        let volume = VolumeId(r.array()?);
        let (kek_epoch, vmk_epoch) = (r.u32()?, r.u32()?);
        let (kek_commitment, vmk_commitment) = (r.array()?, r.array()?);
        let vmk = VmkWrap {
            epoch: vmk_epoch,
            sealed: r.array()?,
        };
        let has = r.u32()?;
        let older = VmkWrap {
            epoch: r.u32()?,
            sealed: r.array()?,
        };
        let older = match has & HAS_OLDER {
            0 if older.is_zero() => None,
            HAS_OLDER if older.epoch < vmk.epoch => Some(older),
            _ => return Err(r.malformed()),
        };
        let recovery = match has & HAS_RECOVERY {
            0 => None,
            _ => Some(RecoveryWrap::parse(&mut r)?),
        };
        if has & !(HAS_OLDER | HAS_RECOVERY) != 0 {
            return Err(r.malformed());
        }
        r.end_padded()?;
        Ok(Self {
            compat,
            ro_compat,
            incompat,
            volume,
            kek_epoch,
            kek_commitment,
            vmk,
            vmk_commitment,
            older,
            recovery,
        })
    }
}

impl VmkWrap {
    fn is_zero(&self) -> bool {
        self.epoch == 0 && self.sealed.iter().all(|byte| *byte == 0)
    }
}

impl RecoveryWrap {
    /// Both lengths, then both fields, each padded with zeros to the longest that it can be.
    fn put(&self, out: &mut Vec<u8>) {
        // Whoever made the wrap has checked that both fit.
        for len in [self.owner.len(), self.encrypted.len()] {
            out.extend(u16::try_from(len).unwrap_or(0).to_le_bytes());
        }
        out.extend([0; 4]);
        for (field, max) in [
            (&self.owner, OWNER_KEY_LEN_MAX),
            (&self.encrypted, RECOVERY_LEN_MAX),
        ] {
            let padding = max.saturating_sub(field.len());
            out.extend(field.iter().take(max));
            out.extend(std::iter::repeat_n(0, padding));
        }
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (owner, encrypted) = (r.u16()?, r.u16()?);
        if r.u32()? != 0 {
            return Err(r.malformed());
        }
        Ok(Self {
            owner: padded(r, owner, OWNER_KEY_LEN_MAX)?,
            encrypted: padded(r, encrypted, RECOVERY_LEN_MAX)?,
        })
    }
}

/// A field of 1 to `max` bytes, padded with zeros to `max`.
fn padded(r: &mut Reader<'_>, len: u16, max: usize) -> Result<Vec<u8>, Malformed> {
    let mut field = Reader::new(r.bytes(max)?, "recovery wrap");
    let bytes = field.bytes(usize::from(len))?.to_vec();
    if bytes.is_empty() {
        return Err(field.malformed());
    }
    field.end_padded()?;
    Ok(bytes)
}

impl CheckpointAddress {
    fn put(&self, out: &mut Vec<u8>) {
        self.segment.put(out);
        out.extend(self.offset.to_le_bytes());
        out.extend(self.seq.to_le_bytes());
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            segment: SegmentRef::parse(r)?,
            offset: r.u64()?,
            seq: r.u64()?,
        })
    }
}

impl Body {
    /// The body of a new volume, which names nothing yet.
    pub(crate) fn first(
        genesis: [u8; 32],
        vmk_epoch: u32,
        log_alignment: u16,
        name_key: NameKey,
    ) -> Self {
        let segment = SegmentRef {
            uid: SegmentUid([0; 16]),
            vmk_epoch,
        };
        let nowhere = CheckpointAddress {
            segment,
            offset: 0,
            seq: 0,
        };
        Self {
            generation: 1,
            genesis,
            newest: nowhere,
            previous: nowhere,
            log: segment,
            log_epoch: 0,
            durable_seq: 0,
            vmk_epoch_min: vmk_epoch,
            anchored_once: false,
            log_alignment,
            label: [0; LABEL_LEN],
            name_key,
        }
    }

    /// The encoded body.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BODY_LEN);
        out.extend(self.generation.to_le_bytes());
        out.extend(self.genesis);
        self.newest.put(&mut out);
        self.previous.put(&mut out);
        self.log.put(&mut out);
        out.extend(self.log_epoch.to_le_bytes());
        out.extend(self.durable_seq.to_le_bytes());
        out.extend(self.vmk_epoch_min.to_le_bytes());
        out.extend([u8::from(self.anchored_once), 0]);
        out.extend(self.log_alignment.to_le_bytes());
        out.extend(self.label);
        out.extend(self.name_key.0);
        out
    }

    /// Parses an opened body, found in slot `slot`.
    pub(crate) fn parse(bytes: &[u8], slot: u8) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes, "superblock body");
        let generation = r.u64()?;
        let genesis = r.array()?;
        let newest = CheckpointAddress::parse(&mut r)?;
        let previous = CheckpointAddress::parse(&mut r)?;
        let log = SegmentRef::parse(&mut r)?;
        let log_epoch = r.u64()?;
        let durable_seq = r.u64()?;
        let vmk_epoch_min = r.u32()?;
        let anchored_once = r.bool()?;
        let zero = r.u8()?;
        let log_alignment = r.u16()?;
        let label = r.array()?;
        let name_key = NameKey(r.array()?);
        let sound = zero == 0
            && generation.checked_rem(2) == Some(u64::from(slot))
            && matches!(log_alignment, 512 | 4096);
        if !sound {
            return Err(r.malformed());
        }
        r.end()?;
        Ok(Self {
            generation,
            genesis,
            newest,
            previous,
            log,
            log_epoch,
            durable_seq,
            vmk_epoch_min,
            anchored_once,
            log_alignment,
            label,
            name_key,
        })
    }
}

impl fmt::Debug for RecoveryWrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryWrap(..)")
    }
}

impl fmt::Debug for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameKey(..)")
    }
}

const _: () = assert!(
    CLEAR_LEN_U32 as usize == CLEAR_LEN
        && RECOVERY_AT == 16 + 24 + 16 + 8 + 64 + WRAPPED_VMK_LEN + 4 + 4 + WRAPPED_VMK_LEN
        && SUPERBLOCK_LEN == 1652
        && SUPERBLOCK_LEN <= 4096
        && ADDRESS_LEN == SegmentRef::LEN + 16
);
