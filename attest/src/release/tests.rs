use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::testing::{self, NOW, Sign, Spec};

const HOST: &str = "hsm.vault.example";
const KID: &str = "https://hsm.vault.example/keys/master/0123";
const NONCE: &str = "bm9uY2U";

/// Everything in an answer, before it is encoded.
struct Case {
    leaf: Spec,
    intermediate: Spec,
    root: Spec,
    header: Value,
    payload: Value,
    key_hsm: Value,
    sign: Sign,
    signer: usize,
    now: i64,
}

fn spec(subject: &'static str, issuer: &'static str, keys: [usize; 2]) -> Spec {
    Spec {
        subject,
        issuer,
        validity: testing::VALIDITY,
        spki: testing::rsa_spki(keys[0]),
        extensions: vec![testing::basic_constraints(true)],
        signer: keys[1],
        sign: Sign::Pkcs1Sha384,
        stated: None,
    }
}

impl Case {
    fn good() -> Self {
        let mut leaf = spec("vault", "issuing", [2, 1]);
        leaf.extensions = vec![
            testing::basic_constraints(false),
            testing::alt_names(&["*.other.example", HOST]),
        ];
        Self {
            leaf,
            intermediate: spec("issuing", "root", [1, 0]),
            root: spec("root", "root", [0, 0]),
            header: json!({"alg": "RS256", "typ": "JWT"}),
            payload: json!({
                "request": {
                    "api-version": "7.4",
                    "enc": "RSA_AES_KEY_WRAP_384",
                    "kid": KID,
                    "nonce": NONCE,
                },
                "response": {"key": {
                    "key": {"kid": KID, "kty": "oct-HSM", "key_ops": ["wrapKey"]},
                    "attributes": {"exportable": true, "recoveryLevel": "Recoverable"},
                    "release_policy": {"data": URL_SAFE_NO_PAD.encode("{}"), "immutable": true},
                }},
            }),
            key_hsm: json!({
                "schema_version": "1.0",
                "header": {"kid": "x", "alg": "dir", "enc": "RSA_AES_KEY_WRAP_384"},
                "ciphertext": URL_SAFE_NO_PAD.encode([0xC7; 300]),
            }),
            sign: Sign::Pkcs1Sha256,
            signer: 2,
            now: NOW,
        }
    }

    fn jws(&self) -> String {
        let mut header = self.header.clone();
        let leaf = self.leaf.der();
        if header.get("x5t#S256").is_none() {
            header["x5t#S256"] = json!(URL_SAFE_NO_PAD.encode(Sha256::digest(&leaf)));
        }
        if header.get("x5c").is_none() {
            let chain = [leaf, self.intermediate.der(), self.root.der()];
            header["x5c"] = json!(chain.map(|der| STANDARD.encode(der)));
        }
        let mut payload = self.payload.clone();
        if let Some(key) = payload.pointer_mut("/response/key/key") {
            key["key_hsm"] = json!(URL_SAFE_NO_PAD.encode(self.key_hsm.to_string()));
        }
        testing::jws(&header, &payload, self.sign, self.signer)
    }

    fn verify(&self) -> Result<ReleasedKey, ReleaseError> {
        verify_text(&self.jws(), &self.root, self.now)
    }
}

fn verify_text(jws: &str, root: &Spec, now: i64) -> Result<ReleasedKey, ReleaseError> {
    let roots = JwsRoots::parse_pem(testing::pem(&root.der()).as_bytes()).unwrap();
    let wanted = ReleaseExpectations {
        host: HOST,
        kid: KID,
        enc: WrapAlgorithm::RsaAesKeyWrap384,
        nonce: NONCE,
        now: UnixSeconds(now),
    };
    verify_release(jws, &roots, &wanted)
}

#[track_caller]
fn check(change: impl FnOnce(&mut Case), want: ReleaseError) {
    let mut case = Case::good();
    change(&mut case);
    assert_eq!(case.verify().map(|_| ()), Err(want));
}

#[track_caller]
fn check_payload(pointer: &str, value: Value, want: ReleaseError) {
    check(
        |case| *case.payload.pointer_mut(pointer).unwrap() = value,
        want,
    );
}

#[test]
fn an_answer_to_our_request_is_believed() {
    let key = Case::good().verify().unwrap();
    assert_eq!((key.kid.as_str(), key.kty.as_str()), (KID, "oct-HSM"));
    assert_eq!(key.ciphertext, [0xC7; 300]);
    assert_eq!(key.enc, WrapAlgorithm::RsaAesKeyWrap384);
    assert_eq!(key.release_policy, b"{}");
    assert!(key.exportable);
    assert_eq!(key.recovery_level, "Recoverable");
}

