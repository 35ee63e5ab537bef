//! Core: the composition root. Adapters are built here and nowhere else; the order of a start is
//! read from top to bottom.

use std::future::Future;
use std::sync::Arc;

use keys::{CaGeneration, IntermediateSecret, KekEpoch};
use runtime::clock::{Clock, SystemClock};
use runtime::listener::UnixSocket;
use serde_json::json;
use tokio::task::JoinSet;

use crate::api::{self, State};
use crate::attestation::maa::Maa;
use crate::broker::Broker;
use crate::cloud::http::HttpsUrl;
use crate::cloud::workload_identity::WorkloadIdentity;
use crate::cloud::{HttpClient, TokenSource};
use crate::config::{Config, ConfigDigest, PlatformConfig, VolumeConfig};
use crate::identity::PodIdentity;
use crate::own_evidence::{MeasuredConfig, OwnEvidence};
use crate::pki::{MeshCa, VerifiedCa};
use crate::platform::Platform;
use crate::platform::sev_guest::SevGuest;
use crate::stages::BootStages;
use crate::unlock::{Parties, PolicyTerms, Terms, unlock};
use crate::vault::keyvault::ManagedHsm;
use crate::vault::{PendingWrapKey, VaultAdmin};
use crate::{files, hex, own_evidence, provision, rotation};

mod error;
mod sockets;

pub use error::RunError;
use sockets::Sockets;

/// Longest file with a CA certificate that is read.
const CA_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Threads that answer FUSE requests: more than cores, since some wait for the store.
const VOLUME_THREADS: usize = 4;

/// The adapters of one process.
struct Adapters {
    platform: Arc<dyn Platform>,
    service: Maa,
    vault: ManagedHsm,
    clock: Arc<dyn Clock>,
}

impl Adapters {
    fn build(config: &Config) -> Result<Self, RunError> {
        let platform: Arc<dyn Platform> = match &config.platform {
            PlatformConfig::SevGuest { endorsements } => {
                Arc::new(SevGuest::open(endorsements).map_err(RunError::Platform)?)
            }
            #[cfg(feature = "simulator")]
            PlatformConfig::Simulator { chip, launch } => {
                tracing::warn!("SIMULATED: no hardware protects this process");
                let simulator = crate::platform::simulator::Simulator::open(chip, launch);
                Arc::new(simulator.map_err(RunError::Platform)?)
            }
        };
        let http = HttpClient::new(&config.tls_roots, config.retry).map_err(RunError::Http)?;
        let http = Arc::new(http);
        let identity = WorkloadIdentity::new(Arc::clone(&http), config.identity.clone());
        let tokens: Arc<dyn TokenSource> = Arc::new(identity);
        Ok(Self {
            platform,
            service: Maa::new(Arc::clone(&http), config.attestation.issuer.clone()),
            vault: ManagedHsm::new(http, tokens, config.vault.url.clone()),
            clock: Arc::new(SystemClock),
        })
    }

    /// The first thing that happens: is the configuration the one that the hardware vouches for?
    async fn check_measured(
        &self,
        digest: ConfigDigest,
        stages: &BootStages,
    ) -> Result<(OwnEvidence, MeasuredConfig), RunError> {
        let report_data = own_evidence::boot_binding();
        let own = own_evidence::obtain(&self.platform, &report_data, self.clock.now());
        let own = stages
            .run("measured_config", own)
            .await
            .map_err(RunError::Evidence)?;
        let measured = own.measured(digest).map_err(RunError::Evidence)?;
        Ok((own, measured))
    }

    async fn unlock(
        &self,
        terms: &Terms<'_>,
        wrap_key: PendingWrapKey,
        stages: &BootStages,
    ) -> Result<IntermediateSecret, RunError> {
        let parties = Parties {
            platform: &self.platform,
            service: &self.service,
            vault: &self.vault,
            clock: &*self.clock,
        };
        let secret = unlock(&parties, terms, wrap_key, stages).await;
        secret.map_err(RunError::Unlock)
    }
}

/// What a pod demands of the unlock: the key that it was told, under a policy that admits it.
fn pod_terms<'a>(config: &'a Config, measured: &'a MeasuredConfig) -> Result<Terms<'a>, RunError> {
    let key_id = config.vault.key_id.as_ref();
    let key_id = key_id.ok_or(RunError::Section("vault"))?;
    Ok(terms(config, measured, key_id, PolicyTerms::AdmitsUs))
}

fn terms<'a>(
    config: &'a Config,
    measured: &'a MeasuredConfig,
    key_id: &'a HttpsUrl,
    policy: PolicyTerms<'a>,
) -> Terms<'a> {
    Terms {
        measured,
        issuer: &config.attestation.issuer_text,
        policy_hash: config.attestation.policy_hash,
        jws_roots_pem: &config.vault.jws_roots_pem,
        key_id,
        policy,
    }
}

