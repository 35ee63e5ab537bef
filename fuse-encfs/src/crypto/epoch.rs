//! Core: everything that is derived from one master key.

use std::fmt;
use std::sync::Once;

use keys::{VolumeId, VolumeMasterKey};
use runtime::locked::LockedKeys;

use super::aead::Aead;
use super::once::{Parent, derive_into};
use super::{NotAuthentic, SealError, label, open_once};
use crate::format::SegmentKind;

/// The keys of one master key.
pub(crate) struct EpochKeys {
    epoch: u32,
    volume: VolumeId,
    keys: LockedKeys<KEYS>,
}

/// What is derived from a master key, in the order in which it is kept.
#[derive(Clone, Copy)]
pub(super) enum Derived {
    Anchor,
    Data,
    GenesisCommitment,
    Log,
    Node,
    Superblock,
    Uid,
    VmkCommitment,
}

/// Keys that are kept: those that are derived, and behind them the master key itself, which another
/// key-encryption key may have to wrap.
const KEYS: usize = Derived::ALL.len() + 1;

impl Derived {
    const ALL: [(Self, &[u8]); 8] = [
        (Self::Anchor, label::ANCHOR),
        (Self::Data, label::DATA),
        (Self::GenesisCommitment, label::GENESIS_COMMITMENT),
        (Self::Log, label::LOG),
        (Self::Node, label::NODE),
        (Self::Superblock, label::SUPERBLOCK),
        (Self::Uid, label::UID),
        (Self::VmkCommitment, label::VMK_COMMITMENT),
    ];
}

impl EpochKeys {
    /// Derives all keys of a master key.
    pub(crate) fn new(
        vmk: &VolumeMasterKey,
        epoch: u32,
        volume: VolumeId,
    ) -> Result<Self, SealError> {
        let names = (volume.0, epoch.to_le_bytes());
        let keys = LockedKeys::fill_with(|keys| {
            for (key, (what, label)) in keys.iter_mut().zip(Derived::ALL) {
                let info: [&[u8]; 3] = [label, &names.0, &names.1];
                let bound = matches!(what, Derived::VmkCommitment);
                let info = if bound { &info[..] } else { &info[..1] };
                derive_into(vmk.expose(), info, key);
            }
            if let Some(master) = keys.last_mut() {
                master.copy_from_slice(vmk.expose());
            }
        })?;
        if !keys.is_locked() {
            warn_once_of_unlocked_keys();
        }
        Ok(Self {
            epoch,
            volume,
            keys,
        })
    }

    /// The master key, to be wrapped anew.
    pub(super) fn master(&self) -> Result<VolumeMasterKey, SealError> {
        let master = self.keys.last().ok_or(SealError::Cipher)?;
        VolumeMasterKey::fill_with(|bytes| {
            bytes.copy_from_slice(master);
            Ok(())
        })
    }

    /// Its epoch.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whose it is.
    pub(super) fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What the superblock shows of the master key, so that a wrong one is told from damage.
    pub(crate) fn commitment(&self) -> &[u8; 32] {
        self.key(Derived::VmkCommitment)
    }

    /// Opens the body of a superblock.
    pub(crate) fn open_body(
        &self,
        aead: &dyn Aead,
        clear: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, NotAuthentic> {
        open_once(aead, self.body_parent(), clear, sealed)
    }

    /// What superblock bodies are sealed under.
    pub(super) fn body_parent(&self) -> Parent<'_> {
        Parent {
            key: self.key(Derived::Superblock),
            label: label::BODY,
        }
    }

    /// What headers of segments are sealed under.
    pub(super) fn header_parent(&self, kind: SegmentKind) -> Parent<'_> {
        Parent {
            key: self.of_kind(kind),
            label: label::HEADER,
        }
    }

    /// What the keys of segments of a kind are derived from.
    pub(super) fn of_kind(&self, kind: SegmentKind) -> &[u8; 32] {
        self.key(match kind {
            SegmentKind::Data => Derived::Data,
            SegmentKind::Log => Derived::Log,
            SegmentKind::Node => Derived::Node,
        })
    }

    /// One of the keys.
    #[expect(
        clippy::indexing_slicing,
        reason = "there is a key for each of the enum's values, in their order"
    )]
    pub(super) fn key(&self, what: Derived) -> &[u8; 32] {
        &self.keys[what as usize]
    }
}

fn warn_once_of_unlocked_keys() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            error_code = "fs.keys_unlocked",
            "keys are in memory that can be swapped, as the deployment permits"
        );
    });
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochKeys({}, ..)", self.epoch)
    }
}

// A key is found by its place.
#[expect(
    clippy::indexing_slicing,
    reason = "at compile time, where a panic is an error"
)]
const _: () = {
    let mut i = 0;
    while i < Derived::ALL.len() {
        assert!(Derived::ALL[i].0 as usize == i, "in the order of the enum");
        i += 1;
    }
};
