//! Core: a volume's master key, encrypted to the public key of an owner.
//!
//! For the day on which the vault is gone. The owner's private key is never here: the owner opens
//! the wrap where that key lives, with any tool that knows RSAES-OAEP (RFC 8017) with SHA-256.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use keys::VolumeMasterKey;
use sha2::{Digest, Sha256};

use super::SealError;
use crate::format::{OWNER_KEY_LEN_MAX, RECOVERY_LEN_MAX, RecoveryWrap};

/// Security of the wrap is that of the volume for years: NIST SP 800-57 asks for 3072 bits.
const BITS: std::ops::RangeInclusive<usize> = 3072..=4096;

/// The public key that a volume's master key is encrypted to.
pub struct OwnerKey {
    /// SubjectPublicKeyInfo, DER.
    spki: Vec<u8>,
    key: OaepPublicEncryptingKey,
}

/// A text or bytes are no public key that a volume's master key can be encrypted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnerKeyError {
    /// It is no PEM text with a public key.
    #[error("a recovery key is a PEM text that begins with BEGIN PUBLIC KEY")]
    NotAPublicKey,
    /// It is a key of another kind or size.
    #[error("a recovery key is an RSA key of 3072 to 4096 bits")]
    NotSuitable,
}

impl OwnerKey {
    /// Parses `-----BEGIN PUBLIC KEY-----` (RFC 7468, section 13).
    pub fn from_pem(text: &[u8]) -> Result<Self, OwnerKeyError> {
        let (label, spki) =
            pem_rfc7468::decode_vec(text).map_err(|_| OwnerKeyError::NotAPublicKey)?;
        if label != "PUBLIC KEY" {
            return Err(OwnerKeyError::NotAPublicKey);
        }
        Self::from_spki(&spki)
    }

    /// Takes a SubjectPublicKeyInfo (RFC 5280), DER.
    pub(super) fn from_spki(spki: &[u8]) -> Result<Self, OwnerKeyError> {
        let key = PublicEncryptingKey::from_der(spki).map_err(|_| OwnerKeyError::NotSuitable)?;
        // The parser stops behind the key; what is kept must be the key and nothing else.
        let canonical: PublicKeyX509Der<'_> =
            key.as_der().map_err(|_| OwnerKeyError::NotSuitable)?;
        let suits = BITS.contains(&key.key_size_bits())
            && canonical.as_ref() == spki
            && spki.len() <= OWNER_KEY_LEN_MAX;
        if !suits {
            return Err(OwnerKeyError::NotSuitable);
        }
        Ok(Self {
            spki: spki.to_vec(),
            key: OaepPublicEncryptingKey::new(key).map_err(|_| OwnerKeyError::NotSuitable)?,
        })
    }

    /// Encrypts a master key.
    pub(crate) fn wrap(&self, vmk: &VolumeMasterKey) -> Result<RecoveryWrap, SealError> {
        let mut encrypted = vec![0; RECOVERY_LEN_MAX];
        let len = self
            .key
            .encrypt(&OAEP_SHA256_MGF1SHA256, vmk.expose(), &mut encrypted, None)
            .map_err(|_| SealError::Cipher)?
            .len();
        encrypted.truncate(len);
        Ok(RecoveryWrap {
            owner: self.spki.clone(),
            encrypted,
        })
    }
}

impl RecoveryWrap {
    /// Encrypts another master key to the same owner.
    pub(crate) fn renew(&self, vmk: &VolumeMasterKey) -> Result<Self, SealError> {
        // It was checked when the volume was made, and is authenticated since.
        let owner = OwnerKey::from_spki(&self.owner).map_err(|_| SealError::Cipher)?;
        owner.wrap(vmk)
    }

    /// SHA-256 of the owner's SubjectPublicKeyInfo, by which tools name public keys.
    pub(crate) fn owner_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.owner).into()
    }
}

impl std::fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnerKey(..)")
    }
}
