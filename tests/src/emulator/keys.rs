//! Core: the RSA keys of the emulators, made once in a process: each takes a tenth of a second.

use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use runtime::sync::Mutex;

use crate::pki::rsa_key;

const BITS: u32 = 2_048;

/// One RSA-2048 key for each purpose. Clones share the keys.
pub(super) struct EmulatorKeys {
    /// Signs attestation tokens.
    pub(super) maa: PKey<Private>,
    /// Published by the attestation service as well, and signs nothing that is true.
    pub(super) maa_other: PKey<Private>,
    /// Signs access tokens and the workloads' own tokens.
    pub(super) entra: PKey<Private>,
    /// Root of the chain that signs released keys.
    pub(super) release_root: PKey<Private>,
    /// Intermediate of that chain.
    pub(super) release_intermediate: PKey<Private>,
    /// Signs released keys.
    pub(super) release: PKey<Private>,
    /// Belongs to nobody that anybody trusts.
    pub(super) foreign: PKey<Private>,
}

impl EmulatorKeys {
    /// This process's keys, made at the first call.
    pub(super) fn shared() -> Result<Arc<Self>, ErrorStack> {
        static KEYS: Mutex<Option<Arc<EmulatorKeys>>> = Mutex::new(None);
        let mut keys = KEYS.lock();
        if let Some(keys) = &*keys {
            return Ok(keys.clone());
        }
        Ok(keys.insert(Arc::new(Self::generate()?)).clone())
    }

    fn generate() -> Result<Self, ErrorStack> {
        std::thread::scope(|scope| {
            let [a, b, c, d, e, f, g] = std::array::from_fn(|_| scope.spawn(|| rsa_key(BITS)));
            // Trying again here says what was wrong in a thread that died.
            let key = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| rsa_key(BITS))
            };
            Ok(Self {
                maa: key(a)?,
                maa_other: key(b)?,
                entra: key(c)?,
                release_root: key(d)?,
                release_intermediate: key(e)?,
                release: key(f)?,
                foreign: key(g)?,
            })
        })
    }
}
