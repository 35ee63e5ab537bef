//! Core: the keys that a volume is opened with, of one master key or of two.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use keys::{Secret, VolumeId};
use runtime::sync::RwLock;
use siphasher::sip::SipHasher24;

use super::aead::Aead;
use super::chain::genesis_head;
use super::epoch::{Derived, EpochKeys};
use super::once::{Parent, derive};
use super::unit::{Place, UnitKind};
use super::{Entropy, Head, NotAuthentic, SealError, SegmentSealer, label, open_once, seal_once};
use crate::format::{NameKey, SegmentBirth, SegmentHeader, SegmentKind, SegmentRef};

/// Everything that is derived from a volume's master keys.
///
/// While a volume is re-encrypted there are two epochs: what is new is sealed under the newest, and
/// what is old still opens.
pub(crate) struct VolumeKeys {
    aead: Arc<dyn Aead>,
    entropy: Entropy,
    volume: VolumeId,
    name_key: NameKey,
    epochs: RwLock<Epochs>,
}

#[derive(Clone)]
pub(super) struct Epochs {
    newest: Arc<EpochKeys>,
    older: Option<Arc<EpochKeys>>,
}

/// Hashes the names of directory entries: keyed, so that nobody who chooses names can make them
/// collide.
pub(crate) struct NameHasher(NameKey);

impl VolumeKeys {
    /// The keys of a volume whose newest master key is that of `newest`.
    pub(crate) fn new(
        aead: Arc<dyn Aead>,
        newest: EpochKeys,
        older: Option<EpochKeys>,
        name_key: NameKey,
    ) -> Self {
        Self {
            aead,
            entropy: Entropy::default(),
            volume: newest.volume(),
            name_key,
            epochs: RwLock::new(Epochs {
                newest: Arc::new(newest),
                older: older.map(Arc::new),
            }),
        }
    }

    /// The same keys, and those of a newer master key.
    pub(crate) fn with_newer(&self, newer: EpochKeys) -> Self {
        let older = self.newest();
        Self {
            aead: Arc::clone(&self.aead),
            entropy: Entropy::default(),
            volume: self.volume,
            name_key: self.name_key,
            epochs: RwLock::new(Epochs {
                newest: Arc::new(newer),
                older: Some(older),
            }),
        }
    }

    /// Goes on with the master keys of `other`, which is of the same volume. For a volume that is
    /// in use: only once the superblock that names them is durable in both slots.
    pub(crate) fn adopt(&self, other: &Self) {
        let epochs = other.epochs.read().clone();
        *self.epochs.write() = epochs;
    }

    /// Forgets the older master key. What is sealed under it does not open any more.
    pub(crate) fn forget_older(&self) {
        self.epochs.write().older = None;
    }

    /// The newest master key, to be wrapped anew.
    pub(crate) fn newest_master(&self) -> Result<::keys::VolumeMasterKey, SealError> {
        self.newest().master()
    }

    /// Whose keys they are.
    pub(crate) fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The cipher.
    pub(crate) fn aead(&self) -> &Arc<dyn Aead> {
        &self.aead
    }

    /// The source of salts.
    pub(crate) fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// Epoch of the newest master key.
    pub(crate) fn vmk_epoch(&self) -> u32 {
        self.epochs.read().newest.epoch()
    }

    /// A fresh segment, keyed by the newest master key.
    pub(crate) fn new_segment(&self, head: &Head) -> Result<SegmentRef, SealError> {
        let newest = self.newest();
        let uid = self.entropy.uid(newest.key(Derived::Uid), head)?;
        Ok(SegmentRef {
            uid,
            vmk_epoch: newest.epoch(),
        })
    }

    /// The head of the chain before its first commit, in a volume that is being made.
    pub(crate) fn genesis_head(&self, genesis: &[u8; 32]) -> Head {
        let newest = self.newest();
        genesis_head(self.volume, genesis, newest.key(Derived::GenesisCommitment))
    }

