//! Core: what several crates need of the system, each once.
//!
//! [`clock`]: time as an argument. [`listener`]: Unix sockets that know who connects. [`locked`]:
//! memory for keys. [`peer`]: who may connect. [`sync`]: locks without poisoning.

pub mod clock;
pub mod listener;
pub mod locked;
pub mod peer;
pub mod sync;
