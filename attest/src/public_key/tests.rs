use rsa::pkcs8::EncodePublicKey;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::*;
use crate::testing::{self, Sign};

const MGF1: &str = "1.2.840.113549.1.1.8";
const SHA_1: &str = "1.3.14.3.2.26";
const SHA_256: &str = "2.16.840.1.101.3.4.2.1";
const SHA_384: &str = "2.16.840.1.101.3.4.2.2";

#[track_caller]
fn check_pss(hash: &str, mask: &str, mask_hash: &str, salt: u8, want: Option<Hash>) {
    let der = testing::pss_identifier_of(hash, mask, mask_hash, salt);
    let identifier = AlgorithmIdentifierOwned::from_der(&der).unwrap();
    let want = want.map(SignatureAlgorithm::RsaPss);
    assert_eq!(SignatureAlgorithm::from_x509(&identifier), want);
}

#[test]
fn pss_uses_one_hash_everywhere_and_a_salt_of_its_length() {
    check_pss(SHA_384, MGF1, SHA_384, 48, Some(Hash::Sha384));
    check_pss(SHA_256, MGF1, SHA_256, 32, Some(Hash::Sha256));
    check_pss(SHA_384, MGF1, SHA_256, 48, None);
    check_pss(SHA_256, MGF1, SHA_384, 32, None);
    check_pss(SHA_384, MGF1, SHA_384, 47, None);
    check_pss(SHA_384, "1.2.3.4", SHA_384, 48, None);
    check_pss(SHA_1, MGF1, SHA_1, 20, None);
}

#[test]
fn rsa_keys_have_2048_to_4096_bits() {
    for (bytes, accepted) in [
        (128, false),
        (255, false),
        (256, true),
        (512, true),
        (513, false),
    ] {
        // No product of primes, but nobody looks for that.
        let modulus = vec![0xFF; bytes];
        let key = PublicKey::from_rsa_parts(&modulus, &[1, 0, 1]);
        assert_eq!(key.is_some(), accepted, "{bytes}");
        let modulus = BoxedUint::from_be_slice_vartime(&modulus);
        let key = rsa::PublicKey::new(modulus, BoxedUint::from(65_537_u64)).unwrap();
        let key = PublicKey::from_spki(key.to_public_key_der().unwrap().as_bytes());
        assert_eq!(key.is_some(), accepted, "{bytes}");
    }
}

#[test]
fn a_key_verifies_its_own_kind_of_signature() {
    let key = PublicKey::from_spki(&testing::rsa_spki(0)).unwrap();
    let signature = Sign::Pkcs1Sha384.sign(&testing::rsa_key(0), b"message");
    let verify = |algorithm, message: &[u8]| key.verify(algorithm, message, &signature);
    assert_eq!(
        verify(SignatureAlgorithm::RsaPkcs1(Hash::Sha384), b"message"),
        Ok(())
    );
    for (algorithm, message) in [
        (SignatureAlgorithm::RsaPkcs1(Hash::Sha384), b"Message"),
        (SignatureAlgorithm::RsaPkcs1(Hash::Sha256), b"message"),
        (SignatureAlgorithm::RsaPss(Hash::Sha384), b"message"),
        (SignatureAlgorithm::EcdsaP384(Hash::Sha384), b"message"),
    ] {
        assert_eq!(
            verify(algorithm, message),
            Err(SignatureInvalid),
            "{algorithm:?}"
        );
    }
}

/// Some public roots sign with ECDSA; the key of the simulated chip serves as one.
#[test]
fn ecdsa_on_p384_takes_both_hashes() {
    use p384::ecdsa::signature::hazmat::PrehashSigner;
    let key = PublicKey::from_spki(&testing::chip_spki()).unwrap();
    for hash in [Hash::Sha256, Hash::Sha384] {
        let signed = testing::chip_key().sign_prehash(&hash.digest(b"message"));
        let signature: p384::ecdsa::Signature = signed.unwrap();
        let der = signature.to_der();
        let algorithm = SignatureAlgorithm::EcdsaP384(hash);
        assert_eq!(key.verify(algorithm, b"message", der.as_bytes()), Ok(()));
        assert_eq!(
            key.verify(algorithm, b"other", der.as_bytes()),
            Err(SignatureInvalid)
        );
        let raw = signature.to_bytes();
        assert_eq!(
            key.verify(algorithm, b"message", &raw),
            Err(SignatureInvalid)
        );
    }
}
