//! Core: one SDS stream as a state machine, without sockets and clocks.
//!
//! **Design.** State-of-the-world xDS for a resource type of which each response carries exactly
//! one resource: Envoy takes no more, and a refusal then concerns one secret alone. A client that
//! asks for several secrets gets them one after the other, each when the one before is answered.
//! Content that changes meanwhile is sent at once: renewal does not hang on a lost answer.
//!
//! **Invariants.** What was refused on a stream is not sent on it again; nothing is sent twice in a
//! row; a request that answers anything but the latest response changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::secret::{SecretName, Version};
use crate::source::Snapshot;

/// Names in one request. There are two secrets; more room than that serves nobody.
pub(crate) const NAMES_MAX: usize = 16;
/// Refused versions that are remembered, the oldest forgotten first: each takes a publication.
const REJECTED_MAX: usize = 32;
/// Bytes of a client's own name that are kept.
const NODE_BYTES_MAX: usize = 128;

/// What a client says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// What the client calls itself, if it does so in this message.
    pub(crate) node: Option<&'a str>,
    /// The secrets it wants from now on.
    pub(crate) names: &'a [String],
    /// The response that it answers; empty at first.
    pub(crate) nonce: &'a str,
    /// Whether it refuses that response.
    pub(crate) refuses: bool,
}

/// What a request meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A push was taken.
    Acked(SecretName, Version),
    /// A push was refused.
    Nacked(SecretName, Version),
    /// It answers nothing that waits for an answer: a subscription, new or changed.
    Subscribed,
    /// It crossed a newer response on the way; the client will answer that.
    Stale,
}

/// Why a stream has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// More than [`NAMES_MAX`] names.
    TooManyNames,
    /// A name that is not one of ours.
    UnknownName,
}

/// A secret to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) name: SecretName,
    pub(crate) version: Version,
    pub(crate) nonce: String,
}

/// The state of one stream.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    node: String,
    wanted: Wanted,
    /// What the client was sent last, whether it took it or not.
    sent: BTreeMap<SecretName, Version>,
    rejected: Vec<(SecretName, Version)>,
    in_flight: Option<Push>,
    /// Responses so far; the latest one's number is its nonce.
    responses: u64,
}

/// What a stream subscribes to.
#[derive(Debug, Default, PartialEq, Eq)]
enum Wanted {
    /// Nothing was asked yet.
    #[default]
    Unasked,
    /// An empty list of names, and never another: everything.
    Everything,
    /// These. An empty list is a client that has unsubscribed.
    Named(BTreeSet<SecretName>),
}

impl Subscription {
    /// What the client called itself in its first message; empty when it did not.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Takes a request in.
    pub(crate) fn receive(&mut self, request: &Request<'_>) -> Result<Event, Refusal> {
        if let Some(node) = request.node.filter(|_| self.node.is_empty()) {
            let cut = node.floor_char_boundary(NODE_BYTES_MAX);
            node.get(..cut)
                .unwrap_or_default()
                .clone_into(&mut self.node);
        }
        // A nonce means nothing on a stream that has had no response: clients that reconnect may
        // still send their last one.
        if self.responses > 0 && request.nonce != nonce(self.responses) {
            return Ok(Event::Stale);
        }
        // A refusal may change the subscription as well.
        self.subscribe(request.names)?;
        let Some(answered) = self.in_flight.take() else {
            return Ok(Event::Subscribed);
        };
        if request.refuses {
            self.reject(answered.name, answered.version);
            Ok(Event::Nacked(answered.name, answered.version))
        } else {
            Ok(Event::Acked(answered.name, answered.version))
        }
    }

    /// The next secret of `latest` that the client lacks, now counted as sent.
    pub(crate) fn next_push(&mut self, latest: &Snapshot) -> Option<Push> {
        let (name, version) = SecretName::ALL
            .into_iter()
            .map(|name| (name, latest.secret(name).version))
            .find(|(name, version)| self.is_due(*name, *version))?;
        self.sent.insert(name, version);
        self.responses += 1;
        let push = Push {
            name,
            version,
            nonce: nonce(self.responses),
        };
        self.in_flight = Some(push.clone());
        Some(push)
    }

    fn is_due(&self, name: SecretName, version: Version) -> bool {
        let its_turn = self.in_flight.as_ref().is_none_or(|push| push.name == name);
        its_turn
            && self.wants(name)
            && self.sent.get(&name) != Some(&version)
            && !self.rejected.contains(&(name, version))
    }

    fn wants(&self, name: SecretName) -> bool {
        match &self.wanted {
            Wanted::Unasked => false,
            Wanted::Everything => true,
            Wanted::Named(names) => names.contains(&name),
        }
    }

    fn subscribe(&mut self, names: &[String]) -> Result<(), Refusal> {
        if names.len() > NAMES_MAX {
            return Err(Refusal::TooManyNames);
        }
        let named: Option<BTreeSet<SecretName>> =
            names.iter().map(|name| SecretName::parse(name)).collect();
        let named = named.ok_or(Refusal::UnknownName)?;
        self.wanted = match self.wanted {
            Wanted::Unasked | Wanted::Everything if named.is_empty() => Wanted::Everything,
            Wanted::Unasked | Wanted::Everything | Wanted::Named(_) => Wanted::Named(named),
        };
        // A client that comes back to a secret has dropped it meanwhile.
        let wanted = SecretName::ALL.into_iter().filter(|name| self.wants(*name));
        let wanted: BTreeSet<SecretName> = wanted.collect();
        self.sent.retain(|name, _| wanted.contains(name));
        Ok(())
    }

    fn reject(&mut self, name: SecretName, version: Version) {
        if self.rejected.len() == REJECTED_MAX {
            self.rejected.remove(0);
        }
        self.rejected.push((name, version));
    }
}

/// Nonce of a stream's response number `response`.
fn nonce(response: u64) -> String {
    response.to_string()
}

#[cfg(test)]
mod tests;
