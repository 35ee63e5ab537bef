//! Core: the one integration test binary: tests at the boundary, against servers on the real wire.
#![allow(missing_docs, reason = "tests have no callers")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, in its helpers too"
)]

mod architecture;
mod emulators;
mod evidence;
mod fixtures;
mod fs_control;
mod fs_damage;
mod fs_format;
mod fs_load;
mod fs_mount;
mod fs_posix;
mod fs_posix_space;
mod fs_semantics;
mod local_api;
mod refusals;
mod sds;
mod unwrap;
mod volume;
