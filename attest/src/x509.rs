//! Core: certificates, as much of RFC 5280 as the chains here need.
//!
//! A certificate keeps the bytes that its signature covers. Decoding is the `x509-cert` crate's;
//! what a chain must satisfy is ours, and strict: an extension that is critical and not understood
//! here ends the chain.

use std::fmt;

use sha2::{Digest, Sha256};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::name::Name;

use crate::UnixSeconds;
use crate::encoding::base64_standard;
use crate::public_key::{PublicKey, SignatureAlgorithm, SignatureInvalid};

/// Longest certificate, and longest PEM text of some certificates.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
pub(crate) const PEM_BYTES_MAX: usize = 128 * 1024;
/// Most certificates that one file or one `x5c` may hold.
pub(crate) const CERTIFICATES_MAX: usize = 16;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
/// Purposes (RFC 5280 section 4.2.1.12) of a certificate that names a server: serverAuth, any.
const SERVER_PURPOSES: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1"),
    ObjectIdentifier::new_unwrap("2.5.29.37.0"),
];
/// Extensions that may be critical: the ones whose meaning is honoured or does not matter here.
const UNDERSTOOD: [ObjectIdentifier; 4] = [
    KEY_USAGE,
    SUBJECT_ALT_NAME,
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
];

/// A decoded certificate with its raw parts.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    /// The bytes that the signature covers.
    tbs: Vec<u8>,
    spki: Vec<u8>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    decoded: x509_cert::Certificate,
}

/// Bytes are not a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Why one certificate is not the valid issue of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// The signature algorithm is none of those accepted here.
    Algorithm,
    /// The issuer may not issue certificates, or an extension is not understood.
    Constraints,
    /// The issuer's name is not the subject of the certificate above.
    Name,
    /// The signature does not hold.
    Signature,
}

/// When a certificate is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DateError {
    Expired,
    NotYetValid,
}

