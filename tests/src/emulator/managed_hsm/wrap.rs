//! Core: wraps a key to an RSA key: RSA-OAEP over a fresh AES-256 key, AES key wrap with padding
//! (RFC 5649) over the secret (PKCS#11 CKM_RSA_AES_KEY_WRAP).

use openssl::cipher::Cipher;
use openssl::cipher_ctx::{CipherCtx, CipherCtxFlags};
use openssl::error::ErrorStack;
use openssl::md::{Md, MdRef};
use openssl::pkey::{PKeyRef, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;

/// `enc` of a release request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    CkmRsaAesKeyWrap,
    RsaAesKeyWrap256,
    RsaAesKeyWrap384,
}

impl Encoding {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [
            Self::CkmRsaAesKeyWrap,
            Self::RsaAesKeyWrap256,
            Self::RsaAesKeyWrap384,
        ]
        .into_iter()
        .find(|encoding| encoding.as_str() == text)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::CkmRsaAesKeyWrap => "CKM_RSA_AES_KEY_WRAP",
            Self::RsaAesKeyWrap256 => "RSA_AES_KEY_WRAP_256",
            Self::RsaAesKeyWrap384 => "RSA_AES_KEY_WRAP_384",
        }
    }

    fn hash(self) -> &'static MdRef {
        match self {
            Self::CkmRsaAesKeyWrap => Md::sha1(),
            Self::RsaAesKeyWrap256 => Md::sha256(),
            Self::RsaAesKeyWrap384 => Md::sha384(),
        }
    }
}

/// Wraps `secret` so that the owner of `target` can open it.
pub(super) fn wrap(
    target: &PKeyRef<Public>,
    encoding: Encoding,
    secret: &[u8],
) -> Result<Vec<u8>, ErrorStack> {
    let mut kek = [0; 32];
    openssl::rand::rand_bytes(&mut kek)?;
    let mut context = PkeyCtx::new(target)?;
    context.encrypt_init()?;
    context.set_rsa_padding(Padding::PKCS1_OAEP)?;
    context.set_rsa_oaep_md(encoding.hash())?;
    context.set_rsa_mgf1_md(encoding.hash())?;
    let mut wrapped = Vec::new();
    context.encrypt_to_vec(&kek, &mut wrapped)?;
    wrapped.extend(wrap_padded(&kek, secret)?);
    Ok(wrapped)
}

/// AES-256 key wrap with padding, RFC 5649.
fn wrap_padded(kek: &[u8; 32], secret: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let mut context = CipherCtx::new()?;
    context.set_flags(CipherCtxFlags::FLAG_WRAP_ALLOW);
    context.encrypt_init(Some(Cipher::aes_256_wrap_pad()), Some(kek), None)?;
    // Up to 7 bytes of padding and the 8 of the integrity check, and what OpenSSL asks for.
    let mut wrapped = vec![0; secret.len() + 32];
    let len = context.cipher_update(secret, Some(&mut wrapped))?;
    wrapped.truncate(len);
    Ok(wrapped)
}
