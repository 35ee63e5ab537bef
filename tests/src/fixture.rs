//! Core: what tests need of the machine: programs, devices, real data, and rules for their absence.

mod binary;
pub mod envoy;
mod mount;
mod require;
mod watchdog;

pub use binary::{binary, product_binary, target_dir};
pub use mount::{Mount, MountEnd};
pub use require::{Need, enabled, real_data};
pub use watchdog::Watchdog;
