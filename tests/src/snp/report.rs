//! Core: attestation reports, laid out byte for byte like the firmware's (SEV-SNP firmware ABI,
//! table ATTESTATION_REPORT), little endian.
//!
//! The offsets stand here a second time, apart from those of the product: a mistake there must not
//! repeat itself in what tests it.

use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::pkey::{PKeyRef, Private};
use openssl::sha::sha384;

use super::chain::Tcb;

/// Length of a report.
pub const REPORT_BYTES: usize = 0x4a0;
/// Length of the signed part.
pub const SIGNED_BYTES: usize = 0x2a0;
/// Length of the integers R and S of the signature, each little endian.
const SCALAR_BYTES: usize = 72;

/// Where the fields are.
#[expect(missing_docs, reason = "named as in the specification")]
pub mod layout {
    pub const VERSION: usize = 0x000;
    pub const GUEST_SVN: usize = 0x004;
    pub const POLICY: usize = 0x008;
    pub const FAMILY_ID: usize = 0x010;
    pub const IMAGE_ID: usize = 0x020;
    pub const VMPL: usize = 0x030;
    pub const SIGNATURE_ALGO: usize = 0x034;
    pub const CURRENT_TCB: usize = 0x038;
    pub const PLATFORM_INFO: usize = 0x040;
    pub const KEY_INFO: usize = 0x048;
    pub const REPORT_DATA: usize = 0x050;
    pub const MEASUREMENT: usize = 0x090;
    pub const HOST_DATA: usize = 0x0c0;
    pub const ID_KEY_DIGEST: usize = 0x0e0;
    pub const AUTHOR_KEY_DIGEST: usize = 0x110;
    pub const REPORT_ID: usize = 0x140;
    pub const REPORT_ID_MA: usize = 0x160;
    pub const REPORTED_TCB: usize = 0x180;
    pub const CPUID: usize = 0x188;
    pub const CHIP_ID: usize = 0x1a0;
    pub const COMMITTED_TCB: usize = 0x1e0;
    pub const CURRENT_VERSION: usize = 0x1e8;
    pub const COMMITTED_VERSION: usize = 0x1ec;
    pub const LAUNCH_TCB: usize = 0x1f0;
    pub const SIGNATURE: usize = 0x2a0;
}

/// Makes reports; starts from one that a verifier should accept.
#[derive(Debug, Clone)]
pub struct ReportBuilder([u8; REPORT_BYTES]);

impl Default for ReportBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ReportBuilder {
    /// A report of version 3, VMPL 0, of a guest that allows SMT and neither debugging nor
    /// migration; without an owner (id key), and of a chip that is all zeros.
    pub fn new() -> Self {
        let blank = Self([0; REPORT_BYTES]);
        blank
            .version(3)
            .policy(0x3_001f)
            .u32(layout::SIGNATURE_ALGO, 1)
            .u64(layout::PLATFORM_INFO, 0x27)
            .put(layout::REPORT_ID_MA, &[0xff; 32])
            .put(layout::CURRENT_VERSION, &[7, 55, 1])
            .put(layout::COMMITTED_VERSION, &[7, 55, 1])
    }

    /// VERSION.
    #[must_use]
    pub fn version(self, version: u32) -> Self {
        self.u32(layout::VERSION, version)
    }

    /// GUEST_SVN.
    #[must_use]
    pub fn guest_svn(self, svn: u32) -> Self {
        self.u32(layout::GUEST_SVN, svn)
    }

    /// POLICY, see [`Self::debug`] for its most wanted bit.
    #[must_use]
    pub fn policy(self, policy: u64) -> Self {
        self.u64(layout::POLICY, policy)
    }

    /// Sets the bit of POLICY that lets the host read the guest's memory.
    #[must_use]
    pub fn debug(mut self) -> Self {
        self.0[layout::POLICY + 2] |= 1 << 3;
        self
    }

    /// VMPL.
    #[must_use]
    pub fn vmpl(self, vmpl: u32) -> Self {
        self.u32(layout::VMPL, vmpl)
    }

    /// REPORT_DATA.
    #[must_use]
    pub fn report_data(self, data: &[u8; 64]) -> Self {
        self.put(layout::REPORT_DATA, data)
    }

    /// MEASUREMENT.
    #[must_use]
    pub fn measurement(self, measurement: &[u8; 48]) -> Self {
        self.put(layout::MEASUREMENT, measurement)
    }

    /// HOST_DATA.
    #[must_use]
    pub fn host_data(self, data: &[u8; 32]) -> Self {
        self.put(layout::HOST_DATA, data)
    }

    /// REPORT_ID.
    #[must_use]
    pub fn report_id(self, id: &[u8; 32]) -> Self {
        self.put(layout::REPORT_ID, id)
    }

    /// CHIP_ID.
    #[must_use]
    pub fn chip_id(self, id: &[u8; 64]) -> Self {
        self.put(layout::CHIP_ID, id)
    }

    /// CPUID family, model and stepping: reports from version 3 on.
    #[must_use]
    pub fn cpuid(self, cpuid: [u8; 3]) -> Self {
        self.put(layout::CPUID, &cpuid)
    }

    /// All four TCB versions.
    #[must_use]
    pub fn tcb(self, tcb: Tcb) -> Self {
        let bytes = tcb.to_bytes();
        self.put(layout::CURRENT_TCB, &bytes)
            .put(layout::REPORTED_TCB, &bytes)
            .put(layout::COMMITTED_TCB, &bytes)
            .put(layout::LAUNCH_TCB, &bytes)
    }

    /// Any bytes anywhere; what would reach beyond the report is dropped.
    #[must_use]
    pub fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0
            .iter_mut()
            .skip(offset)
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        self
    }

    /// Any 32-bit field.
    #[must_use]
    pub fn u32(self, offset: usize, value: u32) -> Self {
        self.put(offset, &value.to_le_bytes())
    }

    /// Any 64-bit field.
    #[must_use]
    pub fn u64(self, offset: usize, value: u64) -> Self {
        self.put(offset, &value.to_le_bytes())
    }

    /// The report with a signature by `key` (ECDSA P-384 over SHA-384 of the signed part).
    pub fn sign(&self, key: &PKeyRef<Private>) -> Result<[u8; REPORT_BYTES], ErrorStack> {
        let digest = sha384(&self.0[..SIGNED_BYTES]);
        let signature = EcdsaSig::sign(&digest, &*key.ec_key()?)?;
        let (r, s) = (signature.r().to_vec(), signature.s().to_vec());
        let little_endian = |scalar: Vec<u8>| scalar.into_iter().rev().collect::<Vec<u8>>();
        let signed = self
            .clone()
            .put(layout::SIGNATURE, &[0; REPORT_BYTES - SIGNED_BYTES])
            .put(layout::SIGNATURE, &little_endian(r))
            .put(layout::SIGNATURE + SCALAR_BYTES, &little_endian(s));
        Ok(signed.0)
    }
}
