//! Core: the demo's step on evidence.

use super::{Outcome, Stage, client};
use crate::deployment::succeed;
use crate::hex;

/// Fetches evidence with a fresh nonce and verifies it as an outsider would, with files alone.
pub(super) async fn verify(stage: &Stage) -> Outcome {
    let dir = stage.pod_a.dir.join("evidence");
    let mut nonce = [0; 32];
    openssl::rand::rand_bytes(&mut nonce)?;
    let mut fetch = client(&stage.pod_a, "evidence");
    fetch
        .args(["--audience", "demo", "--nonce", &hex(&nonce), "--out"])
        .arg(&dir);
    succeed(fetch).await?;
    let binding = dir.join("binding.json");
    let verify = stage
        .deployment
        .verify_evidence(&stage.pod_a, &dir, &binding)?;
    let output = succeed(verify).await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
