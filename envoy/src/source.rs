//! Port: where identities come from: a publisher on one side, immutable snapshots on the other.

use std::sync::Arc;

use tokio::sync::watch;

use crate::sds::encode;
use crate::secret::{EncodedSecret, SecretName};
use crate::status::SdsStatus;
use crate::svid::Svid;

/// All secrets at one moment. Never changed: the next one replaces it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    identity: EncodedSecret,
    trust_bundle: EncodedSecret,
}

/// The latest snapshot; `None` until the first is published.
pub(crate) type Latest = Option<Arc<Snapshot>>;

/// The end that has identities.
#[derive(Debug)]
pub struct Publisher(watch::Sender<Latest>);

/// The end that serves them: give it to [`crate::serve`].
#[derive(Debug, Clone)]
pub struct Snapshots {
    pub(crate) latest: watch::Receiver<Latest>,
    status: SdsStatus,
}

/// Two ends of one channel. Whoever serves sees the latest identity; those that were replaced
/// before he looked are skipped.
#[must_use]
pub fn channel() -> (Publisher, Snapshots) {
    let (publisher, latest) = watch::channel(None);
    (
        Publisher(publisher),
        Snapshots {
            latest,
            status: SdsStatus::new(),
        },
    )
}

impl Publisher {
    /// Replaces the identity that is served. Streams learn of the secrets whose content changed.
    pub fn publish(&self, svid: &Svid) {
        self.0.send_replace(Some(Arc::new(Snapshot::of(svid))));
    }
}

impl Snapshots {
    /// What the server that takes these snapshots is doing. Stays valid when that has ended.
    #[must_use]
    pub fn status(&self) -> SdsStatus {
        self.status.clone()
    }
}

impl Snapshot {
    pub(crate) fn of(svid: &Svid) -> Self {
        Self {
            identity: encode::identity(svid),
            trust_bundle: encode::trust_bundle(svid),
        }
    }

    pub(crate) fn secret(&self, name: SecretName) -> &EncodedSecret {
        match name {
            SecretName::Identity => &self.identity,
            SecretName::TrustBundle => &self.trust_bundle,
        }
    }
}
