//! Core: the one-time RSA key that the vault wraps the released secret to.

use std::fmt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, PKeyRef, Private};
use openssl::rsa::Rsa;
use openssl::sha::sha256;
use serde_json::{Value, json};

/// Modulus of the wrap key. Its security level (128 bits) is that of what it protects in transit.
const WRAP_KEY_BITS: u32 = 3_072;

/// An RSA key that unwraps one release, then goes.
pub struct WrapKey {
    key: PKey<Private>,
    generation: Duration,
}

/// A wrap key being made. Finding primes takes from 50 ms to over a second, so it starts with the
/// process, on a thread of its own, while everything else is set up.
#[derive(Debug)]
pub struct PendingWrapKey(JoinHandle<Result<WrapKey, WrapKeyError>>);

/// The wrap key could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WrapKeyError {
    /// OpenSSL failed.
    #[error("cannot make an RSA key")]
    Crypto(#[from] ErrorStack),
    /// The thread could not be started, or died.
    #[error("the thread that makes the RSA key failed")]
    Thread,
}

impl WrapKeyError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        "wrap_key.failed"
    }
}

impl fmt::Debug for WrapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrapKey(..)")
    }
}

impl PendingWrapKey {
    /// Starts to make a key.
    pub fn start() -> Result<Self, WrapKeyError> {
        let thread = std::thread::Builder::new()
            .name("wrap-key".into())
            .spawn(|| {
                let start = Instant::now();
                let key = PKey::from_rsa(Rsa::generate(WRAP_KEY_BITS)?)?;
                Ok(WrapKey {
                    key,
                    generation: start.elapsed(),
                })
            });
        thread.map(Self).map_err(|_| WrapKeyError::Thread)
    }

    /// Waits for the key; blocks.
    pub fn join(self) -> Result<WrapKey, WrapKeyError> {
        self.0.join().map_err(|_| WrapKeyError::Thread)?
    }
}

impl WrapKey {
    /// How long the key took to make.
    pub fn generation(&self) -> Duration {
        self.generation
    }

    /// The private key, for [`super::unwrap()`].
    pub fn private(&self) -> &PKeyRef<Private> {
        &self.key
    }

    /// The public part as a JWK (RFC 7517) whose `kid` is its thumbprint (RFC 7638).
    pub fn jwk(&self) -> Result<Value, WrapKeyError> {
        let rsa = self.key.rsa()?;
        let n = URL_SAFE_NO_PAD.encode(rsa.n().to_vec());
        let e = URL_SAFE_NO_PAD.encode(rsa.e().to_vec());
        let canonical = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes()));
        Ok(json!({"kty": "RSA", "kid": kid, "key_ops": ["encrypt"], "n": n, "e": e}))
    }
}
