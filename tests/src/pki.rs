//! Core: certificate authorities made at run time: TLS servers of the emulators, and the chain
//! that signs released keys.

use std::fmt;
use std::time::Duration;

use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, PKeyRef, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509Extension, X509Name, X509NameRef};
use runtime::clock::UnixTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Organisation in every certificate that is made here, so that none is taken for a real one.
pub const ORGANISATION: &str = "EnclaveID Simulator";

/// When a certificate is valid; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: UnixTime,
    /// Last second.
    pub not_after: UnixTime,
}

/// A key that signs certificates, with its own certificate and those above it.
pub struct Authority(Identity);

/// A private key with its certificate and the certificates above it.
pub struct Identity {
    /// The private key.
    pub key: PKey<Private>,
    /// Its certificate.
    pub certificate: X509,
    /// The issuer of `certificate`, that one's issuer, and so on to the root. Empty for a root.
    pub chain: Vec<X509>,
}

impl Validity {
    /// From a day before `now` to ten years after it.
    pub fn around(now: UnixTime) -> Self {
        Self {
            not_before: now.minus(DAY),
            not_after: now.plus(DAY * 3_650),
        }
    }

    pub(crate) fn apply(self, builder: &mut X509Builder) -> Result<(), ErrorStack> {
        builder.set_not_before(&*Asn1Time::from_unix(self.not_before.0)?)?;
        builder.set_not_after(&*Asn1Time::from_unix(self.not_after.0)?)
    }
}

impl Authority {
    /// Makes a root that signs with `key`.
    pub fn root(
        common_name: &str,
        key: PKey<Private>,
        validity: Validity,
    ) -> Result<Self, ErrorStack> {
        let subject = name(common_name)?;
        let mut builder = draft(&subject, &subject, &key, validity)?;
        append_authority(&mut builder)?;
        append_key_ids(&mut builder, None)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Self(Identity {
            key,
            certificate: builder.build(),
            chain: Vec::new(),
        }))
    }

    /// Makes an authority below this one.
    pub fn intermediate(
        &self,
        common_name: &str,
        key: PKey<Private>,
        validity: Validity,
    ) -> Result<Self, ErrorStack> {
        let mut builder = self.draft(common_name, &key, validity)?;
        append_authority(&mut builder)?;
        self.finish(builder, key).map(Self)
    }

    /// Issues a certificate for a server at `localhost` and 127.0.0.1: where the emulators are.
    ///
    /// The same kind of certificate signs released keys: a real vault's too is for its host name.
    pub fn issue_server(
        &self,
        key: PKey<Private>,
        validity: Validity,
    ) -> Result<Identity, ErrorStack> {
        let mut builder = self.draft("localhost", &key, validity)?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        builder.append_extension(ExtendedKeyUsage::new().server_auth().build()?)?;
        let names = SubjectAlternativeName::new()
            .dns("localhost")
            .ip("127.0.0.1")
            .build(&builder.x509v3_context(None, None))?;
        builder.append_extension(names)?;
        self.finish(builder, key)
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &X509 {
        &self.0.certificate
    }

    fn draft(
        &self,
        common_name: &str,
        key: &PKeyRef<Private>,
        validity: Validity,
    ) -> Result<X509Builder, ErrorStack> {
        draft(
            &*name(common_name)?,
            self.certificate().subject_name(),
            key,
            validity,
        )
    }

    fn finish(&self, mut builder: X509Builder, key: PKey<Private>) -> Result<Identity, ErrorStack> {
        append_key_ids(&mut builder, Some(self.certificate()))?;
        builder.sign(&self.0.key, MessageDigest::sha256())?;
        let above = [self.certificate()].into_iter().chain(&self.0.chain);
        Ok(Identity {
            key,
            certificate: builder.build(),
            chain: above.cloned().collect(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.0).finish()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("subject", &self.certificate.subject_name())
            .finish_non_exhaustive()
    }
}

/// A new P-256 key.
pub fn p256_key() -> Result<PKey<Private>, ErrorStack> {
    ec_key(Nid::X9_62_PRIME256V1)
}

/// A new RSA key.
pub fn rsa_key(bits: u32) -> Result<PKey<Private>, ErrorStack> {
    PKey::from_rsa(Rsa::generate(bits)?)
}

pub(crate) fn ec_key(curve: Nid) -> Result<PKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(curve)?;
    PKey::from_ec_key(EcKey::generate(&group)?)
}

/// `O=EnclaveID Simulator, CN=common_name`.
pub(crate) fn name(common_name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_nid(Nid::ORGANIZATIONNAME, ORGANISATION)?;
    builder.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    Ok(builder.build())
}

fn draft(
    subject: &X509NameRef,
    issuer: &X509NameRef,
    key: &PKeyRef<Private>,
    validity: Validity,
) -> Result<X509Builder, ErrorStack> {
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*random_serial()?)?;
    builder.set_subject_name(subject)?;
    builder.set_issuer_name(issuer)?;
    builder.set_pubkey(key)?;
    validity.apply(&mut builder)?;
    Ok(builder)
}

/// 127 random bits: RFC 5280 section 4.1.2.2 wants at most 20 octets and a positive number.
fn random_serial() -> Result<Asn1Integer, ErrorStack> {
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    serial.to_asn1_integer()
}

fn append_authority(builder: &mut X509Builder) -> Result<(), ErrorStack> {
    builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    builder.append_extension(
        KeyUsage::new()
            .critical()
            .key_cert_sign()
            .crl_sign()
            .build()?,
    )
}

fn append_key_ids(builder: &mut X509Builder, issuer: Option<&X509>) -> Result<(), ErrorStack> {
    let own: X509Extension =
        SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    builder.append_extension(own)?;
    let Some(issuer) = issuer else { return Ok(()) };
    let context = builder.x509v3_context(Some(issuer), None);
    let issuers = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
    builder.append_extension(issuers)
}
