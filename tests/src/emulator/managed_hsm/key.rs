//! Core: keys and their versions, each bound to its release policy for good.

use std::collections::BTreeMap;

use attest::policy::ReleasePolicy;
use hyper::StatusCode;
use openssl::error::ErrorStack;
use runtime::clock::UnixTime;
use serde_json::{Value, json};

use super::{bad_parameter, text};
use crate::emulator::server::Answer;
use crate::emulator::{jose, random_hex};

/// Length of an AES-256 key.
pub(super) const KEY_BYTES: usize = 32;
const RECOVERABLE_DAYS: u32 = 90;

/// All keys by name; versions in the order of creation.
#[derive(Debug, Default)]
pub(super) struct KeyStore(BTreeMap<String, Vec<KeyVersion>>);

/// One version of a key.
#[derive(Debug)]
pub(super) struct KeyVersion {
    version: String,
    pub(super) material: [u8; KEY_BYTES],
    key_ops: Value,
    exportable: bool,
    tags: Option<Value>,
    created: UnixTime,
    release_policy: Option<StoredPolicy>,
}

/// A release policy, with its text as it came.
#[derive(Debug)]
struct StoredPolicy {
    content_type: String,
    data: String,
    immutable: bool,
    policy: ReleasePolicy,
}

impl KeyStore {
    /// Adds a version to the key of that name, which becomes the current one.
    pub(super) fn add(&mut self, name: &str, key: KeyVersion) -> Result<(), Answer> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.len() > 127 || !name.bytes().all(plain) {
            return Err(bad_parameter(
                "the name has characters that names cannot have",
            ));
        }
        self.0.entry(name.to_owned()).or_default().push(key);
        Ok(())
    }

    /// A version of a key; the current one when none is named.
    pub(super) fn find(&self, name: &str, version: Option<&str>) -> Result<&KeyVersion, Answer> {
        let versions = self.0.get(name).map_or(&[][..], Vec::as_slice);
        let found = match version {
            Some(version) => versions.iter().find(|key| key.version == version),
            None => versions.last(),
        };
        found.ok_or_else(|| {
            Answer::error(
                StatusCode::NOT_FOUND,
                "KeyNotFound",
                "no key of this name and version",
            )
        })
    }
}

impl KeyVersion {
    /// Makes a key as the body of a create request wants it.
    pub(super) fn create(body: &Value, now: UnixTime) -> Result<Self, Answer> {
        let size = body.get("key_size").and_then(Value::as_u64);
        if text(body, "kty")? != "oct-HSM" || size != Some(256) {
            return Err(bad_parameter(
                "this emulator keeps oct-HSM keys of 256 bits alone",
            ));
        }
        let exportable = body.pointer("/attributes/exportable") == Some(&Value::Bool(true));
        let release_policy = match body.get("release_policy") {
            Some(policy) => Some(StoredPolicy::parse(policy)?),
            None => None,
        };
        if exportable && release_policy.is_none() {
            return Err(bad_parameter("Exportable keys must have release policy"));
        }
        if !exportable && release_policy.is_some() {
            return Err(bad_parameter(
                "keys with a release policy must be exportable",
            ));
        }
        Ok(Self {
            version: random_hex::<16>()?,
            material: random_material()?,
            key_ops: body.get("key_ops").cloned().unwrap_or_else(all_operations),
            exportable,
            tags: body.get("tags").cloned(),
            created: now,
            release_policy,
        })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The policy that a release has to satisfy; `None` when the key is never released.
    pub(super) fn release_policy(&self) -> Option<&ReleasePolicy> {
        self.release_policy.as_ref().map(|stored| &stored.policy)
    }

    /// The key as answers show it, without its material.
    pub(super) fn describe(&self, kid: &str) -> Value {
        let mut answer = json!({
            "key": {"kid": kid, "kty": "oct-HSM", "key_ops": self.key_ops},
            "attributes": {
                "enabled": true,
                "exportable": self.exportable,
                "recoveryLevel": "CustomizedRecoverable",
                "recoverableDays": RECOVERABLE_DAYS,
                "created": self.created.0,
                "updated": self.created.0,
            },
        });
        if let Some(tags) = &self.tags {
            answer["tags"] = tags.clone();
        }
        if let Some(stored) = &self.release_policy {
            answer["release_policy"] = json!({
                "contentType": stored.content_type,
                "data": stored.data,
                "immutable": stored.immutable,
            });
        }
        answer
    }
}

impl StoredPolicy {
    fn parse(member: &Value) -> Result<Self, Answer> {
        let data = text(member, "data")?;
        let bytes = jose::decode(data)
            .ok_or_else(|| bad_parameter("Key Release Policy: data is no base64url"))?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|_| bad_parameter("Key Release Policy: data is no JSON"))?;
        if json.get("version").is_none() {
            return Err(bad_parameter(
                "Key Release Policy: missing 'version' property",
            ));
        }
        let policy = ReleasePolicy::parse(&bytes)
            .map_err(|error| bad_parameter(&format!("Key Release Policy: {error}")))?;
        let content_type = member.get("contentType").and_then(Value::as_str);
        Ok(Self {
            content_type: content_type
                .unwrap_or("application/json; charset=utf-8")
                .to_owned(),
            data: data.to_owned(),
            immutable: member.get("immutable") == Some(&Value::Bool(true)),
            policy,
        })
    }
}

pub(super) fn random_material() -> Result<[u8; KEY_BYTES], ErrorStack> {
    let mut material = [0; KEY_BYTES];
    openssl::rand::rand_bytes(&mut material)?;
    Ok(material)
}

/// What a key may do that was created without a list.
fn all_operations() -> Value {
    json!(["encrypt", "decrypt", "wrapKey", "unwrapKey"])
}
