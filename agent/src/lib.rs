//! Core: the EnclaveID agent, from the command line inwards.
//!
//! | question | file |
//! |---|---|
//! | in which order does a start happen, and who builds the adapters? | [`run`] |
//! | how does the pod get the secret? | [`unlock`] |
//! | is the configuration the measured one, and the guest launched as it should be? | [`own_evidence`] |
//! | what can be configured, by whom? | [`config`] |
//! | evidence, tokens, keys: the ports and their adapters | [`platform`], [`attestation`], [`vault`], [`cloud`] |
//! | the mesh's certificates | [`pki`], [`identity`], [`rotation`] |
//! | who may ask the agent what? | [`api`] |
//! | what does an error code mean? | [`catalogue`] |
#![forbid(unsafe_code)]

pub mod api;
pub mod attestation;
pub mod broker;
pub mod catalogue;
pub mod cli;
pub mod client;
pub mod cloud;
pub mod commands;
pub mod config;
pub mod files;
pub mod hex;
pub mod identity;
pub mod own_evidence;
pub mod pki;
pub mod platform;
pub mod provision;
pub mod rotation;
pub mod run;
pub mod stages;
pub mod telemetry;
pub mod unlock;
pub mod vault;
pub mod verify;

/// Version of the program; a build that holds the simulator says so.
pub const VERSION: &str = if cfg!(feature = "simulator") {
    concat!(env!("CARGO_PKG_VERSION"), "+simulator")
} else {
    env!("CARGO_PKG_VERSION")
};
