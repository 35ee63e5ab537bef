//! Core: evidence and signatures of our own making, for unit tests: every rule can be broken alone.
//!
//! The keys in testing/ are for these tests and protect nothing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "helpers of tests: a failure here is a failed test"
)]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use p384::ecdsa::signature::Signer;
use rsa::pkcs8::{DecodePrivateKey, EncodePublicKey};
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use serde_json::Value;
use sha2::{Sha256, Sha384};

use crate::report::layout::{self, REPORT_LEN, SIGNED_LEN};

/// A moment at which everything made here is valid.
pub(crate) const NOW: i64 = 1_800_000_000;

const KEYS: [&str; 3] = [
    include_str!("testing/rsa-a.pem"),
    include_str!("testing/rsa-b.pem"),
    include_str!("testing/rsa-c.pem"),
];

/// One of three RSA keys.
pub(crate) fn rsa_key(index: usize) -> rsa::PrivateKey {
    rsa::PrivateKey::from_pkcs8_pem(KEYS[index]).unwrap()
}

/// Not random: makes test runs repeatable. Salts need no secrecy.
struct Counter(u8);

impl TryRng for Counter {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(5).wrapping_add(1);
            *byte = self.0;
        }
        Ok(())
    }
}

impl TryCryptoRng for Counter {}

/// How a test signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Pkcs1Sha256,
    Pkcs1Sha384,
    PssSha256,
    /// With this length of the salt, signed and stated.
    PssSha384 {
        salt: u8,
    },
}

impl Sign {
    pub(crate) fn sign(self, key: &rsa::PrivateKey, message: &[u8]) -> Vec<u8> {
        let key = key.clone();
        match self {
            Self::Pkcs1Sha256 => rsa::pkcs1v15::SigningKey::<Sha256>::new(key)
                .sign(message)
                .to_vec(),
            Self::Pkcs1Sha384 => rsa::pkcs1v15::SigningKey::<Sha384>::new(key)
                .sign(message)
                .to_vec(),
            Self::PssSha256 => {
                let key = rsa::pss::SigningKey::<Sha256>::new(key);
                key.sign_with_rng(&mut Counter(1), message).to_vec()
            }
            Self::PssSha384 { salt } => {
                let key = rsa::pss::SigningKey::<Sha384>::new_with_salt_len(key, salt.into());
                key.sign_with_rng(&mut Counter(1), message).to_vec()
            }
        }
    }

    fn algorithm_identifier(self) -> Vec<u8> {
        let null: &[u8] = &[5, 0];
        match self {
            Self::Pkcs1Sha256 => seq(&[&oid("1.2.840.113549.1.1.11"), null]),
            Self::Pkcs1Sha384 => seq(&[&oid("1.2.840.113549.1.1.12"), null]),
            Self::PssSha256 => pss_identifier("2.16.840.1.101.3.4.2.1", 32),
            Self::PssSha384 { salt } => pss_identifier("2.16.840.1.101.3.4.2.2", salt),
        }
    }
}

fn pss_identifier(hash: &str, salt: u8) -> Vec<u8> {
    pss_identifier_of(hash, "1.2.840.113549.1.1.8", hash, salt)
}

/// PSS parameters in which every part can be another one.
pub(crate) fn pss_identifier_of(hash: &str, mask: &str, mask_hash: &str, salt: u8) -> Vec<u8> {
    let [hash, mask_hash] = [hash, mask_hash].map(|hash| seq(&[&oid(hash), &[5, 0]]));
    let mask = seq(&[&oid(mask), &mask_hash]);
    let parameters = seq(&[
        &tlv(0xA0, &hash),
        &tlv(0xA1, &mask),
        &tlv(0xA2, &[2, 1, salt]),
    ]);
    seq(&[&oid("1.2.840.113549.1.1.10"), &parameters])
}

/// Everything in a certificate that a test may want to have another way.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) subject: &'static str,
    pub(crate) issuer: &'static str,
    /// UTCTime, twice.
    pub(crate) validity: [&'static str; 2],
    pub(crate) spki: Vec<u8>,
    /// DER of each extension.
    pub(crate) extensions: Vec<Vec<u8>>,
    pub(crate) signer: usize,
    pub(crate) sign: Sign,
    /// The algorithm that the signed part names, where it is another one.
    pub(crate) stated: Option<Sign>,
}

