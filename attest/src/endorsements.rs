//! Core: the certificates that endorse a report: the chip's (VCEK) and those above it.

use x509_cert::der::Decode;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, OctetStringRef};

use crate::tcb::Tcb;
use crate::x509::{CERTIFICATES_MAX, Certificate};

/// A CBOR tag 18 (COSE_Sign1): how Azure's endorsements of a utility VM start.
const COSE_SIGN1_TAG: u8 = 0xD2;

/// Certificates that came with a report. Decoded, not verified.
#[derive(Debug, Clone)]
pub struct Endorsements {
    vcek: Certificate,
    chain: Vec<Certificate>,
}

/// What the VCEK says about its chip: AMD's extensions, 1.3.6.1.4.1.3704.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChipClaims {
    pub(crate) tcb: Tcb,
    pub(crate) hardware_id: [u8; 64],
}

/// Endorsements or roots are malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndorsementsError {
    /// The chain above the VCEK is not made of certificates.
    #[error("the certificate chain is malformed")]
    Chain,
    /// The root is not one certificate.
    #[error("the root is not one certificate")]
    Root,
    /// Endorsements of a utility VM, which are not certificates.
    #[error("UVM endorsements are not supported")]
    UvmUnsupported,
    /// The VCEK is not a certificate.
    #[error("the VCEK certificate is malformed")]
    Vcek,
}

impl EndorsementsError {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Chain => "endorsements.chain",
            Self::Root => "endorsements.root",
            Self::UvmUnsupported => "endorsements.uvm_unsupported",
            Self::Vcek => "endorsements.vcek",
        }
    }
}

impl Endorsements {
    /// Decodes endorsements, each PEM or DER. `vcek` may hold the certificates above it too, in
    /// PEM; `chain` may be absent when it does, or when AMD's own, compiled in, are meant.
    pub fn parse(vcek: &[u8], chain: Option<&[u8]>) -> Result<Self, EndorsementsError> {
        if [Some(vcek), chain]
            .iter()
            .flatten()
            .any(|bytes| bytes.starts_with(&[COSE_SIGN1_TAG]))
        {
            return Err(EndorsementsError::UvmUnsupported);
        }
        let certificates = Certificate::parse_any(vcek).map_err(|_| EndorsementsError::Vcek)?;
        let mut certificates = certificates.into_iter();
        let vcek = certificates.next().ok_or(EndorsementsError::Vcek)?;
        let mut above: Vec<Certificate> = certificates.collect();
        if let Some(chain) = chain {
            above.extend(Certificate::parse_any(chain).map_err(|_| EndorsementsError::Chain)?);
        }
        if above.len() > CERTIFICATES_MAX {
            return Err(EndorsementsError::Chain);
        }
        Ok(Self { vcek, chain: above })
    }

    pub(crate) fn vcek(&self) -> &Certificate {
        &self.vcek
    }

    pub(crate) fn chain(&self) -> &[Certificate] {
        &self.chain
    }
}

impl ChipClaims {
    /// Reads the extensions of a Milan or Genoa VCEK; `None` when one is missing or malformed.
    pub(crate) fn of(vcek: &Certificate) -> Option<Self> {
        // Structure version 1 came with Turin and has another order of numbers.
        if spl(vcek.extension(oid(&[1])?)?)? != 0 {
            return None;
        }
        let number = |arc: u32| spl(vcek.extension(oid(&[3, arc])?)?);
        // The four spare numbers stand between TEE and SNP in the report's bytes; a certificate
        // without them says nothing about them, like one that says zero.
        let spare = |arc: u32| match vcek.extension(oid(&[3, arc])?) {
            Some(value) => spl(value),
            None => Some(0),
        };
        let (bootloader, tee) = (number(1)?, number(2)?);
        let (snp, microcode) = (number(3)?, number(8)?);
        let [a, b, c, d] = [spare(4)?, spare(5)?, spare(6)?, spare(7)?];
        Some(Self {
            tcb: Tcb([bootloader, tee, a, b, c, d, snp, microcode]),
            hardware_id: hardware_id(vcek.extension(oid(&[4])?)?)?,
        })
    }

    /// The name of the product and its stepping, in the same form in all VCEKs.
    pub(crate) fn product_name_of(vcek: &Certificate) -> Option<&str> {
        let name = Ia5StringRef::from_der(vcek.extension(oid(&[2])?)?).ok()?;
        Some(name.as_str())
    }
}

/// One of AMD's extensions.
fn oid(below: &[u32]) -> Option<ObjectIdentifier> {
    let amd = [1, 3, 6, 1, 4, 1, 3704, 1];
    ObjectIdentifier::from_arcs(amd.into_iter().chain(below.iter().copied())).ok()
}

/// A security version number: a DER INTEGER of 0 to 255, so of one or two bytes.
fn spl(der: &[u8]) -> Option<u8> {
    u8::from_der(der).ok()
}

/// The hardware id: 64 bytes as they are in known certificates, or wrapped as an OCTET STRING.
fn hardware_id(value: &[u8]) -> Option<[u8; 64]> {
    if let Ok(raw) = value.try_into() {
        return Some(raw);
    }
    <&OctetStringRef>::from_der(value)
        .ok()?
        .as_bytes()
        .try_into()
        .ok()
}
