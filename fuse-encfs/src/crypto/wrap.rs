//! Core: master keys, wrapped with what opens them.

use std::convert::Infallible;
use std::fmt;

use keys::{KekEpoch, Secret, VolumeId, VolumeKek, VolumeMasterKey};

use super::aead::Aead;
use super::once::{Parent, derive};
use super::{Entropy, NotAuthentic, SealError, label, open_once, seal_once};
use crate::format::{VmkWrap, WRAPPED_VMK_LEN};

/// The KEK at work: wraps master keys and does nothing else.
pub(crate) struct KekSealer {
    kek: Secret<32>,
    volume: VolumeId,
    epoch: KekEpoch,
}

impl KekSealer {
    /// A KEK for one volume in one epoch.
    pub(crate) fn new(kek: &VolumeKek, volume: VolumeId, epoch: KekEpoch) -> Self {
        let copied = Secret::fill_with(|bytes| {
            bytes.copy_from_slice(kek.expose());
            Ok::<_, Infallible>(())
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
        *derive(self.kek.expose(), &info).expose()
    }

    /// Wraps a master key.
    pub(crate) fn wrap(
        &self,
        aead: &dyn Aead,
        entropy: &Entropy,
        vmk: &VolumeMasterKey,
        vmk_epoch: u32,
    ) -> Result<VmkWrap, SealError> {
        wrap_vmk(
            aead,
            entropy,
            self.parent(),
            &self.aad(vmk_epoch),
            (vmk, vmk_epoch),
        )
    }

    /// Unwraps a master key.
    pub(crate) fn unwrap(
        &self,
        aead: &dyn Aead,
        wrap: &VmkWrap,
    ) -> Result<VolumeMasterKey, NotAuthentic> {
        unwrap_vmk(aead, self.parent(), &self.aad(wrap.epoch), wrap)
    }

    fn parent(&self) -> Parent<'_> {
        Parent {
            key: self.kek.expose(),
            label: label::VMK_WRAP,
        }
    }

    fn aad(&self, vmk_epoch: u32) -> Vec<u8> {
        let (kek, vmk) = (self.epoch.0.to_le_bytes(), vmk_epoch.to_le_bytes());
        self.volume.0.into_iter().chain(kek).chain(vmk).collect()
    }
}

/// Wraps the master key `older` with the one that follows it, `newer`, each with its epoch. Who has
/// the newest master key of a volume can open all of it, whatever it was opened with.
pub(crate) fn wrap_older(
    aead: &dyn Aead,
    entropy: &Entropy,
    volume: VolumeId,
    newer: (&VolumeMasterKey, u32),
    older: (&VolumeMasterKey, u32),
) -> Result<VmkWrap, SealError> {
    let aad = older_aad(volume, newer.1, older.1);
    wrap_vmk(aead, entropy, older_parent(newer.0), &aad, older)
}

/// Opens what [`wrap_older`] made.
pub(crate) fn unwrap_older(
    aead: &dyn Aead,
    volume: VolumeId,
    newer: (&VolumeMasterKey, u32),
    wrap: &VmkWrap,
) -> Result<VolumeMasterKey, NotAuthentic> {
    let aad = older_aad(volume, newer.1, wrap.epoch);
    unwrap_vmk(aead, older_parent(newer.0), &aad, wrap)
}

fn older_parent(newer: &VolumeMasterKey) -> Parent<'_> {
    Parent {
        key: newer.expose(),
        label: label::OLDER_VMK_WRAP,
    }
}

fn older_aad(volume: VolumeId, newer: u32, older: u32) -> Vec<u8> {
    let epochs = [newer.to_le_bytes(), older.to_le_bytes()];
    volume
        .0
        .into_iter()
        .chain(epochs.into_iter().flatten())
        .collect()
}

fn wrap_vmk(
    aead: &dyn Aead,
    entropy: &Entropy,
    parent: Parent<'_>,
    aad: &[u8],
    (vmk, epoch): (&VolumeMasterKey, u32),
) -> Result<VmkWrap, SealError> {
    let sealed = seal_once(aead, entropy, parent, aad, vmk.expose())?;
    let sealed: [u8; WRAPPED_VMK_LEN] = sealed.try_into().map_err(|_| SealError::Cipher)?;
    Ok(VmkWrap { epoch, sealed })
}

fn unwrap_vmk(
    aead: &dyn Aead,
    parent: Parent<'_>,
    aad: &[u8],
    wrap: &VmkWrap,
) -> Result<VolumeMasterKey, NotAuthentic> {
    let mut vmk = open_once(aead, parent, aad, &wrap.sealed)?;
    VolumeMasterKey::take_from(&mut vmk).map_err(|_| NotAuthentic)
}

impl fmt::Debug for KekSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KekSealer(..)")
    }
}
