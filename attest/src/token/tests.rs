use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use rsa::traits::PublicKeyParts;
use serde_json::json;

use super::*;
use crate::report::layout;
use crate::testing::{self, NOW, Sign};

const ISSUER: &str = "https://maa.example";
const RUNTIME_DATA: &[u8] = br#"{"keys":[]}"#;
/// Standard base64, as real ids are.
const KID: &str = "rFl9xM+g7TvX63y0/seZ=";

fn report() -> Report {
    let mut raw = testing::report();
    *layout::REPORT_DATA.of_mut(&mut raw) = *ReportData::for_runtime_data(RUNTIME_DATA).as_bytes();
    Report::parse(&raw).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "nbf": NOW - 10,
        "exp": NOW + 100,
        "x-ms-attestation-type": "sevsnpvm",
        "x-ms-policy-hash": URL_SAFE_NO_PAD.encode([0x70; 32]),
        "x-ms-sevsnpvm-is-debuggable": false,
        "x-ms-sevsnpvm-vmpl": 0,
        "x-ms-sevsnpvm-hostdata": hex(&[0x40; 32]),
        "x-ms-sevsnpvm-launchmeasurement": hex(&[0x3E; 48]),
        "x-ms-sevsnpvm-reportid": hex(&[0x1D; 32]),
        "x-ms-sevsnpvm-chipid": hex(&testing::CHIP_ID),
        "x-ms-sevsnpvm-reportdata": hex(report().report_data().as_bytes()),
    })
}

fn jwk(key: usize, kid: &str) -> Value {
    let key = testing::rsa_key(key);
    let encode =
        |number: &rsa::BoxedUint| URL_SAFE_NO_PAD.encode(number.to_be_bytes_trimmed_vartime());
    let (n, e) = (encode(key.n()), encode(key.e()));
    json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e})
}

