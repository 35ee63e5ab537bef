//! Adapter: Microsoft Azure Attestation for SEV-SNP guests: `POST /attest/SevSnpVm`, `GET /certs`
//! and the metadata that says where they are.

use std::fmt;
use std::sync::Arc;

use attest::anchors::{TrustAnchors, danger};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method, StatusCode};
use openssl::pkey::{PKey, Private};
use openssl::sha::sha256;
use runtime::clock::Clock;
use serde_json::{Map, Value, json};

use super::keys::EmulatorKeys;
use super::script::Script;
use super::server::{Answer, Api, Call};
use super::{Emulator, StartError, jose, random_hex};
use crate::pki::{Authority, Validity};

mod claims;
mod evidence;

use evidence::AttestRequest;

/// Versions of the interface that know the request.
const API_VERSIONS: [&str; 4] = [
    "2020-10-01",
    "2022-08-01",
    "2023-04-01-preview",
    "2025-06-01",
];
/// Life of a token, in seconds.
const LIFETIME_S: i64 = 8 * 60 * 60;
/// The appraisal policy. It judges nothing: the release policy does.
const POLICY: &str = "version=1.1; authorizationrules{ => permit(); }; issuancerules{};";

/// The attestation service.
pub struct Maa {
    url: String,
    anchors: TrustAnchors,
    clock: Arc<dyn Clock>,
    signer: TokenSigner,
    other: TokenSigner,
    foreign: PKey<Private>,
    lies: Script<TokenLie>,
}

/// What is wrong with a token that the service issues as if it were right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenLie {
    /// Unsecured: `alg` is `none`.
    AlgNone,
    /// Echoes another nonce.
    AnotherNonce,
    /// The service's appraisal policy is another one.
    AnotherPolicy,
    /// About another report, of the same guest.
    AnotherReport,
    /// About other runtime data, as a replayed token is.
    AnotherRuntimeData,
    /// Expired an hour ago.
    Expired,
    /// Names the service's key and is signed by another.
    ForeignKey,
    /// Issued by another service.
    WrongIssuer,
}

/// A key that is published, with the certificate that is published with it.
struct TokenSigner {
    key: PKey<Private>,
    kid: String,
    jwk: Value,
}

impl fmt::Debug for Maa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maa")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Maa {
    pub(super) fn new(
        url: &str,
        ark_pem: &[u8],
        keys: &EmulatorKeys,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let anchors = danger::with_root(ark_pem).map_err(|_| StartError::Ark)?;
        let validity = Validity::around(clock.now());
        Ok(Self {
            url: url.to_owned(),
            anchors,
            clock,
            signer: TokenSigner::new(keys.maa.clone(), validity)?,
            other: TokenSigner::new(keys.maa_other.clone(), validity)?,
            foreign: keys.foreign.clone(),
            lies: Script::new(),
        })
    }

    fn attest(&self, call: &Call) -> Result<Answer, Answer> {
        require_api_version(call)?;
        let request = AttestRequest::parse(&call.json("InvalidParameter")?)?;
        request.verify(&self.anchors, self.clock.now())?;
        let mut claims = claims::of_report(&request);
        self.add_registered(&mut claims)?;
        if let Some(nonce) = &request.nonce {
            claims.insert("nonce".into(), nonce.clone().into());
        }
        let lie = self.lies.next();
        if let Some(lie) = lie {
            distort(&mut claims, lie);
        }
        // A token under a draft policy shows what the policy would do and proves nothing.
        let unsecured = request.draft_policy || lie == Some(TokenLie::AlgNone);
        let claims = Value::Object(claims);
        let token = if unsecured {
            jose::unsecured(&claims)
        } else {
            let lied = lie == Some(TokenLie::ForeignKey);
            let key = if lied {
                &self.foreign
            } else {
                &self.signer.key
            };
            jose::sign(&self.header(), &claims, key)?
        };
        Ok(Answer::ok(json!({"token": token})))
    }

    fn header(&self) -> Value {
        let jku = format!("{}/certs", self.url);
        json!({"alg": "RS256", "jku": jku, "kid": self.signer.kid, "typ": "JWT"})
    }

    fn add_registered(&self, claims: &mut Map<String, Value>) -> Result<(), Answer> {
        let now = self.clock.now().0;
        let registered = [
            ("iss", self.url.clone().into()),
            ("iat", now.into()),
            ("nbf", now.into()),
            ("exp", now.saturating_add(LIFETIME_S).into()),
            ("jti", random_hex::<32>()?.into()),
            ("x-ms-policy-hash", jose::encode(policy_hash()).into()),
        ];
        claims.extend(registered.map(|(name, value)| (name.to_owned(), value)));
        Ok(())
    }

    fn metadata(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": format!("{}/certs", self.url),
            "response_types_supported": ["token", "none"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "claims_supported": ["iss", "iat", "nbf", "exp", "jti", "x-ms-ver"],
        })
    }
}

