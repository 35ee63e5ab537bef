//! Core: attestation tokens of Microsoft Azure Attestation (RATS: Attestation Results).
//!
//! The token is what the vault believes. We verify it too, before we send it: a token about another
//! guest, another key or under another policy would otherwise show as an unexplained refusal, or
//! not at all.

use std::fmt;

use serde_json::{Map, Value};

use crate::UnixSeconds;
use crate::binding::ReportData;
use crate::encoding::{base64url, hex_array};
use crate::jws::{Algorithm, CompactJws, JwsError};
use crate::public_key::PublicKey;
use crate::report::Report;

/// Longest token; the vault's own limit is lower.
const TOKEN_BYTES_MAX: usize = 256 * 1024;
/// Longest key set: real ones carry certificates with 30 KB extensions.
const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// Most keys in a set.
const JWKS_KEYS_MAX: usize = 256;

/// A token as it came: nothing about it is believed.
#[derive(Clone)]
pub struct AttestationToken(String);

/// The keys that an attestation service signs with (RFC 7517): its RSA keys, the rest is ignored.
///
/// To be fetched from the *configured* service; a token's own `jku` is the token's claim.
#[derive(Debug, Clone)]
pub struct Jwks(Vec<Jwk>);

#[derive(Debug, Clone)]
struct Jwk {
    kid: String,
    key: PublicKey,
}

/// What a token must say.
#[derive(Debug)]
pub struct TokenExpectations<'a> {
    /// Exact issuer.
    pub issuer: &'a str,
    /// The policy that the service appraised with.
    pub policy_hash: PolicyHash,
    /// The report of our own that was sent, verified.
    pub report: &'a Report,
    /// The runtime data that was sent.
    pub runtime_data: &'a [u8],
    /// The time of day.
    pub now: UnixSeconds,
    /// How far clocks may differ, in seconds.
    pub skew: i64,
}

/// Which appraisal policies of the service are acceptable. There is no way to accept any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyHash {
    /// The one with this hash: the claim `x-ms-policy-hash`, decoded.
    Pinned([u8; 32]),
}

/// A verified token's claims. Made by [`verify_token`] alone.
#[derive(Debug, Clone)]
pub struct AttestationResult {
    claims: Value,
    expires: UnixSeconds,
    policy_hash: [u8; 32],
}

/// Why a token or a key set is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The token is not signed with RS256.
    #[error("the token is not signed with RS256")]
    Algorithm,
    /// The token says that the guest may be debugged.
    #[error("the token is about a guest that may be debugged")]
    Debuggable,
    /// The token's time has passed.
    #[error("the token has expired")]
    Expired,
    /// A claim differs from our own report: the token is about another guest.
    #[error("the token's claim {0} is not that of our own report")]
    Foreign(&'static str),
    /// The issuer is another one.
    #[error("the token's issuer is another one than configured")]
    Issuer,
    /// The key set is not a JSON Web Key Set with an RSA key.
    #[error("the key set is malformed")]
    Jwks,
    /// The token is not a signed JWT with the documented claims.
    #[error("the token is malformed")]
    Malformed,
    /// The token's time has not come.
    #[error("the token is not yet valid")]
    NotYetValid,
    /// The service appraised with another policy.
    #[error("the token was issued under another appraisal policy")]
    PolicyHash,
    /// The token is bound to other runtime data: it is a replay, or for another key.
    #[error("the token is bound to other runtime data than was sent")]
    RuntimeData,
    /// The signature does not hold.
    #[error("the token's signature does not hold")]
    Signature,
    /// The token is of another kind.
    #[error("the token's attestation type is not sevsnpvm")]
    Type,
    /// The signing key is not in the service's key set.
    #[error("the token is signed with a key that the service does not list")]
    UnknownKey,
    /// The token is about another privilege level than 0.
    #[error("the token is about another VMPL than 0")]
    Vmpl,
}

impl TokenError {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Algorithm => "token.algorithm",
            Self::Debuggable => "token.debuggable",
            Self::Expired => "token.expired",
            Self::Foreign(_) => "token.foreign",
            Self::Issuer => "token.issuer",
            Self::Jwks => "token.jwks",
            Self::Malformed => "token.malformed",
            Self::NotYetValid => "token.not_yet_valid",
            Self::PolicyHash => "token.policy_hash",
            Self::RuntimeData => "token.runtime_data",
            Self::Signature => "token.signature",
            Self::Type => "token.type",
            Self::UnknownKey => "token.unknown_key",
            Self::Vmpl => "token.vmpl",
        }
    }
}