/// Runs the agent until `shutdown` completes: evidence, token, release, derivation, CA, leaf,
/// mount, SDS, local API, ready; then the way back, with the secrets wiped last.
pub async fn agent(
    config: Config,
    broker: Option<Broker>,
    stages: Arc<BootStages>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    // Finding primes takes longest: it begins first, and goes on beside everything else.
    let wrap_key = PendingWrapKey::start().map_err(RunError::WrapKey)?;
    tokio::pin!(shutdown);
    let adapters = Adapters::build(&config)?;
    let (_own, measured) = tokio::select! {
        checked = adapters.check_measured(config.digest, &stages) => checked?,
        () = &mut shutdown => return Ok(()),
    };
    log_start(&config);

    // The API answers from here on, so that a start that takes long can be looked at.
    let Sockets {
        admin,
        api,
        sds,
        vsock,
    } = Sockets::bind(&config)?;
    let state = Arc::new(State::new(
        Arc::clone(&adapters.platform),
        Arc::clone(&adapters.clock),
        config.digest,
        Arc::clone(&stages),
    ));
    let mut tasks = serve_api(admin, api, vsock, &state);

    let terms = pod_terms(&config, &measured)?;
    let started = tokio::select! {
        started = start(&config, &adapters, &terms, wrap_key, broker, &stages) => started?,
        () = &mut shutdown => return Ok(()),
    };
    let Started {
        identity,
        snapshots,
        volume,
    } = started;
    state.set_identity(Arc::clone(&identity));
    let sds_status = snapshots.status();
    state.add_section("sds", move || json!(sds_status.view()));
    if let Some(volume) = &volume {
        let gauge = volume.gauge();
        state.add_section("volume", move || json!(gauge.stats().map(volume_view)));
    }
    let (stop_sds, sds_stopped) = tokio::sync::oneshot::channel::<()>();
    let mut sds = tokio::spawn(enclaveid_envoy::serve(sds, snapshots, async {
        let _ = sds_stopped.await;
    }));
    let clock = Arc::clone(&adapters.clock);
    tasks.spawn(rotation::run(Arc::clone(&identity), move || clock.now().0));

    let took = stages.ready();
    tracing::info!(ready_after_ms = took.as_secs_f64() * 1_000.0, "ready");
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        ended = &mut sds => match ended {
            Ok(Ok(())) | Err(_) => Err(RunError::Task),
            Ok(Err(error)) => Err(RunError::Sds(error)),
        },
        Some(_) = tasks.join_next() => Err(RunError::Task),
        () = volume_ended(volume.as_ref()) => Err(RunError::VolumeEnded),
    };
    stages.drain();
    tracing::info!("draining");
    let _ = stop_sds.send(());
    tasks.shutdown().await;
    if ended.is_ok() {
        let _ = (&mut sds).await;
    }
    if let Some(volume) = volume {
        unmount(volume).await?;
    }
    tracing::info!("stopped");
    ended
}

fn volume_view(stats: fuse_encfs::Stats) -> serde_json::Value {
    json!({
        "bytes_read": stats.bytes_read,
        "bytes_written": stats.bytes_written,
        "auth_failures": stats.auth_failures,
        "read_only": stats.read_only,
        "open_for_s": stats.open_for.as_secs(),
    })
}

fn serve_api(
    admin: UnixSocket,
    api: UnixSocket,
    vsock: Option<tokio_vsock::VsockListener>,
    state: &Arc<State>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(api::serve_unix(admin, true, Arc::clone(state)));
    tasks.spawn(api::serve_unix(api, false, Arc::clone(state)));
    if let Some(vsock) = vsock {
        tasks.spawn(api::serve_vsock(vsock, Arc::clone(state)));
    }
    tasks
}

async fn unmount(volume: fuse_encfs::Mounted) -> Result<(), RunError> {
    let unmounted = tokio::task::spawn_blocking(move || volume.unmount()).await;
    unmounted
        .map_err(|_| RunError::Task)?
        .map_err(RunError::Unmount)
}

/// What a start yields.
struct Started {
    identity: Arc<PodIdentity>,
    snapshots: enclaveid_envoy::Snapshots,
    volume: Option<fuse_encfs::Mounted>,
}

/// The broker is used up: it has one thing to do, and ends with it.
async fn start(
    config: &Config,
    adapters: &Adapters,
    terms: &Terms<'_>,
    wrap_key: PendingWrapKey,
    broker: Option<Broker>,
    stages: &BootStages,
) -> Result<Started, RunError> {
    let secret = adapters.unlock(terms, wrap_key, stages).await?;
    let ca = stages
        .run("ca", verified_ca(config, adapters, &secret))
        .await?;
    let (publisher, snapshots) = enclaveid_envoy::channel();
    let identity = PodIdentity::start(
        ca,
        config.mesh.spiffe_id.clone(),
        config.mesh.leaf_lifetime,
        Arc::clone(&adapters.clock),
        publisher,
    );
    let identity = Arc::new(identity.map_err(RunError::Ca)?);
    let volume = match (&config.volume, broker) {
        (Some(volume), Some(broker)) => Some(
            stages
                .run("mount", async {
                    // Recovery reads the log and may take seconds: the API answers meanwhile.
                    tokio::task::block_in_place(|| mount(volume, &secret, broker))
                })
                .await?,
        ),
        _ => None,
    };
    Ok(Started {
        identity,
        snapshots,
        volume,
    })
}