#[test]
fn other_good_forms_are_believed() {
    let good: [fn(&mut Case); 7] = [
        |case| {
            case.header["alg"] = json!("PS256");
            case.sign = Sign::PssSha256;
        },
        |case| case.intermediate.sign = Sign::Pkcs1Sha256,
        |case| case.leaf.extensions = vec![testing::alt_names(&["*.vault.example"])],
        |case| case.intermediate.extensions = vec![testing::path_len(0)],
        |case| case.root.extensions = vec![testing::path_len(1)],
        |case| {
            case.leaf
                .extensions
                .push(testing::key_usage_digital_signature());
        },
        // Services repeat the id of the request with or without its version.
        |case| case.payload["request"]["kid"] = json!("https://hsm.vault.example/keys/master"),
    ];
    for (index, change) in good.into_iter().enumerate() {
        let mut case = Case::good();
        change(&mut case);
        assert!(case.verify().is_ok(), "{index}: {:?}", case.verify());
    }
}

#[test]
fn the_answer_must_be_to_our_request() {
    use ReleaseError::*;
    check_payload("/request/nonce", json!("other"), Nonce);
    check_payload("/request/enc", json!("RSA_AES_KEY_WRAP_256"), Enc);
    check_payload(
        "/request/enc",
        json!("CKM_RSA_AES_KEY_WRAP"),
        WrapUnsupported,
    );
    check_payload(
        "/request/kid",
        json!("https://hsm.vault.example/keys/other"),
        KeyId,
    );
    check_payload(
        "/request/kid",
        json!("https://hsm.vault.example/keys/master/9999"),
        KeyId,
    );
    for member in ["nonce", "enc", "kid"] {
        check_payload(&format!("/request/{member}"), json!(1), Malformed);
    }
}

#[test]
fn the_answer_must_hold_our_version_of_our_key() {
    use ReleaseError::*;
    const RELEASED: &str = "/response/key/key/kid";
    check_payload(
        RELEASED,
        json!("https://hsm.vault.example/keys/master/9999"),
        KeyVersion,
    );
    check_payload(
        RELEASED,
        json!("https://hsm.vault.example/keys/master"),
        KeyId,
    );
    check_payload(
        RELEASED,
        json!("https://hsm.vault.example/keys/other/0123"),
        KeyId,
    );
    check_payload(
        RELEASED,
        json!("https://other.vault.example/keys/master/0123"),
        KeyId,
    );
    check_payload(RELEASED, json!(null), Malformed);
}

#[test]
fn the_release_policy_must_be_immutable() {
    use ReleaseError::*;
    const IMMUTABLE: &str = "/response/key/release_policy/immutable";
    check_payload(IMMUTABLE, json!(false), PolicyMutable);
    check_payload(IMMUTABLE, json!("true"), Malformed);
    check_payload(IMMUTABLE, json!(null), Malformed);
    check_payload("/response/key/release_policy/data", json!("!"), Malformed);
    check_payload(
        "/response/key/attributes/exportable",
        json!("true"),
        Malformed,
    );
    check_payload(
        "/response/key/attributes/recoveryLevel",
        json!(1),
        Malformed,
    );
}

#[test]
fn the_wrapped_key_says_how_it_is_wrapped() {
    use ReleaseError::*;
    let header = |name: &'static str, value: &'static str| {
        move |case: &mut Case| case.key_hsm["header"][name] = json!(value)
    };
    check(header("enc", "RSA_AES_KEY_WRAP_256"), Enc);
    check(header("enc", "CKM_RSA_AES_KEY_WRAP"), WrapUnsupported);
    check(header("alg", "RSA-OAEP"), Malformed);
    check(|case| case.key_hsm["ciphertext"] = json!("?"), Malformed);
    check(|case| case.key_hsm = json!([]), Malformed);
}

#[test]
fn the_signature_must_hold() {
    use ReleaseError::*;
    check(|case| case.signer = 1, Signature);
    check(|case| case.sign = Sign::PssSha256, Signature);
    check(|case| case.header["alg"] = json!("none"), Algorithm);
    check(|case| case.header["alg"] = json!("RS512"), Algorithm);
    check(|case| case.header["crit"] = json!(["x"]), Malformed);
    check(
        |case| case.header["x5t#S256"] = json!(URL_SAFE_NO_PAD.encode([0; 32])),
        Thumbprint,
    );
    check(|case| case.header["x5t#S256"] = json!(1), Malformed);
    check(|case| case.leaf.spki = testing::chip_spki(), Signature);
}

