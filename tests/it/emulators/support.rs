//! Core: a guest of its own making: chip, wrap key and evidence; and its way through the services.

use std::path::Path;
use std::sync::Arc;

use attest::binding::ReportData;
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use enclaveid_tests::emulator::{Client, Cloud, CloudOptions, Reply, Role, Workload};
use enclaveid_tests::hex;
use enclaveid_tests::pki::{Validity, rsa_key};
use enclaveid_tests::snp::{ChipOptions, Product, ReportBuilder, SimulatedChip, SimulatedRoots};
use openssl::pkey::{PKey, Private};
use runtime::clock::{Clock, ManualClock, SystemClock, UnixTime};
use serde_json::{Value, json};

pub(super) const MEASUREMENT: [u8; 48] = [0x4d; 48];
pub(super) const HOST_DATA: [u8; 32] = [0x48; 32];

/// Roots whose keys outlive the test process: new ones take seconds.
pub(super) fn roots() -> SimulatedRoots {
    SimulatedRoots::cached(Product::Milan, Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// A chip whose certificate is valid around `now`.
pub(super) fn chip(now: UnixTime) -> SimulatedChip {
    let validity = Validity::around(now);
    roots()
        .mint_chip(ChipOptions {
            validity,
            ..ChipOptions::new(now).unwrap()
        })
        .unwrap()
}

/// Everything on one machine: services, their clock, a guest and a client.
pub(super) struct World {
    pub(super) cloud: Cloud,
    pub(super) clock: Arc<ManualClock>,
    pub(super) client: Client,
    pub(super) chip: SimulatedChip,
    pub(super) wrap_key: PKey<Private>,
    pub(super) runtime_data: Vec<u8>,
}

impl World {
    pub(super) async fn start() -> Self {
        let now = SystemClock.now();
        let clock = Arc::new(ManualClock::new(now));
        let chip = chip(now);
        let ark_pem = chip.ark_pem().unwrap();
        let options = CloudOptions {
            ark_pem,
            clock: clock.clone(),
        };
        let cloud = Cloud::start(options).await.unwrap();
        let client = cloud.client().unwrap();
        let wrap_key = rsa_key(2_048).unwrap();
        let runtime_data = json!({"keys": [jwk(&wrap_key)], "purpose": "test"}).to_string();
        Self {
            cloud,
            clock,
            client,
            chip,
            wrap_key,
            runtime_data: runtime_data.into_bytes(),
        }
    }

    /// The guest's report over its runtime data, not yet signed.
    pub(super) fn report(&self) -> ReportBuilder {
        self.chip
            .report()
            .measurement(&MEASUREMENT)
            .host_data(&HOST_DATA)
            .report_id(&[0x52; 32])
            .report_data(ReportData::for_runtime_data(&self.runtime_data).as_bytes())
    }

    pub(super) fn sign(&self, report: &ReportBuilder) -> Vec<u8> {
        report.sign(self.chip.key()).unwrap().to_vec()
    }

    pub(super) fn attest_body(&self, report: &[u8]) -> Value {
        self.attest_body_with(report, |bytes| URL_SAFE.encode(bytes))
    }

    pub(super) fn attest_body_with(&self, report: &[u8], encode: fn(&[u8]) -> String) -> Value {
        let chain = [
            self.chip.vcek_pem().unwrap(),
            self.chip.chain_pem().unwrap(),
        ]
        .concat();
        let evidence = json!({"SnpReport": encode(report), "VcekCertChain": encode(&chain)});
        json!({
            "report": encode(evidence.to_string().as_bytes()),
            "runtimeData": {"data": encode(&self.runtime_data), "dataType": "JSON"},
        })
    }

    pub(super) async fn post_attest(&self, body: &Value) -> Reply {
        let url = format!(
            "{}/attest/SevSnpVm?api-version=2022-08-01",
            self.cloud.maa.url()
        );
        self.client.post(&url, None, body).await.unwrap()
    }

    /// A token about `report`.
    pub(super) async fn token_for(&self, report: &ReportBuilder) -> String {
        let reply = self
            .post_attest(&self.attest_body(&self.sign(report)))
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["token"].as_str().unwrap().to_owned()
    }

    pub(super) async fn token(&self) -> String {
        self.token_for(&self.report()).await
    }

    /// An access token of a new identity with a role.
    pub(super) async fn access(&self, role: Role) -> String {
        let workload = self.cloud.create_identity(role).unwrap();
        let reply = self.post_token(&token_form(&workload)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["access_token"].as_str().unwrap().to_owned()
    }

    pub(super) async fn post_token(&self, form: &[(&str, &str)]) -> Reply {
        let (url, tenant) = (self.cloud.entra.url(), &self.cloud.tenant);
        self.client
            .post_form(&format!("{url}/{tenant}/oauth2/v2.0/token"), form)
            .await
            .unwrap()
    }

    /// Makes a key that the guest may have, and returns its versioned id.
    pub(super) async fn create_key(&self, name: &str, access: &str) -> String {
        let body = create_body(&policy(self.cloud.maa.url()));
        let reply = self.post_create(name, access, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["key"]["kid"].as_str().unwrap().to_owned()
    }

    pub(super) async fn post_create(&self, name: &str, access: &str, body: &Value) -> Reply {
        let url = format!(
            "{}/keys/{name}/create?api-version=7.4",
            self.cloud.hsm.url()
        );
        self.client.post(&url, Some(access), body).await.unwrap()
    }

    pub(super) async fn get_key(&self, kid: &str, access: &str) -> Reply {
        self.client
            .get(&format!("{kid}?api-version=7.4"), Some(access))
            .await
            .unwrap()
    }

    pub(super) async fn post_release(&self, kid: &str, access: &str, body: &Value) -> Reply {
        let url = format!("{kid}/release?api-version=7.4");
        self.client.post(&url, Some(access), body).await.unwrap()
    }
}

pub(super) fn token_form(workload: &Workload) -> [(&'static str, &str); 5] {
    [
        ("client_id", &workload.client_id),
        ("grant_type", "client_credentials"),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
        ("client_assertion", &workload.assertion),
        ("scope", "https://managedhsm.azure.net/.default"),
    ]
}

pub(super) fn release_body(target: &str, enc: &str) -> Value {
    json!({"target": target, "enc": enc, "nonce": "a-nonce"})
}

/// A policy that admits the guest.
pub(super) fn policy(authority: &str) -> Value {
    json!({"version": "1.0.0", "anyOf": [{"authority": authority, "allOf": [
        {"claim": "x-ms-attestation-type", "equals": "sevsnpvm"},
        {"claim": "x-ms-sevsnpvm-is-debuggable", "equals": "false"},
        {"claim": "x-ms-sevsnpvm-launchmeasurement", "equals": hex(&MEASUREMENT)},
        {"claim": "x-ms-sevsnpvm-hostdata", "equals": hex(&HOST_DATA)},
    ]}]})
}

pub(super) fn create_body(policy: &Value) -> Value {
    json!({
        "kty": "oct-HSM",
        "key_size": 256,
        "key_ops": ["wrapKey", "unwrapKey"],
        "attributes": {"enabled": true, "exportable": true},
        "release_policy": {
            "contentType": "application/json; charset=utf-8",
            "data": URL_SAFE_NO_PAD.encode(policy.to_string()),
            "immutable": true,
        },
    })
}

pub(super) fn jwk(key: &PKey<Private>) -> Value {
    let rsa = key.rsa().unwrap();
    json!({
        "kty": "RSA",
        "kid": "wrap",
        "key_ops": ["encrypt"],
        "n": URL_SAFE_NO_PAD.encode(rsa.n().to_vec()),
        "e": URL_SAFE_NO_PAD.encode(rsa.e().to_vec()),
    })
}

/// Header and payload of a compact JWS, unverified.
pub(super) fn take_apart(jws: &str) -> (Value, Value) {
    let mut parts = jws.split('.');
    let mut json = || {
        let part = URL_SAFE_NO_PAD.decode(parts.next().unwrap()).unwrap();
        serde_json::from_slice(&part).unwrap()
    };
    (json(), json())
}
