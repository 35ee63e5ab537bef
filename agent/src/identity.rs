//! Core: the pod's own identity in the mesh: the CA it issues from and the leaf it serves now.

use std::sync::Arc;
use std::time::Duration;

use enclaveid_envoy::{Publisher, Svid};
use runtime::clock::Clock;
use runtime::sync::{Mutex, RwLock};
use serde::Serialize;

use crate::pki::{CaError, Leaf, SpiffeId, VerifiedCa, issue};

/// Issues leaves, publishes each to Envoy, and remembers the current one.
#[derive(Debug)]
pub struct PodIdentity {
    ca: VerifiedCa,
    ca_pem: Vec<u8>,
    spiffe_id: SpiffeId,
    lifetime: Duration,
    clock: Arc<dyn Clock>,
    publisher: Publisher,
    current: RwLock<Arc<Leaf>>,
    /// Held over issue and publish, so that leaves appear in the order they were made in.
    rotating: Mutex<u64>,
}

/// The identity as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct IdentityView {
    /// SPIFFE id.
    pub spiffe_id: String,
    /// Serial number of the current leaf, hexadecimal.
    pub serial: String,
    /// Last second of the leaf's validity, seconds since 1970.
    pub not_after: i64,
    /// How many leaves were issued since the start, the first one included.
    pub issued: u64,
}

impl PodIdentity {
    /// Issues the first leaf and publishes it.
    pub fn start(
        ca: VerifiedCa,
        spiffe_id: SpiffeId,
        lifetime: Duration,
        clock: Arc<dyn Clock>,
        publisher: Publisher,
    ) -> Result<Self, CaError> {
        let ca_pem = ca.certificate().to_pem()?;
        let first = Arc::new(issue(&ca, &spiffe_id, clock.now(), lifetime)?);
        let identity = Self {
            ca,
            ca_pem,
            spiffe_id,
            lifetime,
            clock,
            publisher,
            current: RwLock::new(Arc::clone(&first)),
            rotating: Mutex::new(1),
        };
        identity.publish(&first);
        Ok(identity)
    }

    /// Issues the next leaf and publishes it. On an error the current one stays in use.
    pub fn rotate(&self) -> Result<IdentityView, CaError> {
        let mut issued = self.rotating.lock();
        let next = issue(&self.ca, &self.spiffe_id, self.clock.now(), self.lifetime)?;
        let next = Arc::new(next);
        self.publish(&next);
        *self.current.write() = next;
        *issued += 1;
        drop(issued);
        Ok(self.view())
    }

    /// The leaf in use.
    pub fn leaf(&self) -> Arc<Leaf> {
        Arc::clone(&self.current.read())
    }

    /// DER of the mesh CA's SubjectPublicKeyInfo.
    pub fn ca_spki_der(&self) -> Result<Vec<u8>, CaError> {
        self.ca.spki_der()
    }

    /// SPIFFE id of this pod.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Life of a leaf.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// A copy for the API.
    pub fn view(&self) -> IdentityView {
        let issued = *self.rotating.lock();
        let leaf = self.leaf();
        IdentityView {
            spiffe_id: self.spiffe_id.to_string(),
            serial: leaf.serial_hex.clone(),
            not_after: leaf.not_after.0,
            issued,
        }
    }

    fn publish(&self, leaf: &Leaf) {
        self.publisher.publish(&Svid {
            spiffe_id: self.spiffe_id.to_string(),
            certificate_chain_pem: leaf.certificate_pem.clone(),
            private_key_pem: leaf.private_key_pem.clone(),
            trust_bundle_pem: self.ca_pem.clone(),
            serial_hex: leaf.serial_hex.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        });
    }
}
