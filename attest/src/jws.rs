//! Core: JSON Web Signatures in compact form (RFC 7515), RS256 and PS256.
//!
//! The algorithm is never taken from the header alone: the caller says which ones it accepts, and
//! `none` is not among those that can be named.

use serde_json::{Map, Value};

use crate::encoding::base64url_strict;
use crate::public_key::{Hash, PublicKey, SignatureAlgorithm};

/// The algorithms that can be accepted (RFC 7518 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
}

/// A JWS taken apart. Nothing in it is believed before its signature was verified.
#[derive(Debug)]
pub(crate) struct CompactJws<'a> {
    header: Map<String, Value>,
    payload: Vec<u8>,
    signing_input: &'a str,
    signature: Vec<u8>,
}

/// Why a JWS is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JwsError {
    /// Not three base64url parts with a JSON header, or too long.
    Malformed,
    /// The algorithm is not accepted.
    Algorithm,
    /// The signature does not hold.
    Signature,
}

impl Algorithm {
    /// Name in the header.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
        }
    }

    fn signature_algorithm(self) -> SignatureAlgorithm {
        match self {
            Self::Rs256 => SignatureAlgorithm::RsaPkcs1(Hash::Sha256),
            Self::Ps256 => SignatureAlgorithm::RsaPss(Hash::Sha256),
        }
    }
}

impl<'a> CompactJws<'a> {
    /// Takes a JWS of at most `bytes_max` bytes apart.
    pub(crate) fn parse(text: &'a str, bytes_max: usize) -> Result<Self, JwsError> {
        if text.len() > bytes_max {
            return Err(JwsError::Malformed);
        }
        let (signing_input, signature) = text.rsplit_once('.').ok_or(JwsError::Malformed)?;
        let (header, payload) = signing_input.split_once('.').ok_or(JwsError::Malformed)?;
        // A further dot is no base64url character: exactly three parts are left.
        let decode = |part| base64url_strict(part).ok_or(JwsError::Malformed);
        let header: Value =
            serde_json::from_slice(&decode(header)?).map_err(|_| JwsError::Malformed)?;
        let Value::Object(header) = header else {
            return Err(JwsError::Malformed);
        };
        // RFC 7515 section 4.1.11: what is critical and not understood makes the JWS invalid.
        if header.contains_key("crit") {
            return Err(JwsError::Malformed);
        }
        let payload = decode(payload)?;
        Ok(Self {
            header,
            payload,
            signing_input,
            signature: decode(signature)?,
        })
    }

    /// A member of the header that is a text.
    pub(crate) fn header_str(&self, name: &str) -> Option<&str> {
        self.header.get(name).and_then(Value::as_str)
    }

    /// A member of the header.
    pub(crate) fn header(&self, name: &str) -> Option<&Value> {
        self.header.get(name)
    }

    /// The payload, when the signature was made with `key` and one of the `accepted` algorithms.
    pub(crate) fn verify(
        &self,
        key: &PublicKey,
        accepted: &[Algorithm],
    ) -> Result<&[u8], JwsError> {
        let named = self.header_str("alg").ok_or(JwsError::Algorithm)?;
        let algorithm = accepted
            .iter()
            .find(|algorithm| algorithm.as_str() == named);
        let algorithm = algorithm.ok_or(JwsError::Algorithm)?.signature_algorithm();
        let holds = key.verify(algorithm, self.signing_input.as_bytes(), &self.signature);
        holds.map_err(|_| JwsError::Signature)?;
        Ok(&self.payload)
    }
}

#[cfg(test)]
mod tests;