impl From<JwsError> for TokenError {
    fn from(error: JwsError) -> Self {
        match error {
            JwsError::Malformed => Self::Malformed,
            JwsError::Algorithm => Self::Algorithm,
            JwsError::Signature => Self::Signature,
        }
    }
}

impl AttestationToken {
    /// Takes a token as it came.
    pub fn new(token: String) -> Self {
        Self(token)
    }

    /// The token, to send on.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A token is shown to the vault as a credential, so it does not go to logs.
impl fmt::Debug for AttestationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttestationToken({} bytes)", self.0.len())
    }
}

impl Jwks {
    /// Parses a key set; at least one key must be an RSA signing key.
    pub fn parse(json: &[u8]) -> Result<Self, TokenError> {
        if json.len() > JWKS_BYTES_MAX {
            return Err(TokenError::Jwks);
        }
        let set: Value = serde_json::from_slice(json).map_err(|_| TokenError::Jwks)?;
        let keys = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(TokenError::Jwks)?;
        if keys.len() > JWKS_KEYS_MAX {
            return Err(TokenError::Jwks);
        }
        let keys: Vec<Jwk> = keys.iter().filter_map(Jwk::parse).collect();
        if keys.is_empty() {
            Err(TokenError::Jwks)
        } else {
            Ok(Self(keys))
        }
    }

    /// Verifies with the keys of this id. There should be one; which of several is the right one
    /// is no secret.
    fn verify<'a>(&self, jws: &'a CompactJws<'_>) -> Result<&'a [u8], TokenError> {
        // The id is a name, compared as it stands: real ones are base64 of either alphabet.
        let kid = jws.header_str("kid").ok_or(TokenError::UnknownKey)?;
        let mut verified = Err(TokenError::UnknownKey);
        for jwk in self.0.iter().filter(|jwk| jwk.kid == kid) {
            verified = jws
                .verify(&jwk.key, &[Algorithm::Rs256])
                .map_err(TokenError::from);
            if verified.is_ok() {
                break;
            }
        }
        verified
    }
}

impl Jwk {
    /// A usable key, or `None` for what has another type or use.
    fn parse(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let absent_or = |name: &str, wanted: &str| match jwk.get(name) {
            None => true,
            Some(value) => value.as_str() == Some(wanted),
        };
        if text("kty")? != "RSA" || !absent_or("use", "sig") || !absent_or("alg", "RS256") {
            return None;
        }
        let (n, e) = (base64url(text("n")?)?, base64url(text("e")?)?);
        Some(Self {
            kid: text("kid")?.to_owned(),
            key: PublicKey::from_rsa_parts(&n, &e)?,
        })
    }
}

impl AttestationResult {
    /// All claims.
    pub fn claims(&self) -> &Value {
        &self.claims
    }

    /// First second in which the token is not valid any more.
    pub fn expires(&self) -> UnixSeconds {
        self.expires
    }

    /// Hash of the policy that the service appraised with.
    pub fn policy_hash(&self) -> [u8; 32] {
        self.policy_hash
    }
}

/// Verifies a token: signature, issuer, dates, policy, and that it is about our own report and
/// runtime data.
pub fn verify_token(
    token: &AttestationToken,
    jwks: &Jwks,
    wanted: &TokenExpectations<'_>,
) -> Result<AttestationResult, TokenError> {
    let signed = verify_signature(token, jwks)?;
    let claims = Claims(signed.as_object().ok_or(TokenError::Malformed)?);
    if claims.text("iss")? != wanted.issuer {
        return Err(TokenError::Issuer);
    }
    let expires = claims.verify_dates(wanted.now, wanted.skew)?;
    let policy_hash = claims.policy_hash()?;
    let PolicyHash::Pinned(pinned) = wanted.policy_hash;
    if policy_hash != pinned {
        return Err(TokenError::PolicyHash);
    }
    claims.verify_guest()?;
    claims.verify_binding(wanted.runtime_data)?;
    claims.verify_own_report(wanted.report)?;
    Ok(AttestationResult {
        expires,
        policy_hash,
        claims: signed,
    })
}

