//! Core: the agent's configuration, read once, checked whole, and the only reader of the
//! environment.
//!
//! Every key has a **trust**. A *measured* key is read from the configuration file alone, whose
//! bytes the hardware vouches for (HOST_DATA); set anywhere else it is an error. A *host-controlled*
//! key may also come from the environment (`ENCLAVEID__AREA__KEY`) or a flag; it says where things
//! are, and can never weaken a check. All problems are reported together, before anything is
//! opened.

mod keys;
mod reader;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::keys::VolumeId;
use openssl::x509::X509;
use runtime::listener::AllowedPeers;
use sha2::{Digest, Sha256};

pub use keys::{KEYS, Key, Trust};
pub use reader::{Overrides, Problem};

use crate::cloud::http::HttpsUrl;
use crate::cloud::retry::RetryBudget;
use crate::cloud::workload_identity::WorkloadIdentityConfig;
use crate::files::read_bounded;
use crate::pki::SpiffeId;
use reader::Reader;

/// Longest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything the agent was told, checked.
#[derive(Debug)]
pub struct Config {
    /// SHA-256 of the configuration file's exact bytes: what HOST_DATA must equal.
    pub digest: ConfigDigest,
    /// Where evidence comes from.
    pub platform: PlatformConfig,
    /// Which attestation service is believed, and in what.
    pub attestation: AttestationConfig,
    /// Roots of every TLS connection.
    pub tls_roots: Vec<X509>,
    /// The vault with the master secret.
    pub vault: VaultConfig,
    /// Who this pod is to the cloud's identity service.
    pub identity: WorkloadIdentityConfig,
    /// Time for each cloud request.
    pub retry: RetryBudget,
    /// Who this pod is in the mesh.
    pub mesh: MeshConfig,
    /// The encrypted volume, when the pod has one.
    pub volume: Option<VolumeConfig>,
    /// Sockets of the local API and of SDS.
    pub sockets: SocketConfig,
    /// What create-secrets makes; present in its configuration alone.
    pub provision: Option<ProvisionConfig>,
    /// Verbosity of the log.
    pub log_level: tracing::Level,
}

/// SHA-256 of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigDigest(pub [u8; 32]);

/// Where evidence comes from. Configured, never guessed.
#[derive(Debug)]
pub enum PlatformConfig {
    /// The SEV-SNP guest device, `/dev/sev-guest`.
    SevGuest {
        /// File with the chip's VCEK and, after it, ASK and ARK, PEM: from the host, and verified.
        endorsements: PathBuf,
    },
    /// A signing key in a file: for laptops and tests, and no protection at all.
    #[cfg(feature = "simulator")]
    Simulator {
        /// Directory with the simulated chip: its key and its certificates.
        chip: PathBuf,
        /// File that says what the simulated host launched: measurement, HOST_DATA, policy.
        launch: PathBuf,
    },
}

/// Which attestation service is believed, and in what.
#[derive(Debug)]
pub struct AttestationConfig {
    /// Base URL of the service, and the exact `iss` of its tokens.
    pub issuer: HttpsUrl,
    /// Text of the issuer as configured: compared byte by byte with `iss`.
    pub issuer_text: String,
    /// SHA-256 that the service must report for its appraisal policy.
    pub policy_hash: [u8; 32],
}

/// The vault with the master secret.
#[derive(Debug)]
pub struct VaultConfig {
    /// Base URL.
    pub url: HttpsUrl,
    /// Versioned key id, a URL below `url`. Empty only for create-secrets, which makes the key.
    pub key_id: Option<HttpsUrl>,
    /// Roots of the chain that signs released keys, PEM.
    pub jws_roots_pem: String,
}

/// Who this pod is in the mesh.
#[derive(Debug)]
pub struct MeshConfig {
    /// SPIFFE id of this pod; its trust domain is the mesh's.
    pub spiffe_id: SpiffeId,
    /// File with the mesh CA's certificate: public, and checked against the derived key.
    pub ca_certificate: PathBuf,
    /// Life of a leaf certificate.
    pub leaf_lifetime: Duration,
}

/// The encrypted volume.
#[derive(Debug)]
pub struct VolumeConfig {
    /// Which volume this is: another one is refused.
    pub id: VolumeId,
    /// Directory with the ciphertext.
    pub store: PathBuf,
    /// Where the plaintext appears.
    pub mountpoint: PathBuf,
}

/// Sockets of the local API and of SDS.
#[derive(Debug)]
pub struct SocketConfig {
    /// Directory that holds them, made with mode 0750.
    pub dir: PathBuf,
    /// Group of the directory and of the shared sockets; the agent's own when absent.
    pub group: Option<u32>,
    /// Who may use `api.sock` and `sds.sock`.
    pub allowed: AllowedPeers,
    /// AF_VSOCK port of the small API for the host; none when absent.
    pub vsock_port: Option<u32>,
}

