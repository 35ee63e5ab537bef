//! Core: sealing a unit (a chunk or a node) at its write-once address.

use keys::VolumeId;

use super::aead::{AES_256_GCM, AeadKey};
use super::{NotAuthentic, SealError};
use crate::format::{SALT_LEN, SegmentUid, TAG_LEN};

const MAGIC: [u8; 8] = *b"encfs1un";
/// Bytes of a unit's AAD.
pub(super) const AAD_LEN: usize = 56;

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnitKind {
    /// A chunk in a data segment.
    Chunk,
    /// A commit in a log segment.
    Commit,
    /// A chunk in a log segment.
    InlineChunk,
    /// A node of the tree.
    Node,
}

/// Seals and opens the units of one segment.
pub(crate) struct SegmentSealer {
    /// `None` where the volume has no key of that epoch: then nothing opens, and nothing is sealed.
    key: Option<Box<dyn AeadKey>>,
    place: Place,
}

/// What is the same in the AAD of all units of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) kind: UnitKind,
    pub(super) volume: VolumeId,
    pub(super) uid: SegmentUid,
}

impl UnitKind {
    const fn code(self) -> u8 {
        match self {
            Self::Chunk => 1,
            Self::Node => 2,
            Self::InlineChunk => 3,
            Self::Commit => 4,
        }
    }
}

impl Place {
    /// `magic[8] ‖ kind ‖ aead ‖ 0[2] ‖ volume[16] ‖ uid[16] ‖ LE64(offset) ‖ LE32(plaintext
    /// bytes)`, all of it known to who holds the pointer and nothing of it read from the object.
    pub(super) fn aad(&self, offset: u64, len: u32) -> [u8; AAD_LEN] {
        let mut aad = [0; AAD_LEN];
        let fields = MAGIC
            .into_iter()
            .chain([self.kind.code(), AES_256_GCM, 0, 0])
            .chain(self.volume.0)
            .chain(self.uid.0)
            .chain(offset.to_le_bytes())
            .chain(len.to_le_bytes());
        for (to, from) in aad.iter_mut().zip(fields) {
            *to = from;
        }
        aad
    }
}

impl SegmentSealer {
    pub(super) fn new(key: Option<Box<dyn AeadKey>>, place: Place) -> Self {
        Self { key, place }
    }

    /// Seals `plaintext` for `offset` into `sealed`, which is longer by a tag.
    ///
    /// Only a slot, which is consumed by it, calls this: an offset is never sealed twice.
    pub(crate) fn seal(
        &self,
        offset: u64,
        salt: &[u8; SALT_LEN],
        plaintext: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), SealError> {
        let len = u32::try_from(plaintext.len()).map_err(|_| SealError::Cipher)?;
        let nonce = nonce(offset, salt).ok_or(SealError::Cipher)?;
        let key = self.key.as_ref().ok_or(SealError::Cipher)?;
        key.seal(&nonce, &self.place.aad(offset, len), plaintext, sealed)
    }

    /// Opens the unit at `offset` into `plaintext`, whose length is what the pointer says.
    pub(crate) fn open(
        &self,
        offset: u64,
        salt: &[u8; SALT_LEN],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        let len = u32::try_from(plaintext.len()).map_err(|_| NotAuthentic)?;
        let nonce = nonce(offset, salt).ok_or(NotAuthentic)?;
        let key = self.key.as_ref().ok_or(NotAuthentic)?;
        key.open(&nonce, &self.place.aad(offset, len), sealed, plaintext)
    }
}

impl std::fmt::Debug for SegmentSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SegmentSealer({:?}, {})",
            self.place.kind, self.place.uid
        )
    }
}

/// `BE32(offset / 16) ‖ salt[8]`. Units begin on multiples of 16 and a segment is at most 256 MiB
/// long, so within one history the first half alone is unique under the segment's key; the salt is
/// for a second history, of a guest that was cloned while it ran.
fn nonce(offset: u64, salt: &[u8; SALT_LEN]) -> Option<[u8; 12]> {
    if !offset.is_multiple_of(16) {
        return None;
    }
    let slot = u32::try_from(offset.checked_div(16)?).ok()?;
    let mut nonce = [0; 12];
    for (to, from) in nonce
        .iter_mut()
        .zip(slot.to_be_bytes().into_iter().chain(*salt))
    {
        *to = from;
    }
    Some(nonce)
}

const _: () = assert!(8 + 4 + 16 + 16 + 8 + 4 == AAD_LEN && 4 + SALT_LEN == 12 && TAG_LEN == 16);
