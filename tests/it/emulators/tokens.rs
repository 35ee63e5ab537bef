//! Core: the attestation service and the token service: what they issue and what they refuse.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use attest::UnixSeconds;
use attest::report::Report;
use attest::token::{AttestationToken, Jwks, PolicyHash, TokenExpectations, verify_token};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openssl::x509::X509;
use runtime::clock::Clock;
use serde_json::{Value, json};

use super::support::{HOST_DATA, MEASUREMENT, World, take_apart, token_form};
use enclaveid_tests::fixture::real_data;
use enclaveid_tests::hex;
use enclaveid_tests::snp::{ChipOptions, Product, SimulatedRoots, layout};

#[tokio::test]
async fn a_genuine_report_earns_a_token_that_the_product_believes() {
    let world = World::start().await;
    let report = world.sign(&world.report());
    let mut body = world.attest_body(&report);
    body["nonce"] = "echo me".into();
    let reply = world.post_attest(&body).await;
    let token = reply.body["token"].as_str().unwrap().to_owned();

    let certs = world
        .client
        .get(&format!("{}/certs", world.cloud.maa.url()), None)
        .await;
    let jwks = Jwks::parse(certs.unwrap().body.to_string().as_bytes()).unwrap();
    let now = world.clock.now();
    let wanted = TokenExpectations {
        issuer: world.cloud.maa.url(),
        policy_hash: PolicyHash::Pinned(world.cloud.maa.policy_hash()),
        report: &Report::parse(&report).unwrap(),
        runtime_data: &world.runtime_data,
        now: UnixSeconds(now.0),
        skew: 0,
    };
    let result = verify_token(&AttestationToken::new(token), &jwks, &wanted).unwrap();
    assert_eq!(result.expires(), UnixSeconds(now.0 + 28_800));
    let claims = result.claims();
    assert_eq!(claims["nonce"], "echo me");
    assert_eq!(claims["x-ms-runtime"]["purpose"], "test");
    assert_eq!(claims["x-ms-sevsnpvm-launchmeasurement"], hex(&MEASUREMENT));
    assert_eq!(claims["x-ms-sevsnpvm-hostdata"], hex(&HOST_DATA));
    assert_eq!(claims["x-ms-sevsnpvm-is-debuggable"], false);
    assert_eq!(claims["x-ms-sevsnpvm-smt-allowed"], true);
    assert_eq!(claims["x-ms-sevsnpvm-vmpl"], 0);
    assert_eq!(claims["x-ms-sevsnpvm-microcode-svn"], 0xd9);
    assert_eq!(claims["x-ms-sevsnpvm-chip-family"], "Milan");
}

#[tokio::test]
async fn a_token_has_the_members_of_a_real_one() {
    let Some(real) = real_data("maa/sevsnp-token.jwt") else {
        return;
    };
    let (real_header, real_claims) = take_apart(str::from_utf8(&real).unwrap().trim());
    let world = World::start().await;
    let (header, claims) = take_apart(&world.token().await);
    assert_eq!(kinds(&header), kinds(&real_header));
    assert_eq!(kinds(&claims), kinds(&real_claims));
}

/// Names of members and kinds of their values.
fn kinds(object: &Value) -> BTreeSet<String> {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let members = object.as_object().unwrap();
    members
        .iter()
        .map(|(name, value)| format!("{name}: {}", kind(value)))
        .collect()
}

#[tokio::test]
async fn the_key_set_names_keys_and_certificates_as_the_real_one_does() {
    let world = World::start().await;
    let maa = world.cloud.maa.url();
    let metadata = format!("{maa}/.well-known/openid-configuration");
    let metadata = world.client.get(&metadata, None).await.unwrap().body;
    assert_eq!(metadata["issuer"], maa);
    let jwks = world
        .client
        .get(metadata["jwks_uri"].as_str().unwrap(), None)
        .await
        .unwrap()
        .body;
    let keys = jwks["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    for jwk in keys {
        assert!(jwk["kid"].as_str().unwrap().ends_with('='));
        let certificate = STANDARD.decode(jwk["x5c"][0].as_str().unwrap()).unwrap();
        let key = X509::from_der(&certificate).unwrap().public_key().unwrap();
        let modulus = URL_SAFE_NO_PAD.encode(key.rsa().unwrap().n().to_vec());
        assert_eq!(jwk["n"], modulus);
    }
    let (header, _) = take_apart(&world.token().await);
    assert!(keys.iter().any(|jwk| jwk["kid"] == header["kid"]));
}

#[tokio::test]
async fn both_base64_forms_and_any_case_of_the_path_are_taken() {
    let world = World::start().await;
    let report = world.sign(&world.report());
    let padded = world.attest_body(&report);
    let bare = world.attest_body_with(&report, |bytes| URL_SAFE_NO_PAD.encode(bytes));
    for path in ["SevSnpVm", "SevSnpVM"] {
        for body in [&padded, &bare] {
            let maa = world.cloud.maa.url();
            let url = format!("{maa}/attest/{path}?api-version=2020-10-01");
            let reply = world.client.post(&url, None, body).await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.body);
        }
    }
}