    /// The sealer of a segment's units; of a log segment that of its inline chunks. When the
    /// volume has no key of the segment's epoch, it is one that opens and seals nothing.
    pub(crate) fn segment(&self, kind: SegmentKind, segment: SegmentRef) -> SegmentSealer {
        let unit = match kind {
            SegmentKind::Data => UnitKind::Chunk,
            SegmentKind::Log => UnitKind::InlineChunk,
            SegmentKind::Node => UnitKind::Node,
        };
        let key = self.of_epoch(segment.vmk_epoch).map(|keys| {
            let key = segment_key(keys.of_kind(kind), label::SEGMENT, segment);
            self.aead.key(key.expose())
        });
        let place = Place {
            kind: unit,
            volume: self.volume,
            uid: segment.uid,
        };
        SegmentSealer::new(key, place)
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
        let key = self.commits(at.0).ok_or(SealError::Cipher)?;
        let parent = Parent {
            key: key.expose(),
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
        let key = self.commits(at.0).ok_or(NotAuthentic)?;
        let parent = Parent {
            key: key.expose(),
            label: label::COMMIT,
        };
        open_once(&*self.aead, parent, &aad, sealed)
    }

    /// Seals the body of a superblock with its clear part.
    pub(crate) fn seal_body(&self, clear: &[u8], body: &[u8]) -> Result<Vec<u8>, SealError> {
        let newest = self.newest();
        seal_once(
            &*self.aead,
            &self.entropy,
            newest.body_parent(),
            clear,
            body,
        )
    }

    /// The header of a segment of this volume, as it stands in front of the units.
    pub(crate) fn seal_header(
        &self,
        header: &SegmentHeader,
        birth: SegmentBirth,
    ) -> Result<Vec<u8>, SealError> {
        let keys = self.of_epoch(header.segment.vmk_epoch);
        let keys = keys.ok_or(SealError::Cipher)?;
        let parent = keys.header_parent(header.kind);
        let mut bytes = header.bytes();
        let sealed = seal_once(&*self.aead, &self.entropy, parent, &bytes, &birth.bytes())?;
        bytes.extend(sealed);
        Ok(bytes)
    }

    /// Opens the header of a segment, which may be any of this volume.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for tools: no mount reads headers")
    )]
    pub(crate) fn open_header(
        &self,
        bytes: &[u8],
    ) -> Result<(SegmentHeader, SegmentBirth), NotAuthentic> {
        let (header, aad, sealed) = SegmentHeader::parse(bytes).map_err(|_| NotAuthentic)?;
        if header.volume != self.volume {
            return Err(NotAuthentic);
        }
        let keys = self
            .of_epoch(header.segment.vmk_epoch)
            .ok_or(NotAuthentic)?;
        let birth = open_once(&*self.aead, keys.header_parent(header.kind), aad, sealed)?;
        let birth = SegmentBirth::parse(&birth).map_err(|_| NotAuthentic)?;
        Ok((header, birth))
    }

    /// Derives the tag of an anchor's record; `None` without a master key of that epoch.
    pub(super) fn derive_anchor_tag(&self, vmk_epoch: u32, record: &[u8]) -> Option<Secret<32>> {
        let keys = self.of_epoch(vmk_epoch)?;
        let info: [&[u8]; 2] = [label::ANCHOR_TAG, record];
        Some(derive(keys.key(Derived::Anchor), &info))
    }

    /// The hash of names.
    pub(crate) fn name_hasher(&self) -> NameHasher {
        NameHasher(self.name_key)
    }

    fn newest(&self) -> Arc<EpochKeys> {
        Arc::clone(&self.epochs.read().newest)
    }

    fn of_epoch(&self, epoch: u32) -> Option<Arc<EpochKeys>> {
        let epochs = self.epochs.read();
        let mut known = [Some(&epochs.newest), epochs.older.as_ref()]
            .into_iter()
            .flatten();
        known.find(|keys| keys.epoch() == epoch).cloned()
    }

    fn commits(&self, segment: SegmentRef) -> Option<Secret<32>> {
        let keys = self.of_epoch(segment.vmk_epoch)?;
        Some(segment_key(keys.key(Derived::Log), label::COMMITS, segment))
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

    pub(crate) fn whole(&self, name: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0.0);
        hasher.write(name);
        hasher.finish()
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

fn segment_key(parent: &[u8; 32], label: &[u8], segment: SegmentRef) -> Secret<32> {
    derive(
        parent,
        &[label, &segment.uid.0, &segment.vmk_epoch.to_le_bytes()],
    )
}
