//! Core: the secrets that can be asked for, each as the bytes that go on the wire.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// The secrets that exist. Names are those of SPIRE and Istio, so that configurations move over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SecretName {
    /// Certificate chain and private key of this pod.
    Identity,
    /// CA certificates of the mesh.
    TrustBundle,
}

/// Version of a secret: a digest of its content, so that it is the same on every stream and after
/// a restart, and changes exactly when the content does.
///
/// It is public (Envoy shows it in statistics). The digest covers a private key, of which it tells
/// no more than the public key does: whoever guesses the key can confirm the guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version([u8; 16]);

/// A secret, encoded once however many streams it is pushed to.
#[derive(Clone)]
pub(crate) struct EncodedSecret {
    /// Version of the content.
    pub(crate) version: Version,
    /// The encoded `Secret` message; wiped when the last holder lets go.
    pub(crate) message: Bytes,
}

impl SecretName {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Identity, Self::TrustBundle];

    /// The secret that a client calls `name`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|secret| secret.as_str() == name)
    }

    /// What clients call it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "default",
            Self::TrustBundle => "ROOTCA",
        }
    }
}

impl Version {
    /// The version of `content`.
    pub(crate) fn of(content: &[u8]) -> Self {
        let mut version = [0; 16];
        // Half a digest: nobody but the pod itself makes contents, and statistics stay readable.
        for (to, from) in version.iter_mut().zip(Sha256::digest(content)) {
            *to = from;
        }
        Self(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl EncodedSecret {
    pub(crate) fn new(message: Bytes) -> Self {
        Self {
            version: Version::of(&message),
            message,
        }
    }
}

impl fmt::Debug for EncodedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedSecret({})", self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_itself_and_case_matters() {
        for name in SecretName::ALL {
            assert_eq!(SecretName::parse(name.as_str()), Some(name));
        }
        assert_eq!(SecretName::parse("rootca"), None);
        assert_eq!(SecretName::parse(""), None);
    }

    #[test]
    fn a_version_is_half_of_the_contents_sha256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            Version::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223"
        );
    }

    #[test]
    fn debug_prints_no_content() {
        let secret = EncodedSecret::new(Bytes::from_static(b"abc"));
        assert_eq!(
            format!("{secret:?}"),
            "EncodedSecret(ba7816bf8f01cfea414140de5dae2223)"
        );
    }
}