#[test]
fn the_chain_must_lead_to_a_configured_root() {
    use ReleaseError::*;
    check(|case| case.leaf.signer = 0, Chain);
    check(|case| case.intermediate.signer = 2, Chain);
    check(|case| case.leaf.issuer = "other", Chain);
    check(
        |case| case.intermediate.extensions = vec![testing::basic_constraints(false)],
        Chain,
    );
    check(|case| case.intermediate.extensions = vec![], Chain);
    check(
        |case| case.root.extensions = vec![testing::path_len(0)],
        Chain,
    );
    check(
        |case| case.leaf.extensions.push(testing::key_usage_cert_sign()),
        Chain,
    );
    let no_issuer = testing::key_usage_digital_signature();
    check(|case| case.intermediate.extensions.push(no_issuer), Chain);
    let unknown = testing::critical_extension("1.2.3.4", &[5, 0]);
    check(|case| case.leaf.extensions.push(unknown), Chain);

    let good = Case::good();
    let mut other_root = good.root.clone();
    other_root.spki = testing::rsa_spki(2);
    other_root.signer = 2;
    let refused = verify_text(&good.jws(), &other_root, NOW);
    assert_eq!(refused.map(|_| ()), Err(Chain));
}

#[test]
fn the_header_carries_the_whole_chain_in_order() {
    use ReleaseError::*;
    let good = Case::good();
    let [leaf, intermediate, root] =
        [&good.leaf, &good.intermediate, &good.root].map(|spec| json!(STANDARD.encode(spec.der())));
    let x5c = |chain: Value| move |case: &mut Case| case.header["x5c"] = chain;
    check(x5c(json!([leaf])), Chain);
    check(x5c(json!([leaf, root])), Chain);
    check(x5c(json!([intermediate, leaf, root])), Thumbprint);
    check(x5c(json!([])), Malformed);
    check(x5c(json!("x")), Malformed);
    check(x5c(json!([1])), Malformed);
    check(x5c(json!(["AAAA"])), Malformed);
    check(x5c(json!(vec![leaf.clone(); CHAIN_LEN_MAX + 1])), Malformed);
    let mut without_root = Case::good();
    without_root.header["x5c"] = json!([leaf, intermediate]);
    assert!(without_root.verify().is_ok());
}

#[test]
fn every_certificate_must_be_valid_now() {
    use ReleaseError::*;
    let past = ["200101000000Z", "260101000000Z"];
    let future = ["400101000000Z", "450101000000Z"];
    check(|case| case.leaf.validity = past, Expired);
    check(|case| case.intermediate.validity = past, Expired);
    check(|case| case.root.validity = past, Expired);
    check(|case| case.leaf.validity = future, NotYetValid);
    check(|case| case.now = -1, NotYetValid);
}

#[test]
fn the_certificate_must_be_the_hosts() {
    let names = |names: &'static [&'static str]| {
        move |case: &mut Case| case.leaf.extensions = vec![testing::alt_names(names)]
    };
    check(names(&["other.vault.example"]), ReleaseError::Host);
    check(
        names(&["*.hsm.vault.example", "*.example"]),
        ReleaseError::Host,
    );
    check(|case| case.leaf.extensions = vec![], ReleaseError::Host);
}

#[test]
fn wrap_algorithms_have_their_wire_names_and_sha_1_has_none() {
    for algorithm in [
        WrapAlgorithm::RsaAesKeyWrap256,
        WrapAlgorithm::RsaAesKeyWrap384,
    ] {
        assert_eq!(WrapAlgorithm::from_name(algorithm.as_str()), Ok(algorithm));
    }
    for name in ["CKM_RSA_AES_KEY_WRAP", "rsa_aes_key_wrap_256", ""] {
        assert_eq!(
            WrapAlgorithm::from_name(name),
            Err(ReleaseError::WrapUnsupported),
            "{name}"
        );
    }
}

#[test]
fn roots_are_pem() {
    for bad in [b"".as_slice(), b"x", &Case::good().root.der()] {
        assert_eq!(
            JwsRoots::parse_pem(bad).map(|_| ()),
            Err(ReleaseError::Roots)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parsing_never_panics(text in "\\PC{0,300}") {
        prop_assert!(verify_text(&text, &Case::good().root, NOW).is_err());
    }

    #[test]
    fn a_damaged_answer_is_refused(index: prop::sample::Index, byte in b'!'..=b'~') {
        let mut text = Case::good().jws().into_bytes();
        let index = index.index(text.len());
        prop_assume!(text[index] != byte);
        text[index] = byte;
        let text = String::from_utf8(text).unwrap();
        prop_assert!(verify_text(&text, &Case::good().root, NOW).is_err());
    }
}
