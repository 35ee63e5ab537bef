//! Core: the table of all configuration keys, with the trust of each.

/// Who may set a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The configuration file alone, whose digest is in the hardware's report.
    Measured,
    /// Also the environment and flags. Says where something is, and can never weaken a check.
    HostControlled,
}

/// One configuration key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `area.key` as in the file.
    pub path: &'static str,
    /// Who may set it.
    pub trust: Trust,
    /// Variable that workload-identity webhooks set, read when nothing else sets the key.
    pub azure_variable: Option<&'static str>,
}

/// Every key there is. Anything else in the file or the environment is an error.
pub const KEYS: &[Key] = &[
    measured("platform.kind"),
    host("platform.endorsements"),
    #[cfg(feature = "simulator")]
    measured("platform.simulator_chip"),
    #[cfg(feature = "simulator")]
    measured("platform.simulator_launch"),
    measured("attestation.issuer"),
    measured("attestation.policy_hash"),
    measured("tls.roots_pem"),
    host("vault.url"),
    host("vault.key_id"),
    measured("vault.jws_roots_pem"),
    azure("identity.endpoint", "AZURE_AUTHORITY_HOST"),
    azure("identity.tenant_id", "AZURE_TENANT_ID"),
    azure("identity.client_id", "AZURE_CLIENT_ID"),
    azure("identity.token_file", "AZURE_FEDERATED_TOKEN_FILE"),
    host("retry.total_s"),
    host("retry.per_try_s"),
    measured("mesh.trust_domain"),
    measured("mesh.spiffe_id"),
    host("mesh.ca_certificate"),
    measured("mesh.leaf_lifetime_s"),
    measured("volume.id"),
    host("volume.store"),
    measured("volume.mountpoint"),
    measured("sockets.dir"),
    measured("sockets.group"),
    measured("sockets.allowed_uids"),
    measured("sockets.allowed_gids"),
    measured("sockets.vsock_port"),
    measured("provision.key_name"),
    measured("provision.pods"),
    host("log.level"),
];

impl Key {
    /// The environment variable that sets this key.
    pub fn variable(&self) -> String {
        format!(
            "ENCLAVEID__{}",
            self.path.replace('.', "__").to_ascii_uppercase()
        )
    }
}

const fn measured(path: &'static str) -> Key {
    Key {
        path,
        trust: Trust::Measured,
        azure_variable: None,
    }
}

const fn host(path: &'static str) -> Key {
    Key {
        path,
        trust: Trust::HostControlled,
        azure_variable: None,
    }
}

const fn azure(path: &'static str, variable: &'static str) -> Key {
    Key {
        path,
        trust: Trust::HostControlled,
        azure_variable: Some(variable),
    }
}
