use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::{self, Sign};

fn key() -> PublicKey {
    PublicKey::from_spki(&testing::rsa_spki(0)).unwrap()
}

fn payload() -> Value {
    json!({"a": 1})
}

#[track_caller]
fn check(text: &str, accepted: &[Algorithm], want: Result<(), JwsError>) {
    let verified = CompactJws::parse(text, 4096)
        .and_then(|jws| jws.verify(&key(), accepted).map(<[u8]>::to_vec));
    assert_eq!(
        verified.map(|payload| assert_eq!(payload, br#"{"a":1}"#)),
        want,
        "{text}"
    );
}

#[test]
fn a_signature_holds_under_its_own_algorithm_alone() {
    let rs256 = testing::jws(&json!({"alg": "RS256"}), &payload(), Sign::Pkcs1Sha256, 0);
    let ps256 = testing::jws(&json!({"alg": "PS256"}), &payload(), Sign::PssSha256, 0);
    let both = [Algorithm::Rs256, Algorithm::Ps256];
    check(&rs256, &both, Ok(()));
    check(&ps256, &both, Ok(()));
    check(&ps256, &[Algorithm::Rs256], Err(JwsError::Algorithm));
    let confused = testing::jws(&json!({"alg": "PS256"}), &payload(), Sign::Pkcs1Sha256, 0);
    check(&confused, &both, Err(JwsError::Signature));
    let foreign = testing::jws(&json!({"alg": "RS256"}), &payload(), Sign::Pkcs1Sha256, 1);
    check(&foreign, &both, Err(JwsError::Signature));
}

#[test]
fn algorithms_that_are_not_accepted_are_refused() {
    for alg in [
        json!("none"),
        json!("HS256"),
        json!("rs256"),
        json!("RS384"),
        json!(1),
        json!(null),
    ] {
        let jws = testing::jws(&json!({"alg": alg}), &payload(), Sign::Pkcs1Sha256, 0);
        check(&jws, &[Algorithm::Rs256], Err(JwsError::Algorithm));
    }
    let absent = testing::jws(&json!({"typ": "JWT"}), &payload(), Sign::Pkcs1Sha256, 0);
    check(&absent, &[Algorithm::Rs256], Err(JwsError::Algorithm));
}

#[test]
fn a_jws_has_three_parts_of_strict_base64url() {
    let good = testing::jws(&json!({"alg": "RS256"}), &payload(), Sign::Pkcs1Sha256, 0);
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for bad in [
        String::new(),
        "..".to_owned(),
        header.to_owned(),
        format!("{header}.{body}"),
        format!("{good}.{signature}"),
        format!("{header}.{body}.{signature}="),
        format!("{header}.{body}.{signature}\n"),
        format!(" {good}"),
        format!("{}.{body}.{signature}", encode("[]")),
        format!("{}.{body}.{signature}", encode("{\"alg\":\"RS256\"")),
        format!(
            "{}.{body}.{signature}",
            encode(r#"{"alg":"RS256","crit":[]}"#)
        ),
        format!("{}.{body}.{signature}", encode(&"[".repeat(200))),
    ] {
        check(&bad, &[Algorithm::Rs256], Err(JwsError::Malformed));
    }
    check(
        &format!("{header}.{body}."),
        &[Algorithm::Rs256],
        Err(JwsError::Signature),
    );
    check(
        &format!("{header}..{signature}"),
        &[Algorithm::Rs256],
        Err(JwsError::Signature),
    );
    assert_eq!(
        CompactJws::parse(&good, good.len() - 1).map(|_| ()),
        Err(JwsError::Malformed)
    );
}

proptest! {
    #[test]
    fn parsing_never_panics(text in ".{0,300}") {
        let _ = CompactJws::parse(&text, 4096);
    }
}