impl Certificate {
    /// Decodes one certificate from DER.
    pub(crate) fn parse_der(der: &[u8]) -> Result<Self, Malformed> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(Malformed);
        }
        let decoded = x509_cert::Certificate::from_der(der).map_err(|_| Malformed)?;
        let raw = RawParts::of(der).map_err(|_| Malformed)?;
        let certificate = Self {
            der: der.to_vec(),
            tbs: raw.tbs.to_vec(),
            spki: raw.spki.to_vec(),
            issuer: raw.issuer.to_vec(),
            subject: raw.subject.to_vec(),
            decoded,
        };
        // RFC 5280 section 4.2 forbids two extensions of one kind; readers would differ.
        let kinds = || {
            certificate
                .extensions()
                .iter()
                .map(|extension| extension.extn_id)
        };
        let twice = kinds()
            .enumerate()
            .any(|(i, kind)| kinds().skip(i).skip(1).any(|k| k == kind));
        if twice {
            Err(Malformed)
        } else {
            Ok(certificate)
        }
    }

    /// Decodes the certificates of a PEM text, in order; at least one. Text around them is allowed
    /// (RFC 7468 section 2), other PEM blocks are not.
    pub(crate) fn parse_pem(pem: &[u8]) -> Result<Vec<Self>, Malformed> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        const END: &str = "-----END CERTIFICATE-----";
        if pem.len() > PEM_BYTES_MAX {
            return Err(Malformed);
        }
        let mut rest = std::str::from_utf8(pem).map_err(|_| Malformed)?;
        let mut certificates = Vec::new();
        while let Some((_text, block)) = rest.split_once(BEGIN) {
            let (base64, after) = block.split_once(END).ok_or(Malformed)?;
            if certificates.len() == CERTIFICATES_MAX {
                return Err(Malformed);
            }
            let base64: Vec<u8> = base64
                .bytes()
                .filter(|byte| !byte.is_ascii_whitespace())
                .collect();
            let der = base64_standard(&base64).ok_or(Malformed)?;
            certificates.push(Self::parse_der(&der)?);
            rest = after;
        }
        if certificates.is_empty() {
            Err(Malformed)
        } else {
            Ok(certificates)
        }
    }

    /// Decodes PEM (one or more certificates) or DER (one).
    pub(crate) fn parse_any(bytes: &[u8]) -> Result<Vec<Self>, Malformed> {
        // DER of a certificate starts with the tag of a SEQUENCE, which no PEM text does.
        match bytes.first() {
            Some(0x30) => Ok(vec![Self::parse_der(bytes)?]),
            _ => Self::parse_pem(bytes),
        }
    }

    /// SHA-256 of the DER bytes.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// DER of the SubjectPublicKeyInfo, as in the certificate.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The public key, when it is of an accepted kind.
    pub(crate) fn public_key(&self) -> Option<PublicKey> {
        PublicKey::from_spki(&self.spki)
    }

    /// The algorithm of the signature, when it is accepted anywhere.
    pub(crate) fn signature_algorithm(&self) -> Option<SignatureAlgorithm> {
        let outer = self.decoded.signature_algorithm();
        // RFC 5280 section 4.1.1.2: the unsigned field must repeat the signed one.
        if outer != self.decoded.tbs_certificate().signature() {
            return None;
        }
        SignatureAlgorithm::from_x509(outer)
    }

    /// Whether the names say that `issuer` issued this certificate.
    pub(crate) fn names_issuer(&self, issuer: &Self) -> bool {
        self.issuer == issuer.subject
    }

    /// The common name of the subject.
    pub(crate) fn subject_common_name(&self) -> Option<String> {
        common_name(self.decoded.tbs_certificate().subject())
    }

    /// The common name of the issuer.
    pub(crate) fn issuer_common_name(&self) -> Option<String> {
        common_name(self.decoded.tbs_certificate().issuer())
    }

    /// Checks that `issuer` issued this certificate: names, the right to issue, signature.
    /// `accepted` says which algorithms may have been used.
    pub(crate) fn verify_issued_by(
        &self,
        issuer: &Self,
        accepted: fn(SignatureAlgorithm) -> bool,
    ) -> Result<(), LinkError> {
        if !self.names_issuer(issuer) {
            return Err(LinkError::Name);
        }
        if !issuer.may_issue() || !self.extensions_understood() || !issuer.extensions_understood() {
            return Err(LinkError::Constraints);
        }
        let algorithm = self
            .signature_algorithm()
            .filter(|algorithm| accepted(*algorithm));
        let algorithm = algorithm.ok_or(LinkError::Algorithm)?;
        let key = issuer.public_key().ok_or(LinkError::Algorithm)?;
        let signature = self
            .decoded
            .signature()
            .as_bytes()
            .ok_or(LinkError::Signature)?;
        key.verify(algorithm, &self.tbs, signature)
            .map_err(|SignatureInvalid| LinkError::Signature)
    }

    /// Checks the dates; both ends are valid seconds.
    pub(crate) fn verify_dates(&self, at: UnixSeconds) -> Result<(), DateError> {
        let validity = self.decoded.tbs_certificate().validity();
        let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
        let Ok(at) = u64::try_from(at.0) else {
            return Err(DateError::NotYetValid);
        };
        if at < seconds(&validity.not_before) {
            Err(DateError::NotYetValid)
        } else if at > seconds(&validity.not_after) {
            Err(DateError::Expired)
        } else {
            Ok(())
        }
    }

    /// The value of the extension `oid`.
    pub(crate) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let found = self
            .extensions()
            .iter()
            .find(|extension| extension.extn_id == oid);
        found.map(|extension| extension.extn_value.as_bytes())
    }

    /// The constraint on how many CAs may follow below, when this is a CA.
    pub(crate) fn ca_path_len(&self) -> Option<Option<u8>> {
        let constraints = BasicConstraints::from_der(self.extension(BASIC_CONSTRAINTS)?).ok()?;
        constraints.ca.then_some(constraints.path_len_constraint)
    }

    /// Whether a key usage extension, when there is one, allows signatures over other things than
    /// certificates.
    pub(crate) fn may_sign_data(&self) -> bool {
        match self.extension(KEY_USAGE) {
            Some(value) => KeyUsage::from_der(value).is_ok_and(|usage| usage.digital_signature()),
            None => true,
        }
    }

    /// Whether an extended key usage extension, when there is one, allows to act as a server.
    pub(crate) fn may_be_a_server(&self) -> bool {
        match self.extension(EXTENDED_KEY_USAGE) {
            Some(value) => {
                ExtendedKeyUsage::from_der(value).is_ok_and(|ExtendedKeyUsage(usages)| {
                    usages.iter().any(|usage| SERVER_PURPOSES.contains(usage))
                })
            }
            None => true,
        }
    }

    /// Whether a DNS name of the subject matches `host`: exactly, or by a wildcard that stands for
    /// the whole leftmost label (RFC 9525 section 6.3).
    pub(crate) fn matches_host(&self, host: &str) -> bool {
        let names = self
            .extension(SUBJECT_ALT_NAME)
            .map(SubjectAltName::from_der);
        let Some(Ok(SubjectAltName(names))) = names else {
            return false;
        };
        names.iter().any(|name| match name {
            GeneralName::DnsName(dns) => dns_name_matches(dns.as_str(), host),
            GeneralName::OtherName(_)
            | GeneralName::Rfc822Name(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EdiPartyName(_)
            | GeneralName::UniformResourceIdentifier(_)
            | GeneralName::IpAddress(_)
            | GeneralName::RegisteredId(_) => false,
        })
    }

    fn extensions(&self) -> &[Extension] {
        self.decoded
            .tbs_certificate()
            .extensions()
            .map_or(&[], Vec::as_slice)
    }

    fn extensions_understood(&self) -> bool {
        self.extensions().iter().all(|extension| {
            // Name constraints bind whether they are marked critical or not, and are not
            // evaluated here: a CA that has them is not one of ours.
            let binding = extension.critical || extension.extn_id == NAME_CONSTRAINTS;
            !binding || UNDERSTOOD.contains(&extension.extn_id)
        })
    }

    fn may_issue(&self) -> bool {
        let usage_allows = match self.extension(KEY_USAGE) {
            Some(value) => KeyUsage::from_der(value).is_ok_and(|usage| usage.key_cert_sign()),
            None => true,
        };
        usage_allows && self.ca_path_len().is_some()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", &self.subject_common_name())
            .field("issuer", &self.issuer_common_name())
            .finish_non_exhaustive()
    }
}