fn jwks(keys: &[Value]) -> Jwks {
    Jwks::parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

fn header() -> Value {
    json!({"alg": "RS256", "jku": "https://evil.example/certs", "kid": KID, "typ": "JWT"})
}

fn sign(header: &Value, claims: &Value) -> AttestationToken {
    AttestationToken::new(testing::jws(header, claims, Sign::Pkcs1Sha256, 0))
}

fn verify(token: &AttestationToken, now: i64) -> Result<AttestationResult, TokenError> {
    verify_about(&report(), token, now)
}

fn verify_about(
    report: &Report,
    token: &AttestationToken,
    now: i64,
) -> Result<AttestationResult, TokenError> {
    let jwks = jwks(&[jwk(1, "other"), jwk(0, KID)]);
    let wanted = TokenExpectations {
        issuer: ISSUER,
        policy_hash: PolicyHash::Pinned([0x70; 32]),
        report,
        runtime_data: RUNTIME_DATA,
        now: UnixSeconds(now),
        skew: 60,
    };
    verify_token(token, &jwks, &wanted)
}

/// Signs the claims with one of them changed.
#[track_caller]
fn check(claim: &str, value: Value, want: TokenError) {
    let mut claims = claims();
    claims[claim] = value;
    assert_eq!(
        verify(&sign(&header(), &claims), NOW).map(|_| ()),
        Err(want),
        "{claim}"
    );
}

#[test]
fn a_token_about_our_own_report_is_believed() {
    let result = verify(&sign(&header(), &claims()), NOW).unwrap();
    assert_eq!(result.claims(), &claims());
    assert_eq!(result.expires(), UnixSeconds(NOW + 100));
    assert_eq!(result.policy_hash(), [0x70; 32]);
}

#[test]
fn a_claim_with_another_value_has_its_own_error() {
    use TokenError::*;
    check("iss", json!("https://maa.example/"), Issuer);
    check(
        "x-ms-policy-hash",
        json!(URL_SAFE_NO_PAD.encode([0x71; 32])),
        PolicyHash,
    );
    check("x-ms-attestation-type", json!("azurevm"), Type);
    check("x-ms-sevsnpvm-is-debuggable", json!(true), Debuggable);
    check("x-ms-sevsnpvm-vmpl", json!(1), Vmpl);
    check(
        "x-ms-sevsnpvm-reportdata",
        json!(hex(&[0; 64])),
        RuntimeData,
    );
    for (name, len) in [
        ("x-ms-sevsnpvm-hostdata", 32),
        ("x-ms-sevsnpvm-launchmeasurement", 48),
        ("x-ms-sevsnpvm-reportid", 32),
        ("x-ms-sevsnpvm-chipid", 64),
    ] {
        check(name, json!(hex(&vec![0; len])), Foreign(name));
    }
}

#[test]
fn a_token_about_another_report_over_the_same_runtime_data_is_refused() {
    let other = Report::parse(&testing::report()).unwrap();
    let refused = verify_about(&other, &sign(&header(), &claims()), NOW).map(|_| ());
    assert_eq!(
        refused,
        Err(TokenError::Foreign("x-ms-sevsnpvm-reportdata"))
    );
}

#[test]
fn a_claim_that_is_missing_or_of_another_type_is_malformed() {
    for name in claims().as_object().unwrap().keys() {
        check(name, json!({}), TokenError::Malformed);
        // Older versions of the service do not state the chip.
        let mut without = claims();
        without.as_object_mut().unwrap().remove(name);
        let want = if name.ends_with("chipid") {
            Ok(())
        } else {
            Err(TokenError::Malformed)
        };
        assert_eq!(
            verify(&sign(&header(), &without), NOW).map(|_| ()),
            want,
            "{name}"
        );
    }
    check(
        "x-ms-sevsnpvm-is-debuggable",
        json!("false"),
        TokenError::Malformed,
    );
    check("x-ms-sevsnpvm-vmpl", json!("0"), TokenError::Malformed);
    check("exp", json!(1e300), TokenError::Malformed);
}

#[test]
fn a_padded_policy_hash_is_the_same_policy_hash() {
    let mut padded = claims();
    padded["x-ms-policy-hash"] = json!(URL_SAFE.encode([0x70; 32]));
    assert!(verify(&sign(&header(), &padded), NOW).is_ok());
}

#[test]
fn a_token_has_its_time_give_or_take_the_skew() {
    let token = sign(&header(), &claims());
    let at = |now| verify(&token, now).map(|_| ());
    assert_eq!(at(NOW - 71), Err(TokenError::NotYetValid));
    assert_eq!(at(NOW - 70), Ok(()));
    assert_eq!(at(NOW + 159), Ok(()));
    assert_eq!(at(NOW + 160), Err(TokenError::Expired));
    let mut endless = claims();
    endless["exp"] = json!(i64::MAX);
    endless["nbf"] = json!(i64::MIN);
    assert_eq!(verify(&sign(&header(), &endless), NOW).map(|_| ()), Ok(()));
}

#[test]
fn only_keys_of_the_configured_service_count() {
    let kid = |kid: Value| sign(&json!({"alg": "RS256", "kid": kid}), &claims());
    let at = |token: &AttestationToken| verify(token, NOW).map(|_| ());
    // The same bytes in the other alphabet are another name.
    let url_safe = KID.replace('+', "-").replace('/', "_");
    for unknown in [json!("unknown"), json!(url_safe), json!(1)] {
        assert_eq!(at(&kid(unknown)), Err(TokenError::UnknownKey));
    }
    assert_eq!(
        at(&sign(&json!({"alg": "RS256"}), &claims())),
        Err(TokenError::UnknownKey)
    );
    assert_eq!(at(&kid(json!("other"))), Err(TokenError::Signature));
}

#[test]
fn a_token_that_is_not_signed_with_rs256_is_refused() {
    let at = |header: &Value, how| {
        let token = AttestationToken::new(testing::jws(header, &claims(), how, 0));
        verify(&token, NOW).map(|_| ())
    };
    let pss = json!({"alg": "PS256", "kid": KID});
    assert_eq!(at(&pss, Sign::PssSha256), Err(TokenError::Algorithm));
    let none = json!({"alg": "none"});
    let unsigned = testing::jws(&none, &claims(), Sign::Pkcs1Sha256, 0);
    let (input, _) = unsigned.rsplit_once('.').unwrap();
    let unsigned = AttestationToken::new(format!("{input}."));
    assert_eq!(
        verify(&unsigned, NOW).map(|_| ()),
        Err(TokenError::Algorithm)
    );
}

#[test]
fn a_flipped_character_breaks_a_token() {
    let token = sign(&header(), &claims());
    for index in (0..token.as_str().len()).step_by(97) {
        let mut text = token.as_str().to_owned().into_bytes();
        text[index] = if text[index] == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(text).unwrap();
        assert!(
            verify(&AttestationToken::new(text), NOW).is_err(),
            "{index}"
        );
    }
}

#[test]
fn a_key_set_takes_its_rsa_signing_keys() {
    let of = |key: Value| Jwks::parse(json!({"keys": [key]}).to_string().as_bytes()).map(|_| ());
    let change = |name: &str, value: Value| {
        let mut key = jwk(0, KID);
        key[name] = value;
        key
    };
    assert_eq!(of(jwk(0, KID)), Ok(()));
    for (name, value) in [
        ("kty", json!("EC")),
        ("use", json!("enc")),
        ("alg", json!("RS1")),
        ("kid", json!(null)),
        ("n", json!("AQAB")),
        ("n", json!("A".repeat(700))),
        ("n", json!(3)),
        ("e", json!("")),
        ("e", json!("Ag")),
        ("e", json!("AQ")),
        ("e", json!("_____________")),
    ] {
        assert_eq!(
            of(change(name, value.clone())),
            Err(TokenError::Jwks),
            "{name} {value}"
        );
    }
    let mut bare = jwk(0, KID);
    for optional in ["use", "alg"] {
        bare.as_object_mut().unwrap().remove(optional);
    }
    assert_eq!(of(bare), Ok(()));
    for bad in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[]}"#] {
        assert_eq!(
            Jwks::parse(bad.as_bytes()).map(|_| ()),
            Err(TokenError::Jwks),
            "{bad}"
        );
    }
    let many = json!({"keys": vec![jwk(0, KID); JWKS_KEYS_MAX + 1]}).to_string();
    assert_eq!(
        Jwks::parse(many.as_bytes()).map(|_| ()),
        Err(TokenError::Jwks)
    );
}

#[test]
fn a_token_is_not_shown() {
    assert_eq!(
        format!("{:?}", AttestationToken::new("secret".into())),
        "AttestationToken(6 bytes)"
    );
}

proptest! {
    #[test]
    fn parsing_never_panics(
        text in "\\PC{0,200}",
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = verify(&AttestationToken::new(text), NOW);
        let _ = Jwks::parse(&bytes);
    }
}
