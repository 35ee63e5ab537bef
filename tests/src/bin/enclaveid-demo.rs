//! Edge: the program `enclaveid-demo`: the whole main job on this machine.
#![allow(clippy::print_stderr, reason = "a program for people")]

use std::process::ExitCode;

use clap::Parser;

/// Runs the whole main job on this machine, and ends with 0 when every step held.
#[derive(Debug, Parser)]
struct Args {
    /// Leave everything running, and print what to try
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let dir = match tempfile::Builder::new().prefix("enclaveid-demo-").tempdir() {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("enclaveid-demo: cannot make a directory: {error}");
            return ExitCode::FAILURE;
        }
    };
    match enclaveid_tests::demo::run(dir.path(), args.keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("enclaveid-demo: {text}");
            ExitCode::FAILURE
        }
    }
}
