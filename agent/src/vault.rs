//! Port: the vault that holds the master secret and releases it to attested pods.

use std::fmt::Debug;

use attest::release::WrapAlgorithm;
use attest::token::AttestationToken;

use crate::cloud::http::HttpsUrl;
use crate::cloud::{BoxFuture, HttpError, TokenError};

pub mod keyvault;
mod unwrap;
mod wrap_key;

pub use unwrap::{UnwrapError, unwrap};
pub use wrap_key::{PendingWrapKey, WrapKey, WrapKeyError};

/// The vault as a pod sees it: it may ask for one key's release, and nothing else.
pub trait SecretRelease: Debug + Send + Sync {
    /// Asks for `key_id` under the attestation token, and returns the vault's signed answer (a
    /// JWS) as it came.
    fn release<'a>(
        &'a self,
        key_id: &'a HttpsUrl,
        token: &'a AttestationToken,
        algorithm: WrapAlgorithm,
        nonce: &'a str,
    ) -> BoxFuture<'a, Result<String, VaultError>>;
}

/// The vault as create-secrets sees it.
pub trait VaultAdmin: Debug + Send + Sync {
    /// Makes a new exportable 256-bit key inside the HSM, bound for ever to `release_policy`, and
    /// returns its versioned id.
    fn create_key<'a>(
        &'a self,
        name: &'a str,
        release_policy: &'a str,
    ) -> BoxFuture<'a, Result<HttpsUrl, VaultError>>;
}

/// The vault gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// No access token for the vault.
    #[error("no access token for the vault")]
    Token(#[source] TokenError),
    /// The request failed.
    #[error("the vault cannot be used")]
    Request(#[source] HttpError),
    /// The answer has another form than documented.
    #[error("the vault's answer is malformed")]
    Malformed,
}

impl VaultError {
    /// Stable code for logs and exit codes. A 403 stands for a missing role and for a release
    /// policy that says no alike: a pod cannot see the policy before it is released.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Token(error) => error.code(),
            Self::Request(error) => match error.status() {
                Some(403) => "skr.denied",
                Some(404) => "skr.no_such_key",
                Some(401) => "skr.unauthorized",
                Some(400..=499) if error.is_refusal() => "skr.refused",
                _ => "skr.unreachable",
            },
            Self::Malformed => "skr.malformed",
        }
    }
}
