//! Core: the vault's answer to a release request: a signed statement about a key, with the key
//! wrapped to us inside.
//!
//! The answer crosses the host's network, and the vault's operator could answer with another key of
//! the same name. So everything is checked in the *signed* answer: that it is for our request (id,
//! algorithm, nonce), which version of which key it holds, and that its release policy can never
//! be changed. Opening the wrapped key needs the private key, and is the agent's.

use std::fmt;

use serde_json::Value;

use crate::UnixSeconds;
use crate::encoding::{base64_standard, base64url};
use crate::jws::{Algorithm, CompactJws, JwsError};
use crate::public_key::SignatureAlgorithm;
use crate::x509::{Certificate, DateError, LinkError};

/// Longest answer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Most certificates in the answer's chain, the leaf included.
const CHAIN_LEN_MAX: usize = 6;

/// How a released key is wrapped: RSA-OAEP over an AES-256 key, AES key wrap with padding over the
/// secret (PKCS#11 CKM_RSA_AES_KEY_WRAP). The name says which hash OAEP uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrapAlgorithm {
    /// OAEP with SHA-256.
    RsaAesKeyWrap256,
    /// OAEP with SHA-384.
    RsaAesKeyWrap384,
}

/// Roots that the certificates of the vault's signing key must lead to.
#[derive(Debug, Clone)]
pub struct JwsRoots(Vec<Certificate>);

/// What an answer must say.
#[derive(Debug)]
pub struct ReleaseExpectations<'a> {
    /// Host name of the vault.
    pub host: &'a str,
    /// Full id of the key, with its version: `https://host/keys/name/version`.
    pub kid: &'a str,
    /// The wrap that was asked for.
    pub enc: WrapAlgorithm,
    /// The nonce that was sent.
    pub nonce: &'a str,
    /// The time of day.
    pub now: UnixSeconds,
}

/// A key as the vault released it, still wrapped. Made by [`verify_release`] alone.
pub struct ReleasedKey {
    /// Full id of the key, with its version.
    pub kid: String,
    /// Type of the key: `oct-HSM`, `RSA-HSM`, `EC-HSM`.
    pub kty: String,
    /// The wrapped key.
    pub ciphertext: Vec<u8>,
    /// How it is wrapped.
    pub enc: WrapAlgorithm,
    /// The release policy, as the vault stores it; immutable.
    pub release_policy: Vec<u8>,
    /// Whether the key may leave the HSM.
    pub exportable: bool,
    /// What deletion means for the key.
    pub recovery_level: String,
}

/// Why an answer, or a setting for it, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The answer is signed with another algorithm than RS256 or PS256.
    #[error("the released key is signed with an unexpected algorithm")]
    Algorithm,
    /// The signing key's certificates do not lead to a configured root.
    #[error("the certificates of the released key's signature do not lead to a configured root")]
    Chain,
    /// The key is wrapped in another way than was asked for.
    #[error("the released key is wrapped with another algorithm than was asked for")]
    Enc,
    /// A certificate of the chain is not valid any more.
    #[error("a certificate of the released key's signature has expired")]
    Expired,
    /// The signing certificate is for another host.
    #[error("the certificate of the released key's signature is for another host")]
    Host,
    /// Another key, or another key's answer.
    #[error("the released key is another one than was asked for")]
    KeyId,
    /// The right key in another version.
    #[error("the released key is another version of the key that was asked for")]
    KeyVersion,
    /// The answer is not a signed statement of the documented form.
    #[error("the released key is malformed")]
    Malformed,
    /// The answer is for another request.
    #[error("the released key answers another request")]
    Nonce,
    /// A certificate of the chain is not valid yet.
    #[error("a certificate of the released key's signature is not yet valid")]
    NotYetValid,
    /// The release policy may be changed, so it promises nothing.
    #[error("the release policy of the key is not immutable")]
    PolicyMutable,
    /// The configured roots are not PEM certificates.
    #[error("the roots are not PEM certificates")]
    Roots,
    /// The signature does not hold.
    #[error("the released key's signature does not hold")]
    Signature,
    /// The header's thumbprint is of another certificate.
    #[error("the thumbprint of the released key's signature is of another certificate")]
    Thumbprint,
    /// The named wrap algorithm is not acceptable: unknown, or with SHA-1.
    #[error("the wrap algorithm is not RSA_AES_KEY_WRAP_256 or _384")]
    WrapUnsupported,
}

