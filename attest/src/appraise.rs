//! Core: whether a genuine report is the wanted one. An appraisal is a list of named rows.

use crate::binding::ReportData;
use crate::report::Report;

/// What a report is compared with, and whether it is at all.
///
/// A type of its own, because an `Option` reads as "check if given": here what is not asked for is
/// a row of the result.
#[derive(Debug, Clone)]
pub enum Asked<T> {
    /// The report must match.
    For(T),
    /// Nobody asked; the row says so.
    Not,
}

/// Values that a report must have (RATS: Reference Values).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceValues {
    /// The privilege level of the guest software that asked for the report.
    pub vmpl: u32,
    /// Whether a guest that may run with simultaneous multithreading is acceptable.
    pub smt: bool,
    /// Pairs of measurement and host data, one of which must match as a pair.
    pub allow: Vec<Allowed>,
}

/// One acceptable launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Launch measurement.
    pub measurement: [u8; 48],
    /// The 32 bytes that the host chose at launch.
    pub host_data: [u8; 32],
}

/// Everything that an appraisal may be asked for.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// What the report must be bound to.
    pub binding: Asked<ReportData>,
    /// Values that it must have.
    pub reference: Asked<ReferenceValues>,
}

/// The rows of an appraisal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appraisal {
    /// What the host may do with the guest, and the VMPL.
    pub guest_policy: Status,
    /// What the report is bound to.
    pub binding: Status,
    /// The launch measurement.
    pub measurement: Status,
    /// The host data, of a launch with this measurement.
    pub host_data: Status,
}

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is as wanted.
    Accepted,
    /// Nobody asked.
    NotChecked,
    /// It is not as wanted.
    Rejected(Finding),
}

/// Why a row was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// REPORT_DATA is another one.
    #[error("the report is bound to other data")]
    Binding,
    /// The guest policy or the VMPL is not acceptable.
    #[error(transparent)]
    GuestPolicy(GuestPolicyFinding),
    /// No acceptable launch with this measurement has this HOST_DATA.
    #[error("the host data is not in the allow list for this measurement")]
    HostData,
    /// No acceptable launch has this measurement.
    #[error("the measurement is not in the allow list")]
    Measurement,
}

/// Why a guest policy is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestPolicyFinding {
    /// The host may read and write the guest's memory.
    #[error("the guest may be debugged by the host")]
    Debug,
    /// The host asked for the report, so it is bound to nothing of the guest's.
    #[error("the host asked for the report, not the guest")]
    HostRequested,
    /// A migration agent could get the guest's keys.
    #[error("the guest may be migrated")]
    Migration,
    /// The guest may run with simultaneous multithreading.
    #[error("the guest may run with SMT")]
    Smt,
    /// The report is of another privilege level.
    #[error("the report is of another VMPL")]
    Vmpl,
}

impl Finding {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Binding => "evidence.binding",
            Self::GuestPolicy(finding) => finding.code(),
            Self::HostData => "evidence.host_data",
            Self::Measurement => "evidence.measurement",
        }
    }
}

impl GuestPolicyFinding {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Debug => "evidence.debug",
            Self::HostRequested => "evidence.host_requested",
            Self::Migration => "evidence.migration",
            Self::Smt => "evidence.smt",
            Self::Vmpl => "evidence.vmpl",
        }
    }
}

impl Status {
    fn of(result: Result<(), Finding>) -> Self {
        result.map_or_else(Self::Rejected, |()| Self::Accepted)
    }
}

/// Compares a report with what was asked for. The rows mean something only for a report that
/// [`crate::evidence::verify`] believes.
pub fn appraise(report: &Report, expectations: &Expectations) -> Appraisal {
    let policy = appraise_guest_policy(report);
    let (policy, measurement, host_data) = match &expectations.reference {
        Asked::Not => (policy, Status::NotChecked, Status::NotChecked),
        Asked::For(reference) => (
            policy.and_then(|()| appraise_vmpl_and_smt(report, reference)),
            Status::of(appraise_measurement(report, reference)),
            Status::of(appraise_host_data(report, reference)),
        ),
    };
    let binding = match &expectations.binding {
        Asked::Not => Status::NotChecked,
        Asked::For(wanted) if report.report_data() == *wanted => Status::Accepted,
        Asked::For(_) => Status::Rejected(Finding::Binding),
    };
    let guest_policy = Status::of(policy.map_err(Finding::GuestPolicy));
    Appraisal {
        guest_policy,
        binding,
        measurement,
        host_data,
    }
}

/// What is never acceptable: a guest that its host may debug or migrate, and a report that the
/// host asked for itself.
pub fn appraise_guest_policy(report: &Report) -> Result<(), GuestPolicyFinding> {
    let policy = report.policy();
    if policy.debug() {
        Err(GuestPolicyFinding::Debug)
    } else if policy.migrate_ma() {
        Err(GuestPolicyFinding::Migration)
    } else if report.vmpl() == u32::MAX {
        Err(GuestPolicyFinding::HostRequested)
    } else {
        Ok(())
    }
}

fn appraise_vmpl_and_smt(
    report: &Report,
    reference: &ReferenceValues,
) -> Result<(), GuestPolicyFinding> {
    if report.vmpl() != reference.vmpl {
        Err(GuestPolicyFinding::Vmpl)
    } else if report.policy().smt() && !reference.smt {
        Err(GuestPolicyFinding::Smt)
    } else {
        Ok(())
    }
}

fn appraise_measurement(report: &Report, reference: &ReferenceValues) -> Result<(), Finding> {
    let measurement = report.measurement();
    let known = reference
        .allow
        .iter()
        .any(|allowed| allowed.measurement == measurement);
    if known {
        Ok(())
    } else {
        Err(Finding::Measurement)
    }
}

/// As a pair: the host data of one image is no recommendation for another.
fn appraise_host_data(report: &Report, reference: &ReferenceValues) -> Result<(), Finding> {
    let pair = Allowed {
        measurement: report.measurement(),
        host_data: report.host_data(),
    };
    if reference.allow.contains(&pair) {
        Ok(())
    } else {
        Err(Finding::HostData)
    }
}

#[cfg(test)]
mod tests;
