//! Core: the vault: releases opened by code of this test's own, roles, policies and versions.

use std::collections::BTreeSet;
use std::time::Duration;

use attest::UnixSeconds;
use attest::release::{JwsRoots, ReleaseExpectations, WrapAlgorithm, verify_release};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use enclaveid_tests::emulator::Role;
use enclaveid_tests::fixture::real_data;
use openssl::md::{Md, MdRef};
use openssl::pkey::{PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;
use openssl::symm::{Cipher, Crypter, Mode};
use runtime::clock::Clock;
use serde_json::{Value, json};

use super::support::{World, create_body, policy, release_body, take_apart};

/// Unwraps AES key wrap with padding after RFC 5649 section 4.2, on plain AES.
fn unwrap_padded(kek: &[u8], wrapped: &[u8]) -> Option<Vec<u8>> {
    let cipher = if kek.len() == 32 {
        Cipher::aes_256_ecb()
    } else {
        Cipher::aes_192_ecb()
    };
    let decrypt = |block: &[u8]| {
        let mut crypter = Crypter::new(cipher, Mode::Decrypt, kek, None).unwrap();
        crypter.pad(false);
        let mut plain = vec![0; block.len() + 16];
        crypter.update(block, &mut plain).unwrap();
        plain.truncate(block.len());
        plain
    };
    let plain = if wrapped.len() == 16 {
        decrypt(wrapped)
    } else {
        let (first, rest) = wrapped.split_at(8);
        let mut a: [u8; 8] = first.try_into().unwrap();
        let mut blocks: Vec<[u8; 8]> = rest
            .chunks(8)
            .map(|chunk| chunk.try_into().unwrap())
            .collect();
        let count = blocks.len();
        for step in (1..=6 * count).rev() {
            let block = &mut blocks[(step - 1) % count];
            let mixed = u64::from_be_bytes(a) ^ u64::try_from(step).unwrap();
            let plain = decrypt(&[mixed.to_be_bytes(), *block].concat());
            a.copy_from_slice(&plain[..8]);
            block.copy_from_slice(&plain[8..]);
        }
        [&a[..], &blocks.concat()].concat()
    };
    let length: [u8; 4] = plain[4..8].try_into().unwrap();
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap();
    let intact = plain[..4] == [0xa6, 0x59, 0x59, 0xa6] && plain.len() - 8 >= length;
    let padding = plain.get(8 + length..)?;
    let intact = intact && padding.len() < 8 && padding.iter().all(|byte| *byte == 0);
    intact.then(|| plain[8..8 + length].to_vec())
}

fn open_oaep(key: &PKey<Private>, hash: &MdRef, sealed: &[u8]) -> Vec<u8> {
    let mut context = PkeyCtx::new(key).unwrap();
    context.decrypt_init().unwrap();
    context.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
    context.set_rsa_oaep_md(hash).unwrap();
    context.set_rsa_mgf1_md(hash).unwrap();
    let mut kek = Vec::new();
    context.decrypt_to_vec(sealed, &mut kek).unwrap();
    kek
}

/// The released key in a JWS, opened and not verified.
pub(super) fn open(jws: &str, key: &PKey<Private>, hash: &MdRef) -> Vec<u8> {
    let (_, payload) = take_apart(jws);
    let decode = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
    let wrapped = decode(&payload["response"]["key"]["key"]["key_hsm"]);
    let wrapped: Value = serde_json::from_slice(&wrapped).unwrap();
    let ciphertext = decode(&wrapped["ciphertext"]);
    let (sealed, wrapped) = ciphertext.split_at(key.size());
    let kek = open_oaep(key, hash, sealed);
    assert_eq!(kek.len(), 32);
    unwrap_padded(&kek, wrapped).unwrap()
}

fn hex_bytes(value: &Value) -> Vec<u8> {
    let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    value
        .as_str()
        .unwrap()
        .as_bytes()
        .chunks(2)
        .map(pair)
        .collect()
}

#[test]
fn this_tests_own_unwrapping_meets_the_rfcs_vectors() {
    let Some(vectors) = real_data("rfc/aes-kwp-rfc5649.json") else {
        return;
    };
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    let vectors = vectors["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let plain = unwrap_padded(&hex_bytes(&vector["kek"]), &hex_bytes(&vector["wrapped"]));
        assert_eq!(plain, Some(hex_bytes(&vector["plain"])));
    }
}

#[test]
fn this_tests_own_opening_meets_vectors_of_another_implementation() {
    let Some(key) = real_data("akv/wrapkey.json") else {
        return;
    };
    let key: Value = serde_json::from_slice(&key).unwrap();
    let key = PKey::private_key_from_pkcs8(&hex_bytes(&key["pkcs8_der_hex"])).unwrap();
    let expected: Value = serde_json::from_slice(&real_data("akv/expected.json").unwrap()).unwrap();
    let mut opened = 0;
    for row in expected.as_array().unwrap() {
        let release = real_data(&format!("akv/{}", row["file"].as_str().unwrap())).unwrap();
        let release: Value = serde_json::from_slice(&release).unwrap();
        let hash = match row["enc"].as_str().unwrap() {
            "RSA_AES_KEY_WRAP_256" => Md::sha256(),
            "RSA_AES_KEY_WRAP_384" => Md::sha384(),
            _ => Md::sha1(),
        };
        let secret = open(release["value"].as_str().unwrap(), &key, hash);
        assert_eq!(
            URL_SAFE_NO_PAD.encode(secret),
            row["plaintext_b64url"].as_str().unwrap()
        );
        opened += 1;
    }
    assert_eq!(opened, 9);
}

#[tokio::test]
async fn an_attested_guest_gets_the_same_key_in_every_wrap() {
    let world = World::start().await;
    let user = world.access(Role::CryptoUser).await;
    let guest = world.access(Role::CryptoServiceReleaseUser).await;
    let kid = world.create_key("master", &user).await;
    let token = world.token().await;
    let mut secrets = BTreeSet::new();
    for (enc, hash) in [
        ("CKM_RSA_AES_KEY_WRAP", Md::sha1()),
        ("RSA_AES_KEY_WRAP_256", Md::sha256()),
        ("RSA_AES_KEY_WRAP_384", Md::sha384()),
    ] {
        let reply = world
            .post_release(&kid, &guest, &release_body(&token, enc))
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let jws = reply.body["value"].as_str().unwrap();
        let secret = open(jws, &world.wrap_key, hash);
        assert_eq!(secret.len(), 32);
        secrets.insert(secret);
        if let Ok(enc) = WrapAlgorithm::from_name(enc) {
            let roots = JwsRoots::parse_pem(world.cloud.jws_roots_pem.as_bytes()).unwrap();
            let now = UnixSeconds(world.clock.now().0);
            let wanted = ReleaseExpectations {
                host: "localhost",
                kid: &kid,
                enc,
                nonce: "a-nonce",
                now,
            };
            assert_eq!(verify_release(jws, &roots, &wanted).unwrap().kid, kid);
        }
    }
    assert_eq!(secrets.len(), 1);
    // By default the service uses SHA-1.
    let reply = world
        .post_release(&kid, &guest, &json!({"target": token}))
        .await;
    let jws = reply.body["value"].as_str().unwrap();
    assert!(secrets.contains(&open(jws, &world.wrap_key, Md::sha1())));
    let other = world.create_key("other", &user).await;
    let body = release_body(&token, "RSA_AES_KEY_WRAP_256");
    let reply = world.post_release(&other, &guest, &body).await;
    let jws = reply.body["value"].as_str().unwrap();
    assert!(!secrets.contains(&open(jws, &world.wrap_key, Md::sha256())));
}

#[tokio::test]
async fn a_release_has_the_members_of_a_documented_one() {
    let documented = real_data("akv/release-oct-hsm-rsa_aes_key_wrap_384.json");
    let Some(documented) = documented else { return };
    let documented: Value = serde_json::from_slice(&documented).unwrap();
    let world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let kid = world.create_key("master", &access).await;
    let body = release_body(&world.token().await, "RSA_AES_KEY_WRAP_384");
    let reply = world.post_release(&kid, &access, &body).await;
    let ours = take_apart(reply.body["value"].as_str().unwrap());
    let theirs = take_apart(documented["value"].as_str().unwrap());
    assert_eq!(paths(&ours.0), paths(&theirs.0));
    assert_eq!(paths(&ours.1), paths(&theirs.1));
}

/// Paths to all members, array elements left out.
fn paths(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![(String::new(), value)];
    while let Some((path, value)) = todo.pop() {
        for (name, member) in value.as_object().into_iter().flatten() {
            let path = format!("{path}/{name}");
            found.insert(path.clone());
            todo.push((path, member));
        }
    }
    found
}

#[tokio::test]
async fn guests_that_the_policy_does_not_admit_get_nothing() {
    let world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let kid = world.create_key("master", &access).await;
    let check = async |token: &str, what: &str| {
        let body = release_body(token, "RSA_AES_KEY_WRAP_384");
        let reply = world.post_release(&kid, &access, &body).await;
        let code = reply.body["error"]["code"].as_str();
        assert_eq!((reply.status, code), (403, Some("Forbidden")), "{what}");
    };
    // The attestation service attests such guests, as the real one does.
    check(
        &world.token_for(&world.report().debug()).await,
        "a debug guest",
    )
    .await;
    check(
        &world.token_for(&world.report().measurement(&[0; 48])).await,
        "measurement",
    )
    .await;
    check(
        &world.token_for(&world.report().host_data(&[0; 32])).await,
        "host data",
    )
    .await;
    let token = world.token().await;
    let (signed, _) = token.rsplit_once('.').unwrap();
    check(&format!("{signed}.AAAA"), "another signature").await;
    check("no token", "no token").await;
    let foreign = World::start().await.token().await;
    check(&foreign, "another service's token").await;
    world.clock.advance(Duration::from_secs(28_800));
    let access = world.access(Role::CryptoUser).await;
    let body = release_body(&token, "RSA_AES_KEY_WRAP_384");
    assert_eq!(
        world.post_release(&kid, &access, &body).await.status,
        403,
        "expired"
    );
}

#[tokio::test]
async fn a_key_is_wrapped_to_the_first_encryption_key_alone() {
    let mut world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let kid = world.create_key("master", &access).await;
    let jwk = super::support::jwk(&world.wrap_key);
    let mut signing = jwk.clone();
    signing["key_ops"] = json!(["sign"]);
    let mut as_text = jwk.clone();
    as_text["key_ops"] = "encrypt".into();
    let mut nameless = jwk.clone();
    nameless.as_object_mut().unwrap().remove("kid");
    for (keys, status) in [
        (json!([signing, jwk]), 200),
        (json!([as_text]), 200),
        (json!([signing]), 400),
        (json!([nameless]), 400),
        (json!([]), 400),
    ] {
        world.runtime_data = json!({"keys": keys}).to_string().into_bytes();
        let body = release_body(&world.token().await, "RSA_AES_KEY_WRAP_256");
        let reply = world.post_release(&kid, &access, &body).await;
        assert_eq!(reply.status, status, "{keys}");
    }
}

#[tokio::test]
async fn each_role_may_do_what_the_real_one_may() {
    let world = World::start().await;
    let kid = world
        .create_key("master", &world.access(Role::CryptoUser).await)
        .await;
    let body = release_body(&world.token().await, "RSA_AES_KEY_WRAP_256");
    for (role, create, read, release) in [
        (Role::Administrator, 403, 403, 403),
        (Role::CryptoServiceReleaseUser, 403, 403, 200),
        (Role::CryptoUser, 200, 200, 200),
    ] {
        let access = world.access(role).await;
        let key = create_body(&policy(world.cloud.maa.url()));
        let got = [
            world.post_create("another", &access, &key).await.status,
            world.get_key(&kid, &access).await.status,
            world.post_release(&kid, &access, &body).await.status,
        ];
        assert_eq!(got, [create, read, release], "{role:?}");
    }
    let workload = world.cloud.create_identity(Role::CryptoUser).unwrap();
    let reply = world
        .post_token(&super::support::token_form(&workload))
        .await;
    let access = reply.body["access_token"].as_str().unwrap();
    world.cloud.hsm.revoke(&workload.object_id);
    assert_eq!(
        world.post_release(&kid, access, &body).await.status,
        403,
        "revoked"
    );
}

#[tokio::test]
async fn every_create_makes_a_new_version_and_old_ones_stay() {
    let world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let first = world.create_key("master", &access).await;
    let second = world.create_key("master", &access).await;
    assert_ne!(first, second);
    let (name, version) = first.rsplit_once('/').unwrap();
    let digits = |text: &str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(digits(version));
    let token = world.token().await;
    let body = release_body(&token, "RSA_AES_KEY_WRAP_256");
    for (asked, answered) in [(&*first, &*first), (&*second, &*second), (name, &*second)] {
        let reply = world.get_key(asked, &access).await;
        assert_eq!(reply.body["key"]["kid"], answered);
        assert_eq!(reply.body["release_policy"]["immutable"], true);
        let reply = world.post_release(asked, &access, &body).await;
        let (_, payload) = take_apart(reply.body["value"].as_str().unwrap());
        assert_eq!(payload["response"]["key"]["key"]["kid"], answered);
        assert_eq!(payload["request"]["kid"], asked);
    }
}