impl ReleaseError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Algorithm => "release.algorithm",
            Self::Chain => "release.chain",
            Self::Enc => "release.enc",
            Self::Expired => "release.expired",
            Self::Host => "release.host",
            Self::KeyId => "release.key_id",
            Self::KeyVersion => "release.key_version",
            Self::Malformed => "release.malformed",
            Self::Nonce => "release.nonce",
            Self::NotYetValid => "release.not_yet_valid",
            Self::PolicyMutable => "release.policy_mutable",
            Self::Roots => "release.roots",
            Self::Signature => "release.signature",
            Self::Thumbprint => "release.thumbprint",
            Self::WrapUnsupported => "release.wrap_unsupported",
        }
    }
}

impl From<JwsError> for ReleaseError {
    fn from(error: JwsError) -> Self {
        match error {
            JwsError::Malformed => Self::Malformed,
            JwsError::Algorithm => Self::Algorithm,
            JwsError::Signature => Self::Signature,
        }
    }
}

impl From<DateError> for ReleaseError {
    fn from(error: DateError) -> Self {
        match error {
            DateError::Expired => Self::Expired,
            DateError::NotYetValid => Self::NotYetValid,
        }
    }
}

impl WrapAlgorithm {
    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RsaAesKeyWrap256 => "RSA_AES_KEY_WRAP_256",
            Self::RsaAesKeyWrap384 => "RSA_AES_KEY_WRAP_384",
        }
    }

    /// The algorithm of a name on the wire. `CKM_RSA_AES_KEY_WRAP`, the service's default, uses
    /// SHA-1 and is refused.
    pub fn from_name(name: &str) -> Result<Self, ReleaseError> {
        let known = [Self::RsaAesKeyWrap256, Self::RsaAesKeyWrap384];
        let found = known
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name);
        found.ok_or(ReleaseError::WrapUnsupported)
    }
}

impl JwsRoots {
    /// Parses one or more PEM certificates.
    pub fn parse_pem(pem: &[u8]) -> Result<Self, ReleaseError> {
        Certificate::parse_pem(pem)
            .map(Self)
            .map_err(|_| ReleaseError::Roots)
    }
}

impl fmt::Debug for ReleasedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleasedKey")
            .field("kid", &self.kid)
            .field("kty", &self.kty)
            .field("enc", &self.enc)
            .finish_non_exhaustive()
    }
}

/// Verifies an answer: signature, chain to a configured root, host, and everything in it that was
/// asked for.
pub fn verify_release(
    jws: &str,
    roots: &JwsRoots,
    wanted: &ReleaseExpectations<'_>,
) -> Result<ReleasedKey, ReleaseError> {
    let jws = CompactJws::parse(jws, ANSWER_BYTES_MAX)?;
    let chain = certificates(&jws)?;
    let leaf = chain.first().ok_or(ReleaseError::Malformed)?;
    // The header is under the signature, so its own claim about the key comes first.
    if let Some(thumbprint) = jws.header("x5t#S256") {
        let thumbprint = thumbprint
            .as_str()
            .and_then(base64url)
            .ok_or(ReleaseError::Malformed)?;
        if thumbprint != leaf.sha256() {
            return Err(ReleaseError::Thumbprint);
        }
    }
    let key = leaf.public_key().ok_or(ReleaseError::Algorithm)?;
    let payload = jws.verify(&key, &[Algorithm::Rs256, Algorithm::Ps256])?;
    verify_chain(&chain, roots, wanted.now)?;
    if !leaf.matches_host(wanted.host) {
        return Err(ReleaseError::Host);
    }
    let answer: Value = serde_json::from_slice(payload).map_err(|_| ReleaseError::Malformed)?;
    verify_request(&answer, wanted)?;
    released_key(&answer, wanted)
}

/// The header's certificates: the signer's first, each issued by the next (RFC 7515 4.1.6).
fn certificates(jws: &CompactJws<'_>) -> Result<Vec<Certificate>, ReleaseError> {
    let chain = jws
        .header("x5c")
        .and_then(Value::as_array)
        .ok_or(ReleaseError::Malformed)?;
    if chain.len() > CHAIN_LEN_MAX {
        return Err(ReleaseError::Malformed);
    }
    let parse = |entry: &Value| {
        let der = base64_standard(entry.as_str()?.as_bytes())?;
        Certificate::parse_der(&der).ok()
    };
    chain
        .iter()
        .map(|entry| parse(entry).ok_or(ReleaseError::Malformed))
        .collect()
}