/// The claims, when they are signed by the service.
fn verify_signature(token: &AttestationToken, jwks: &Jwks) -> Result<Value, TokenError> {
    let jws = CompactJws::parse(&token.0, TOKEN_BYTES_MAX)?;
    // An unsigned token (a draft policy's result) fails on its algorithm, whatever its key.
    if jws.header_str("alg") != Some(Algorithm::Rs256.as_str()) {
        return Err(TokenError::Algorithm);
    }
    serde_json::from_slice(jwks.verify(&jws)?).map_err(|_| TokenError::Malformed)
}

/// Claims of a token about an SNP guest, by their names.
struct Claims<'a>(&'a Map<String, Value>);

impl<'a> Claims<'a> {
    fn text(&self, name: &str) -> Result<&'a str, TokenError> {
        self.0
            .get(name)
            .and_then(Value::as_str)
            .ok_or(TokenError::Malformed)
    }

    fn seconds(&self, name: &str) -> Result<i64, TokenError> {
        self.0
            .get(name)
            .and_then(Value::as_i64)
            .ok_or(TokenError::Malformed)
    }

    fn bytes<const N: usize>(&self, name: &str) -> Result<[u8; N], TokenError> {
        hex_array(self.text(name)?).ok_or(TokenError::Malformed)
    }

    /// RFC 7519 sections 4.1.4 and 4.1.5; returns the end of the token's time.
    fn verify_dates(&self, now: UnixSeconds, skew: i64) -> Result<UnixSeconds, TokenError> {
        let (not_before, expires) = (self.seconds("nbf")?, self.seconds("exp")?);
        if now.0 >= expires.saturating_add(skew) {
            return Err(TokenError::Expired);
        }
        if now.0 < not_before.saturating_sub(skew) {
            return Err(TokenError::NotYetValid);
        }
        Ok(UnixSeconds(expires))
    }

    fn policy_hash(&self) -> Result<[u8; 32], TokenError> {
        let hash = base64url(self.text("x-ms-policy-hash")?).ok_or(TokenError::Malformed)?;
        hash.try_into().map_err(|_| TokenError::Malformed)
    }

    fn verify_guest(&self) -> Result<(), TokenError> {
        if self.text("x-ms-attestation-type")? != "sevsnpvm" {
            return Err(TokenError::Type);
        }
        match self.0.get("x-ms-sevsnpvm-is-debuggable") {
            Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => return Err(TokenError::Debuggable),
            _ => return Err(TokenError::Malformed),
        }
        match self.seconds("x-ms-sevsnpvm-vmpl")? {
            0 => Ok(()),
            _ => Err(TokenError::Vmpl),
        }
    }

    fn verify_binding(&self, runtime_data: &[u8]) -> Result<(), TokenError> {
        let bound = ReportData::in_report(self.bytes("x-ms-sevsnpvm-reportdata")?);
        if bound == ReportData::for_runtime_data(runtime_data) {
            Ok(())
        } else {
            Err(TokenError::RuntimeData)
        }
    }

    fn verify_own_report(&self, report: &Report) -> Result<(), TokenError> {
        const CHIP_ID: &str = "x-ms-sevsnpvm-chipid";
        self.verify_same("x-ms-sevsnpvm-hostdata", report.host_data())?;
        self.verify_same("x-ms-sevsnpvm-launchmeasurement", report.measurement())?;
        self.verify_same("x-ms-sevsnpvm-reportid", report.report_id())?;
        self.verify_same("x-ms-sevsnpvm-reportdata", *report.report_data().as_bytes())?;
        // Older versions of the service do not state the chip.
        if self.0.contains_key(CHIP_ID) {
            self.verify_same(CHIP_ID, report.chip_id())?;
        }
        Ok(())
    }

    fn verify_same<const N: usize>(
        &self,
        name: &'static str,
        own: [u8; N],
    ) -> Result<(), TokenError> {
        if self.bytes(name)? == own {
            Ok(())
        } else {
            Err(TokenError::Foreign(name))
        }
    }
}

#[cfg(test)]
mod tests;
