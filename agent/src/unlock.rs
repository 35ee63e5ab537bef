//! Core: how this pod gets the deployment's secret. The one function that every auditor reads.

use std::sync::Arc;

use attest::UnixSeconds;
use attest::binding::ReportData;
use attest::policy::{PolicyError, ReleasePolicy, Verdict};
use attest::release::{
    JwsRoots, ReleaseError, ReleaseExpectations, ReleasedKey, WrapAlgorithm, verify_release,
};
use attest::token::{AttestationResult, PolicyHash, TokenError, TokenExpectations, verify_token};
use keys::IntermediateSecret;
use runtime::clock::Clock;
use serde_json::json;

use crate::attestation::{AttestationService, ServiceError};
use crate::cloud::http::HttpsUrl;
use crate::hex;
use crate::own_evidence::{self, MeasuredConfig, OwnEvidence, OwnEvidenceError};
use crate::platform::Platform;
use crate::stages::BootStages;
use crate::vault::{
    PendingWrapKey, SecretRelease, UnwrapError, VaultError, WrapKey, WrapKeyError, unwrap,
};

/// What is known about where the released key came from: that it was released under our policy to
/// our evidence, but not yet that it was made in the HSM by our create-secrets.
pub const KEY_PROVENANCE: &str = "unproven";

/// The wrap that is asked for. SHA-1 variants are never asked for and never accepted.
const WRAP: WrapAlgorithm = WrapAlgorithm::RsaAesKeyWrap384;
/// Clocks of guests and services differ by this much at most, in seconds.
const CLOCK_SKEW_S: i64 = 60;

/// Everything that takes part in an unlock.
#[derive(Debug)]
pub struct Parties<'a> {
    /// Gives evidence.
    pub platform: &'a Arc<dyn Platform>,
    /// Appraises it.
    pub service: &'a dyn AttestationService,
    /// Releases the key.
    pub vault: &'a dyn SecretRelease,
    /// The time of day, as the host sets it: a wrong one makes tokens and certificates fail, or
    /// lets expired ones pass, and never changes which keys are believed.
    pub clock: &'a dyn Clock,
}

/// What is expected of the parties; all of it measured, but for the key id.
#[derive(Debug)]
pub struct Terms<'a> {
    /// Proof that the configuration below is the measured one.
    pub measured: &'a MeasuredConfig,
    /// Exact issuer of tokens.
    pub issuer: &'a str,
    /// SHA-256 of the service's appraisal policy.
    pub policy_hash: [u8; 32],
    /// Roots of the chain that signs released keys, PEM.
    pub jws_roots_pem: &'a str,
    /// The key, with its version.
    pub key_id: &'a HttpsUrl,
    /// What the key's release policy must be.
    pub policy: PolicyTerms<'a>,
}

/// What the release policy must be that the vault states, under its signature, with the key.
#[derive(Debug)]
pub enum PolicyTerms<'a> {
    /// Exactly these bytes: create-secrets knows what it asked for.
    Exactly(&'a [u8]),
    /// One that admits this pod by our own evaluation: a vault that releases to those whom its
    /// policy does not admit is no vault.
    AdmitsUs,
}