/// Goes up from the leaf until a configured root issued the certificate at hand.
fn verify_chain(
    chain: &[Certificate],
    roots: &JwsRoots,
    now: UnixSeconds,
) -> Result<(), ReleaseError> {
    let accepted = |algorithm| match algorithm {
        SignatureAlgorithm::EcdsaP384(_)
        | SignatureAlgorithm::RsaPkcs1(_)
        | SignatureAlgorithm::RsaPss(_) => true,
    };
    let for_servers = chain.iter().all(Certificate::may_be_a_server);
    if !for_servers || !chain.first().is_some_and(Certificate::may_sign_data) {
        return Err(ReleaseError::Chain);
    }
    let mut rest = chain.iter().enumerate().peekable();
    while let Some((depth, certificate)) = rest.next() {
        certificate.verify_dates(now)?;
        // RFC 5280 section 4.2.1.9: the constraint counts the CAs between, not the leaf.
        let intermediates_below = depth;
        let issued_by = |issuer: &Certificate| {
            let room = match issuer.ca_path_len() {
                Some(Some(longest)) => intermediates_below <= usize::from(longest),
                Some(None) => true,
                None => false,
            };
            if room {
                certificate.verify_issued_by(issuer, accepted)
            } else {
                Err(LinkError::Constraints)
            }
        };
        if let Some(root) = roots.0.iter().find(|root| issued_by(root).is_ok()) {
            return Ok(root.verify_dates(now)?);
        }
        let (_, above) = rest.peek().ok_or(ReleaseError::Chain)?;
        issued_by(above).map_err(|_| ReleaseError::Chain)?;
    }
    Err(ReleaseError::Chain)
}

/// The answer repeats the request under its signature: it must be ours.
fn verify_request(answer: &Value, wanted: &ReleaseExpectations<'_>) -> Result<(), ReleaseError> {
    let echo = |name: &str| text(answer, &["request", name]);
    if echo("nonce")? != wanted.nonce {
        return Err(ReleaseError::Nonce);
    }
    if WrapAlgorithm::from_name(echo("enc")?)? != wanted.enc {
        return Err(ReleaseError::Enc);
    }
    // Services repeat the id with or without its version. Which version was released is checked in
    // the response, exactly.
    let kid = echo("kid")?;
    if kid != wanted.kid && kid != without_version(wanted.kid) {
        return Err(ReleaseError::KeyId);
    }
    Ok(())
}

fn released_key(
    answer: &Value,
    wanted: &ReleaseExpectations<'_>,
) -> Result<ReleasedKey, ReleaseError> {
    let in_key = |path: &[&str]| text(answer, &[&["response", "key"], path].concat());
    let kid = in_key(&["key", "kid"])?;
    if kid != wanted.kid {
        let same_key = without_version(kid) == without_version(wanted.kid);
        return Err(if same_key {
            ReleaseError::KeyVersion
        } else {
            ReleaseError::KeyId
        });
    }
    let policy = ["response", "key", "release_policy"];
    match at(answer, &[&policy[..], &["immutable"]].concat()) {
        Some(Value::Bool(true)) => {}
        Some(Value::Bool(false)) => return Err(ReleaseError::PolicyMutable),
        _ => return Err(ReleaseError::Malformed),
    }
    let release_policy = base64url(in_key(&["release_policy", "data"])?);
    let exportable = at(answer, &["response", "key", "attributes", "exportable"]);
    Ok(ReleasedKey {
        kid: kid.to_owned(),
        kty: in_key(&["key", "kty"])?.to_owned(),
        ciphertext: wrapped_key(in_key(&["key", "key_hsm"])?, wanted.enc)?,
        enc: wanted.enc,
        release_policy: release_policy.ok_or(ReleaseError::Malformed)?,
        exportable: exportable
            .and_then(Value::as_bool)
            .ok_or(ReleaseError::Malformed)?,
        recovery_level: in_key(&["attributes", "recoveryLevel"])?.to_owned(),
    })
}

/// `key_hsm` is base64url of JSON with a header of its own, which must say the same.
fn wrapped_key(key_hsm: &str, enc: WrapAlgorithm) -> Result<Vec<u8>, ReleaseError> {
    let json = base64url(key_hsm).ok_or(ReleaseError::Malformed)?;
    let envelope: Value = serde_json::from_slice(&json).map_err(|_| ReleaseError::Malformed)?;
    if text(&envelope, &["header", "alg"])? != "dir" {
        return Err(ReleaseError::Malformed);
    }
    if WrapAlgorithm::from_name(text(&envelope, &["header", "enc"])?)? != enc {
        return Err(ReleaseError::Enc);
    }
    base64url(text(&envelope, &["ciphertext"])?).ok_or(ReleaseError::Malformed)
}

/// `https://host/keys/name/version` without the last segment.
fn without_version(kid: &str) -> &str {
    kid.rsplit_once('/').map_or(kid, |(name, _version)| name)
}

fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

fn text<'a>(value: &'a Value, path: &[&str]) -> Result<&'a str, ReleaseError> {
    at(value, path)
        .and_then(Value::as_str)
        .ok_or(ReleaseError::Malformed)
}

#[cfg(test)]
mod tests;
