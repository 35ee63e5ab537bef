//! Core: what several crates need of the system, each once.
//!
//! [`clock`]: time as an argument. [`listener`]: Unix sockets that know who connects. [`peer`]: who
//! may. [`sync`]: locks without poisoning.
#![forbid(unsafe_code)]

pub mod clock;
pub mod listener;
pub mod peer;
pub mod sync;
