//! Core: the mesh CA's key, derived, and its certificate, untrusted until it matches that key.

use std::fmt;

use keys::CaSeed;
use openssl::asn1::{Asn1Integer, Asn1Time, Asn1TimeRef};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, PKeyRef, Private};
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509NameBuilder};
use runtime::clock::UnixTime;

/// Life of the CA certificate. The key can be derived again at any time, so the date bounds
/// nothing but clients that keep an old certificate.
const CA_LIFETIME_DAYS: i64 = 3_650;
/// Longest certificate file that is parsed.
const PEM_BYTES_MAX: usize = 64 * 1024;

/// The private key of the mesh CA.
pub struct MeshCa {
    key: PKey<Private>,
}

/// A CA certificate that was checked against the derived key. Made by [`MeshCa::verify`] alone.
pub struct VerifiedCa {
    ca: MeshCa,
    certificate: X509,
    not_after: UnixTime,
}

/// The CA cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The certificate is no PEM certificate of a sensible size.
    #[error("the CA certificate is malformed")]
    Malformed,
    /// The certificate belongs to another key.
    #[error("the CA certificate's key is not the one derived from the released secret")]
    Mismatch,
    /// The certificate is not signed by its own key.
    #[error("the CA certificate is not signed by its own key")]
    Signature,
    /// The certificate says it is no CA, or one with other powers.
    #[error("the CA certificate's profile is not that of a mesh CA")]
    Profile,
    /// The certificate is not valid now.
    #[error("the CA certificate is not valid at this time")]
    Expired,
    /// OpenSSL failed.
    #[error("cryptographic failure")]
    Crypto(#[from] ErrorStack),
}

impl CaError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "ca.malformed",
            Self::Mismatch => "ca.mismatch",
            Self::Signature => "ca.signature",
            Self::Profile => "ca.profile",
            Self::Expired => "ca.expired",
            Self::Crypto(_) => "ca.crypto",
        }
    }
}

impl fmt::Debug for MeshCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshCa(..)")
    }
}

impl fmt::Debug for VerifiedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifiedCa(..)")
    }
}

impl MeshCa {
    /// The key that `seed` stands for: `1 + (seed mod (n - 1))` on P-256 (FIPS 186-5, A.2.1).
    pub fn from_seed(seed: &CaSeed) -> Result<Self, CaError> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let mut context = BigNumContext::new_secure()?;
        let mut order = BigNum::new()?;
        group.order(&mut order, &mut context)?;
        order.sub_word(1)?;
        let mut wide = BigNum::new_secure()?;
        wide.copy_from_slice(seed.expose())?;
        let mut scalar = BigNum::new_secure()?;
        scalar.nnmod(&wide, &order, &mut context)?;
        scalar.add_word(1)?;
        wide.clear();
        let mut public = EcPoint::new(&group)?;
        public.mul_generator2(&group, &scalar, &mut context)?;
        let key = EcKey::from_private_components(&group, &scalar, &public)?;
        Ok(Self {
            key: PKey::from_ec_key(key)?,
        })
    }

    /// Issues the CA certificate, self-signed. Public data: pods check it with [`Self::verify`].
    pub fn issue(&self, trust_domain: &str, now: UnixTime) -> Result<X509, CaError> {
        let mut name = X509NameBuilder::new()?;
        name.append_entry_by_text("O", trust_domain_as_organization(trust_domain))?;
        name.append_entry_by_text("CN", "EnclaveID mesh CA")?;
        let name = name.build();
        let mut builder = X509::builder()?;
        builder.set_version(2)?;
        builder.set_serial_number(random_serial()?.as_ref())?;
        builder.set_subject_name(&name)?;
        builder.set_issuer_name(&name)?;
        builder.set_pubkey(&self.key)?;
        builder.set_not_before(Asn1Time::from_unix(now.0 - 300)?.as_ref())?;
        let not_after = now.0 + CA_LIFETIME_DAYS * 86_400;
        builder.set_not_after(Asn1Time::from_unix(not_after)?.as_ref())?;
        builder.append_extension(BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
        let usage = KeyUsage::new()
            .critical()
            .key_cert_sign()
            .crl_sign()
            .build()?;
        builder.append_extension(usage)?;
        let context = builder.x509v3_context(None, None);
        let key_identifier = SubjectKeyIdentifier::new().build(&context)?;
        builder.append_extension(key_identifier)?;
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok(builder.build())
    }

    /// Checks a certificate from untrusted hands: it must hold this key, be signed by it, have the
    /// profile of a mesh CA and be valid `now`.
    pub fn verify(self, pem: &[u8], now: UnixTime) -> Result<VerifiedCa, CaError> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(CaError::Malformed);
        }
        let mut certificates = X509::stack_from_pem(pem).map_err(|_| CaError::Malformed)?;
        let (Some(certificate), None) = (certificates.pop(), certificates.pop()) else {
            return Err(CaError::Malformed);
        };
        let theirs = certificate.public_key().map_err(|_| CaError::Malformed)?;
        if !theirs.public_eq(&self.key) {
            return Err(CaError::Mismatch);
        }
        // An algorithm that OpenSSL does not know is no good signature either.
        if !certificate.verify(&self.key).unwrap_or(false) {
            return Err(CaError::Signature);
        }
        check_profile(&certificate)?;
        let at = Asn1Time::from_unix(now.0).map_err(|_| CaError::Expired)?;
        if *certificate.not_before() > *at || *certificate.not_after() < *at {
            return Err(CaError::Expired);
        }
        let not_after = seconds_between(&at, certificate.not_after())?;
        Ok(VerifiedCa {
            ca: self,
            certificate,
            not_after: UnixTime(now.0.saturating_add(not_after)),
        })
    }
}

