//! Core: each lie is told, and the product's verifiers call each by its name.

use attest::UnixSeconds;
use attest::release::{JwsRoots, ReleaseExpectations, WrapAlgorithm, verify_release};
use attest::report::Report;
use attest::token::{AttestationToken, Jwks, PolicyHash, TokenExpectations, verify_token};
use enclaveid_tests::emulator::{ReleaseLie, Role, TokenLie};
use openssl::md::Md;
use runtime::clock::Clock;

use super::support::{World, release_body, take_apart};

#[tokio::test]
async fn every_false_token_is_told_apart() {
    let world = World::start().await;
    let certs = world
        .client
        .get(&format!("{}/certs", world.cloud.maa.url()), None)
        .await;
    let jwks = Jwks::parse(certs.unwrap().body.to_string().as_bytes()).unwrap();
    let report = Report::parse(&world.sign(&world.report())).unwrap();
    let verify = |token: String| {
        let wanted = TokenExpectations {
            issuer: world.cloud.maa.url(),
            policy_hash: PolicyHash::Pinned(world.cloud.maa.policy_hash()),
            report: &report,
            runtime_data: &world.runtime_data,
            now: UnixSeconds(world.clock.now().0),
            skew: 60,
        };
        verify_token(&AttestationToken::new(token), &jwks, &wanted).map_err(|error| error.code())
    };
    for (lie, code) in [
        (TokenLie::AlgNone, "token.algorithm"),
        (TokenLie::AnotherPolicy, "token.policy_hash"),
        (TokenLie::AnotherReport, "token.foreign"),
        (TokenLie::AnotherRuntimeData, "token.runtime_data"),
        (TokenLie::Expired, "token.expired"),
        (TokenLie::ForeignKey, "token.signature"),
        (TokenLie::WrongIssuer, "token.issuer"),
    ] {
        world.cloud.maa.lie_next(1, lie);
        assert_eq!(verify(world.token().await).err(), Some(code), "{lie:?}");
        assert!(verify(world.token().await).is_ok(), "one lie only");
    }
    let mut body = world.attest_body(&world.sign(&world.report()));
    body["nonce"] = "mine".into();
    world.cloud.maa.lie_next(1, TokenLie::AnotherNonce);
    let reply = world.post_attest(&body).await;
    let (_, claims) = take_apart(reply.body["token"].as_str().unwrap());
    assert_eq!(claims["nonce"], "another");
    body["draftPolicyForAttestation"] = "a policy".into();
    let reply = world.post_attest(&body).await;
    let draft = reply.body["token"].as_str().unwrap().to_owned();
    assert_eq!(
        verify(draft).err(),
        Some("token.algorithm"),
        "a draft policy's token"
    );
}

#[tokio::test]
async fn every_false_release_is_told_apart() {
    let world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let kid = world.create_key("master", &access).await;
    let body = release_body(&world.token().await, "RSA_AES_KEY_WRAP_384");
    let roots = JwsRoots::parse_pem(world.cloud.jws_roots_pem.as_bytes()).unwrap();
    let release = async || {
        let reply = world.post_release(&kid, &access, &body).await;
        reply.body["value"].as_str().unwrap().to_owned()
    };
    let verify = |jws: &str| {
        let wanted = ReleaseExpectations {
            host: "localhost",
            kid: &kid,
            enc: WrapAlgorithm::RsaAesKeyWrap384,
            nonce: "a-nonce",
            now: UnixSeconds(world.clock.now().0),
        };
        verify_release(jws, &roots, &wanted)
            .map(drop)
            .map_err(|error| error.code())
    };
    let secret = super::releases::open(&release().await, &world.wrap_key, Md::sha384());
    for (lie, verdict) in [
        // No verifier of signatures can tell: the key that is derived from it does.
        (ReleaseLie::AnotherMaterial, Ok(())),
        (ReleaseLie::AnotherVersion, Err("release.key_version")),
        (ReleaseLie::ForeignSigner, Err("release.chain")),
        // Whether the policy admits the pod is not the signature's business.
        (ReleaseLie::AnotherPolicy, Ok(())),
        (ReleaseLie::MutablePolicy, Err("release.policy_mutable")),
        (ReleaseLie::WrongKeyEcho, Err("release.key_id")),
        (ReleaseLie::WrongNonceEcho, Err("release.nonce")),
    ] {
        world.cloud.hsm.lie_next(1, lie);
        let jws = release().await;
        assert_eq!(verify(&jws), verdict, "{lie:?}");
        let same = super::releases::open(&jws, &world.wrap_key, Md::sha384()) == secret;
        assert_eq!(same, lie != ReleaseLie::AnotherMaterial, "{lie:?}");
        assert_eq!(verify(&release().await), Ok(()), "one lie only");
    }
}
