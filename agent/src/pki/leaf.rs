//! Core: the pod's own certificate, an X509-SVID.

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509, X509NameBuilder};
use runtime::clock::UnixTime;
use std::time::Duration;
use zeroize::Zeroizing;

use super::SpiffeId;
use super::ca::{CaError, VerifiedCa, random_serial};

/// How far a peer's clock may be behind ours: guests' clocks come from their hosts.
const NOT_BEFORE_SKEW: Duration = Duration::from_secs(300);

/// A leaf certificate with its key.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate, PEM.
    pub certificate_pem: Vec<u8>,
    /// Its private key, PKCS#8 PEM.
    pub private_key_pem: Zeroizing<Vec<u8>>,
    /// SHA-256 input of bindings: DER of the certificate's SubjectPublicKeyInfo.
    pub spki_der: Vec<u8>,
    /// Serial number, lower-case hexadecimal.
    pub serial_hex: String,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
}

/// Issues a leaf for `id`: a fresh P-256 key, one URI SAN, critical digitalSignature, client and
/// server authentication, no CA bit (X509-SVID sections 2 to 4). It never outlives the CA.
pub fn issue(
    ca: &VerifiedCa,
    id: &SpiffeId,
    now: UnixTime,
    lifetime: Duration,
) -> Result<Leaf, CaError> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    if now > ca.not_after() {
        return Err(CaError::Expired);
    }
    let not_before = now.minus(NOT_BEFORE_SKEW);
    let not_after = now.plus(lifetime).min(ca.not_after());
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    let serial = random_serial()?;
    builder.set_serial_number(&serial)?;
    // An empty subject makes the SAN critical (RFC 5280 4.2.1.6), which not every peer's TLS
    // library likes: the name here means nothing.
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_text("O", "EnclaveID")?;
    builder.set_subject_name(&name.build())?;
    builder.set_issuer_name(ca.certificate().subject_name())?;
    builder.set_pubkey(&key)?;
    builder.set_not_before(Asn1Time::from_unix(not_before.0)?.as_ref())?;
    builder.set_not_after(Asn1Time::from_unix(not_after.0)?.as_ref())?;
    builder.append_extension(BasicConstraints::new().critical().build()?)?;
    builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
    builder.append_extension(
        ExtendedKeyUsage::new()
            .server_auth()
            .client_auth()
            .build()?,
    )?;
    let context = builder.x509v3_context(Some(ca.certificate()), None);
    let san = SubjectAlternativeName::new()
        .uri(id.as_str())
        .build(&context)?;
    let issuer_key = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
    builder.append_extension(san)?;
    builder.append_extension(issuer_key)?;
    builder.sign(ca.key(), MessageDigest::sha256())?;
    Ok(Leaf {
        certificate_pem: builder.build().to_pem()?,
        private_key_pem: Zeroizing::new(key.private_key_to_pem_pkcs8()?),
        spki_der: key.public_key_to_der()?,
        serial_hex: serial.to_bn()?.to_hex_str()?.to_ascii_lowercase(),
        not_before,
        not_after,
    })
}

#[cfg(test)]
mod tests {
    use keys::{CaGeneration, MasterSecret};
    use openssl::stack::Stack;
    use openssl::x509::X509StoreContext;
    use openssl::x509::store::X509StoreBuilder;
    use openssl::x509::verify::X509VerifyParam;

    use super::*;
    use crate::pki::MeshCa;

    #[test]
    fn a_leaf_has_the_profile_of_an_svid_and_verifies_to_its_ca() {
        let now = UnixTime(1_800_000_000);
        let secret = MasterSecret::from_release(&mut [9; 32])
            .unwrap()
            .derive_intermediate();
        let ca = || MeshCa::from_seed(&secret.derive_ca(CaGeneration(0))).unwrap();
        let pem = ca().issue("demo", now).unwrap().to_pem().unwrap();
        let ca = ca().verify(&pem, now).unwrap();
        let id = SpiffeId::parse("spiffe://demo/pod-a").unwrap();
        let leaf = issue(&ca, &id, now, Duration::from_secs(3_600)).unwrap();
        let certificate = X509::from_pem(&leaf.certificate_pem).unwrap();

        let mut store = X509StoreBuilder::new().unwrap();
        store.add_cert(ca.certificate().clone()).unwrap();
        let mut param = X509VerifyParam::new().unwrap();
        param.set_time(now.0);
        store.set_param(&param).unwrap();
        let mut context = X509StoreContext::new().unwrap();
        let chain = Stack::new().unwrap();
        let verify = |c: &mut openssl::x509::X509StoreContextRef| c.verify_cert();
        assert!(
            context
                .init(&store.build(), &certificate, &chain, verify)
                .unwrap()
        );

        let names = certificate.subject_alt_names().unwrap();
        let uris: Vec<_> = names.iter().map(|name| name.uri()).collect();
        assert_eq!(uris, [Some("spiffe://demo/pod-a")]);
        let text = String::from_utf8(certificate.to_text().unwrap()).unwrap();
        assert!(text.contains("X509v3 Key Usage: critical\n                Digital Signature\n"));
        assert!(text.contains("TLS Web Server Authentication, TLS Web Client Authentication"));
        assert!(text.contains("CA:FALSE"));
        assert_eq!(leaf.serial_hex.len(), 32);

        let near_the_end = ca.not_after().minus(Duration::from_secs(60));
        let leaf = issue(&ca, &id, near_the_end, Duration::from_secs(3_600)).unwrap();
        assert_eq!(leaf.not_after, ca.not_after());
        let after = ca.not_after().plus(Duration::from_secs(1));
        let refused = issue(&ca, &id, after, Duration::from_secs(3_600)).unwrap_err();
        assert_eq!(refused.code(), "ca.expired");
    }
}
