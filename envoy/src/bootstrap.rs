//! Core: the configuration that an Envoy starts with: static, but for the secrets.
//!
//! **Design.** Explicit ports, no redirection: the application listens on loopback, Envoy owns the
//! port that others reach (mutual TLS), and each peer is a plaintext port on loopback. That needs
//! no privilege and works in any guest kernel. Who may call, and who is called, stands in here as
//! SPIFFE ids; over SDS come only the certificate and the CA. So the rules are as trustworthy as
//! this file, which belongs to what is measured, and an SDS server cannot widen them.
//!
//! **Invariants.** TLS 1.3 and nothing older on either side; a client certificate always; no
//! session resumption, so that each handshake proves both identities anew; a listener opens when its
//! secrets are there, not before.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

mod clusters;
mod listeners;
mod tls;

/// What an Envoy is to do.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Name of this Envoy, such as the pod's.
    pub node_id: String,
    /// Name of the service that it stands before.
    pub cluster: String,
    /// Socket of the SDS server.
    pub sds_socket: PathBuf,
    /// Port of the admin interface on 127.0.0.1, open to all in the pod; 0 for any.
    pub admin_port: u16,
    /// The application's door for its peers.
    pub inbound: Option<Inbound>,
    /// The peers that the application calls.
    pub outbound: Vec<Outbound>,
    /// Where `GET /healthz/ready` is answered, in plaintext: 200 once all secrets are there (until
    /// then the port is closed), 503 when draining.
    pub health: Option<SocketAddr>,
    /// Connections of clients at once, all listeners together.
    pub connections_max: u32,
    /// Age at which a connection is replaced. Envoy verifies certificates in handshakes alone, so
    /// this bounds how long a connection outlives them: less than what a leaf has left when it is
    /// renewed.
    pub connection_lifetime: Duration,
}

/// Mutual TLS in, plaintext to the application.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Where peers connect; port 0 for any.
    pub listen: SocketAddr,
    /// Port of the application on 127.0.0.1, which speaks HTTP/1.1.
    pub app_port: u16,
    /// Who may call. Not empty: without a rule any certificate of the mesh would do.
    pub callers: Vec<SpiffeMatch>,
}

/// Plaintext from the application, mutual TLS out.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Name of the peer in statistics: letters, digits, `-` and `_`; each once.
    pub name: String,
    /// Where the application connects: on loopback; port 0 for any.
    pub listen: SocketAddr,
    /// Address or DNS name of the peer.
    pub host: String,
    /// Port of the peer's inbound listener.
    pub port: u16,
    /// Whom the peer has to be.
    pub peer: SpiffeMatch,
}

/// A rule for SPIFFE ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpiffeMatch {
    kind: MatchKind,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MatchKind {
    Exact,
    Prefix,
}

/// Why there is no bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The text is no SPIFFE id.
    #[error("not a SPIFFE id: {0:?}")]
    SpiffeId(String),
    /// A prefix would match other trust domains or other workloads too.
    #[error("a prefix of SPIFFE ids has to end with a slash: {0:?}")]
    OpenPrefix(String),
    /// Nobody may call, or nobody said who.
    #[error("the inbound listener names no caller")]
    NoCallers,
    /// A plaintext listener would be open to the network.
    #[error("the listener of peer {0:?} is not on loopback")]
    NotLoopback(String),
    /// A peer's name is empty, has other characters than allowed, or comes twice.
    #[error("a peer cannot be named {0:?}")]
    Name(String),
    /// Envoy asks for secrets only under a name: node id or cluster is empty.
    #[error("the node has no id or no cluster")]
    Node,
    /// The socket's path is not UTF-8.
    #[error("the path of the SDS socket is not UTF-8")]
    SocketPath,
}

impl BootstrapError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::SpiffeId(_) => "bootstrap.spiffe_id",
            Self::OpenPrefix(_) => "bootstrap.open_prefix",
            Self::NoCallers => "bootstrap.no_callers",
            Self::NotLoopback(_) => "bootstrap.not_loopback",
            Self::Name(_) => "bootstrap.name",
            Self::Node => "bootstrap.node",
            Self::SocketPath => "bootstrap.socket_path",
        }
    }
}