impl VerifiedCa {
    /// The CA's certificate.
    pub fn certificate(&self) -> &X509 {
        &self.certificate
    }

    /// The last second of the CA's validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The CA's key, for issuing leaves.
    pub(super) fn key(&self) -> &PKeyRef<Private> {
        &self.ca.key
    }

    /// DER of the CA's SubjectPublicKeyInfo: what names the mesh to verifiers.
    pub fn spki_der(&self) -> Result<Vec<u8>, CaError> {
        Ok(self.ca.key.public_key_to_der()?)
    }
}

fn seconds_between(from: &Asn1TimeRef, to: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let difference = from.diff(to)?;
    Ok(i64::from(difference.days) * 86_400 + i64::from(difference.secs))
}

/// A random serial number of 127 bits: positive, and never long enough to need a sign byte.
pub(super) fn random_serial() -> Result<Asn1Integer, ErrorStack> {
    let mut bytes = [0; 16];
    openssl::rand::rand_bytes(&mut bytes)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    BigNum::from_slice(&bytes)?.to_asn1_integer()
}

/// X.520 bounds an organization name to 64 characters; a trust domain may be longer.
fn trust_domain_as_organization(trust_domain: &str) -> &str {
    trust_domain.get(..64).unwrap_or(trust_domain)
}

/// CA bit, path length 0 and key usages, exactly as [`MeshCa::issue`] sets them.
///
/// The signature was checked before: only a holder of the CA's key can have made the bytes, so
/// looking for the two extensions in their DER form is enough, and no second parser is needed.
fn check_profile(certificate: &X509) -> Result<(), CaError> {
    let der = certificate.to_der()?;
    let has = |extension: &[u8]| {
        der.windows(extension.len())
            .any(|window| window == extension)
    };
    if has(BASIC_CONSTRAINTS) && has(KEY_USAGE) {
        Ok(())
    } else {
        Err(CaError::Profile)
    }
}

/// DER of the extension BasicConstraints, critical {cA TRUE, pathLenConstraint 0}.
const BASIC_CONSTRAINTS: &[u8] =
    b"\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00";
/// DER of the extension KeyUsage, critical {keyCertSign, cRLSign}.
const KEY_USAGE: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x01\x06";

#[cfg(test)]
mod tests {
    use keys::{CaGeneration, MasterSecret};
    use openssl::asn1::Asn1Time;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn ca(first_byte: u8, generation: u32) -> MeshCa {
        let mut released = [first_byte; 32];
        let secret = MasterSecret::from_release(&mut released)
            .unwrap()
            .derive_intermediate();
        MeshCa::from_seed(&secret.derive_ca(CaGeneration(generation))).unwrap()
    }

    #[track_caller]
    fn check(pem: &[u8], now: UnixTime, want: Option<&str>) {
        let got = ca(1, 0).verify(pem, now).map_err(|error| error.code());
        assert_eq!(got.err(), want);
    }

    #[test]
    fn only_the_certificate_of_the_derived_key_is_accepted() {
        let good = ca(1, 0).issue("demo", NOW).unwrap().to_pem().unwrap();
        let other_secret = ca(2, 0).issue("demo", NOW).unwrap().to_pem().unwrap();
        let other_generation = ca(1, 1).issue("demo", NOW).unwrap().to_pem().unwrap();
        check(&good, NOW, None);
        check(&other_secret, NOW, Some("ca.mismatch"));
        check(&other_generation, NOW, Some("ca.mismatch"));
        check(&good, UnixTime(NOW.0 - 301), Some("ca.expired"));
        check(&good, UnixTime(NOW.0 + 3_651 * 86_400), Some("ca.expired"));
        check(b"", NOW, Some("ca.malformed"));
        check(&[good.clone(), good].concat(), NOW, Some("ca.malformed"));
    }

    #[test]
    fn a_certificate_of_our_key_with_another_profile_or_signer_is_refused() {
        let mine = ca(1, 0);
        let mut plain = X509::builder().unwrap();
        plain.set_version(2).unwrap();
        plain.set_pubkey(&mine.key).unwrap();
        plain
            .set_not_before(&Asn1Time::from_unix(NOW.0).unwrap())
            .unwrap();
        plain
            .set_not_after(&Asn1Time::from_unix(NOW.0 + 9).unwrap())
            .unwrap();
        plain.sign(&mine.key, MessageDigest::sha256()).unwrap();
        check(&plain.build().to_pem().unwrap(), NOW, Some("ca.profile"));

        let mut foreign = X509::builder().unwrap();
        foreign.set_pubkey(&mine.key).unwrap();
        foreign
            .set_not_before(&Asn1Time::from_unix(NOW.0).unwrap())
            .unwrap();
        foreign
            .set_not_after(&Asn1Time::from_unix(NOW.0 + 9).unwrap())
            .unwrap();
        foreign
            .sign(&ca(2, 0).key, MessageDigest::sha256())
            .unwrap();
        check(
            &foreign.build().to_pem().unwrap(),
            NOW,
            Some("ca.signature"),
        );
    }
}
