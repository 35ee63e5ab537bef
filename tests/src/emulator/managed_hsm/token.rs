//! Core: attestation tokens as the vault judges them: the issuer's published keys, learnt from its
//! metadata.

use openssl::pkey::{PKey, Public};
use runtime::clock::UnixTime;
use serde_json::Value;

use super::{bad_parameter, forbidden};
use crate::emulator::jose::{self, Jws};
use crate::emulator::server::Answer;
use crate::emulator::{Client, StartError};

/// Smallest RSA key that a secret is wrapped to.
const TARGET_BITS_MIN: u32 = 2_048;

/// An attestation service whose tokens are believed.
#[derive(Debug)]
pub(in crate::emulator) struct TrustedIssuer {
    authority: String,
    /// With the `kid` that tokens name.
    keys: Vec<(String, PKey<Public>)>,
}

impl TrustedIssuer {
    /// Learns the keys of the service at `authority`, over HTTPS as the real vault does.
    pub(in crate::emulator) async fn fetch(
        client: &Client,
        authority: &str,
    ) -> Result<Self, StartError> {
        let failed = |error| StartError::Metadata(Some(error));
        let metadata = format!("{authority}/.well-known/openid-configuration");
        let metadata = client.get(&metadata, None).await.map_err(failed)?.body;
        let issuer = metadata.get("issuer").and_then(Value::as_str);
        let jwks_uri = metadata.get("jwks_uri").and_then(Value::as_str);
        let jwks_uri = jwks_uri.filter(|_| issuer == Some(authority));
        let jwks_uri = jwks_uri.ok_or(StartError::Metadata(None))?;
        let jwks = client.get(jwks_uri, None).await.map_err(failed)?.body;
        let keys = jwks
            .get("keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let keys = keys
            .filter_map(|jwk| Some((jwk.get("kid")?.as_str()?.to_owned(), jose::rsa_key(jwk)?)));
        Ok(Self {
            authority: authority.to_owned(),
            keys: keys.collect(),
        })
    }

    /// The claims of a token that this issuer signed and that is valid now.
    pub(super) fn verify(&self, token: &str, now: UnixTime) -> Result<Value, Answer> {
        let refused = || forbidden("the attestation token cannot be verified");
        let token = Jws::parse(token).ok_or_else(refused)?;
        let kid = token.header.get("kid").and_then(Value::as_str);
        let key = self
            .keys
            .iter()
            .find(|(known, _)| Some(known.as_str()) == kid);
        let (_, key) = key.ok_or_else(refused)?;
        let issuer = token.payload.get("iss").and_then(Value::as_str);
        let time = |name| token.payload.get(name).and_then(Value::as_i64);
        let current = time("nbf").is_some_and(|nbf| nbf <= now.0)
            && time("exp").is_some_and(|exp| now.0 < exp);
        if token.is_signed_by(key)? && issuer == Some(&self.authority) && current {
            Ok(token.payload)
        } else {
            Err(refused())
        }
    }
}

/// The key that a release is wrapped to: the first RSA key for encryption in the runtime data.
pub(super) fn target_key(claims: &Value) -> Result<PKey<Public>, Answer> {
    let keys = claims
        .pointer("/x-ms-runtime/keys")
        .and_then(Value::as_array);
    let mut keys = keys.into_iter().flatten();
    let jwk = keys.find(|jwk| jwk.get("kty") == Some(&"RSA".into()) && encrypts(jwk));
    let named = jwk.filter(|jwk| jwk.get("kid").is_some_and(Value::is_string));
    let key = named
        .and_then(jose::rsa_key)
        .filter(|key| key.bits() >= TARGET_BITS_MIN);
    key.ok_or_else(|| bad_parameter("the token has no RSA key to encrypt to"))
}

/// Some clients write `key_ops` as one text.
fn encrypts(jwk: &Value) -> bool {
    let encrypt = Value::from("encrypt");
    let by_use = ["use", "key_use"]
        .iter()
        .any(|name| jwk.get(name) == Some(&"enc".into()));
    by_use
        || match jwk.get("key_ops") {
            Some(Value::Array(operations)) => operations.contains(&encrypt),
            operation => operation == Some(&encrypt),
        }
}
