//! Core: the attestation request: decoding, and the checks that the service makes before it
//! believes a report.

use attest::UnixSeconds;
use attest::anchors::TrustAnchors;
use attest::binding::ReportData;
use attest::endorsements::Endorsements;
use attest::evidence;
use attest::report::Report;
use runtime::clock::UnixTime;
use serde_json::Value;

use super::invalid;
use crate::emulator::jose;
use crate::emulator::server::Answer;

/// A request, decoded.
#[derive(Debug)]
pub(super) struct AttestRequest {
    pub(super) report: Report,
    endorsements: Endorsements,
    runtime_data: Vec<u8>,
    /// The runtime data, when it was said to be JSON.
    pub(super) runtime_claims: Option<Value>,
    init_time_data: Option<Vec<u8>>,
    pub(super) nonce: Option<String>,
    pub(super) draft_policy: bool,
}

impl AttestRequest {
    /// Decodes the body of `POST /attest/SevSnpVm`.
    pub(super) fn parse(body: &Value) -> Result<Self, Answer> {
        let evidence = base64_text(body, "report")?;
        let evidence: Value = serde_json::from_slice(&evidence)
            .map_err(|_| invalid("report is no base64url of JSON"))?;
        let report = Report::parse(&base64_text(&evidence, "SnpReport")?)
            .map_err(|error| invalid(&format!("SnpReport: {error}")))?;
        let chain = base64_text(&evidence, "VcekCertChain")?;
        let endorsements = Endorsements::parse(&chain, None)
            .map_err(|error| invalid(&format!("VcekCertChain: {error}")))?;
        let (runtime_data, runtime_claims) = runtime_data(body)?;
        Ok(Self {
            report,
            endorsements,
            runtime_data,
            runtime_claims,
            init_time_data: init_time_data(body)?,
            nonce: body.get("nonce").and_then(Value::as_str).map(str::to_owned),
            draft_policy: body
                .get("draftPolicyForAttestation")
                .is_some_and(|p| !p.is_null()),
        })
    }

    /// Signature, chain, dates and TCB of the report; then what it is bound to.
    pub(super) fn verify(&self, anchors: &TrustAnchors, now: UnixTime) -> Result<(), Answer> {
        evidence::verify(
            &self.report,
            &self.endorsements,
            anchors,
            UnixSeconds(now.0),
        )
        .map_err(|error| invalid(&format!("the report is not genuine: {error}")))?;
        if ReportData::for_runtime_data(&self.runtime_data) != self.report.report_data() {
            return Err(invalid(
                "the hash of the runtime data is not the one in the report",
            ));
        }
        let init_time_holds = self
            .init_time_data
            .as_ref()
            .is_none_or(|data| openssl::sha::sha256(data) == self.report.host_data());
        if !init_time_holds {
            return Err(invalid(
                "the hash of the init time data is not the one in the report",
            ));
        }
        Ok(())
    }
}

fn runtime_data(body: &Value) -> Result<(Vec<u8>, Option<Value>), Answer> {
    let member = body
        .get("runtimeData")
        .ok_or_else(|| invalid("runtimeData is missing"))?;
    let data = base64_text(member, "data")?;
    let claims = match member.get("dataType").and_then(Value::as_str) {
        Some("Binary") => None,
        Some("JSON") => {
            let claims = serde_json::from_slice(&data);
            Some(claims.map_err(|_| invalid("runtimeData is no JSON"))?)
        }
        _ => return Err(invalid("dataType is neither JSON nor Binary")),
    };
    Ok((data, claims))
}

/// Absent, and empty as Microsoft's own client sends it, mean the same.
fn init_time_data(body: &Value) -> Result<Option<Vec<u8>>, Answer> {
    let Some(member) = body.get("initTimeData").filter(|member| !member.is_null()) else {
        return Ok(None);
    };
    let data = base64_text(member, "data")?;
    Ok((!data.is_empty()).then_some(data))
}

fn base64_text(object: &Value, name: &str) -> Result<Vec<u8>, Answer> {
    let text = object.get(name).and_then(Value::as_str);
    text.and_then(jose::decode)
        .ok_or_else(|| invalid(&format!("{name} is no base64url text")))
}
