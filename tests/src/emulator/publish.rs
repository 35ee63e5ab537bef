//! Edge: writes what other processes need to use a running cloud into a directory.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::{Cloud, Role, StartError, Workload};
use crate::hex;

/// Name of the file that says where everything is. It is written last: where it is, all is.
const INDEX: &str = "emulators.json";

impl Cloud {
    /// Writes the trust roots, an identity for pods and one for create-secrets, and
    /// `emulators.json`, which says where the services and these files are.
    pub fn write_to(&self, dir: &Path) -> Result<(), StartError> {
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let tls_roots = write(&dir, "tls-roots.pem", &self.roots_pem)?;
        let jws_roots = write(&dir, "jws-roots.pem", &self.jws_roots_pem)?;
        let pod = self.create_identity(Role::CryptoServiceReleaseUser)?;
        let create_secrets = self.create_identity(Role::CryptoUser)?;
        let index = json!({
            "maa": {"url": self.maa.url(), "policy_hash": hex(&self.maa.policy_hash())},
            "hsm": {"url": self.hsm.url()},
            "entra": {"url": self.entra.url(), "tenant": self.tenant},
            "tls_roots": tls_roots,
            "jws_roots": jws_roots,
            "identities": {
                "pod": publish_identity(&dir, "pod", &pod)?,
                "create_secrets": publish_identity(&dir, "create-secrets", &create_secrets)?,
            },
        });
        // Renamed into place, so that nobody reads half of it.
        let mut draft = tempfile::NamedTempFile::new_in(&dir)?;
        serde_json::to_writer_pretty(&mut draft, &index).map_err(io::Error::from)?;
        draft
            .persist(dir.join(INDEX))
            .map_err(|error| error.error)?;
        Ok(())
    }
}

fn publish_identity(dir: &Path, name: &str, workload: &Workload) -> Result<Value, StartError> {
    let token_file = write(dir, &format!("{name}.token"), &workload.assertion)?;
    Ok(json!({
        "client_id": workload.client_id,
        "object_id": workload.object_id,
        "token_file": token_file,
    }))
}

/// Writes a file and returns its path.
fn write(dir: &Path, name: &str, content: &str) -> Result<Value, StartError> {
    let path = dir.join(name);
    std::fs::write(&path, content)?;
    Ok(json!(path))
}
