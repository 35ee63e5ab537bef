//! Core: verification of SEV-SNP evidence, attestation tokens and released keys. Pure: no IO, no
//! clock, no environment.
//!
//! | RATS (RFC 9334) | here |
//! |---|---|
//! | Evidence | [`report::Report`], bytes with their fields, not believed yet |
//! | Endorsements | [`endorsements::Endorsements`]: VCEK and the certificates above it |
//! | what Evidence is about | [`binding::ReportData`]: 64 bytes, made by hashing alone |
//! | verified Evidence | [`evidence::VerifiedReport`], made by [`evidence::verify`] alone |
//! | Reference Values, Appraisal | [`appraise`]: a list of named rows, not a bool |
//! | Attestation Result | [`token::AttestationToken`] (raw) and [`token::AttestationResult`] |
//! | Relying Party's policy | [`policy::ReleasePolicy`], as the vault evaluates it |
//! | the vault's answer | [`release::ReleasedKey`], made by [`release::verify_release`] alone |
//!
//! Three steps that are never one function: `parse` makes bytes into types, `verify` checks
//! cryptography, `appraise` compares with what was wanted.
//!
//! **Invariants.** Signatures are checked over the bytes as they came, never over a re-encoding.
//! No input makes a function here panic; every length and depth has a named limit. Time is an
//! argument. What is not supported yet (VLEK, Turin, HCL blobs, UVM endorsements) is refused by
//! its name.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod anchors;
pub mod appraise;
pub mod binding;
pub mod endorsements;
pub mod evidence;
pub mod policy;
pub mod product;
pub mod release;
pub mod report;
pub mod tcb;
pub mod token;

mod encoding;
mod jws;
mod public_key;
#[cfg(test)]
mod testing;
mod x509;

/// Seconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixSeconds(pub i64);
