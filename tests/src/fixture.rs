//! Core: what tests need of the machine: programs, devices, real data, and rules for their absence.

mod binary;
pub mod envoy;
mod lines;
mod load;
mod mount;
mod require;
mod rounds;
mod watchdog;

pub use binary::{binary, product_binary, target_dir};
pub use lines::Lines;
pub use load::Load;
pub use mount::{Mount, MountEnd};
pub use require::{Need, enabled, postgres_program, python_path, real_data};
pub use rounds::{Dice, Round, Rounds};
pub use watchdog::Watchdog;
