//! Core: the agent looks at its own evidence first, so that a wrong launch is named here, by us,
//! rather than by a 403 from far away.

use std::sync::Arc;

use attest::UnixSeconds;
use attest::appraise::{GuestPolicyFinding, appraise_guest_policy};
use attest::binding::{Binding, ReportData, Role};
use attest::endorsements::{Endorsements, EndorsementsError};
use attest::evidence::{VerifiedReport, VerifyError};
use attest::report::{Report, ReportError};
use runtime::clock::UnixTime;

use crate::config::ConfigDigest;
use crate::platform::{Evidence, Platform, PlatformError};

/// Evidence of this pod that was verified: signature, chain, dates, TCB, chip, guest policy, VMPL
/// and REPORT_DATA. Made by [`obtain`] alone.
#[derive(Debug)]
pub struct OwnEvidence {
    /// What the platform handed over, for the attestation service.
    pub evidence: Evidence,
    /// The report in it.
    pub report: VerifiedReport,
}

/// The configuration file is the one that the hardware vouches for. Made by
/// [`OwnEvidence::measured`] alone.
#[derive(Debug)]
pub struct MeasuredConfig(());

/// Our own evidence is not in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnEvidenceError {
    /// The platform gave none.
    #[error("no evidence from the platform")]
    Platform(#[source] PlatformError),
    /// The report is malformed.
    #[error("the platform's report is malformed")]
    Report(#[source] ReportError),
    /// The certificates are malformed.
    #[error("the platform's certificates are malformed")]
    Endorsements(#[source] EndorsementsError),
    /// The report does not verify.
    #[error("the platform's report does not verify")]
    Verify(#[source] VerifyError),
    /// The guest was launched with a policy that lets the host look inside.
    #[error("the guest policy is not acceptable")]
    GuestPolicy(#[source] GuestPolicyFinding),
    /// The report is of another privilege level than configured.
    #[error("the report is of another VMPL than configured")]
    Vmpl,
    /// The report does not carry what we asked it to carry.
    #[error("the report is bound to other data than was asked for")]
    Binding,
    /// HOST_DATA is not the digest of the configuration file.
    #[error("the configuration file is not the measured one")]
    Unmeasured,
    /// The task that talks to the platform died.
    #[error("the task that talks to the platform died")]
    Task,
}

impl OwnEvidenceError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Platform(error) => error.code(),
            Self::Report(error) => error.code(),
            Self::Endorsements(error) => error.code(),
            Self::Verify(error) => error.code(),
            Self::GuestPolicy(finding) => finding.code(),
            Self::Vmpl => "evidence.vmpl",
            Self::Binding => "evidence.binding",
            Self::Unmeasured => "config.unmeasured",
            Self::Task => "bug.panic",
        }
    }
}

/// Asks the platform for a report over `report_data` and verifies it, off the runtime's threads.
///
/// Safe to drop; the platform then finishes the request for nobody.
pub async fn obtain(
    platform: &Arc<dyn Platform>,
    report_data: &ReportData,
    now: UnixTime,
) -> Result<OwnEvidence, OwnEvidenceError> {
    let (platform, wanted) = (Arc::clone(platform), report_data.clone());
    let obtained = tokio::task::spawn_blocking(move || obtain_blocking(&*platform, &wanted, now));
    obtained.await.map_err(|_| OwnEvidenceError::Task)?
}

/// Like [`obtain`], for callers on a thread that may block.
pub fn obtain_blocking(
    platform: &dyn Platform,
    report_data: &ReportData,
    now: UnixTime,
) -> Result<OwnEvidence, OwnEvidenceError> {
    let evidence = platform
        .evidence(report_data)
        .map_err(OwnEvidenceError::Platform)?;
    let report = Report::parse(&evidence.report).map_err(OwnEvidenceError::Report)?;
    let chain = (!evidence.chain_pem.is_empty()).then_some(evidence.chain_pem.as_slice());
    let endorsements = Endorsements::parse(&evidence.vcek_pem, chain);
    let endorsements = endorsements.map_err(OwnEvidenceError::Endorsements)?;
    let anchors = platform
        .trust_anchors()
        .map_err(OwnEvidenceError::Platform)?;
    let report = attest::evidence::verify(&report, &endorsements, &anchors, UnixSeconds(now.0));
    let report = report.map_err(OwnEvidenceError::Verify)?;
    appraise_guest_policy(report.report()).map_err(OwnEvidenceError::GuestPolicy)?;
    if report.report().vmpl() != platform.vmpl() {
        return Err(OwnEvidenceError::Vmpl);
    }
    if report.report().report_data() != *report_data {
        return Err(OwnEvidenceError::Binding);
    }
    Ok(OwnEvidence { evidence, report })
}

impl OwnEvidence {
    /// Checks that HOST_DATA is the digest of the configuration file that we run with.
    pub fn measured(&self, digest: ConfigDigest) -> Result<MeasuredConfig, OwnEvidenceError> {
        if self.report.report().host_data() == digest.0 {
            Ok(MeasuredConfig(()))
        } else {
            Err(OwnEvidenceError::Unmeasured)
        }
    }
}

/// REPORT_DATA of the report that a start begins with: it is bound to nothing yet, and says so.
pub fn boot_binding() -> ReportData {
    ReportData::bind(&Binding {
        role: Role::Boot,
        challenge: [0; 32],
        tls: [0; 32],
        keys: [0; 32],
        ca: [0; 32],
        statement: [0; 32],
    })
}
