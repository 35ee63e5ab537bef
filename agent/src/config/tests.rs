use super::*;

/// A certificate for the keys that want one; what is in it does not matter here.
fn root_pem() -> String {
    let secret = ::keys::MasterSecret::from_release(&mut [1; 32])
        .unwrap()
        .derive_intermediate();
    let ca = crate::pki::MeshCa::from_seed(&secret.derive_ca(::keys::CaGeneration(0))).unwrap();
    let pem = ca
        .issue("test", runtime::clock::UnixTime(1_800_000_000))
        .unwrap()
        .to_pem()
        .unwrap();
    String::from_utf8(pem).unwrap()
}

fn complete() -> String {
    let pem = root_pem();
    format!(
        r#"
[platform]
kind = "sev-guest"
endorsements = "/vcek.pem"
[attestation]
issuer = "https://maa.example"
policy_hash = "{hash}"
[tls]
roots_pem = """{pem}"""
[vault]
url = "https://vault.example"
key_id = "https://vault.example/keys/master/0123"
jws_roots_pem = """{pem}"""
[identity]
tenant_id = "t"
client_id = "c"
token_file = "/token"
[mesh]
trust_domain = "demo"
spiffe_id = "spiffe://demo/pod"
ca_certificate = "/ca.pem"
[volume]
id = "00112233445566778899aabbccddeeff"
store = "/store"
mountpoint = "/data"
"#,
        hash = "ab".repeat(32),
    )
}

fn load(text: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Vec<String> {
    let environment = environment
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let flags = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    match Config::parse(text, &environment, &flags) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Problems(problems)) => problems.iter().map(Problem::to_string).collect(),
        Err(other) => panic!("{other}"),
    }
}

/// Replaces `from` in the complete configuration and expects exactly `want` as problems.
#[track_caller]
fn check(from: &str, to: &str, want: &[&str]) {
    let text = complete();
    assert!(text.contains(from), "{from}");
    assert_eq!(load(&text.replacen(from, to, 1), &[], &[]), want);
}

#[test]
fn a_complete_configuration_is_accepted() {
    check("kind", "kind", &[]);
}

#[test]
fn each_wrong_value_is_named() {
    check(
        "sev-guest",
        "guess",
        &["platform.kind: no such platform in this build"],
    );
    check(
        "[mesh]",
        "[mesh]
leaf_lifetime_s = 1",
        &["mesh.leaf_lifetime_s: must be a number from 300 to 86400"],
    );
    check(
        "[platform]",
        "[platform]\nvpml = 0",
        &["platform.vpml: unknown key"],
    );
    check(
        "issuer = \"https",
        "issuer = \"http",
        &["attestation.issuer: not an https URL with a host"],
    );
    check(
        "abab",
        "ab",
        &["attestation.policy_hash: must be 64 hexadecimal digits"],
    );
    check(
        "demo/pod",
        "other/pod",
        &["mesh.spiffe_id: is not in mesh.trust_domain"],
    );
    check(
        "\"/store\"",
        "\"store\"",
        &["volume.store: must be an absolute path"],
    );
    check("\"/store\"", "7", &["volume.store: must be a text"]);
    check("[volume]", "[volume", &["file: is no valid TOML"]);
}

#[test]
fn what_looks_like_a_number_is_none() {
    let want = ["sockets.allowed_uids: must be a list of numbers"];
    for bad in ["[false]", "[0.6]", "[-1]", "7", "[4294967296]"] {
        let text = complete() + &format!("[sockets]\nallowed_uids = {bad}\n");
        assert_eq!(load(&text, &[], &[]), want, "{bad}");
    }
    let outside = [("ENCLAVEID__RETRY__TOTAL_S", "20")];
    assert_eq!(load(&complete(), &outside, &[]), Vec::<String>::new());
}

#[test]
fn the_environment_cannot_add_a_section() {
    let text = complete();
    let (without_volume, _) = text.split_once("[volume]").unwrap();
    let environment = BTreeMap::from([("ENCLAVEID__VOLUME__STORE".to_owned(), "/x".to_owned())]);
    let config = Config::parse(without_volume, &environment, &Overrides::new()).unwrap();
    assert!(config.volume.is_none());
}

