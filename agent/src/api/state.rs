//! Core: what the local API shows and does, apart from HTTP.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use runtime::clock::{Clock, UnixTime};
use runtime::sync::Mutex;
use serde_json::{Value, json};

use super::rate::{RateLimit, TooMany};
use crate::config::ConfigDigest;
use crate::identity::PodIdentity;
use crate::platform::Platform;
use crate::stages::BootStages;

/// Evidence for the host: the secure processor is slow, and the pod's own callers come first.
const HOST_EVIDENCE_BURST: u32 = 4;
const HOST_EVIDENCE_EACH: Duration = Duration::from_secs(5);

/// What the routes show and do.
#[derive(Debug)]
pub struct State {
    platform: Arc<dyn Platform>,
    clock: Arc<dyn Clock>,
    config_digest: ConfigDigest,
    stages: Arc<BootStages>,
    identity: OnceLock<Arc<PodIdentity>>,
    sections: Mutex<Vec<(&'static str, Section)>>,
    host_evidence: RateLimit,
}

/// A part of the status that another component fills in.
struct Section(Box<dyn Fn() -> Value + Send>);

impl std::fmt::Debug for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Section(..)")
    }
}

impl State {
    /// The state of an agent that has just begun to start.
    pub fn new(
        platform: Arc<dyn Platform>,
        clock: Arc<dyn Clock>,
        config_digest: ConfigDigest,
        stages: Arc<BootStages>,
    ) -> Self {
        Self {
            platform,
            clock,
            config_digest,
            stages,
            identity: OnceLock::new(),
            sections: Mutex::new(Vec::new()),
            host_evidence: RateLimit::new(HOST_EVIDENCE_BURST, HOST_EVIDENCE_EACH),
        }
    }

    /// Hands over the identity once there is one.
    pub fn set_identity(&self, identity: Arc<PodIdentity>) {
        // A second identity does not happen; the first would stay.
        let _ = self.identity.set(identity);
    }

    /// Adds a part to `GET /v1/status`.
    pub fn add_section(&self, name: &'static str, view: impl Fn() -> Value + Send + 'static) {
        self.sections.lock().push((name, Section(Box::new(view))));
    }

    pub(super) fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    pub(super) fn now(&self) -> UnixTime {
        self.clock.now()
    }

    pub(super) fn config_digest(&self) -> ConfigDigest {
        self.config_digest
    }

    pub(super) fn identity(&self) -> Option<&Arc<PodIdentity>> {
        self.identity.get()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stages.is_ready()
    }

    /// Takes one of the host's requests for evidence, if it has one left.
    pub(super) fn admit_host(&self) -> Result<(), TooMany> {
        self.host_evidence.admit(Instant::now())
    }

    /// The body of `GET /v1/status`.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "version": crate::VERSION,
            "simulated": self.platform.simulated(),
            "ready": self.stages.is_ready(),
            "key_provenance": crate::unlock::KEY_PROVENANCE,
            "config_sha256": crate::hex::encode(&self.config_digest.0),
            "boot": self.stages.view(),
            "identity": self.identity().map(|identity| identity.view()),
        });
        if let Some(status) = status.as_object_mut() {
            for (name, Section(view)) in self.sections.lock().iter() {
                status.insert((*name).to_owned(), view());
            }
        }
        status
    }
}
