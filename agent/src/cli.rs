//! Edge: the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::Overrides;
use crate::telemetry::LogFormat;
use crate::verify::VerifyArgs;

/// In-guest agent for confidential pods: key release, encrypted volume, mTLS identity, evidence.
#[derive(Debug, Parser)]
#[command(name = "enclaveid", version = crate::VERSION, max_term_width = 100)]
#[command(after_help = "Exit codes are listed in docs/errors.md; 0 is success, 64 wrong usage.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: unlock, mount the volume, serve SDS and the local API until SIGTERM
    Agent(AgentArgs),
    /// Make the deployment's master key in the HSM and publish the mesh CA's certificate
    ///
    /// Prints the versioned id of the key, which every pod's `vault.key_id` must name.
    CreateSecrets(ConfigArgs),
    /// Encrypted volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Ask the running agent for its state
    Status(ClientArgs),
    /// Fetch fresh evidence from the running agent, or verify evidence offline
    Evidence(EvidenceArgs),
    /// Make the running agent issue a new leaf certificate now
    Rotate(ClientArgs),
    /// Exit with 0 when the running agent is ready: for exec probes
    Healthcheck(ClientArgs),
    /// Mount filesystems for the agent (started by it, not by hand)
    #[command(hide = true)]
    Broker,
}

/// Commands on volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make the volume that the configuration names; refuses a store that is not empty
    Init(ConfigArgs),
}

/// How a command that unlocks is configured.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Measured configuration file; SHA-256 of its bytes must equal HOST_DATA
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value = "json")]
    pub log_format: LogFormat,
    #[command(flatten)]
    host: HostArgs,
}

/// Arguments of `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Check the configuration and exit
    #[arg(long)]
    pub check_config: bool,
    /// How it is configured.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Host-controlled settings: each overrides the environment and the file.
#[derive(Debug, Args)]
#[command(next_help_heading = "Host-controlled settings (they say where things are)")]
struct HostArgs {
    /// Base URL of the vault
    #[arg(long, value_name = "URL")]
    vault_url: Option<String>,
    /// Versioned id of the master key
    #[arg(long, value_name = "URL")]
    key_id: Option<String>,
    /// File with the mesh CA's certificate
    #[arg(long, value_name = "FILE")]
    ca_certificate: Option<String>,
    /// Directory with the volume's ciphertext
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// Base URL of the identity service
    #[arg(long, value_name = "URL")]
    entra_endpoint: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Where the running agent listens.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// Directory of the agent's sockets
    #[arg(long, value_name = "DIR", default_value = "/run/enclaveid")]
    pub sockets: PathBuf,
}

/// Arguments of `evidence`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct EvidenceArgs {
    /// What to do with evidence; fetches it when absent.
    #[command(subcommand)]
    pub command: Option<EvidenceCommand>,
    /// How to fetch.
    #[command(flatten)]
    pub fetch: FetchArgs,
}

/// Commands on evidence.
#[derive(Debug, Subcommand)]
pub enum EvidenceCommand {
    /// Verify evidence files, offline
    Verify(VerifyArgs),
}

/// How to fetch evidence.
#[derive(Debug, Args)]
pub struct FetchArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Directory for report.bin, vcek.pem, chain.pem and binding.json; printed as JSON when absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Whom the evidence is for: it convinces no other audience
    #[arg(long, default_value = "enclaveid-cli")]
    pub audience: String,
    /// 32 bytes in hexadecimal; random when absent
    #[arg(long, value_name = "HEX")]
    pub nonce: Option<String>,
}

impl FetchArgs {
    /// Directory of the agent's sockets.
    pub fn sockets(&self) -> &Path {
        &self.client.sockets
    }
}

impl ConfigArgs {
    /// The flags that were given, by configuration key.
    pub fn overrides(&self) -> Overrides {
        let flags = [
            ("vault.url", &self.host.vault_url),
            ("vault.key_id", &self.host.key_id),
            ("mesh.ca_certificate", &self.host.ca_certificate),
            ("volume.store", &self.host.store),
            ("identity.endpoint", &self.host.entra_endpoint),
            ("log.level", &self.host.log_level),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(key, text)| Some((key, text.clone()?)));
        given.collect::<BTreeMap<_, _>>()
    }
}
