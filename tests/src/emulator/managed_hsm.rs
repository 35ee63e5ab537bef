//! Adapter: Azure Managed HSM, data plane: keys are created, read and released (REST 7.4).

use std::fmt;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use runtime::clock::Clock;
use runtime::sync::Mutex;
use serde_json::{Value, json};

use super::Emulator;
use super::script::Script;
use super::server::{Answer, Api, Call};

mod access;
mod key;
mod release;
mod token;
mod wrap;

use access::Permission;
use key::{KeyStore, KeyVersion};

pub(super) use access::Doorman;
pub use access::Role;
pub use release::ReleaseLie;
pub(super) use release::Signers;
pub(super) use token::TrustedIssuer;

/// Versions of the interface that know release policies with a version of their own.
const API_VERSIONS: [&str; 3] = ["7.4", "7.5", "7.6"];

/// The vault.
pub struct ManagedHsm {
    url: String,
    doorman: Doorman,
    issuer: TrustedIssuer,
    signers: Signers,
    clock: Arc<dyn Clock>,
    keys: Mutex<KeyStore>,
    lies: Script<ReleaseLie>,
}

impl fmt::Debug for ManagedHsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagedHsm")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl ManagedHsm {
    pub(super) fn new(
        url: &str,
        doorman: Doorman,
        issuer: TrustedIssuer,
        signers: Signers,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let keys = Mutex::new(KeyStore::default());
        Self {
            url: url.to_owned(),
            doorman,
            issuer,
            signers,
            clock,
            keys,
            lies: Script::new(),
        }
    }

    fn create(&self, call: &Call, name: &str) -> Result<Answer, Answer> {
        let key = KeyVersion::create(&call.json("BadParameter")?, self.clock.now())?;
        let answer = key.describe(&self.key_id(name, key.version()));
        self.keys.lock().add(name, key)?;
        Ok(Answer::ok(answer))
    }

    fn read(&self, name: &str, version: Option<&str>) -> Result<Answer, Answer> {
        let keys = self.keys.lock();
        let key = keys.find(name, version)?;
        Ok(Answer::ok(key.describe(&self.key_id(name, key.version()))))
    }

    fn key_id(&self, name: &str, version: &str) -> String {
        format!("{}/keys/{name}/{version}", self.url)
    }

    fn route(&self, call: &Call) -> Result<Answer, Answer> {
        let segments: Vec<&str> = call
            .path
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let may = |permission| self.doorman.admit(call, permission);
        match (&call.method, segments.as_slice()) {
            (&Method::POST, ["keys", name, "create"]) => {
                may(Permission::Create)?;
                require_api_version(call)?;
                self.create(call, name)
            }
            (&Method::GET, ["keys", name, version @ ..]) if version.len() < 2 => {
                may(Permission::Read)?;
                require_api_version(call)?;
                self.read(name, version.first().copied())
            }
            (&Method::POST, ["keys", name, version @ .., "release"]) if version.len() < 2 => {
                may(Permission::Release)?;
                require_api_version(call)?;
                self.release(call, name, version.first().copied())
            }
            _ => {
                // Whoever is not known learns nothing, not even what there is not.
                may(Permission::Read)?;
                Err(Answer::error(
                    StatusCode::NOT_FOUND,
                    "NotFound",
                    "no such resource",
                ))
            }
        }
    }
}

impl Api for ManagedHsm {
    fn answer(&self, call: &Call) -> Result<Answer, Answer> {
        self.route(call)
    }
}

impl Emulator<ManagedHsm> {
    /// Gives a principal a role on all keys.
    pub fn assign(&self, object_id: &str, role: Role) {
        self.service.doorman.assign(object_id, role);
    }

    /// Takes all roles from a principal.
    pub fn revoke(&self, object_id: &str) {
        self.service.doorman.revoke(object_id);
    }

    /// The next `count` releases are wrong in this way; after those that were planned before.
    pub fn lie_next(&self, count: u32, lie: ReleaseLie) {
        self.service.lies.append(count, lie);
    }
}

fn require_api_version(call: &Call) -> Result<(), Answer> {
    match call.parameter("api-version") {
        Some(version) if API_VERSIONS.contains(&version) => Ok(()),
        _ => Err(bad_parameter("api-version is missing or not supported")),
    }
}

fn bad_parameter(message: &str) -> Answer {
    Answer::error(StatusCode::BAD_REQUEST, "BadParameter", message)
}

/// The answer to a missing role and to a release policy that says no alike.
fn forbidden(message: &str) -> Answer {
    let answer = Answer::error(StatusCode::FORBIDDEN, "Forbidden", message);
    answer.with_body(json!({
        "error": {
            "code": "Forbidden",
            "message": message,
            "innererror": {"code": "AccessDenied"},
        },
    }))
}

/// A member of a JSON object that must be a text.
fn text<'a>(object: &'a Value, name: &str) -> Result<&'a str, Answer> {
    let member = object.get(name).and_then(Value::as_str);
    member.ok_or_else(|| bad_parameter(&format!("{name} is missing or no text")))
}
