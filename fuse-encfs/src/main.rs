//! Edge: the program `fuse-encfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    fuse_encfs::cli::run()
}
