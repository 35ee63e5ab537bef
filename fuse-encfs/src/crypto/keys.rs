//! Core: the keys of a volume, from the KEK down.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use keys::{KekEpoch, Secret, VolumeId, VolumeKek};
use siphasher::sip::SipHasher24;

use super::aead::Aead;
use super::chain::genesis_head;
use super::once::{Parent, derive};
use super::unit::{Place, UnitKind};
use super::{Entropy, Head, NotAuthentic, SealError, SegmentSealer, label, open_once, seal_once};
use crate::format::{SegmentKind, SegmentRef, VmkWrap, WRAPPED_VMK_LEN};

/// The KEK at work: wraps master keys and does nothing else.
pub(crate) struct KekSealer {
    kek: Secret<32>,
    volume: VolumeId,
    epoch: KekEpoch,
}

/// Everything that is derived from a volume's master key.
pub(crate) struct VolumeKeys {
    aead: Arc<dyn Aead>,
    entropy: Entropy,
    volume: VolumeId,
    vmk_epoch: u32,
    commitment: Secret<32>,
    data: Secret<32>,
    node: Secret<32>,
    log: Secret<32>,
    superblock: Secret<32>,
    uid: Secret<32>,
    dirhash: Secret<32>,
}

/// Hashes the names of directory entries: keyed, so that nobody who chooses names can make them
/// collide.
pub(crate) struct NameHasher(Secret<16>);

impl KekSealer {
    /// A KEK for one volume in one epoch.
    pub(crate) fn new(kek: &VolumeKek, volume: VolumeId, epoch: KekEpoch) -> Self {
        let copied = Secret::fill_with(|bytes| {
            bytes.copy_from_slice(kek.expose());
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(kek) = copied;
        Self { kek, volume, epoch }
    }

    /// What the superblock shows of the KEK, so that a wrong one is told from damage.
    pub(crate) fn commitment(&self) -> [u8; 32] {
        let info: [&[u8]; 3] = [
            label::KEK_COMMITMENT,
            &self.volume.0,
            &self.epoch.0.to_le_bytes(),
        ];
        *derive(&self.kek, &info).expose()
    }

    /// Wraps a master key.
    pub(crate) fn wrap(
        &self,
        aead: &dyn Aead,
        entropy: &Entropy,
        vmk: &Secret<32>,
        vmk_epoch: u32,
    ) -> Result<VmkWrap, SealError> {
        let sealed = seal_once(
            aead,
            entropy,
            self.parent(),
            &self.aad(vmk_epoch),
            vmk.expose(),
        )?;
        let sealed: [u8; WRAPPED_VMK_LEN] = sealed.try_into().map_err(|_| SealError::Cipher)?;
        Ok(VmkWrap {
            epoch: vmk_epoch,
            sealed,
        })
    }

    /// Unwraps a master key.
    pub(crate) fn unwrap(
        &self,
        aead: &dyn Aead,
        wrap: &VmkWrap,
    ) -> Result<Secret<32>, NotAuthentic> {
        let aad = self.aad(wrap.epoch);
        let mut vmk = open_once(aead, self.parent(), &aad, &wrap.sealed)?;
        Secret::take_from(&mut vmk).map_err(|_| NotAuthentic)
    }

    fn parent(&self) -> Parent<'_> {
        Parent {
            key: &self.kek,
            label: label::VMK_WRAP,
        }
    }

    fn aad(&self, vmk_epoch: u32) -> Vec<u8> {
        let (kek, vmk) = (self.epoch.0.to_le_bytes(), vmk_epoch.to_le_bytes());
        self.volume.0.into_iter().chain(kek).chain(vmk).collect()
    }
}

impl VolumeKeys {
    /// Derives all keys of a volume from its master key of one epoch.
    pub(crate) fn new(
        aead: Arc<dyn Aead>,
        vmk: &Secret<32>,
        vmk_epoch: u32,
        volume: VolumeId,
    ) -> Self {
        Self {
            aead,
            entropy: Entropy::default(),
            volume,
            vmk_epoch,
            commitment: derive(vmk, &[label::VMK_COMMITMENT]),
            data: derive(vmk, &[label::DATA]),
            node: derive(vmk, &[label::NODE]),
            log: derive(vmk, &[label::LOG]),
            superblock: derive(vmk, &[label::SUPERBLOCK]),
            uid: derive(vmk, &[label::UID]),
            dirhash: derive(vmk, &[label::DIRHASH]),
        }
    }

