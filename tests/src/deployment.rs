//! Core: a whole deployment on this machine: the cloud's services, a simulated chip, and pods with
//! their configurations and launches. The demo and the integration tests stand on it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use runtime::clock::{Clock, SystemClock};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::emulator::{Cloud, CloudOptions, Role, StartError, Workload};
use crate::fixture;
use crate::hex;
use crate::pki::Validity;
use crate::snp::{ChipOptions, SimulatedRoots, SnpError, Tcb};

/// Launch measurement of the simulated guest image.
pub const MEASUREMENT: [u8; 48] = [0x5a; 48];
/// The mesh's trust domain.
pub const TRUST_DOMAIN: &str = "demo.enclaveid";

/// Services, chip and files of one deployment. Dropping it stops the services.
#[derive(Debug)]
pub struct Deployment {
    dir: PathBuf,
    roots: Arc<SimulatedRoots>,
    /// The services.
    pub cloud: Cloud,
}

/// One pod: its directory, and what its host launched it with.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Name, and last segment of its SPIFFE id.
    pub name: String,
    /// Holds everything else here.
    pub dir: PathBuf,
    /// The measured configuration file.
    pub config: PathBuf,
    /// The simulated host's launch file.
    pub launch: PathBuf,
    /// Digest of the configuration.
    pub host_data: [u8; 32],
}

/// What a pod's configuration may deviate in; the default is a proper pod with a volume.
#[derive(Debug, Clone, Default)]
pub struct PodOptions {
    /// Life of the pod's leaf in seconds; the agent's default when absent.
    pub leaf_lifetime_s: Option<u32>,
    /// Volume id in hexadecimal; a pod without a volume when absent.
    pub volume_id: Option<String>,
    /// Text added at the end of the configuration.
    pub extra: String,
    /// Uids that may use the pod's sockets beside the agent's own.
    pub allowed_uids: Vec<u32>,
    /// Directory of the chip that the pod runs on, as [`Deployment::add_chip`] named it; the
    /// deployment's own when absent.
    pub chip: Option<PathBuf>,
}