/// The secret was not obtained. Nothing weaker takes its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlockError {
    /// The wrap key could not be made.
    #[error("no wrap key")]
    WrapKey(#[source] WrapKeyError),
    /// Our own evidence is not in order.
    #[error("this pod's evidence is not in order")]
    Evidence(#[source] OwnEvidenceError),
    /// The attestation service gave no token.
    #[error("no token from the attestation service")]
    Service(#[source] ServiceError),
    /// The token is not what it should be.
    #[error("the attestation token is refused")]
    Token(#[source] TokenError),
    /// The vault did not release the key.
    #[error("the vault did not release the key")]
    Vault(#[source] VaultError),
    /// The configured roots are malformed.
    #[error("the roots for released keys are malformed")]
    Roots(#[source] ReleaseError),
    /// The vault's answer is not what it should be.
    #[error("the released key is refused")]
    Release(#[source] ReleaseError),
    /// The stated release policy is malformed.
    #[error("the key's release policy is refused")]
    Policy(#[source] PolicyError),
    /// The stated release policy is not the one that was asked for.
    #[error("the key has another release policy than was asked for")]
    OtherPolicy,
    /// The stated release policy does not admit this pod.
    #[error("the key's release policy does not admit this pod, and still it was released")]
    NotAdmitted,
    /// The released key does not open.
    #[error("the released key does not open")]
    Unwrap(#[source] UnwrapError),
    /// No random nonce.
    #[error("no randomness for a nonce")]
    Random(#[source] openssl::error::ErrorStack),
}

impl UnlockError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrapKey(error) => error.code(),
            Self::Evidence(error) => error.code(),
            Self::Service(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::Vault(error) => error.code(),
            Self::Roots(error) | Self::Release(error) => error.code(),
            Self::Policy(error) => error.code(),
            Self::OtherPolicy => "release.policy_other",
            Self::NotAdmitted => "release.policy_denies",
            Self::Unwrap(error) => error.code(),
            Self::Random(_) => "unlock.random",
        }
    }
}

/// Evidence, token, release, derivation: in this order, each step verified before the next.
///
/// 1. A one-time RSA key is made inside the pod; its public part is the runtime data.
/// 2. The hardware signs a report over SHA-256 of the runtime data; we verify it ourselves.
/// 3. The attestation service appraises the report and issues a token; we verify signature,
///    issuer, policy hash, dates, and that the token is about *our* report and *our* key.
/// 4. The vault evaluates its release policy over the token, wraps the key to our RSA key and
///    signs the answer; we verify the signature, and that it is about our key id and nonce.
/// 5. The wrapped key is opened; the intermediate secret is derived; the master secret is wiped.
///
/// Safe to drop at any point: all secrets are wiped, and a released key that was not read is
/// released again next time.
pub async fn unlock(
    parties: &Parties<'_>,
    terms: &Terms<'_>,
    wrap_key: PendingWrapKey,
    stages: &BootStages,
) -> Result<IntermediateSecret, UnlockError> {
    let roots = JwsRoots::parse_pem(terms.jws_roots_pem.as_bytes()).map_err(UnlockError::Roots)?;
    // The service's keys do not depend on the wrap key: fetched while that is still being made.
    let (wrap_key, jwks) = tokio::join!(
        stages.run("wrap_key_wait", join(wrap_key)),
        parties.service.signing_keys(),
    );
    let (wrap_key, jwks) = (wrap_key?, jwks.map_err(UnlockError::Service)?);
    stages.note("wrap_key_generation", wrap_key.generation());

    let runtime_data = runtime_data(&wrap_key)?;
    let report_data = ReportData::for_runtime_data(&runtime_data);
    let own = own_evidence::obtain(parties.platform, &report_data, parties.clock.now());
    let own = stages
        .run("evidence", async {
            own.await.map_err(UnlockError::Evidence)
        })
        .await?;

    let token = parties.service.appraise(&own.evidence, &runtime_data);
    let token = stages.run("attestation", async {
        token.await.map_err(UnlockError::Service)
    });
    let token = token.await?;
    let expectations = TokenExpectations {
        issuer: terms.issuer,
        policy_hash: PolicyHash::Pinned(terms.policy_hash),
        report: own.report.report(),
        runtime_data: &runtime_data,
        now: UnixSeconds(parties.clock.now().0),
        skew: CLOCK_SKEW_S,
    };
    let result = verify_token(&token, &jwks, &expectations).map_err(UnlockError::Token)?;
    log_token(&own, &result);

    let nonce = fresh_nonce().map_err(UnlockError::Random)?;
    let answer = parties.vault.release(terms.key_id, &token, WRAP, &nonce);
    let answer = stages
        .run("release", async {
            answer.await.map_err(UnlockError::Vault)
        })
        .await?;
    let released = verify_release(
        &answer,
        &roots,
        &ReleaseExpectations {
            host: terms.key_id.host(),
            kid: &terms.key_id.to_string(),
            enc: WRAP,
            nonce: &nonce,
            now: UnixSeconds(parties.clock.now().0),
        },
    );
    let released = released.map_err(UnlockError::Release)?;
    check_policy(&terms.policy, &released, &result)?;
    let master = unwrap(&released, wrap_key.private()).map_err(UnlockError::Unwrap)?;
    Ok(master.derive_intermediate())
}

fn check_policy(
    terms: &PolicyTerms<'_>,
    released: &ReleasedKey,
    result: &AttestationResult,
) -> Result<(), UnlockError> {
    match terms {
        PolicyTerms::Exactly(wanted) if released.release_policy == *wanted => Ok(()),
        PolicyTerms::Exactly(_) => Err(UnlockError::OtherPolicy),
        PolicyTerms::AdmitsUs => {
            let policy = ReleasePolicy::parse(&released.release_policy);
            match policy
                .map_err(UnlockError::Policy)?
                .evaluate(result.claims())
            {
                Verdict::Allowed => Ok(()),
                Verdict::Denied { .. } => Err(UnlockError::NotAdmitted),
            }
        }
    }
}

async fn join(wrap_key: PendingWrapKey) -> Result<WrapKey, UnlockError> {
    // The thread of the wrap key blocks; a panic there is its own error already.
    let joined = tokio::task::spawn_blocking(move || wrap_key.join()).await;
    joined
        .unwrap_or(Err(WrapKeyError::Thread))
        .map_err(UnlockError::WrapKey)
}

/// The JSON whose hash the report carries: the vault finds the wrap key in it.
fn runtime_data(wrap_key: &WrapKey) -> Result<Vec<u8>, UnlockError> {
    let jwk = wrap_key.jwk().map_err(UnlockError::WrapKey)?;
    Ok(json!({"keys": [jwk]}).to_string().into_bytes())
}

fn fresh_nonce() -> Result<String, openssl::error::ErrorStack> {
    let mut nonce = [0; 32];
    openssl::rand::rand_bytes(&mut nonce)?;
    Ok(hex::encode(&nonce))
}

fn log_token(own: &OwnEvidence, result: &AttestationResult) {
    let report = own.report.report();
    tracing::info!(
        measurement = hex::encode(&report.measurement()),
        host_data = hex::encode(&report.host_data()),
        expires = result.expires().0,
        "attestation token verified"
    );
}
