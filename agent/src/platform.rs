//! Port: the attesting environment that this pod runs in.

use std::fmt::Debug;

use attest::binding::ReportData;

pub mod sev_guest;
#[cfg(feature = "simulator")]
pub mod simulator;

/// Evidence with what is needed to verify it, all as bytes: nothing here has been verified.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The attestation report, 1,184 bytes when well-formed.
    pub report: Vec<u8>,
    /// The VCEK certificate, PEM.
    pub vcek_pem: Vec<u8>,
    /// ASK and ARK, PEM, in this order.
    pub chain_pem: Vec<u8>,
}

/// The source of evidence. Calls block for milliseconds (the secure processor serves one request
/// at a time), so they are made from blocking threads.
pub trait Platform: Debug + Send + Sync {
    /// Asks the hardware for a report over `report_data`, with its endorsements.
    fn evidence(&self, report_data: &ReportData) -> Result<Evidence, PlatformError>;
    /// Which roots the evidence of this platform is verified against.
    fn trust_anchors(&self) -> Result<attest::anchors::TrustAnchors, PlatformError>;
    /// The privilege level that reports of this platform must name.
    fn vmpl(&self) -> u32;
    /// Whether this is no hardware at all.
    fn simulated(&self) -> bool;
}

/// The platform gave no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The configured device is not there, or cannot be opened.
    #[error("cannot open the platform's device")]
    Missing(#[source] std::io::Error),
    /// The device refused the request.
    #[error("the platform refused a report")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host handed over no certificates for the chip.
    #[error("the host has no certificates for this chip")]
    NoEndorsements,
    /// What the simulator reads is not in order.
    #[error("the simulated chip or its launch file is malformed")]
    Simulator,
}

impl PlatformError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "platform.missing",
            Self::Refused(_) => "platform.refused",
            Self::NoEndorsements => "platform.no_endorsements",
            Self::Simulator => "platform.simulator",
        }
    }
}
