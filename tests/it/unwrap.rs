//! Core: released keys made by an independent implementation open to what they were made of.

use attest::UnixSeconds;
use attest::release::{JwsRoots, ReleaseExpectations, ReleasedKey, WrapAlgorithm, verify_release};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use enclaveid::vault::{UnwrapError, unwrap};
use enclaveid_tests::fixture::real_data;
use keys::{CaGeneration, MasterSecret};
use openssl::pkey::{PKey, Private};
use serde_json::Value;

const AT: UnixSeconds = UnixSeconds(1_795_500_000);

struct Row {
    released: ReleasedKey,
    plaintext: Vec<u8>,
}

fn wrap_key() -> Option<PKey<Private>> {
    let json: Value = serde_json::from_slice(&real_data("akv/wrapkey.json")?).unwrap();
    let der = enclaveid::hex::decode(json["pkcs8_der_hex"].as_str().unwrap()).unwrap();
    Some(PKey::private_key_from_pkcs8(&der).unwrap())
}

fn rows() -> Vec<Row> {
    let expected = real_data("akv/expected.json").unwrap();
    let expected: Vec<Value> = serde_json::from_slice(&expected).unwrap();
    let roots = JwsRoots::parse_pem(&real_data("akv/root.pem").unwrap()).unwrap();
    expected
        .iter()
        .filter_map(|row| {
            let text = |name: &str| row[name].as_str().unwrap();
            let enc = WrapAlgorithm::from_name(text("enc")).ok()?;
            let reply = real_data(&format!("akv/{}", text("file"))).unwrap();
            let reply: Value = serde_json::from_slice(&reply).unwrap();
            let wanted = ReleaseExpectations {
                host: "testhsm.managedhsm.azure.net",
                kid: "https://testhsm.managedhsm.azure.net/keys/master-secret/\
                  0123456789abcdef0123456789abcdef",
                enc,
                nonce: "bm9uY2U",
                now: AT,
            };
            let released =
                verify_release(reply["value"].as_str().unwrap(), &roots, &wanted).unwrap();
            let plaintext = URL_SAFE_NO_PAD.decode(text("plaintext_b64url")).unwrap();
            Some(Row {
                released,
                plaintext,
            })
        })
        .collect()
}

/// Secrets cannot be compared: what derives from them can.
fn derived(secret: &MasterSecret) -> [u8; 48] {
    *secret
        .derive_intermediate()
        .derive_ca(CaGeneration(0))
        .expose()
}

#[test]
fn octet_keys_open_and_other_kinds_are_refused_by_name() {
    let Some(key) = wrap_key() else { return };
    let mut opened = 0;
    for mut row in rows() {
        let outcome = unwrap(&row.released, &key);
        if row.released.kty == "oct-HSM" {
            let want = MasterSecret::from_release(&mut row.plaintext).unwrap();
            assert_eq!(derived(&outcome.unwrap()), derived(&want));
            opened += 1;
        } else {
            assert!(matches!(outcome, Err(UnwrapError::KeyType)));
        }
    }
    assert_eq!(opened, 2);
}

#[test]
fn a_changed_byte_anywhere_in_the_ciphertext_keeps_it_shut() {
    let Some(key) = wrap_key() else { return };
    let row = rows()
        .into_iter()
        .find(|row| row.released.kty == "oct-HSM")
        .unwrap();
    let mut released = row.released;
    let good = released.ciphertext.clone();
    let mut check = |what: String, ciphertext: Vec<u8>| {
        released.ciphertext = ciphertext;
        let outcome = unwrap(&released, &key);
        assert!(matches!(outcome, Err(UnwrapError::Unopened(_))), "{what}");
    };
    for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        let mut changed = good.clone();
        changed[at] ^= 1;
        check(format!("byte {at}"), changed);
    }
    for len in [0, 255, 256, 257, good.len() - 1, good.len() + 8, 10_000] {
        let mut resized = good.clone();
        resized.resize(len, 0);
        check(format!("length {len}"), resized);
    }
    released.ciphertext = good;
    let other = PKey::from_rsa(openssl::rsa::Rsa::generate(2_048).unwrap()).unwrap();
    assert!(matches!(
        unwrap(&released, &other),
        Err(UnwrapError::Unopened(_))
    ));
}
