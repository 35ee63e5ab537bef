//! Adapter: SEV-SNP evidence from `/dev/sev-guest` (Linux `SNP_GET_REPORT`).
//!
//! The certificates come from a file that the host provides, not from the extended request: `sev`
//! walks the table of that one by the host's own offsets, without looking at the end of the buffer.

use std::fmt;
use std::path::{Path, PathBuf};

use attest::anchors::TrustAnchors;
use attest::binding::ReportData;
use openssl::x509::X509;
use runtime::sync::Mutex;
use sev::firmware::guest::Firmware;

use super::{Evidence, Platform, PlatformError};
use crate::files::read_bounded;

/// Most privileged level of a guest: where Kata's guests run, and what the release policy demands.
const VMPL: u32 = 0;
/// VCEK, ASK and ARK in PEM are about 6 KB.
const ENDORSEMENTS_BYTES_MAX: u64 = 64 * 1024;

/// The guest device.
pub struct SevGuest {
    /// The secure processor serves one request at a time, with a sequence number in the driver.
    device: Mutex<Firmware>,
    endorsements: PathBuf,
}

impl SevGuest {
    /// Opens the device. It is configured, never looked for: a missing one is an error.
    pub fn open(endorsements: &Path) -> Result<Self, PlatformError> {
        let device = Firmware::open().map_err(PlatformError::Missing)?;
        Ok(Self {
            device: Mutex::new(device),
            endorsements: endorsements.to_owned(),
        })
    }
}

impl fmt::Debug for SevGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SevGuest(..)")
    }
}

impl Platform for SevGuest {
    fn evidence(&self, report_data: &ReportData) -> Result<Evidence, PlatformError> {
        // The VMPL is always stated: the crate's default is 1.
        let report = self
            .device
            .lock()
            .get_report(None, Some(*report_data.as_bytes()), Some(VMPL));
        let report = report.map_err(|error| PlatformError::Refused(Box::new(error)))?;
        // Read anew each time: the host replaces the file when the firmware is updated.
        let pem = read_bounded(&self.endorsements, ENDORSEMENTS_BYTES_MAX);
        let pem = pem.map_err(|_| PlatformError::NoEndorsements)?;
        let (vcek_pem, chain_pem) = split_first(&pem).ok_or(PlatformError::NoEndorsements)?;
        Ok(Evidence {
            report,
            vcek_pem,
            chain_pem,
        })
    }

    fn trust_anchors(&self) -> Result<TrustAnchors, PlatformError> {
        Ok(TrustAnchors::amd())
    }

    fn vmpl(&self) -> u32 {
        VMPL
    }

    fn simulated(&self) -> bool {
        false
    }
}

/// The first certificate, and the ones after it, written anew: nothing but certificates leaves the
/// guest as endorsements.
fn split_first(pem: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let certificates = X509::stack_from_pem(pem).ok()?;
    let mut certificates = certificates
        .iter()
        .map(|certificate| certificate.to_pem().ok());
    let first = certificates.next()??;
    let rest: Vec<Vec<u8>> = certificates.collect::<Option<_>>()?;
    Some((first, rest.concat()))
}