impl Spec {
    pub(crate) fn der(&self) -> Vec<u8> {
        let algorithm = self.sign.algorithm_identifier();
        let times = self.validity.map(|time| tlv(0x17, time.as_bytes()));
        let extensions: Vec<&[u8]> = self.extensions.iter().map(Vec::as_slice).collect();
        let tbs = seq(&[
            &tlv(0xA0, &[2, 1, 2]),
            // Serial number 0, like AMD's.
            &[2, 1, 0],
            &self.stated.unwrap_or(self.sign).algorithm_identifier(),
            &name(self.issuer),
            &seq(&[&times[0], &times[1]]),
            &name(self.subject),
            &self.spki,
            &tlv(0xA3, &seq(&extensions)),
        ]);
        let signature = self.sign.sign(&rsa_key(self.signer), &tbs);
        seq(&[
            &tbs,
            &algorithm,
            &tlv(3, &[&[0], signature.as_slice()].concat()),
        ])
    }
}

/// A chain like AMD's with the key that signs reports.
#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) ark: Spec,
    pub(crate) ask: Spec,
    pub(crate) vcek: Spec,
}

pub(crate) const VALIDITY: [&str; 2] = ["200101000000Z", "450101000000Z"];
pub(crate) const TCB: [u8; 8] = [4, 1, 0, 0, 0, 0, 23, 209];
pub(crate) const CHIP_ID: [u8; 64] = [0xC1; 64];

impl Chain {
    pub(crate) fn milan() -> Self {
        let pss = Sign::PssSha384 { salt: 48 };
        let ca = vec![basic_constraints(true), key_usage_cert_sign()];
        Self {
            ark: Spec {
                subject: "ARK-Milan",
                issuer: "ARK-Milan",
                validity: VALIDITY,
                spki: rsa_spki(0),
                extensions: ca.clone(),
                signer: 0,
                sign: pss,
                stated: None,
            },
            ask: Spec {
                subject: "SEV-Milan",
                issuer: "ARK-Milan",
                validity: VALIDITY,
                spki: rsa_spki(1),
                extensions: ca,
                signer: 0,
                sign: pss,
                stated: None,
            },
            vcek: Spec {
                subject: "SEV-VCEK",
                issuer: "SEV-Milan",
                validity: VALIDITY,
                spki: chip_spki(),
                extensions: vcek_extensions("Milan-B0", TCB, &CHIP_ID),
                signer: 1,
                sign: pss,
                stated: None,
            },
        }
    }
}

/// AMD's extensions.
pub(crate) fn vcek_extensions(product: &str, tcb: [u8; 8], hardware_id: &[u8]) -> Vec<Vec<u8>> {
    let amd = |arcs: &str, value: &[u8]| extension(&format!("1.3.6.1.4.1.3704.1.{arcs}"), value);
    let [bl, tee, a, b, c, d, snp, microcode] = tcb.map(integer);
    vec![
        amd("1", &integer(0)),
        amd("2", &tlv(0x16, product.as_bytes())),
        amd("3.1", &bl),
        amd("3.2", &tee),
        amd("3.4", &a),
        amd("3.5", &b),
        amd("3.6", &c),
        amd("3.7", &d),
        amd("3.3", &snp),
        amd("3.8", &microcode),
        amd("4", hardware_id),
    ]
}

/// The key of the chip.
pub(crate) fn chip_key() -> p384::ecdsa::SigningKey {
    p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap()
}

pub(crate) fn chip_spki() -> Vec<u8> {
    ec_spki(&chip_key())
}

pub(crate) fn ec_spki(key: &p384::ecdsa::SigningKey) -> Vec<u8> {
    let key = p384::PublicKey::from(key.verifying_key());
    key.to_public_key_der().unwrap().into_vec()
}

pub(crate) fn rsa_spki(index: usize) -> Vec<u8> {
    rsa_key(index)
        .to_public_key()
        .to_public_key_der()
        .unwrap()
        .into_vec()
}

