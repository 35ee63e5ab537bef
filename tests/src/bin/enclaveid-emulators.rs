//! Edge: runs the emulators until it is told to stop, for the demo and for trying things by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use enclaveid_tests::emulator::{Cloud, CloudOptions, StartError};
use enclaveid_tests::snp::{SimulatedChip, SnpError};
use tokio::signal::unix::{SignalKind, signal};

/// Emulators of the attestation service, the Managed HSM and the token service, and the key files
/// of a simulated chip that they believe. Nothing here protects anything.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory to write trust roots, identities, the chip (below `chip`) and, when all services
    /// answer, `emulators.json` to.
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no simulated chip")]
    Chip(#[from] SnpError),
    #[error("the emulators do not start")]
    Start(#[from] StartError),
    #[error("no signals or no runtime")]
    System(#[from] std::io::Error),
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let chip = SimulatedChip::mint()?;
    chip.write_to(&arguments.dir.join("chip"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let cloud = Cloud::start(CloudOptions::trusting(chip.ark_pem()?)).await?;
        cloud.write_to(&arguments.dir)?;
        announce(&cloud);
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        Ok(())
    })
}

#[expect(clippy::print_stdout, reason = "the program's output")]
fn announce(cloud: &Cloud) {
    println!("attestation {}", cloud.maa.url());
    println!("vault       {}", cloud.hsm.url());
    println!("tokens      {}", cloud.entra.url());
    println!("ready: SIMULATED, protects nothing");
}

#[expect(clippy::print_stderr, reason = "the program's output")]
fn report(failure: &Failure) {
    let mut cause: Option<&dyn std::error::Error> = Some(failure);
    while let Some(error) = cause {
        eprintln!("{error}");
        cause = error.source();
    }
}
