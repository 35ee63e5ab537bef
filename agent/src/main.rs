//! Edge: the program `enclaveid`.

use std::process::ExitCode;

use clap::Parser;
use enclaveid::cli::Cli;
use enclaveid::commands;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => ExitCode::from(commands::run(cli)),
        Err(error) => {
            // Nothing is left to do when the terminal is gone.
            let _ = error.print();
            // Help and version are asked for, and go to standard output.
            if error.use_stderr() {
                ExitCode::from(commands::usage_exit())
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}
