//! Adapter: AES-256-GCM by RustCrypto, portable, and the check of the other.

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroize;

use super::{Aead, AeadKey};
use crate::crypto::{NotAuthentic, SealError};
use crate::format::TAG_LEN;

/// More than the cipher takes of the stack, which without optimisation is a lot.
const STACK_WIPED: usize = if cfg!(debug_assertions) { 64 } else { 8 } << 10;

/// The provider.
#[derive(Debug)]
pub(super) struct Portable;

struct Key(Aes256Gcm);

impl Aead for Portable {
    fn name(&self) -> &'static str {
        "aes-gcm"
    }

    fn key(&self, key: &[u8; 32]) -> Box<dyn AeadKey> {
        let prepared = prepare(key);
        wipe_stack_below();
        prepared
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
        let done = seal(&self.0, nonce, aad, plaintext, sealed);
        wipe_stack_below();
        done
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        let done = open(&self.0, nonce, aad, sealed, plaintext);
        wipe_stack_below();
        done
    }
}

/// The schedule is made on the stack and moved, which leaves copies of it in the frames below.
#[inline(never)]
fn prepare(key: &[u8; 32]) -> Box<dyn AeadKey> {
    Box::new(Key(Aes256Gcm::new(key.into())))
}

/// Round keys that do not fit the registers go to the frames below.
#[inline(never)]
fn seal(
    cipher: &Aes256Gcm,
    nonce: &[u8; 12],
    aad: &[u8],
    plaintext: &[u8],
    sealed: &mut [u8],
) -> Result<(), SealError> {
    let (body, tag) = sealed
        .split_last_chunk_mut::<TAG_LEN>()
        .ok_or(SealError::Cipher)?;
    let buffer = InOutBuf::new(plaintext, body).map_err(|_| SealError::Cipher)?;
    *tag = cipher
        .encrypt_inout_detached(nonce.into(), aad, buffer)
        .map_err(|_| SealError::Cipher)?
        .into();
    Ok(())
}

/// As [`seal`].
#[inline(never)]
fn open(
    cipher: &Aes256Gcm,
    nonce: &[u8; 12],
    aad: &[u8],
    sealed: &[u8],
    plaintext: &mut [u8],
) -> Result<(), NotAuthentic> {
    let (body, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(NotAuthentic)?;
    let buffer = InOutBuf::new(body, plaintext).map_err(|_| NotAuthentic)?;
    cipher
        .decrypt_inout_detached(nonce.into(), aad, buffer, tag.into())
        .map_err(|_| NotAuthentic)
}

/// Overwrites what the function left behind that was called just before, from the same frame.
#[inline(never)]
fn wipe_stack_below() {
    let mut frames = [u128::MAX; STACK_WIPED / 16];
    frames.zeroize();
    std::hint::black_box(&frames);
}
