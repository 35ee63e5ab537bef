//! Adapter: AES-256-GCM by RustCrypto, portable, and the check of the other.

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit};

use super::{Aead, AeadKey};
use crate::crypto::{NotAuthentic, SealError};
use crate::format::TAG_LEN;

/// The provider.
#[derive(Debug)]
pub(super) struct Portable;

struct Key(Aes256Gcm);

impl Aead for Portable {
    fn name(&self) -> &'static str {
        "aes-gcm"
    }

    fn key(&self, key: &[u8; 32]) -> Box<dyn AeadKey> {
        Box::new(Key(Aes256Gcm::new(key.into())))
    }
}

impl AeadKey for Key {
    fn seal(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        plaintext: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), SealError> {
        let (body, tag) = sealed
            .split_last_chunk_mut::<TAG_LEN>()
            .ok_or(SealError::Cipher)?;
        let buffer = InOutBuf::new(plaintext, body).map_err(|_| SealError::Cipher)?;
        *tag = self
            .0
            .encrypt_inout_detached(nonce.into(), aad, buffer)
            .map_err(|_| SealError::Cipher)?
            .into();
        Ok(())
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        let (body, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(NotAuthentic)?;
        let buffer = InOutBuf::new(body, plaintext).map_err(|_| NotAuthentic)?;
        self.0
            .decrypt_inout_detached(nonce.into(), aad, buffer, tag.into())
            .map_err(|_| NotAuthentic)
    }
}
