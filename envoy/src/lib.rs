//! Edge: what this pod's Envoy needs of us: its secrets over SDS, and a bootstrap to start from.
//!
//! - [`channel`]: the [`Publisher`] that takes each new [`Svid`], and the [`Snapshots`] to serve.
//! - [`serve`]: the SDS server on a Unix socket; [`SdsStatus`]: what it is doing, in numbers.
//! - [`bootstrap`]: the configuration that an Envoy starts with.
//!
//! Inside: `subscription` is the protocol without sockets, `secret` and `source` what is served,
//! `sds` the wire, `server` the connections.
#![forbid(unsafe_code)]

pub mod bootstrap;
mod sds;
mod secret;
mod server;
mod source;
mod status;
mod stopping;
mod subscription;
mod svid;

pub use server::{SdsError, serve};
pub use source::{Publisher, Snapshots, channel};
pub use status::{LastNack, SdsStatus, SdsView};
pub use svid::Svid;
