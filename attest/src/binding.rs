//! Core: what the 64 guest-chosen bytes of a report are bound to.
//!
//! ```text
//! REPORT_DATA = SHA-512( "EnclaveID report data v1" 00       25 bytes
//!                        role                                 1
//!                        challenge                           32
//!                        tls      SHA-256 of the SPKI        32
//!                        keys     SHA-256 of the key list    32
//!                        ca       SHA-256 of the SPKI        32
//!                        statement  SHA-256 of its bytes     32 )    always 186 bytes
//! ```
//!
//! Every part has a fixed width, so no two bindings have the same pre-image. Reports for the
//! attestation service carry SHA-256 of the runtime data instead ([`ReportData::for_runtime_data`])
//! and are never accepted in any role.

use std::fmt;

use sha2::{Digest, Sha256, Sha512};

use crate::encoding::{hex_array, write_hex};

/// Separates this pre-image from everything else that is ever hashed.
const DOMAIN: &[u8; 25] = b"EnclaveID report data v1\0";
/// The same for the challenge of a local caller.
const CALLER_DOMAIN: &[u8; 20] = b"EnclaveID caller v1\0";
/// Longest audience in bytes.
pub const AUDIENCE_BYTES_MAX: usize = 256;

/// The value of REPORT_DATA: made by hashing, or read from a report; never padded, never cut.
#[derive(Clone)]
pub struct ReportData([u8; 64]);

/// Who asked for the report, and so what the challenge means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// A gateway, asked by a client.
    Gateway = 1,
    /// A pod, asked by a gateway.
    Pod = 2,
    /// An agent at its start.
    Boot = 3,
    /// A caller of the local API; the challenge is [`local_caller_challenge`].
    LocalCaller = 4,
    /// A TLS connection, by its exporter.
    Exporter = 5,
}

/// Everything that one report is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Who asked.
    pub role: Role,
    /// Freshness, in the form of the role.
    pub challenge: [u8; 32],
    /// SHA-256 of the DER SubjectPublicKeyInfo of the key that this process serves TLS with.
    pub tls: [u8; 32],
    /// SHA-256 of the OHTTP key list; zeros when there is none.
    pub keys: [u8; 32],
    /// SHA-256 of the DER SubjectPublicKeyInfo of the mesh CA.
    pub ca: [u8; 32],
    /// SHA-256 of the exact bytes of the statement.
    pub statement: [u8; 32],
}

/// A part of a binding is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// The audience is empty or too long.
    #[error("the audience is not 1 to {AUDIENCE_BYTES_MAX} bytes long")]
    Audience,
    /// The text is not the hexadecimal form of 64 bytes.
    #[error("report data is not 128 hexadecimal digits")]
    Hex,
}

impl BindingError {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Audience => "binding.audience",
            Self::Hex => "binding.hex",
        }
    }
}

impl ReportData {
    /// Binds a report to `binding`.
    pub fn bind(binding: &Binding) -> Self {
        let mut hash = Sha512::new();
        hash.update(DOMAIN);
        hash.update([binding.role as u8]);
        for part in [
            &binding.challenge,
            &binding.tls,
            &binding.keys,
            &binding.ca,
            &binding.statement,
        ] {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// Binds a report to the runtime data that goes to the attestation service: SHA-256 of its
    /// bytes, then 32 zero bytes.
    pub fn for_runtime_data(runtime_data: &[u8]) -> Self {
        let mut bytes = [0; 64];
        let (hash, _zeros) = bytes.split_at_mut(32);
        hash.copy_from_slice(&Sha256::digest(runtime_data));
        Self(bytes)
    }

    /// An expectation that was computed elsewhere, as 128 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, BindingError> {
        hex_array(text).map(Self).ok_or(BindingError::Hex)
    }

    /// What a report carries.
    pub(crate) fn in_report(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The 64 bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

/// The comparison takes the same time for all values: an expectation may be a caller's secret.
impl PartialEq for ReportData {
    fn eq(&self, other: &Self) -> bool {
        let difference = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl Eq for ReportData {}

impl fmt::Debug for ReportData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReportData(")?;
        write_hex(f, &self.0)?;
        f.write_str(")")
    }
}

/// The challenge of [`Role::LocalCaller`]: the caller's nonce, and the audience that the evidence
/// is for, so that it cannot be shown to another one.
pub fn local_caller_challenge(nonce: &[u8; 32], audience: &str) -> Result<[u8; 32], BindingError> {
    let length = u32::try_from(audience.len()).map_err(|_| BindingError::Audience)?;
    if audience.is_empty() || audience.len() > AUDIENCE_BYTES_MAX {
        return Err(BindingError::Audience);
    }
    let mut hash = Sha256::new();
    hash.update(CALLER_DOMAIN);
    hash.update(nonce);
    hash.update(length.to_be_bytes());
    hash.update(audience);
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            role: Role::Gateway,
            challenge: [0x11; 32],
            tls: [0x22; 32],
            keys: [0x33; 32],
            ca: [0x44; 32],
            statement: [0x55; 32],
        }
    }

    /// Computed independently of this code; the browser's verifier has the same vector.
    #[test]
    fn the_vector_of_the_pre_image_holds() {
        let want = "11815a5d2e3ee8ee8bd740a61fe08ecfe9b65117fcb60748d8d71099f23b02e2\
                    68abd36d91822eb807f648f21e19cd83cf01633753c1a3e8c4e36dc2b3fb028f";
        assert_eq!(
            ReportData::bind(&binding()),
            ReportData::from_hex(want).unwrap()
        );
    }

    #[test]
    fn every_part_of_a_binding_changes_the_report_data() {
        let changes: [fn(&mut Binding); 6] = [
            |b| b.role = Role::Pod,
            |b| b.challenge = [0; 32],
            |b| b.tls = [0; 32],
            |b| b.keys = [0; 32],
            |b| b.ca = [0; 32],
            |b| b.statement = [0; 32],
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut other = binding();
            change(&mut other);
            assert_ne!(
                ReportData::bind(&other),
                ReportData::bind(&binding()),
                "change {index}"
            );
        }
    }

    #[test]
    fn an_audience_has_1_to_256_bytes_and_its_length_is_hashed() {
        let challenge = |audience: &str| local_caller_challenge(&[7; 32], audience);
        assert!(challenge("a").is_ok());
        assert!(challenge(&"a".repeat(256)).is_ok());
        assert_eq!(challenge(""), Err(BindingError::Audience));
        assert_eq!(challenge(&"a".repeat(257)), Err(BindingError::Audience));
        // Computed with Python's hashlib.
        let want = "973b502d4edaeea5f9c3c467a0e1281d4a15317ab4d7813380a5378c876361c1";
        assert_eq!(challenge("web").unwrap(), hex_array::<32>(want).unwrap());
    }

    #[test]
    fn runtime_data_is_hashed_and_followed_by_zeros() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let want = format!("{empty}{}", "00".repeat(32));
        assert_eq!(
            ReportData::for_runtime_data(b""),
            ReportData::from_hex(&want).unwrap()
        );
    }

    #[test]
    fn hexadecimal_report_data_has_exactly_128_digits() {
        let good = "aB".repeat(64);
        assert_eq!(ReportData::from_hex(&good).unwrap().as_bytes(), &[0xab; 64]);
        let too_short = "aB".repeat(63);
        let odd = format!("{too_short}a");
        let too_long = format!("{good}00");
        let no_digit = good.replacen('a', "g", 1);
        for bad in ["", &too_short, &odd, &too_long, &no_digit] {
            assert_eq!(ReportData::from_hex(bad), Err(BindingError::Hex), "{bad}");
        }
    }
}
