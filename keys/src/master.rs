//! Core: the root of the tree, as the HSM releases it.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;

use crate::secret::{LengthMismatch, Secret};
use crate::{IntermediateSecret, label};

/// Root secret of a deployment, released by the HSM: input keying material, never a cipher key.
///
/// 32 bytes (an `oct-HSM` key of 256 bits). Its only use is [`MasterSecret::derive_intermediate`]:
/// a holder of cryptographic permissions on the vault can make the HSM compute with the master
/// key, but cannot make it compute HKDF over the key's bytes.
pub struct MasterSecret(Secret<32>);

impl MasterSecret {
    /// Takes the released bytes and wipes them in `released`.
    pub fn from_release(released: &mut [u8]) -> Result<Self, LengthMismatch> {
        Secret::take_from(released).map(Self)
    }

    /// Derives the secret that the deployment runs on.
    pub fn derive_intermediate(&self) -> IntermediateSecret {
        let tree = Hkdf::<Sha256>::new(Some(label::EXTRACT_SALT), self.0.expose());
        IntermediateSecret::new(expand(&tree, &[label::INTERMEDIATE]))
    }
}

impl fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterSecret(..)")
    }
}

/// HKDF-Expand of `N` bytes with an `info` given in parts.
pub(crate) fn expand<const N: usize>(tree: &Hkdf<Sha256>, info: &[&[u8]]) -> Secret<N> {
    const { assert!(N <= 255 * 32, "RFC 5869: at most 255 blocks") };
    let filled = Secret::fill_with(|bytes| tree.expand_multi_info(info, bytes));
    match filled {
        Ok(secret) => secret,
        // The only error of expand is an output of more than 255 blocks, excluded above.
        Err(_) => unreachable!("HKDF output length is checked at compile time"),
    }
}
