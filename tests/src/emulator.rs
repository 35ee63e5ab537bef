//! Core: the cloud's services as servers on the real wire, each judging as the real one does.
//!
//! [`Cloud`] is one of each, on `https://localhost` and ports of their own, with certificates of
//! an authority made in this run. They check what is sent to them: signatures, chains, bindings,
//! release policies, roles. A test that passes against them has met the protocol, and a test can
//! tell them to fail ([`Fault`]) or to lie ([`TokenLie`], [`ReleaseLie`]).

use std::sync::Arc;

use openssl::error::ErrorStack;
use runtime::clock::{Clock, SystemClock};

use crate::hex;
use crate::pki::{Authority, Identity, Validity, p256_key};

mod client;
mod entra;
mod jose;
mod keys;
mod maa;
mod managed_hsm;
mod publish;
mod script;
mod server;

use keys::EmulatorKeys;
use server::{Api, Binding, Server, tls_context};

pub use client::{Client, ClientError, Reply};
pub use entra::{Entra, Workload};
pub use maa::{Maa, TokenLie};
pub use managed_hsm::{ManagedHsm, ReleaseLie, Role};
pub use script::Fault;
pub use server::LoggedRequest;

/// What the services are to believe.
#[derive(Debug)]
pub struct CloudOptions {
    /// Root of the chips whose reports the attestation service accepts, PEM.
    pub ark_pem: Vec<u8>,
    /// The time of day of all services.
    pub clock: Arc<dyn Clock>,
}

/// All services, started. Dropping it stops them.
#[derive(Debug)]
pub struct Cloud {
    /// The attestation service.
    pub maa: Emulator<Maa>,
    /// The vault.
    pub hsm: Emulator<ManagedHsm>,
    /// The token service.
    pub entra: Emulator<Entra>,
    /// Directory (tenant) id.
    pub tenant: String,
    /// Root of the servers' TLS certificates, PEM.
    pub roots_pem: String,
    /// Root of the chain that signs released keys, PEM.
    pub jws_roots_pem: String,
}

/// A service on its port.
#[derive(Debug)]
pub struct Emulator<S> {
    server: Server,
    service: Arc<S>,
}

/// The services could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The given ARK is no certificate.
    #[error("the root of the simulated chips is malformed")]
    Ark,
    /// OpenSSL failed.
    #[error("cannot make keys and certificates")]
    Crypto(#[from] ErrorStack),
    /// No free port, or files could not be written.
    #[error("cannot listen or write files")]
    Io(#[from] std::io::Error),
    /// The vault could not learn the attestation service's keys.
    #[error("the vault cannot read the attestation service's metadata")]
    Metadata(#[source] Option<ClientError>),
}

impl CloudOptions {
    /// A cloud that believes the chips below `ark_pem`, and this machine's clock.
    pub fn trusting(ark_pem: Vec<u8>) -> Self {
        Self {
            ark_pem,
            clock: Arc::new(SystemClock),
        }
    }
}

impl Cloud {
    /// Starts all services; they answer once this returns.
    pub async fn start(options: CloudOptions) -> Result<Self, StartError> {
        let clock = options.clock;
        let keys = EmulatorKeys::shared()?;
        let tls = TlsAuthority::new()?;
        let signers = managed_hsm::Signers::new(&keys, Validity::around(clock.now()))?;

        let entra = start(&tls, |url| Ok(Entra::new(url, &keys, clock.clone()))).await?;
        let maa = start(&tls, |url| {
            Maa::new(url, &options.ark_pem, &keys, clock.clone())
        });
        let maa = maa.await?;
        let client = Client::new(&tls.roots_pem)?;
        let issuer = managed_hsm::TrustedIssuer::fetch(&client, maa.url()).await?;
        // The record is for what the code under test asks.
        maa.forget_requests();
        let jws_roots_pem = signers.root_pem()?;
        let doorman = managed_hsm::Doorman::new(&entra.service, clock.clone())?;
        let hsm = start(&tls, |url| {
            Ok(ManagedHsm::new(url, doorman, issuer, signers, clock))
        });
        let hsm = hsm.await?;
        let tenant = entra.service.tenant().to_owned();
        Ok(Self {
            maa,
            hsm,
            entra,
            tenant,
            roots_pem: tls.roots_pem,
            jws_roots_pem,
        })
    }

    /// Makes a workload identity with a role on all keys of the vault.
    pub fn create_identity(&self, role: Role) -> Result<Workload, StartError> {
        let workload = self.entra.register()?;
        self.hsm.assign(&workload.object_id, role);
        Ok(workload)
    }

    /// A client of these services.
    pub fn client(&self) -> Result<Client, StartError> {
        Ok(Client::new(&self.roots_pem)?)
    }
}

impl<S> Emulator<S> {
    /// Where the service is, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// The next `count` requests meet `fault`, whatever they ask; after those that were planned
    /// before.
    pub fn fail_next(&self, count: u32, fault: Fault) {
        self.server.fail_next(count, fault);
    }

    /// Forgets planned faults.
    pub fn recover(&self) {
        self.server.recover();
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.server.requests()
    }

    /// Empties the record of requests.
    pub fn forget_requests(&self) {
        self.server.forget_requests();
    }
}

async fn start<S: Api>(
    tls: &TlsAuthority,
    make: impl FnOnce(&str) -> Result<S, StartError>,
) -> Result<Emulator<S>, StartError> {
    let binding = Binding::open().await?;
    let service = Arc::new(make(&binding.url)?);
    let context = tls_context(&tls.issue()?)?;
    Ok(Emulator {
        server: binding.serve(context, service.clone()),
        service,
    })
}

/// Whose certificates the servers have.
struct TlsAuthority {
    authority: Authority,
    validity: Validity,
    roots_pem: String,
}

impl TlsAuthority {
    fn new() -> Result<Self, StartError> {
        // TLS libraries go by the machine's clock, whatever the services' clock shows.
        let validity = Validity::around(SystemClock.now());
        let authority = Authority::root("Emulator TLS Root", p256_key()?, validity)?;
        let roots_pem = pem_text(&authority.certificate().to_pem()?);
        Ok(Self {
            authority,
            validity,
            roots_pem,
        })
    }

    fn issue(&self) -> Result<Identity, ErrorStack> {
        self.authority.issue_server(p256_key()?, self.validity)
    }
}

/// PEM is ASCII.
fn pem_text(pem: &[u8]) -> String {
    String::from_utf8_lossy(pem).into_owned()
}

/// `N` random bytes as hexadecimal digits.
fn random_hex<const N: usize>() -> Result<String, ErrorStack> {
    let mut bytes = [0; N];
    openssl::rand::rand_bytes(&mut bytes)?;
    Ok(hex(&bytes))
}
