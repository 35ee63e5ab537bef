//! Core: the secure processor as bytes: a simulated AMD key hierarchy, and reports laid out like
//! real ones (SEV-SNP firmware ABI; VCEK certificate specification).
//!
//! Whoever believes a report made here has been told to: the root is new in each run, and every
//! certificate says that it comes from a simulator.

mod chain;
mod extensions;
mod pss;
mod report;

pub use chain::{ChipOptions, Product, SimulatedChip, SimulatedRoots, SnpError, Tcb};
pub use report::{REPORT_BYTES, ReportBuilder, SIGNED_BYTES, layout};
