//! Adapter: a provider that remembers every key and nonce it sealed with, for tests.

use std::collections::BTreeSet;
use std::sync::Arc;

use runtime::sync::Mutex;

use super::{Aead, AeadKey, aws_lc};
use crate::crypto::{NotAuthentic, SealError};

type Seen = Arc<Mutex<BTreeSet<([u8; 32], [u8; 12])>>>;

/// Panics when a key seals under one nonce twice.
#[derive(Debug, Default, Clone)]
pub(crate) struct Recorder {
    seen: Seen,
}

struct Key {
    inner: Box<dyn AeadKey>,
    key: [u8; 32],
    seen: Seen,
}

impl Recorder {
    /// How often something was sealed.
    pub(crate) fn seals(&self) -> usize {
        self.seen.lock().len()
    }
}

impl Aead for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn key(&self, key: &[u8; 32]) -> Box<dyn AeadKey> {
        let inner = aws_lc::AwsLc.key(key);
        Box::new(Key {
            inner,
            key: *key,
            seen: Arc::clone(&self.seen),
        })
    }
}

impl AeadKey for Key {
    fn seal(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        plaintext: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), SealError> {
        let fresh = self.seen.lock().insert((self.key, *nonce));
        assert!(fresh, "a key sealed twice under one nonce");
        self.inner.seal(nonce, aad, plaintext, sealed)
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        self.inner.open(nonce, aad, sealed, plaintext)
    }
}