    /// The source of salts.
    pub(crate) fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// A fresh segment, keyed by the newest master key.
    pub(crate) fn new_segment(&self, head: &Head) -> Result<SegmentRef, SealError> {
        let uid = self.entropy.uid(self.uid.expose(), head)?;
        Ok(SegmentRef {
            uid,
            vmk_epoch: self.vmk_epoch,
        })
    }

    /// The head of the chain before its first commit.
    pub(crate) fn genesis_head(&self, genesis: &[u8; 32]) -> Head {
        genesis_head(self.volume, genesis, self.commitment.expose())
    }

    /// The sealer of a segment's units; of a log segment that of its inline chunks.
    pub(crate) fn segment(&self, kind: SegmentKind, segment: SegmentRef) -> SegmentSealer {
        let (parent, kind) = match kind {
            SegmentKind::Data => (&self.data, UnitKind::Chunk),
            SegmentKind::Log => (&self.log, UnitKind::InlineChunk),
            SegmentKind::Node => (&self.node, UnitKind::Node),
        };
        let key = segment_key(parent, label::SEGMENT, segment);
        let place = Place {
            kind,
            volume: self.volume,
            uid: segment.uid,
        };
        SegmentSealer::new(self.aead.key(key.expose()), place)
    }

    /// Seals a commit whose frame begins at `offset` with the clear head `head`.
    pub(crate) fn seal_commit(
        &self,
        at: (SegmentRef, u64),
        head: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let aad = self
            .commit_aad(at, head, plaintext.len())
            .ok_or(SealError::Cipher)?;
        let key = self.commits(at.0);
        let parent = Parent {
            key: &key,
            label: label::COMMIT,
        };
        seal_once(&*self.aead, &self.entropy, parent, &aad, plaintext)
    }

    /// Opens a commit.
    pub(crate) fn open_commit(
        &self,
        at: (SegmentRef, u64),
        head: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, NotAuthentic> {
        let len = sealed
            .len()
            .checked_sub(super::ONCE_OVERHEAD)
            .ok_or(NotAuthentic)?;
        let aad = self.commit_aad(at, head, len).ok_or(NotAuthentic)?;
        let key = self.commits(at.0);
        let parent = Parent {
            key: &key,
            label: label::COMMIT,
        };
        open_once(&*self.aead, parent, &aad, sealed)
    }

    /// Seals the body of a superblock with its clear part.
    pub(crate) fn seal_body(&self, clear: &[u8], body: &[u8]) -> Result<Vec<u8>, SealError> {
        seal_once(&*self.aead, &self.entropy, self.body_parent(), clear, body)
    }

    /// Opens the body of a superblock.
    pub(crate) fn open_body(&self, clear: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        open_once(&*self.aead, self.body_parent(), clear, sealed)
    }

    /// The hash of names.
    pub(crate) fn name_hasher(&self) -> NameHasher {
        NameHasher(derive(&self.dirhash, &[label::NAMES]))
    }

    fn body_parent(&self) -> Parent<'_> {
        Parent {
            key: &self.superblock,
            label: label::BODY,
        }
    }

    fn commits(&self, segment: SegmentRef) -> Secret<32> {
        segment_key(&self.log, label::COMMITS, segment)
    }

    fn commit_aad(&self, at: (SegmentRef, u64), head: &[u8], len: usize) -> Option<Vec<u8>> {
        let place = Place {
            kind: UnitKind::Commit,
            volume: self.volume,
            uid: at.0.uid,
        };
        let mut aad = place.aad(at.1, u32::try_from(len).ok()?).to_vec();
        aad.extend(head);
        Some(aad)
    }
}

impl NameHasher {
    /// The hash of a name. A test build keeps four bits, so that every test meets collisions.
    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        if cfg!(test) {
            self.whole(name) & 0xf
        } else {
            self.whole(name)
        }
    }

    pub(super) fn whole(&self, name: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(self.0.expose());
        hasher.write(name);
        hasher.finish()
    }
}

impl fmt::Debug for KekSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KekSealer(..)")
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKeys(..)")
    }
}

impl fmt::Debug for NameHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameHasher(..)")
    }
}

fn segment_key(parent: &Secret<32>, label: &[u8], segment: SegmentRef) -> Secret<32> {
    derive(
        parent,
        &[label, &segment.uid.0, &segment.vmk_epoch.to_le_bytes()],
    )
}
