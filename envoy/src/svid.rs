//! Core: the identity that Envoy is given.

use std::fmt;

use runtime::clock::UnixTime;
use zeroize::Zeroizing;

/// An X509-SVID with its private key and the trust bundle that goes with it.
///
/// Nothing in here is examined: this crate does not know what a certificate proves. A pair that
/// does not fit is refused by Envoy, which goes on with what it has.
pub struct Svid {
    /// SPIFFE id in the certificate.
    pub spiffe_id: String,
    /// Leaf first, then intermediates.
    pub certificate_chain_pem: Vec<u8>,
    /// Key of the leaf (PKCS #8).
    pub private_key_pem: Zeroizing<Vec<u8>>,
    /// The CA certificates that peers are verified against.
    pub trust_bundle_pem: Vec<u8>,
    /// Serial number of the leaf, lower-case hexadecimal as Envoy's `/certs` prints it.
    pub serial_hex: String,
    /// First second of the leaf's validity.
    pub not_before: UnixTime,
    /// Last second of the leaf's validity.
    pub not_after: UnixTime,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial_hex", &self.serial_hex)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