/// A well-formed report of version 2, not signed yet.
pub(crate) fn report() -> [u8; REPORT_LEN] {
    let mut raw = [0; REPORT_LEN];
    *layout::VERSION.of_mut(&mut raw) = 2_u32.to_le_bytes();
    *layout::POLICY.of_mut(&mut raw) = 0x3_001F_u64.to_le_bytes();
    *layout::SIGNATURE_ALGO.of_mut(&mut raw) = 1_u32.to_le_bytes();
    *layout::REPORT_DATA.of_mut(&mut raw) = [0xDA; 64];
    *layout::MEASUREMENT.of_mut(&mut raw) = [0x3E; 48];
    *layout::HOST_DATA.of_mut(&mut raw) = [0x40; 32];
    *layout::REPORT_ID.of_mut(&mut raw) = [0x1D; 32];
    *layout::REPORTED_TCB.of_mut(&mut raw) = TCB;
    // Another one than the reported, as on real machines.
    *layout::CURRENT_TCB.of_mut(&mut raw) = [9, 9, 0, 0, 0, 0, 99, 219];
    *layout::CHIP_ID.of_mut(&mut raw) = CHIP_ID;
    raw
}

/// Signs a report with the chip's key.
pub(crate) fn sign_report(mut raw: [u8; REPORT_LEN]) -> [u8; REPORT_LEN] {
    let signature: p384::ecdsa::Signature = chip_key().sign(&raw[..SIGNED_LEN]);
    let (r, s) = signature.split_bytes();
    let write = |field: &mut [u8; 72], scalar: &[u8]| {
        *field = [0; 72];
        for (to, from) in field.iter_mut().zip(scalar.iter().rev()) {
            *to = *from;
        }
    };
    write(layout::SIGNATURE_R.of_mut(&mut raw), &r);
    write(layout::SIGNATURE_S.of_mut(&mut raw), &s);
    raw
}

/// A compact JWS.
pub(crate) fn jws(header: &Value, payload: &Value, sign: Sign, key: usize) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let input = format!("{}.{}", part(header), part(payload));
    let signature = sign.sign(&rsa_key(key), input.as_bytes());
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

pub(crate) fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
}

pub(crate) fn extension(id: &str, value: &[u8]) -> Vec<u8> {
    seq(&[&oid(id), &tlv(4, value)])
}

pub(crate) fn critical_extension(id: &str, value: &[u8]) -> Vec<u8> {
    seq(&[&oid(id), &[1, 1, 0xFF], &tlv(4, value)])
}

pub(crate) fn basic_constraints(ca: bool) -> Vec<u8> {
    let value = if ca { seq(&[&[1, 1, 0xFF]]) } else { seq(&[]) };
    critical_extension("2.5.29.19", &value)
}

/// A CA with at most `len` CAs below.
pub(crate) fn path_len(len: u8) -> Vec<u8> {
    critical_extension("2.5.29.19", &seq(&[&[1, 1, 0xFF], &[2, 1, len]]))
}

pub(crate) fn key_usage_cert_sign() -> Vec<u8> {
    critical_extension("2.5.29.15", &[3, 2, 2, 0b0000_0100])
}

pub(crate) fn key_usage_digital_signature() -> Vec<u8> {
    critical_extension("2.5.29.15", &[3, 2, 7, 0b1000_0000])
}

pub(crate) fn alt_names(names: &[&str]) -> Vec<u8> {
    let names: Vec<Vec<u8>> = names
        .iter()
        .map(|name| tlv(0x82, name.as_bytes()))
        .collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    extension("2.5.29.17", &seq(&names))
}

pub(crate) fn integer(value: u8) -> Vec<u8> {
    if value < 0x80 {
        vec![2, 1, value]
    } else {
        vec![2, 2, 0, value]
    }
}

pub(crate) fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..=0x7F => vec![tag, low],
        0x80..=0xFF => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head.as_slice(), content].concat()
}

fn name(common_name: &str) -> Vec<u8> {
    let attribute = seq(&[&oid("2.5.4.3"), &tlv(0x0C, common_name.as_bytes())]);
    seq(&[&tlv(0x31, &attribute)])
}

fn oid(text: &str) -> Vec<u8> {
    let oid = x509_cert::der::asn1::ObjectIdentifier::new(text).unwrap();
    tlv(6, oid.as_bytes())
}