impl Api for Maa {
    fn answer(&self, call: &Call) -> Result<Answer, Answer> {
        let path = call.path.to_ascii_lowercase();
        match (&call.method, path.as_str()) {
            (&Method::POST, "/attest/sevsnpvm") => self.attest(call),
            (&Method::GET, "/certs") => {
                // The key that signs is not the first: a client has to go by `kid`.
                Ok(Answer::ok(
                    json!({"keys": [self.other.jwk, self.signer.jwk]}),
                ))
            }
            (&Method::GET, "/.well-known/openid-configuration") => Ok(Answer::ok(self.metadata())),
            _ => Err(Answer::error(
                StatusCode::NOT_FOUND,
                "NotFound",
                "no such resource",
            )),
        }
    }
}

impl Emulator<Maa> {
    /// SHA-256 that the `x-ms-policy-hash` claim of true tokens encodes.
    pub fn policy_hash(&self) -> [u8; 32] {
        policy_hash()
    }

    /// The next `count` tokens are wrong in this way; after those that were planned before.
    pub fn lie_next(&self, count: u32, lie: TokenLie) {
        self.service.lies.append(count, lie);
    }
}

impl TokenSigner {
    fn new(key: PKey<Private>, validity: Validity) -> Result<Self, StartError> {
        let authority = Authority::root("Attestation Service", key.clone(), validity)?;
        let certificate = authority.certificate().to_der()?;
        // Standard base64 with padding, as the service names its enclave-held keys.
        let kid = STANDARD.encode(sha256(&certificate));
        let mut jwk = jose::rsa_jwk(&key)?;
        jwk["alg"] = "RS256".into();
        jwk["use"] = "sig".into();
        jwk["kid"] = kid.clone().into();
        jwk["x5c"] = json!([STANDARD.encode(&certificate)]);
        Ok(Self { key, kid, jwk })
    }
}

fn require_api_version(call: &Call) -> Result<(), Answer> {
    match call.parameter("api-version") {
        Some(version) if API_VERSIONS.contains(&version) => Ok(()),
        _ => Err(invalid("api-version is missing or unknown")),
    }
}

/// The service's answer to what it cannot use.
fn invalid(message: &str) -> Answer {
    Answer::error(StatusCode::BAD_REQUEST, "InvalidParameter", message)
}

/// The service hashes the policy's text as it travels in its JWT: base64url.
fn policy_hash() -> [u8; 32] {
    sha256(jose::encode(POLICY).as_bytes())
}

fn distort(claims: &mut Map<String, Value>, lie: TokenLie) {
    let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    match lie {
        // These are wrong outside of the claims.
        TokenLie::AlgNone | TokenLie::ForeignKey => {}
        TokenLie::AnotherNonce => {
            put("nonce", "another".into());
        }
        TokenLie::AnotherPolicy => {
            put("x-ms-policy-hash", jose::encode([7; 32]).into());
        }
        TokenLie::AnotherReport => {
            put("x-ms-sevsnpvm-reportid", "5a".repeat(32).into());
        }
        TokenLie::AnotherRuntimeData => {
            put("x-ms-runtime", json!({"keys": []}));
            put(
                "x-ms-sevsnpvm-reportdata",
                ["5a", "00"].map(|byte| byte.repeat(32)).concat().into(),
            );
        }
        TokenLie::Expired => {
            for name in ["iat", "nbf", "exp"] {
                let time = claims.get(name).and_then(Value::as_i64).unwrap_or_default();
                claims.insert(name.to_owned(), (time - LIFETIME_S - 3_600).into());
            }
        }
        TokenLie::WrongIssuer => {
            put("iss", "https://another.attest.invalid".into());
        }
    }
}