impl SpiffeMatch {
    /// This id and no other.
    pub fn exact(id: &str) -> Result<Self, BootstrapError> {
        let path = path_of(id)?;
        let empty = |segment| matches!(segment, "" | "." | "..");
        if path.is_empty() || path.split('/').skip(1).any(empty) {
            return Err(BootstrapError::SpiffeId(id.to_owned()));
        }
        Ok(Self {
            kind: MatchKind::Exact,
            text: id.to_owned(),
        })
    }

    /// Every id below `prefix`, which ends with a slash: `spiffe://td/` is the whole trust domain.
    pub fn below(prefix: &str) -> Result<Self, BootstrapError> {
        let path = path_of(prefix)?;
        if !path.ends_with('/') {
            return Err(BootstrapError::OpenPrefix(prefix.to_owned()));
        }
        Ok(Self {
            kind: MatchKind::Prefix,
            text: prefix.to_owned(),
        })
    }

    /// The rule as a matcher of URI names.
    fn matcher(&self) -> Value {
        let key = match self.kind {
            MatchKind::Exact => "exact",
            MatchKind::Prefix => "prefix",
        };
        json!({ "san_type": "URI", "matcher": { key: self.text } })
    }
}

/// The path of a SPIFFE id, of whose trust domain and characters the SPIFFE-ID document, section
/// 2, tells.
fn path_of(id: &str) -> Result<&str, BootstrapError> {
    let bad = || BootstrapError::SpiffeId(id.to_owned());
    let rest = id.strip_prefix("spiffe://").ok_or_else(bad)?;
    let domain_end = rest.find('/').unwrap_or(rest.len());
    let (domain, path) = rest.split_at_checked(domain_end).ok_or_else(bad)?;
    let in_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let in_path = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    if domain.is_empty() || !domain.bytes().all(in_domain) || !path.bytes().all(in_path) {
        return Err(bad());
    }
    Ok(path)
}

impl Bootstrap {
    /// The bootstrap as JSON, which Envoy takes as it takes YAML.
    pub fn to_json(&self) -> Result<String, BootstrapError> {
        self.check()?;
        let sds_socket = self.sds_socket.to_str().ok_or(BootstrapError::SocketPath)?;
        let lifetime = duration(self.connection_lifetime);
        let mut listeners = Vec::new();
        let mut clusters = vec![clusters::sds(sds_socket)];
        if let Some(inbound) = &self.inbound {
            listeners.push(listeners::inbound(inbound, &lifetime));
            clusters.push(clusters::app(inbound.app_port));
        }
        for outbound in &self.outbound {
            listeners.push(listeners::outbound(outbound));
            clusters.push(clusters::peer(outbound, &lifetime));
        }
        listeners.extend(self.health.map(listeners::health));
        let bootstrap = json!({
            "node": { "id": self.node_id, "cluster": self.cluster },
            "admin": { "address": address(SocketAddr::from(([127, 0, 0, 1], self.admin_port))) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
            "overload_manager": { "resource_monitors": [{
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors\
                              .downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": self.connections_max,
                },
            }]},
        });
        Ok(format!("{bootstrap:#}\n"))
    }

    fn check(&self) -> Result<(), BootstrapError> {
        if self.node_id.is_empty() || self.cluster.is_empty() {
            return Err(BootstrapError::Node);
        }
        if self
            .inbound
            .as_ref()
            .is_some_and(|inbound| inbound.callers.is_empty())
        {
            return Err(BootstrapError::NoCallers);
        }
        let mut names = std::collections::BTreeSet::new();
        for Outbound { name, listen, .. } in &self.outbound {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
            if name.is_empty() || !name.bytes().all(plain) || !names.insert(name) {
                return Err(BootstrapError::Name(name.clone()));
            }
            if !listen.ip().is_loopback() {
                return Err(BootstrapError::NotLoopback(name.clone()));
            }
        }
        Ok(())
    }
}

/// A socket address as Envoy writes it.
fn address(at: SocketAddr) -> Value {
    host_port(&at.ip().to_string(), at.port())
}

fn host_port(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// A duration in the JSON form of protobuf.
fn duration(duration: Duration) -> String {
    format!("{}.{:03}s", duration.as_secs(), duration.subsec_millis())
}

#[cfg(test)]
mod tests;
