//! Edge: fresh evidence for a local caller: report, endorsements, and what the report is bound to.

use attest::binding::{Binding, ReportData, Role, local_caller_challenge};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::sha::sha256;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::state::State;
use crate::hex;
use crate::own_evidence::obtain_blocking;

/// Body of `POST /v1/evidence`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvidenceQuestion {
    /// 32 random bytes of the caller, hexadecimal: freshness.
    nonce: String,
    /// Who asks, 1 to 256 bytes: an answer for one audience convinces no other.
    audience: String,
}

/// Answer of `POST /v1/evidence`: what `enclaveid evidence verify` takes.
#[derive(Debug, Serialize, Deserialize)]
pub struct EvidenceAnswer {
    /// The attestation report, base64.
    pub report: String,
    /// VCEK certificate, PEM.
    pub vcek: String,
    /// ASK and ARK certificates, PEM.
    pub chain: String,
    /// The pre-image of the report's REPORT_DATA, field by field.
    pub binding: BindingView,
    /// The exact bytes of the statement, base64: the same as in the binding, for those who read it
    /// without verifying.
    pub statement: String,
}

/// What the report is bound to: the pre-image, field by field, as `binding.json` holds it.
#[derive(Debug, Serialize, Deserialize)]
pub struct BindingView {
    /// 4: a local caller.
    pub role: u8,
    /// The caller's nonce, hexadecimal.
    pub nonce: String,
    /// The caller's audience.
    pub audience: String,
    /// SHA-256 of the DER SubjectPublicKeyInfo of the leaf in use.
    pub tls: String,
    /// SHA-256 of the key list of the web channel; zeros while there is none.
    pub keys: String,
    /// SHA-256 of the DER SubjectPublicKeyInfo of the mesh CA.
    pub ca: String,
    /// The exact bytes of the statement, base64.
    pub statement: String,
}

/// Why there is no evidence.
#[derive(Debug)]
pub(super) enum EvidenceFailure {
    /// The question is malformed.
    Question,
    /// The platform, or the binding of its report, failed; its code.
    Platform(&'static str),
}

/// Makes a report for the caller. Blocks while the secure processor works.
pub(super) fn answer(
    state: &State,
    question: &EvidenceQuestion,
) -> Result<EvidenceAnswer, EvidenceFailure> {
    let nonce = hex::decode_array(&question.nonce).ok_or(EvidenceFailure::Question)?;
    let challenge = local_caller_challenge(&nonce, &question.audience);
    let challenge = challenge.map_err(|_| EvidenceFailure::Question)?;
    let identity = state
        .identity()
        .ok_or(EvidenceFailure::Platform("api.not_ready"))?;
    let statement = statement(state);
    let ca = identity
        .ca_spki_der()
        .map_err(|error| EvidenceFailure::Platform(error.code()))?;
    let binding = Binding {
        role: Role::LocalCaller,
        challenge,
        tls: sha256(&identity.leaf().spki_der),
        keys: [0; 32],
        ca: sha256(&ca),
        statement: sha256(&statement),
    };
    // What leaves the pod was verified here first: nothing that the host slipped in goes along.
    let own = obtain_blocking(state.platform(), &ReportData::bind(&binding), state.now());
    let evidence = own
        .map_err(|error| EvidenceFailure::Platform(error.code()))?
        .evidence;
    let statement = STANDARD.encode(statement);
    Ok(EvidenceAnswer {
        report: STANDARD.encode(&evidence.report),
        vcek: String::from_utf8_lossy(&evidence.vcek_pem).into_owned(),
        chain: String::from_utf8_lossy(&evidence.chain_pem).into_owned(),
        binding: BindingView {
            role: Role::LocalCaller as u8,
            nonce: hex::encode(&nonce),
            audience: question.audience.clone(),
            tls: hex::encode(&binding.tls),
            keys: hex::encode(&binding.keys),
            ca: hex::encode(&binding.ca),
            statement: statement.clone(),
        },
        statement,
    })
}

/// What this agent says about itself, under the report's signature.
fn statement(state: &State) -> Vec<u8> {
    let statement = json!({
        "v": 1,
        "version": crate::VERSION,
        "simulated": state.platform().simulated(),
        "config_sha256": hex::encode(&state.config_digest().0),
        "spiffe_id": state.identity().map(|identity| identity.spiffe_id().to_string()),
        "key_provenance": crate::unlock::KEY_PROVENANCE,
    });
    statement.to_string().into_bytes()
}
