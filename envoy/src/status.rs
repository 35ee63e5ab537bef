//! Core: what the SDS server is doing, in numbers.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::secret::{SecretName, Version};

/// A handle on the numbers of one SDS server.
#[derive(Debug, Clone)]
pub struct SdsStatus(watch::Sender<SdsView>);

/// The numbers at one moment. Totals count from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SdsView {
    /// Streams that are open.
    pub streams: u64,
    /// Secrets pushed.
    pub pushes: u64,
    /// Pushes that a client took.
    pub acks: u64,
    /// Pushes that a client refused.
    pub nacks: u64,
    /// Connections refused for their user and group id.
    pub refused_peers: u64,
    /// From the last push that was taken to its acknowledgement, in milliseconds.
    pub last_ack_ms: Option<f64>,
    /// The last refusal.
    pub last_nack: Option<LastNack>,
}

/// A push that a client refused. Its reason is in the client's log: it is text of another
/// program's making, and is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastNack {
    /// Name of the secret.
    pub name: &'static str,
    /// Version that was refused.
    pub version: String,
    /// What the client calls itself, cut to 128 bytes.
    pub node: String,
}

/// Counts a stream as open until dropped.
#[derive(Debug)]
pub(crate) struct OpenStream(SdsStatus);

impl SdsStatus {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(SdsView::default()))
    }

    /// The numbers now.
    #[must_use]
    pub fn view(&self) -> SdsView {
        self.0.borrow().clone()
    }

    /// Waits until the numbers satisfy `condition` and returns them. Cancel-safe.
    pub async fn wait_for(&self, condition: impl FnMut(&SdsView) -> bool) -> SdsView {
        let mut numbers = self.0.subscribe();
        match numbers.wait_for(condition).await {
            Ok(view) => view.clone(),
            // Only when every sender is gone, and `self` is one.
            Err(_) => self.view(),
        }
    }

    pub(crate) fn open_stream(&self) -> OpenStream {
        self.0.send_modify(|view| view.streams += 1);
        OpenStream(self.clone())
    }

    pub(crate) fn pushed(&self) {
        self.0.send_modify(|view| view.pushes += 1);
    }

    pub(crate) fn acked(&self, after: Duration) {
        self.0.send_modify(|view| {
            view.acks += 1;
            view.last_ack_ms = Some(after.as_secs_f64() * 1_000.0);
        });
    }

    pub(crate) fn nacked(&self, name: SecretName, version: Version, node: &str) {
        let last = LastNack {
            name: name.as_str(),
            version: version.to_string(),
            node: node.to_owned(),
        };
        self.0.send_modify(|view| {
            view.nacks += 1;
            view.last_nack = Some(last);
        });
    }

    pub(crate) fn refused_peer(&self) {
        self.0.send_modify(|view| view.refused_peers += 1);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.send_modify(|view| view.streams -= 1);
    }
}
