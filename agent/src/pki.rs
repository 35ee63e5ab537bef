//! Core: the mesh's certificates: the CA that stems from the released secret, and the pod's leaf.

use std::fmt;

mod ca;
mod leaf;

pub use ca::{CaError, MeshCa, VerifiedCa};
pub use leaf::{Leaf, issue};

/// A SPIFFE id: the URI that names a workload.
#[derive(Clone, PartialEq, Eq)]
pub struct SpiffeId {
    text: String,
    trust_domain_len: usize,
}

/// A text is not a SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be spiffe://<trust domain>/<path> in the form of the SPIFFE-ID standard")]
pub struct SpiffeIdError;

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID section 2.3.
const ID_BYTES_MAX: usize = 2048;

impl SpiffeId {
    /// Parses a workload's id by SPIFFE-ID section 2: lower-case trust domain, at least one path
    /// segment, none empty or made of dots, no percent-encoding.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let rest = text
            .strip_prefix(SCHEME)
            .filter(|_| text.len() <= ID_BYTES_MAX);
        let (domain, path) = rest
            .and_then(|rest| rest.split_once('/'))
            .ok_or(SpiffeIdError)?;
        let domain_byte =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        let path_byte = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(path_byte);
        let valid = (1..=255).contains(&domain.len())
            && domain.bytes().all(domain_byte)
            && path.split('/').all(segment);
        if !valid {
            return Err(SpiffeIdError);
        }
        Ok(Self {
            text: text.to_owned(),
            trust_domain_len: domain.len(),
        })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain, without the scheme.
    pub fn trust_domain(&self) -> &str {
        let end = SCHEME.len() + self.trust_domain_len;
        self.text.get(SCHEME.len()..end).unwrap_or_default()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_standard() {
        let id = SpiffeId::parse("spiffe://demo.enclaveid/ns/default/sa/pod-a").unwrap();
        assert_eq!(id.trust_domain(), "demo.enclaveid");
        for bad in [
            "",
            "spiffe://",
            "spiffe://demo",
            "spiffe://demo/",
            "spiffe://Demo/a",
            "spiffe:///a",
            "spiffe://demo/a//b",
            "spiffe://demo/../b",
            "spiffe://demo/a%20b",
            "spiffe://demo:80/a",
            "http://demo/a",
        ] {
            assert_eq!(SpiffeId::parse(bad), Err(SpiffeIdError), "{bad}");
        }
    }
}
