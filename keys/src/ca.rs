//! Core: the mesh CA's key material.

use std::fmt;

use crate::secret::Secret;

/// Which CA of a deployment: 0 at first, one more with each rollover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CaGeneration(pub u32);

/// Seed of one CA generation's private key.
///
/// 48 bytes, reduced to a P-256 scalar as `1 + (seed mod (n - 1))`, the seed read big endian: with
/// 128 bits more than the order has, the bias is below 2^-128 (FIPS 186-5, A.2.1).
pub struct CaSeed(Secret<48>);

impl CaSeed {
    pub(crate) fn new(secret: Secret<48>) -> Self {
        Self(secret)
    }

    /// The bytes, for the reduction to a scalar.
    pub fn expose(&self) -> &[u8; 48] {
        self.0.expose()
    }
}

impl fmt::Debug for CaSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaSeed(..)")
    }
}