/// The service refuses the request as one it cannot use.
async fn check(world: &World, body: Value, what: &str) {
    let reply = world.post_attest(&body).await;
    let code = reply.body["error"]["code"].as_str();
    assert_eq!(
        (reply.status, code),
        (400, Some("InvalidParameter")),
        "{what}"
    );
}

#[tokio::test]
async fn a_request_that_is_not_in_order_earns_no_token() {
    let world = World::start().await;
    let good = world.sign(&world.report());
    let body = world.attest_body(&good);
    let with = |name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        body
    };
    let other_data = json!({"data": URL_SAFE_NO_PAD.encode("{}"), "dataType": "JSON"});
    check(
        &world,
        with("runtimeData", other_data),
        "other runtime data",
    )
    .await;
    let no_json = json!({"data": URL_SAFE_NO_PAD.encode("text"), "dataType": "JSON"});
    check(
        &world,
        with("runtimeData", no_json),
        "runtime data that is no JSON",
    )
    .await;
    let init_time = json!({"data": URL_SAFE_NO_PAD.encode("policy"), "dataType": "Binary"});
    check(
        &world,
        with("initTimeData", init_time),
        "init time data of another guest",
    )
    .await;
    check(&world, with("report", "!".into()), "no base64").await;
    check(&world, json!([]), "no object").await;
}

#[tokio::test]
async fn a_report_that_is_not_genuine_or_not_bound_earns_no_token() {
    let mut world = World::start().await;
    let good = world.sign(&world.report());
    let mut tampered = good.clone();
    tampered[layout::MEASUREMENT] ^= 1;
    check(
        &world,
        world.attest_body(&tampered),
        "a changed measurement",
    )
    .await;
    check(&world, world.attest_body(&good[1..]), "a short report").await;
    let other_chip = super::support::chip(world.clock.now());
    let foreign = world.report().sign(other_chip.key()).unwrap();
    check(
        &world,
        world.attest_body(&foreign),
        "another chip's signature",
    )
    .await;
    let padded = world.report().put(layout::REPORT_DATA + 63, &[1]);
    check(
        &world,
        world.attest_body(&world.sign(&padded)),
        "report data that is more than a hash",
    )
    .await;

    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign");
    let foreign = SimulatedRoots::cached(Product::Milan, &dir).unwrap();
    let options = ChipOptions::new(world.clock.now()).unwrap();
    let own = std::mem::replace(&mut world.chip, foreign.mint_chip(options).unwrap());
    check(
        &world,
        world.attest_body(&world.sign(&world.report())),
        "another root's chip",
    )
    .await;
    world.chip = own;

    let maa = world.cloud.maa.url();
    let unversioned = format!("{maa}/attest/SevSnpVm");
    let reply = world
        .client
        .post(&unversioned, None, &world.attest_body(&good))
        .await
        .unwrap();
    assert_eq!(reply.status, 400);

    world
        .clock
        .advance(Duration::from_secs(11 * 365 * 24 * 60 * 60));
    check(&world, world.attest_body(&good), "an expired VCEK").await;
}

#[tokio::test]
async fn an_identity_gets_access_tokens_and_nobody_else_does() {
    let world = World::start().await;
    let workload = world.cloud.entra.register().unwrap();
    let form = token_form(&workload);
    let reply = world.post_token(&form).await;
    assert_eq!(
        (reply.status, &reply.body["token_type"]),
        (200, &json!("Bearer"))
    );
    assert_eq!(reply.body["expires_in"], 3_599);
    let (_, claims) = take_apart(reply.body["access_token"].as_str().unwrap());
    assert_eq!(claims["aud"], "https://managedhsm.azure.net");
    assert_eq!(claims["oid"], workload.object_id);
    assert_eq!(claims["exp"], world.clock.now().0 + 3_599);

    for (field, value, status, error, code) in [
        (
            "grant_type",
            "password",
            400,
            "unsupported_grant_type",
            70_003,
        ),
        ("client_id", "nobody", 400, "unauthorized_client", 700_016),
        ("client_assertion_type", "x", 401, "invalid_client", 700_213),
        (
            "client_assertion",
            "stolen?",
            401,
            "invalid_client",
            700_213,
        ),
        (
            "scope",
            "https://vault.azure.net/.default",
            400,
            "invalid_scope",
            70_011,
        ),
        (
            "scope",
            "https://managedhsm.azure.net",
            400,
            "invalid_scope",
            70_011,
        ),
    ] {
        let changed = form.map(|(name, old)| (name, if name == field { value } else { old }));
        let reply = world.post_token(&changed).await;
        assert_eq!(reply.status, status, "{field}");
        assert_eq!(reply.body["error"], error, "{field}");
        assert_eq!(reply.body["error_codes"], json!([code]), "{field}");
    }
    for (field, _) in form {
        let without: Vec<_> = form
            .into_iter()
            .filter(|(name, _)| *name != field)
            .collect();
        let reply = world.post_token(&without).await;
        assert_eq!(
            (reply.status, &reply.body["error"]),
            (400, &json!("invalid_request"))
        );
    }
    let url = format!(
        "{}/another-tenant/oauth2/v2.0/token",
        world.cloud.entra.url()
    );
    assert_eq!(
        world.client.post_form(&url, &form).await.unwrap().status,
        400
    );
}
