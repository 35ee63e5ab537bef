//! Core: public keys and the signature algorithms that are accepted from the outside.

use p384::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::BoxedUint;
use rsa::pkcs1::RsaPssParams;
use rsa::signature::Verifier;
use rsa::traits::PublicKeyParts;
use rsa::{pkcs1v15, pss};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Any, Decode};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoRef};

/// Sizes of RSA keys in bits: below is weak, above costs too much to verify for anybody who asks.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

const ID_MGF1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");
const ID_RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");

/// The hashes that signatures are made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// The signature algorithms that are accepted; each use accepts some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignatureAlgorithm {
    /// ECDSA on P-384, the signature in DER.
    EcdsaP384(Hash),
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1(Hash),
    /// RSASSA-PSS; MGF1 with the same hash, a salt as long as the hash.
    RsaPss(Hash),
}

/// A public key, checked to be of an accepted kind and size.
#[derive(Debug, Clone)]
pub(crate) enum PublicKey {
    P384(Box<p384::ecdsa::VerifyingKey>),
    Rsa(Box<rsa::PublicKey>),
}

/// The signature does not hold, or is of another kind than the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignatureInvalid;

impl Hash {
    fn from_oid(oid: ObjectIdentifier) -> Option<Self> {
        match oid {
            SHA256 => Some(Self::Sha256),
            SHA384 => Some(Self::Sha384),
            SHA512 => Some(Self::Sha512),
            _ => None,
        }
    }

    fn len(self) -> u8 {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        }
    }
}

impl SignatureAlgorithm {
    /// The algorithm that an X.509 AlgorithmIdentifier names, or `None` when it is not accepted.
    pub(crate) fn from_x509(identifier: &AlgorithmIdentifierOwned) -> Option<Self> {
        match identifier.oid {
            ECDSA_SHA256 => Some(Self::EcdsaP384(Hash::Sha256)),
            ECDSA_SHA384 => Some(Self::EcdsaP384(Hash::Sha384)),
            RSA_SHA256 => Some(Self::RsaPkcs1(Hash::Sha256)),
            RSA_SHA384 => Some(Self::RsaPkcs1(Hash::Sha384)),
            RSA_SHA512 => Some(Self::RsaPkcs1(Hash::Sha512)),
            ID_RSASSA_PSS => pss_hash(identifier).map(Self::RsaPss),
            _ => None,
        }
    }
}

/// The one hash of PSS parameters that use it everywhere (RFC 4055 section 3.1).
fn pss_hash(identifier: &AlgorithmIdentifierOwned) -> Option<Hash> {
    // The decoder knows no other trailer field than 1.
    let parameters: RsaPssParams<Any> = identifier.parameters.as_ref()?.decode_as().ok()?;
    let hash = Hash::from_oid(parameters.hash.oid)?;
    let mask = &parameters.mask_gen;
    let mask_hash = Hash::from_oid(mask.parameters.as_ref()?.oid)?;
    let same = mask.oid == ID_MGF1 && mask_hash == hash && parameters.salt_len == hash.len();
    same.then_some(hash)
}

impl PublicKey {
    /// The key of a DER SubjectPublicKeyInfo.
    pub(crate) fn from_spki(der: &[u8]) -> Option<Self> {
        let spki = SubjectPublicKeyInfoRef::from_der(der).ok()?;
        if let Ok(key) = p384::ecdsa::VerifyingKey::try_from(spki.clone()) {
            return Some(Self::P384(Box::new(key)));
        }
        let key = rsa::PublicKey::try_from(spki).ok()?;
        let bits = usize::try_from(key.n().bit_width()).ok()?;
        RSA_BITS.contains(&bits).then(|| Self::Rsa(Box::new(key)))
    }

    /// The key of an RSA JWK: modulus and exponent, big endian.
    pub(crate) fn from_rsa_parts(n: &[u8], e: &[u8]) -> Option<Self> {
        if n.len() > RSA_BITS.end().div_ceil(8) || e.len() > 4 {
            return None;
        }
        let modulus = BoxedUint::from_be_slice_vartime(n);
        let exponent = BoxedUint::from_be_slice_vartime(e);
        let key = rsa::PublicKey::new_with_size_limits(modulus, exponent, RSA_BITS).ok()?;
        Some(Self::Rsa(Box::new(key)))
    }

    /// Checks `signature` over `message`.
    pub(crate) fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureInvalid> {
        match (self, algorithm) {
            (Self::P384(key), SignatureAlgorithm::EcdsaP384(hash)) => {
                let signature = p384::ecdsa::Signature::from_der(signature);
                let signature = signature.map_err(|_| SignatureInvalid)?;
                key.verify_prehash(&hash.digest(message), &signature)
                    .map_err(|_| SignatureInvalid)
            }
            (Self::Rsa(key), SignatureAlgorithm::RsaPkcs1(hash)) => {
                verify_pkcs1(key, hash, message, signature)
            }
            (Self::Rsa(key), SignatureAlgorithm::RsaPss(hash)) => {
                verify_pss(key, hash, message, signature)
            }
            (Self::P384(_), SignatureAlgorithm::RsaPkcs1(_) | SignatureAlgorithm::RsaPss(_))
            | (Self::Rsa(_), SignatureAlgorithm::EcdsaP384(_)) => Err(SignatureInvalid),
        }
    }

    /// The P-384 key, when it is one.
    pub(crate) fn p384(&self) -> Option<&p384::ecdsa::VerifyingKey> {
        match self {
            Self::P384(key) => Some(key),
            Self::Rsa(_) => None,
        }
    }
}

fn verify_pkcs1(
    key: &rsa::PublicKey,
    hash: Hash,
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureInvalid> {
    let signature = pkcs1v15::Signature::try_from(signature).map_err(|_| SignatureInvalid)?;
    let key = key.clone();
    match hash {
        Hash::Sha256 => pkcs1v15::VerifyingKey::<Sha256>::new(key).verify(message, &signature),
        Hash::Sha384 => pkcs1v15::VerifyingKey::<Sha384>::new(key).verify(message, &signature),
        Hash::Sha512 => pkcs1v15::VerifyingKey::<Sha512>::new(key).verify(message, &signature),
    }
    .map_err(|_| SignatureInvalid)
}

fn verify_pss(
    key: &rsa::PublicKey,
    hash: Hash,
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureInvalid> {
    let signature = pss::Signature::try_from(signature).map_err(|_| SignatureInvalid)?;
    let key = key.clone();
    // The salt is as long as the hash.
    match hash {
        Hash::Sha256 => pss::VerifyingKey::<Sha256>::new(key).verify(message, &signature),
        Hash::Sha384 => pss::VerifyingKey::<Sha384>::new(key).verify(message, &signature),
        Hash::Sha512 => pss::VerifyingKey::<Sha512>::new(key).verify(message, &signature),
    }
    .map_err(|_| SignatureInvalid)
}

#[cfg(test)]
mod tests;