/// The raw parts of a certificate: RFC 5280 section 4.1.
struct RawParts<'a> {
    tbs: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    spki: &'a [u8],
}

impl<'a> RawParts<'a> {
    fn of(der: &'a [u8]) -> x509_cert::der::Result<Self> {
        let mut outer = SliceReader::new(der)?;
        let tbs = outer.sequence(|certificate| {
            let tbs = certificate.tlv_bytes()?;
            let _algorithm = certificate.tlv_bytes()?;
            let _signature = certificate.tlv_bytes()?;
            Ok::<_, x509_cert::der::Error>(tbs)
        })?;
        SliceReader::new(tbs)?.sequence(|fields| {
            let first = fields.tlv_bytes()?;
            // The version is left out of certificates of version 1.
            if first.first() == Some(&0xA0) {
                let _serial = fields.tlv_bytes()?;
            }
            let _algorithm = fields.tlv_bytes()?;
            let issuer = fields.tlv_bytes()?;
            let _validity = fields.tlv_bytes()?;
            let subject = fields.tlv_bytes()?;
            let spki = fields.tlv_bytes()?;
            // Unique identifiers and extensions: decoded by the caller.
            while !fields.is_finished() {
                let _rest = fields.tlv_bytes()?;
            }
            Ok(Self {
                tbs,
                issuer,
                subject,
                spki,
            })
        })
    }
}

fn common_name(name: &Name) -> Option<String> {
    use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
    let mut names = name.iter().filter(|attribute| attribute.oid == COMMON_NAME);
    let (name, None) = (names.next()?, names.next()) else {
        return None;
    };
    let utf8 = name
        .value
        .decode_as::<Utf8StringRef<'_>>()
        .map(|text| text.as_str().to_owned());
    let printable = || name.value.decode_as::<PrintableStringRef<'_>>();
    utf8.or_else(|_| printable().map(|text| text.as_str().to_owned()))
        .ok()
}

fn dns_name_matches(pattern: &str, host: &str) -> bool {
    if let Some(suffix) = pattern.strip_prefix("*.") {
        let parent = host.split_once('.').filter(|(label, _)| !label.is_empty());
        return parent.is_some_and(|(_, parent)| {
            parent.contains('.') && parent.eq_ignore_ascii_case(suffix)
        });
    }
    !host.is_empty() && pattern.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests;