/// What create-secrets makes.
#[derive(Debug)]
pub struct ProvisionConfig {
    /// Name of the master key in the vault.
    pub key_name: String,
    /// The pods that the release policy admits, create-secrets itself aside.
    pub pods: Vec<AdmittedPod>,
}

/// One workload that may have the master secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmittedPod {
    /// Launch measurement, 48 bytes.
    pub measurement: [u8; 48],
    /// HOST_DATA: digest of the pod's configuration.
    pub host_data: [u8; 32],
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file")]
    Read(#[source] std::io::Error),
    /// The file is no UTF-8.
    #[error("the configuration file is no UTF-8 text")]
    Text,
    /// One or more keys are wrong; all are listed.
    #[error("the configuration has {} problem(s)", .0.len())]
    Problems(Vec<Problem>),
}

impl ConfigError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "config.unreadable",
            Self::Text | Self::Problems(_) => "config.invalid",
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`, with what the environment and `flags` add to it.
    pub fn load(path: &Path, flags: &Overrides) -> Result<Self, ConfigError> {
        let bytes = read_bounded(path, FILE_BYTES_MAX).map_err(ConfigError::Read)?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::Text)?;
        Self::parse(&text, &environment(), flags)
    }

    /// Checks `text` with the given environment: a pure function, for tests.
    pub fn parse(
        text: &str,
        environment: &BTreeMap<String, String>,
        flags: &Overrides,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(text, environment, flags)
            .map_err(|problem| ConfigError::Problems(vec![problem]))?;
        let config = Self::check(text, &mut reader);
        match (config, reader.into_problems()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError::Problems(problems)),
        }
    }

    fn check(text: &str, from: &mut Reader) -> Option<Self> {
        // Every section is checked before the first `?`, so that all problems are found.
        let platform = platform(from);
        let attestation = attestation(from);
        let tls_roots = from.required("tls.roots_pem", parse_roots);
        let provision = provision(from);

        let makes_the_key = from.has_section("provision");
        let vault = vault(from, makes_the_key);
        let identity = identity(from);
        let retry = retry(from);
        let mesh = mesh(from);
        let volume = volume(from);
        let sockets = sockets(from);
        let log_level = from.or("log.level", tracing::Level::INFO, |text| {
            text.parse()
                .map_err(|_| "must be error, warn, info, debug or trace".to_owned())
        });
        Some(Self {
            digest: ConfigDigest(Sha256::digest(text.as_bytes()).into()),
            platform: platform?,
            attestation: attestation?,
            tls_roots: tls_roots?,
            vault: vault?,
            identity: identity?,
            retry: retry?,
            mesh: mesh?,
            volume: volume?,
            sockets: sockets?,
            provision: provision?,
            log_level: log_level?,
        })
    }
}

fn platform(from: &mut Reader) -> Option<PlatformConfig> {
    let kind = from.required("platform.kind", |text| Ok(text.to_owned()))?;
    match kind.as_str() {
        "sev-guest" => {
            let endorsements = from.required("platform.endorsements", parse_path);
            Some(PlatformConfig::SevGuest {
                endorsements: endorsements?,
            })
        }
        #[cfg(feature = "simulator")]
        "simulator" => {
            let chip = from.required("platform.simulator_chip", parse_path);
            let launch = from.required("platform.simulator_launch", parse_path);
            Some(PlatformConfig::Simulator {
                chip: chip?,
                launch: launch?,
            })
        }
        _ => from.problem("platform.kind", "no such platform in this build"),
    }
}

fn attestation(from: &mut Reader) -> Option<AttestationConfig> {
    let issuer_text = from.required("attestation.issuer", |text| Ok(text.to_owned()));
    let issuer = from.required("attestation.issuer", parse_url);
    let policy_hash = from.required("attestation.policy_hash", parse_hex);
    Some(AttestationConfig {
        issuer: issuer?,
        issuer_text: issuer_text?,
        policy_hash: policy_hash?,
    })
}

fn vault(from: &mut Reader, makes_the_key: bool) -> Option<VaultConfig> {
    let url = from.required("vault.url", parse_url);
    let jws_roots_pem = from.required("vault.jws_roots_pem", |text| {
        parse_roots(text).map(|_| text.to_owned())
    });
    let key_id = from.optional("vault.key_id", parse_url);
    let url = url?;
    let key_id = match key_id? {
        None if !makes_the_key => return from.problem("vault.key_id", "missing"),
        Some(key_id) if url.key_name_in(&key_id).is_none() => {
            let want = "must be https://<vault>/keys/<name>/<version> below vault.url";
            return from.problem("vault.key_id", want);
        }
        key_id => key_id,
    };
    Some(VaultConfig {
        url,
        key_id,
        jws_roots_pem: jws_roots_pem?,
    })
}

fn identity(from: &mut Reader) -> Option<WorkloadIdentityConfig> {
    let endpoint = from.or(
        "identity.endpoint",
        HttpsUrl::parse("https://login.microsoftonline.com").ok(),
        |text| parse_url(text).map(Some),
    );
    let tenant_id = from.required("identity.tenant_id", parse_plain_id);
    let client_id = from.required("identity.client_id", parse_plain_id);
    let token_file = from.required("identity.token_file", parse_path);
    Some(WorkloadIdentityConfig {
        endpoint: endpoint??,
        tenant_id: tenant_id?,
        client_id: client_id?,
        token_file: token_file?,
    })
}

fn retry(from: &mut Reader) -> Option<RetryBudget> {
    let total = from.seconds_or("retry.total_s", 60, 1..=3_600);
    let per_try = from.seconds_or("retry.per_try_s", 10, 1..=600);
    Some(RetryBudget {
        total: total?,
        per_try: per_try?,
    })
}

fn mesh(from: &mut Reader) -> Option<MeshConfig> {
    let trust_domain = from.required("mesh.trust_domain", |text| Ok(text.to_owned()));
    let spiffe_id = from.required("mesh.spiffe_id", |text| {
        SpiffeId::parse(text).map_err(|error| error.to_string())
    });
    let ca_certificate = from.required("mesh.ca_certificate", parse_path);
    let leaf_lifetime = from.seconds_or("mesh.leaf_lifetime_s", 3_600, 300..=86_400);
    let spiffe_id = spiffe_id?;
    if trust_domain? != spiffe_id.trust_domain() {
        return from.problem("mesh.spiffe_id", "is not in mesh.trust_domain");
    }
    Some(MeshConfig {
        spiffe_id,
        ca_certificate: ca_certificate?,
        leaf_lifetime: leaf_lifetime?,
    })
}

/// `Some(None)`: the pod has no volume.
fn volume(from: &mut Reader) -> Option<Option<VolumeConfig>> {
    if !from.has_section("volume") {
        return Some(None);
    }
    let id = from.required("volume.id", |text| {
        text.parse::<VolumeId>().map_err(|error| error.to_string())
    });
    let store = from.required("volume.store", parse_path);
    let mountpoint = from.required("volume.mountpoint", parse_path);
    Some(Some(VolumeConfig {
        id: id?,
        store: store?,
        mountpoint: mountpoint?,
    }))
}

fn sockets(from: &mut Reader) -> Option<SocketConfig> {
    let dir = from.or("sockets.dir", "/run/enclaveid".into(), parse_path);
    let group = from.optional_number("sockets.group", 0..=i64::from(u32::MAX));
    let uids = from.numbers("sockets.allowed_uids");
    let gids = from.numbers("sockets.allowed_gids");
    let vsock_port = from.optional_number("sockets.vsock_port", 1..=i64::from(u32::MAX - 1));
    let own_uid = rustix::process::geteuid().as_raw();
    let (uids, gids) = (uids?, gids?);
    // By default the agent's own uid alone: who may ask for evidence and leaf keys is a choice.
    let uids = if uids.is_empty() && gids.is_empty() {
        vec![own_uid]
    } else {
        uids
    };
    Some(SocketConfig {
        dir: dir?,
        group: group?,
        allowed: AllowedPeers { uids, gids },
        vsock_port: vsock_port?,
    })
}

/// `Some(None)`: not a configuration for create-secrets.
fn provision(from: &mut Reader) -> Option<Option<ProvisionConfig>> {
    if !from.has_section("provision") {
        return Some(None);
    }
    let key_name = from.required("provision.key_name", parse_plain_id);
    let pods = from.texts("provision.pods", |text| {
        let (measurement, host_data) = text
            .split_once(':')
            .ok_or("must be <measurement hex>:<host_data hex>")?;
        Ok(AdmittedPod {
            measurement: parse_hex(measurement)?,
            host_data: parse_hex(host_data)?,
        })
    });
    Some(Some(ProvisionConfig {
        key_name: key_name?,
        pods: pods?,
    }))
}

fn parse_roots(text: &str) -> Result<Vec<X509>, String> {
    match X509::stack_from_pem(text.as_bytes()) {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        _ => Err("must be one or more PEM certificates".to_owned()),
    }
}

fn parse_url(text: &str) -> Result<HttpsUrl, String> {
    HttpsUrl::parse(text).map_err(|error| error.to_string())
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("must be an absolute path".to_owned())
    }
}

/// Names that go into URL paths and form fields: no separator, no escape, no surprise.
fn parse_plain_id(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if plain && (1..=127).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 127 letters, digits and hyphens".to_owned())
    }
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    crate::hex::decode_array(text).ok_or_else(|| format!("must be {} hexadecimal digits", N * 2))
}

/// The variables that may concern us, so that the rest of the program never sees the others.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("ENCLAVEID__") || name.starts_with("AZURE_"))
        .collect()
}

#[cfg(test)]
mod tests;
