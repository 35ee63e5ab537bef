//! Core: JSON Web Keys and Signatures as the emulators write and read them (RFC 7515, 7517).

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use openssl::bn::BigNum;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{HasPublic, PKey, PKeyRef, Private, Public};
use openssl::rsa::Rsa;
use openssl::sign::{Signer, Verifier};
use serde_json::{Value, json};

/// Reads what Go writes (padded) and what the standard writes (not padded).
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A compact JWS, taken apart and not verified.
#[derive(Debug)]
pub(super) struct Jws<'a> {
    pub(super) header: Value,
    pub(super) payload: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Takes a compact JWS with a JSON payload apart.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice(&decode(part)?).ok();
        Some(Self {
            header: json(header)?,
            payload: json(payload)?,
            signed,
            signature: decode(signature)?,
        })
    }

    /// Whether it is RS256 and `key` signed it.
    pub(super) fn is_signed_by(&self, key: &PKeyRef<Public>) -> Result<bool, ErrorStack> {
        if self.header.get("alg").and_then(Value::as_str) != Some("RS256") {
            return Ok(false);
        }
        let mut verifier = Verifier::new(MessageDigest::sha256(), key)?;
        verifier.update(self.signed.as_bytes())?;
        // A signature of another length is an error to OpenSSL, and merely wrong to us.
        Ok(verifier.verify(&self.signature).unwrap_or(false))
    }
}

/// Base64url without padding.
pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Base64url, padded or not.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    LENIENT.decode(text).ok()
}

/// Signs `payload` with RS256. `header` must say so itself.
pub(super) fn sign(
    header: &Value,
    payload: &Value,
    key: &PKeyRef<Private>,
) -> Result<String, ErrorStack> {
    let signed = signing_input(header, payload);
    let mut signer = Signer::new(MessageDigest::sha256(), key)?;
    signer.update(signed.as_bytes())?;
    Ok(format!("{signed}.{}", encode(signer.sign_to_vec()?)))
}

/// An unsecured JWS (RFC 7515 appendix A.5): no verifier may take it.
pub(super) fn unsecured(payload: &Value) -> String {
    format!(
        "{}.",
        signing_input(&json!({"alg": "none", "typ": "JWT"}), payload)
    )
}

/// Public part of an RSA key as a JWK.
pub(super) fn rsa_jwk<T: HasPublic>(key: &PKeyRef<T>) -> Result<Value, ErrorStack> {
    let rsa = key.rsa()?;
    Ok(json!({"kty": "RSA", "n": encode(rsa.n().to_vec()), "e": encode(rsa.e().to_vec())}))
}

/// The RSA key in a JWK; `None` when it is another kind of key or malformed.
pub(super) fn rsa_key(jwk: &Value) -> Option<PKey<Public>> {
    if jwk.get("kty")?.as_str()? != "RSA" {
        return None;
    }
    let number = |name| BigNum::from_slice(&decode(jwk.get(name)?.as_str()?)?).ok();
    let rsa = Rsa::from_public_components(number("n")?, number("e")?).ok()?;
    PKey::from_rsa(rsa).ok()
}

fn signing_input(header: &Value, payload: &Value) -> String {
    format!(
        "{}.{}",
        encode(header.to_string()),
        encode(payload.to_string())
    )
}
