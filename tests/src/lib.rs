//! Core: what the tests and the demo run against: the cloud's services as servers on the real
//! wire, and the secure processor's certificates and reports as bytes.
//!
//! [`emulator`]: the attestation service, the Managed HSM and the token service. [`snp`]: a
//! simulated AMD key hierarchy and reports laid out like real ones. [`pki`]: certificates for all
//! of them, made at run time.
//!
//! Nothing in here is a mock of one of our own traits: the product's clients are what is tested.
#![forbid(unsafe_code)]

pub mod demo;
pub mod deployment;
pub mod emulator;
pub mod fixture;
pub mod pki;
pub mod process;
pub mod snp;

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
