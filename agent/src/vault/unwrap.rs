//! Core: opens a released key: RSA-OAEP over an AES-256 key, AES-KWP over the secret (PKCS#11
//! CKM_RSA_AES_KEY_WRAP with SHA-256 or SHA-384; RFC 5649).

use attest::release::{ReleasedKey, WrapAlgorithm};
use keys::MasterSecret;
use openssl::cipher::Cipher;
use openssl::cipher_ctx::{CipherCtx, CipherCtxFlags};
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::pkey::{PKeyRef, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;
use zeroize::Zeroizing;

/// Longest wrapped key: a 64-byte secret and some room; the vault's limit for `oct` keys.
const WRAPPED_BYTES_MAX: usize = 128;

/// The released key could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnwrapError {
    /// The ciphertext is too short, too long, or not for our key. No detail: it is a decryption.
    #[error("the released key does not open with this pod's wrap key")]
    Unopened(#[source] Option<ErrorStack>),
    /// The key is of a kind that this build does not take.
    #[error("the released key is of another type than oct-HSM")]
    KeyType,
    /// The key has another length than a master secret.
    #[error("the released key is not 32 bytes long")]
    Length,
}

impl UnwrapError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unopened(_) => "skr.unwrap",
            Self::KeyType => "skr.key_type",
            Self::Length => "skr.key_length",
        }
    }
}

/// Opens `released` and takes its bytes as the master secret.
pub fn unwrap(released: &ReleasedKey, key: &PKeyRef<Private>) -> Result<MasterSecret, UnwrapError> {
    if released.kty != "oct-HSM" {
        return Err(UnwrapError::KeyType);
    }
    let modulus = key.size();
    if released.ciphertext.len() > modulus + WRAPPED_BYTES_MAX {
        return Err(UnwrapError::Unopened(None));
    }
    let parts = released.ciphertext.split_at_checked(modulus);
    let (sealed_kek, wrapped) = parts.ok_or(UnwrapError::Unopened(None))?;
    // OpenSSL takes an empty input for an empty key: RFC 5649 knows none below 16 bytes.
    if wrapped.len() < 16 || !wrapped.len().is_multiple_of(8) {
        return Err(UnwrapError::Unopened(None));
    }
    let failed = |error| UnwrapError::Unopened(Some(error));
    let kek = open_oaep(key, released.enc, sealed_kek).map_err(failed)?;
    if kek.len() != 32 {
        return Err(UnwrapError::Unopened(None));
    }
    let mut secret = open_kwp(&kek, wrapped).map_err(failed)?;
    MasterSecret::from_release(&mut secret).map_err(|_| UnwrapError::Length)
}

/// RSAES-OAEP with an empty label; hash and MGF1 hash are the same.
fn open_oaep(
    key: &PKeyRef<Private>,
    algorithm: WrapAlgorithm,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
    let hash = match algorithm {
        WrapAlgorithm::RsaAesKeyWrap256 => Md::sha256(),
        WrapAlgorithm::RsaAesKeyWrap384 => Md::sha384(),
    };
    let mut context = PkeyCtx::new(key)?;
    context.decrypt_init()?;
    context.set_rsa_padding(Padding::PKCS1_OAEP)?;
    context.set_rsa_oaep_md(hash)?;
    context.set_rsa_mgf1_md(hash)?;
    let mut kek = Zeroizing::new(vec![0; key.size()]);
    let len = context.decrypt(sealed, Some(&mut kek))?;
    kek.truncate(len);
    Ok(kek)
}

/// AES-256 key wrap with padding, RFC 5649.
fn open_kwp(kek: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
    let mut context = CipherCtx::new()?;
    context.set_flags(CipherCtxFlags::FLAG_WRAP_ALLOW);
    context.decrypt_init(Some(Cipher::aes_256_wrap_pad()), Some(kek), None)?;
    let mut secret = Zeroizing::new(vec![0; wrapped.len() + 16]);
    let len = context.cipher_update(wrapped, Some(&mut secret))?;
    secret.truncate(len);
    Ok(secret)
}
