//! Core: the claims about a guest, named and formed as in real tokens.

use std::ops::Range;

use serde_json::{Map, Value};

use super::evidence::AttestRequest;
use crate::hex;
use crate::snp::layout;

/// What is said of guests whose firmware the service does not know from an endorsement.
const COMPLIANCE_STATUS: &str = "azure-compliant-cvm";

/// All claims that come from the request.
pub(super) fn of_report(request: &AttestRequest) -> Map<String, Value> {
    let raw = Raw(request.report.raw());
    let mut claims = Map::new();
    claims.insert("x-ms-ver".into(), "1.0".into());
    claims.insert("x-ms-attestation-type".into(), "sevsnpvm".into());
    claims.insert("x-ms-compliance-status".into(), COMPLIANCE_STATUS.into());
    if let Some(runtime) = &request.runtime_claims {
        claims.insert("x-ms-runtime".into(), runtime.clone());
    }
    let guest = identity(&raw)
        .into_iter()
        .chain(versions(&raw))
        .chain(policy(&raw));
    claims.extend(guest.map(|(name, value)| (format!("x-ms-sevsnpvm-{name}"), value)));
    claims
}

/// A report read by offsets of this package's own.
struct Raw<'a>(&'a [u8]);

impl Raw<'_> {
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    fn byte(&self, offset: usize) -> u8 {
        self.0.get(offset).copied().unwrap_or_default()
    }

    fn hex(&self, offset: usize, len: usize) -> Value {
        hex(self.bytes(offset..offset + len)).into()
    }

    /// A little-endian number of `len` bytes.
    fn number(&self, offset: usize, len: usize) -> u64 {
        let bytes = self.bytes(offset..offset + len);
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

fn identity(raw: &Raw<'_>) -> [(&'static str, Value); 11] {
    [
        ("authorkeydigest", raw.hex(layout::AUTHOR_KEY_DIGEST, 48)),
        ("chip-family", chip_family(raw).into()),
        ("chipid", raw.hex(layout::CHIP_ID, 64)),
        ("familyId", raw.hex(layout::FAMILY_ID, 16)),
        ("hostdata", raw.hex(layout::HOST_DATA, 32)),
        ("idkeydigest", raw.hex(layout::ID_KEY_DIGEST, 48)),
        ("imageId", raw.hex(layout::IMAGE_ID, 16)),
        ("launchmeasurement", raw.hex(layout::MEASUREMENT, 48)),
        ("reportdata", raw.hex(layout::REPORT_DATA, 64)),
        ("reportid", raw.hex(layout::REPORT_ID, 32)),
        ("vmpl", raw.number(layout::VMPL, 4).into()),
    ]
}

/// The levels that the VCEK is for: those of the reported TCB.
fn versions(raw: &Raw<'_>) -> [(&'static str, Value); 5] {
    let level = |index: usize| raw.byte(layout::REPORTED_TCB + index).into();
    [
        ("bootloader-svn", level(0)),
        ("guestsvn", raw.number(layout::GUEST_SVN, 4).into()),
        ("microcode-svn", level(7)),
        ("snpfw-svn", level(6)),
        ("tee-svn", level(1)),
    ]
}

/// The bits of POLICY.
fn policy(raw: &Raw<'_>) -> [(&'static str, Value); 9] {
    let policy = raw.number(layout::POLICY, 8);
    let bit = |index: u32| Value::Bool(policy >> index & 1 == 1);
    [
        ("smt-allowed", bit(16)),
        ("migration-allowed", bit(18)),
        ("is-debuggable", bit(19)),
        ("singlesocket", bit(20)),
        ("cxl-allowed", bit(21)),
        ("mem-aes256-xts-required", bit(22)),
        ("rapl-disabled", bit(23)),
        ("ciphertext-hiding-dram-enabled", bit(24)),
        ("page-swap-disabled", bit(25)),
    ]
}

fn chip_family(raw: &Raw<'_>) -> &'static str {
    // Reports before version 3 do not tell the processor; they come from Milan.
    if raw.number(layout::VERSION, 4) < 3 {
        return "Milan";
    }
    match (raw.byte(layout::CPUID), raw.byte(layout::CPUID + 1)) {
        (0x19, 0x00..=0x0f) => "Milan",
        (0x19, 0x10..=0x1f | 0xa0..=0xaf) => "Genoa",
        (0x1a, 0x00..=0x11) => "Turin",
        _ => "Unknown",
    }
}