/// The deployment could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeploymentError {
    /// The services did not start.
    #[error("the emulated services did not start")]
    Cloud(#[from] StartError),
    /// The chip could not be made.
    #[error("the simulated chip could not be made")]
    Chip(#[from] SnpError),
    /// A file could not be written, or a program not started.
    #[error("a file or a program failed")]
    Io(#[from] std::io::Error),
    /// A program ended with an error; its message.
    #[error("{program} ended with {code:?}: {stderr}")]
    Program {
        /// What was run.
        program: String,
        /// Its exit code.
        code: Option<i32>,
        /// Its standard error.
        stderr: String,
    },
}

impl Deployment {
    /// Starts services that believe a new simulated chip, whose files go below `dir`.
    pub async fn start(dir: &Path) -> Result<Self, DeploymentError> {
        let roots = SimulatedRoots::shared()?;
        let cloud = Cloud::start(CloudOptions::trusting(roots.ark_pem()?)).await?;
        let deployment = Self {
            dir: dir.to_owned(),
            roots,
            cloud,
        };
        deployment.add_chip("chip", Validity::around(SystemClock.now()))?;
        Ok(deployment)
    }

    /// Makes one more chip of the same product line, and returns its directory.
    pub fn add_chip(&self, name: &str, vcek: Validity) -> Result<PathBuf, DeploymentError> {
        let mut chip_id = [0; 64];
        openssl::rand::rand_bytes(&mut chip_id).map_err(SnpError::from)?;
        let tcb = Tcb {
            bootloader: 4,
            tee: 0,
            snp: 24,
            microcode: 219,
        };
        let chip = self.roots.mint_chip(ChipOptions {
            chip_id,
            tcb,
            validity: vcek,
        })?;
        let dir = self.dir.join(name);
        chip.write_to(&dir)?;
        Ok(dir)
    }

    /// Where everything of this deployment lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA certificate's file: written by create-secrets, read by pods, trusted by nobody.
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Writes a pod's configuration, launches it on the simulated chip, and makes its identity.
    pub fn pod(&self, name: &str, options: &PodOptions) -> Result<Pod, DeploymentError> {
        let workload = self.cloud.create_identity(Role::CryptoServiceReleaseUser)?;
        self.launch(name, options, &workload)
    }

    fn launch(
        &self,
        name: &str,
        options: &PodOptions,
        workload: &Workload,
    ) -> Result<Pod, DeploymentError> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("token"), &workload.assertion)?;
        let text = self.configuration(name, &dir, options, workload);
        let pod = Pod {
            name: name.to_owned(),
            config: dir.join("agent.toml"),
            launch: dir.join("launch.toml"),
            host_data: Sha256::digest(text.as_bytes()).into(),
            dir,
        };
        std::fs::write(&pod.config, text)?;
        pod.write_launch(&MEASUREMENT, &pod.host_data, "")?;
        Ok(pod)
    }

    fn configuration(
        &self,
        name: &str,
        dir: &Path,
        options: &PodOptions,
        workload: &Workload,
    ) -> String {
        let dir = dir.display();
        let root = self.dir.display();
        let lifetime = options.leaf_lifetime_s;
        let lifetime = lifetime
            .map(|s| format!("leaf_lifetime_s = {s}\n"))
            .unwrap_or_default();
        let volume = options.volume_id.as_ref().map(|id| {
            format!(
                "[volume]\nid = \"{id}\"\nstore = \"{dir}/store\"\nmountpoint = \"{dir}/data\"\n"
            )
        });
        let chip = options
            .chip
            .clone()
            .unwrap_or_else(|| self.dir.join("chip"));
        let mut uids = options.allowed_uids.clone();
        uids.push(rustix::process::geteuid().as_raw());
        format!(
            r#"[platform]
kind = "simulator"
simulator_chip = "{chip}"
simulator_launch = "{dir}/launch.toml"
[attestation]
issuer = "{issuer}"
policy_hash = "{policy_hash}"
[tls]
roots_pem = """
{tls_roots}"""
[vault]
url = "{vault}"
jws_roots_pem = """
{jws_roots}"""
[identity]
endpoint = "{entra}"
tenant_id = "{tenant}"
client_id = "{client}"
token_file = "{dir}/token"
[retry]
total_s = 5
[mesh]
trust_domain = "{TRUST_DOMAIN}"
spiffe_id = "spiffe://{TRUST_DOMAIN}/{name}"
ca_certificate = "{root}/ca.pem"
{lifetime}[sockets]
dir = "{dir}/run"
allowed_uids = {uids:?}
{volume}{extra}"#,
            chip = chip.display(),
            issuer = self.cloud.maa.url(),
            policy_hash = hex(&self.cloud.maa.policy_hash()),
            tls_roots = self.cloud.roots_pem,
            vault = self.cloud.hsm.url(),
            jws_roots = self.cloud.jws_roots_pem,
            entra = self.cloud.entra.url(),
            tenant = self.cloud.tenant,
            client = workload.client_id,
            volume = volume.unwrap_or_default(),
            extra = options.extra,
        )
    }

    /// `enclaveid evidence verify --strict` over the files that `evidence --out` wrote to `files`,
    /// with `binding` as the expected binding and `pod`'s launch as reference values.
    pub fn verify_evidence(
        &self,
        pod: &Pod,
        files: &Path,
        binding: &Path,
    ) -> std::io::Result<Command> {
        let policy = files.join("policy.toml");
        let (measurement, host_data) = (hex(&MEASUREMENT), hex(&pod.host_data));
        let values = format!(
            "vmpl = 0\nsmt = true\n[[allow]]\nmeasurement = \"{measurement}\"\n\
             host_data = \"{host_data}\"\n"
        );
        std::fs::write(&policy, values)?;
        let mut command = Command::new(fixture::binary("enclaveid"));
        command.args(["evidence", "verify", "--strict"]);
        for (flag, file) in [
            ("--report", &files.join("report.bin")),
            ("--vcek", &files.join("vcek.pem")),
            ("--chain", &files.join("chain.pem")),
            ("--binding", &binding.to_owned()),
            ("--policy", &policy),
            ("--root", &self.dir.join("chip/ark.pem")),
        ] {
            command.arg(flag).arg(file);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Runs `enclaveid create-secrets` as a pod of its own, admitting `pods`; returns the key id.
    pub async fn create_secrets(&self, pods: &[&Pod]) -> Result<String, DeploymentError> {
        let admitted: Vec<String> = pods
            .iter()
            .map(|pod| format!("\"{}:{}\"", hex(&MEASUREMENT), hex(&pod.host_data)))
            .collect();
        let extra = format!(
            "[provision]\nkey_name = \"enclaveid-master\"\npods = [{}]\n",
            admitted.join(", ")
        );
        let workload = self.cloud.create_identity(Role::CryptoUser)?;
        let options = PodOptions {
            extra,
            ..PodOptions::default()
        };
        let pod = self.launch("create-secrets", &options, &workload)?;
        let output = succeed(pod.command("create-secrets")).await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Pod {
    /// Where the plaintext of its volume appears.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its volume's ciphertext.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Directory of its sockets.
    pub fn sockets(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Its SPIFFE id.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/{}", self.name)
    }

    /// Launches the pod anew with what the arguments say; `extra` is TOML.
    pub fn write_launch(
        &self,
        measurement: &[u8; 48],
        host_data: &[u8; 32],
        extra: &str,
    ) -> std::io::Result<()> {
        let text = format!(
            "measurement = \"{}\"\nhost_data = \"{}\"\n{extra}",
            hex(measurement),
            hex(host_data)
        );
        std::fs::write(&self.launch, text)
    }

    /// `enclaveid <subcommand> --config <its configuration>`, output captured.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(fixture::binary("enclaveid"));
        command
            .args(subcommand.split(' '))
            .arg("--config")
            .arg(&self.config)
            .args(["--log-format", "text"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Makes the pod's volume.
    pub async fn init_volume(&self, key_id: &str) -> Result<(), DeploymentError> {
        std::fs::create_dir_all(self.mountpoint())?;
        let mut command = self.command("volume init");
        command.args(["--key-id", key_id]);
        succeed(command).await.map(|_| ())
    }
}

/// Runs a program to its end and expects 0.
pub async fn succeed(mut command: Command) -> Result<Output, DeploymentError> {
    let program = format!("{:?}", command.as_std());
    let output = command.output().await?;
    if output.status.success() {
        return Ok(output);
    }
    Err(DeploymentError::Program {
        program,
        code: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