async fn verified_ca(
    config: &Config,
    adapters: &Adapters,
    secret: &IntermediateSecret,
) -> Result<VerifiedCa, RunError> {
    let pem = files::read_bounded(&config.mesh.ca_certificate, CA_FILE_BYTES_MAX);
    let pem = pem.map_err(RunError::CaFile)?;
    let ca = MeshCa::from_seed(&secret.derive_ca(CaGeneration(0))).map_err(RunError::Ca)?;
    ca.verify(&pem, adapters.clock.now()).map_err(RunError::Ca)
}

/// Opens the volume first and mounts after: a volume that does not open leaves no mount behind.
fn mount(
    config: &VolumeConfig,
    secret: &IntermediateSecret,
    mut broker: Broker,
) -> Result<fuse_encfs::Mounted, RunError> {
    // What the store claims decides nothing: only the key that the volume was wrapped with opens it.
    let epoch = fuse_encfs::rekey::claimed_kek_epoch(&config.store).map_err(RunError::Volume)?;
    let kek = secret.derive_volume_kek(config.id, epoch);
    let volume = fuse_encfs::Volume::open(&config.store, kek, config.id);
    let volume = volume.map_err(RunError::Volume)?;
    let connection = broker.mount(&config.mountpoint).map_err(RunError::Broker)?;
    fuse_encfs::Mounted::serve(volume, connection, &config.mountpoint, VOLUME_THREADS)
        .map_err(RunError::Serve)
}

/// Completes when the mount has gone under us; never without a volume.
async fn volume_ended(volume: Option<&fuse_encfs::Mounted>) {
    let Some(volume) = volume else {
        return std::future::pending().await;
    };
    let watch = volume.watch();
    // The thread ends with the mount, at our own unmount at the latest.
    let _ = tokio::task::spawn_blocking(move || watch.wait()).await;
}

/// Makes the volume of the measured configuration. The only command that does.
pub async fn volume_init(config: Config) -> Result<(), RunError> {
    let wrap_key = PendingWrapKey::start().map_err(RunError::WrapKey)?;
    let stages = BootStages::new();
    let volume = config.volume.as_ref().ok_or(RunError::Section("volume"))?;
    let adapters = Adapters::build(&config)?;
    let (_own, measured) = adapters.check_measured(config.digest, &stages).await?;
    let terms = pod_terms(&config, &measured)?;
    let secret = adapters.unlock(&terms, wrap_key, &stages).await?;
    let kek = secret.derive_volume_kek(volume.id, KekEpoch(0));
    fuse_encfs::init(&volume.store, &kek, volume.id).map_err(RunError::VolumeInit)
}

/// Makes the master key and the CA certificate, and returns the versioned key id.
pub async fn create_secrets(config: Config) -> Result<String, RunError> {
    let wrap_key = PendingWrapKey::start().map_err(RunError::WrapKey)?;
    let stages = BootStages::new();
    let provision = config.provision.as_ref();
    let provision = provision.ok_or(RunError::Section("provision"))?;
    let adapters = Adapters::build(&config)?;
    let (own, measured) = adapters.check_measured(config.digest, &stages).await?;
    log_start(&config);
    let policy = provision::release_policy(
        &config.attestation.issuer_text,
        &provision.pods,
        own.report.report(),
    );
    let key_id = adapters.vault.create_key(&provision.key_name, &policy);
    let key_id = stages
        .run("create_key", key_id)
        .await
        .map_err(RunError::Vault)?;
    tracing::info!(key_id = %key_id, "master key made");
    // Released to ourselves once: the policy is the one that was asked for, it works, and the CA
    // can be derived.
    let policy = PolicyTerms::Exactly(policy.as_bytes());
    let terms = terms(&config, &measured, &key_id, policy);
    let secret = adapters.unlock(&terms, wrap_key, &stages).await?;
    let trust_domain = config.mesh.spiffe_id.trust_domain();
    let certificate = provision::issue_ca_certificate(&secret, trust_domain, &*adapters.clock);
    let pem = certificate.map_err(RunError::Ca)?.to_pem();
    let pem = pem.map_err(|error| RunError::Ca(error.into()))?;
    files::replace(&config.mesh.ca_certificate, &pem).map_err(RunError::CaFile)?;
    Ok(key_id.to_string())
}

fn log_start(config: &Config) {
    tracing::info!(
        version = crate::VERSION,
        config_sha256 = hex::encode(&config.digest.0),
        spiffe_id = %config.mesh.spiffe_id,
        key_provenance = crate::unlock::KEY_PROVENANCE,
        "configuration is measured"
    );
}
