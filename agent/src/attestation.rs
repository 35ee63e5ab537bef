//! Port: the verifier that appraises our evidence and issues tokens that the vault believes.

use std::fmt::Debug;

use attest::token::{AttestationToken, Jwks};

use crate::cloud::{BoxFuture, HttpError};
use crate::platform::Evidence;

pub mod maa;

/// A remote attestation service (RATS: Verifier; the tokens are its Attestation Results).
pub trait AttestationService: Debug + Send + Sync {
    /// Sends evidence whose REPORT_DATA is SHA-256 of `runtime_data`, and returns the token as it
    /// came. Nothing about it is believed until it has been verified.
    fn appraise<'a>(
        &'a self,
        evidence: &'a Evidence,
        runtime_data: &'a [u8],
    ) -> BoxFuture<'a, Result<AttestationToken, ServiceError>>;

    /// The keys that the configured service signs tokens with.
    fn signing_keys(&self) -> BoxFuture<'_, Result<Jwks, ServiceError>>;
}

/// The attestation service gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The request failed.
    #[error("the attestation service cannot be used")]
    Request(#[source] HttpError),
    /// The answer has another form than documented.
    #[error("the attestation service's answer is malformed")]
    Malformed,
}

impl ServiceError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Request(error) if error.is_refusal() => "maa.appraisal_failed",
            Self::Request(_) => "maa.unreachable",
            Self::Malformed => "maa.malformed",
        }
    }
}
