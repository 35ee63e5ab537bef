//! Core: the secrets of a deployment and how each is derived from the one before.
//!
//! ```text
//! MasterSecret            32 bytes, made inside the HSM, released to attested pods alone
//!   |  HKDF-SHA-256, extract and expand
//!   v
//! IntermediateSecret      what the deployment really runs on; the HSM cannot compute it
//!   |-- mesh CA, generation g   -> CaSeed        48 bytes, reduced to a P-256 scalar
//!   `-- volume v, epoch e       -> VolumeKek     32 bytes, wraps the volume's master key
//! ```
//!
//! Who learns a node learns its descendants and nothing else: not its siblings, not its parent.
//! A holder of a `VolumeKek` opens one volume; a holder of a `CaSeed` issues certificates for one
//! CA generation; a holder of the `IntermediateSecret` runs the deployment.
//!
//! **Invariants.** No IO, no clock, no task. Secrets are boxed, wiped when dropped, never cloned,
//! never serialised, and print as their type's name. Every HKDF label is in [`label`].
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod ca;
mod intermediate;
pub mod label;
mod master;
mod secret;
mod volume;

pub use ca::{CaGeneration, CaSeed};
pub use intermediate::IntermediateSecret;
pub use master::MasterSecret;
pub use secret::{LengthMismatch, Secret};
pub use volume::{KekEpoch, VolumeId, VolumeIdError, VolumeKek, VolumeMasterKey};