#[test]
fn a_key_id_must_be_versioned_and_below_the_vault() {
    let want = ["vault.key_id: must be https://<vault>/keys/<name>/<version> below vault.url"];
    for bad in [
        "https://vault.example/keys/master",
        "https://vault.example/keys/master/",
        "https://vault.example/keys/master/0123/x",
        "https://vault.example/secrets/master/0123",
        "https://other.example/keys/master/0123",
        "https://vault.example:8443/keys/master/0123",
    ] {
        check("https://vault.example/keys/master/0123", bad, &want);
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = complete()
        .replace("kind = \"sev-guest\"", "")
        .replace("tenant_id = \"t\"", "x = 1");
    let want = [
        "identity.x: unknown key",
        "platform.kind: missing",
        "identity.tenant_id: missing",
    ];
    assert_eq!(load(&text, &[], &[]), want);
}

#[test]
fn measured_keys_come_from_the_file_alone() {
    for key in KEYS.iter().filter(|key| key.trust == Trust::Measured) {
        let want = format!("{}: is measured: it may be set in the file alone", key.path);
        assert_eq!(load(&complete(), &[(&key.variable(), "x")], &[]), [want]);
    }
    let unknown = ["ENCLAVEID__VAULT__URI: unknown key, set in the environment"];
    assert_eq!(
        load(&complete(), &[("ENCLAVEID__VAULT__URI", "x")], &[]),
        unknown
    );
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let store = |environment: &[(&str, &str)], flags: &[(&'static str, &str)]| {
        let environment = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let flags = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        let config = Config::parse(&complete(), &environment, &flags).unwrap();
        config.volume.unwrap().store.display().to_string()
    };
    let environment = [("ENCLAVEID__VOLUME__STORE", "/from-env")];
    assert_eq!(store(&[], &[]), "/store");
    assert_eq!(store(&environment, &[]), "/from-env");
    assert_eq!(
        store(&environment, &[("volume.store", "/from-flag")]),
        "/from-flag"
    );
}

#[test]
fn variables_of_the_identity_webhook_fill_in_what_is_not_set() {
    let text = complete().replace("tenant_id = \"t\"\n", "");
    let config = Config::parse(
        &text,
        &[
            ("AZURE_TENANT_ID", "from-webhook"),
            ("AZURE_CLIENT_ID", "ignored"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
        &Overrides::new(),
    );
    let identity = config.unwrap().identity;
    assert_eq!(
        (identity.tenant_id.as_str(), identity.client_id.as_str()),
        ("from-webhook", "c")
    );
}

#[test]
fn the_digest_covers_the_exact_bytes() {
    let digest = |text: &str| {
        Config::parse(text, &BTreeMap::new(), &Overrides::new())
            .unwrap()
            .digest
    };
    let text = complete();
    assert_eq!(digest(&text).0, <[u8; 32]>::from(Sha256::digest(&text)));
    assert_ne!(digest(&text), digest(&format!("{text}\n")));
}

#[test]
fn the_example_documents_every_key_and_only_keys() {
    let example = include_str!("../../config.example.toml");
    let pem = root_pem();
    let text = example
        .replace(
            "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n",
            &pem,
        )
        .replace("# [provision] ", "[provision] ")
        .replace("# key_name", "key_name")
        .replace(
            "# pods = [\"<measurement, 96 hex digits>:<host_data, 64 hex digits>\"]",
            &format!("pods = [\"{}:{}\"]", "ab".repeat(48), "cd".repeat(32)),
        );
    assert_eq!(load(&text, &[], &[]), Vec::<String>::new());
    let parsed: toml::Table = text.parse().unwrap();
    for key in KEYS.iter().filter(|key| !key.path.contains("simulator")) {
        let (area, name) = key.path.split_once('.').unwrap();
        assert!(
            parsed[area].get(name).is_some(),
            "the example lacks {}",
            key.path
        );
        let line = example
            .lines()
            .find(|line| line.trim_start_matches("# ").starts_with(name));
        assert!(line.is_some(), "{}", key.path);
    }
}
