//! Core: sealing under a key that is used once.
//!
//! For what is sealed rarely, and at places that are written again: each sealing draws 32 random
//! bytes, derives a key from them, and so needs no rule for nonces at all.

use std::convert::Infallible;

use hkdf::Hkdf;
use keys::Secret;
use sha2::Sha256;

use super::aead::Aead;
use super::{Entropy, NotAuthentic, SealError};
use crate::format::TAG_LEN;

const SALT: usize = 32;
const NONCE: [u8; 12] = [0; 12];
/// Bytes that sealing adds.
pub(crate) const ONCE_OVERHEAD: usize = SALT + TAG_LEN;

/// What a sealing is derived from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parent<'a> {
    pub(super) key: &'a [u8; 32],
    pub(super) label: &'static [u8],
}

/// `salt[32] ‖ ciphertext ‖ tag[16]`.
pub(crate) fn seal_once(
    aead: &dyn Aead,
    entropy: &Entropy,
    parent: Parent<'_>,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, SealError> {
    let salt: [u8; SALT] = entropy.draw()?;
    let mut sealed = vec![0; ONCE_OVERHEAD.saturating_add(plaintext.len())];
    let (front, back) = sealed.split_first_chunk_mut().ok_or(SealError::Cipher)?;
    *front = salt;
    let key = derive(parent.key, &[parent.label, &salt]);
    aead.key(key.expose()).seal(&NONCE, aad, plaintext, back)?;
    Ok(sealed)
}

/// Opens what [`seal_once`] made.
pub(crate) fn open_once(
    aead: &dyn Aead,
    parent: Parent<'_>,
    aad: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, NotAuthentic> {
    let (salt, back) = sealed.split_first_chunk::<SALT>().ok_or(NotAuthentic)?;
    let mut plaintext = vec![0; back.len().checked_sub(TAG_LEN).ok_or(NotAuthentic)?];
    let key = derive(parent.key, &[parent.label, salt]);
    aead.key(key.expose())
        .open(&NONCE, aad, back, &mut plaintext)?;
    Ok(plaintext)
}

/// HKDF-Expand with `parent` as the PRK and an `info` in parts.
pub(super) fn derive(parent: &[u8; 32], info: &[&[u8]]) -> Secret<32> {
    let filled = Secret::fill_with(|bytes| {
        derive_into(parent, info, bytes);
        Ok::<_, Infallible>(())
    });
    let Ok(secret) = filled;
    secret
}

/// The same, straight to where the key is kept.
pub(super) fn derive_into(parent: &[u8; 32], info: &[&[u8]], key: &mut [u8; 32]) {
    let Ok(tree) = Hkdf::<Sha256>::from_prk(parent) else {
        unreachable!("32 bytes are a valid PRK of HKDF-SHA-256")
    };
    match tree.expand_multi_info(info, key) {
        Ok(()) => {}
        Err(_) => unreachable!("RFC 5869: up to 255 blocks, and this is one"),
    }
}
