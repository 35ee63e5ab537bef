//! Core: an attestation report, bytes with their fields (SEV-SNP ABI, ATTESTATION_REPORT).
//!
//! A parsed report is well-formed and nothing more: nothing in it is believed before
//! [`crate::evidence::verify`]. The bytes are kept as they came, because the signature is over
//! them. Why the parser is our own: docs/adr/0002-own-report-parser.md.

use std::fmt;

use crate::binding::ReportData;
use crate::product::CpuId;
use crate::tcb::Tcb;

pub mod layout;

use layout::{REPORT_LEN, SIGNED_LEN};

/// What the blob of an Azure confidential VM starts with; it holds a report behind its header.
const HCL_MAGIC: &[u8] = b"HCLA";

/// A well-formed attestation report of version 2, 3 or 5.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    raw: Box<[u8; REPORT_LEN]>,
    version: u32,
    policy: GuestPolicy,
    signer: SignerInfo,
}

/// What the guest's owner allowed the host at launch (SEV-SNP ABI, guest policy).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPolicy(u64);

/// Who signed a report, from KEY_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignerInfo {
    /// The digest of the author key in the report means something.
    pub author_key_enabled: bool,
    /// The host hides the chip: the report has no signature.
    pub chip_key_masked: bool,
    /// The key that signed.
    pub signing_key: SigningKey,
}

/// The kinds of keys that sign reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// The chip's own key, certified by AMD.
    Vcek,
    /// A key that AMD gives to a cloud provider.
    Vlek,
    /// None.
    Unsigned,
}

/// Bytes are not a report that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The blob of an Azure confidential VM with a vTPM.
    #[error("HCL reports of Azure confidential VMs are not supported")]
    HclUnsupported,
    /// KEY_INFO names a kind of key that does not exist.
    #[error("the report names an unknown signing key")]
    KeyInfo,
    /// The bytes have another length.
    #[error("a report has {REPORT_LEN} bytes, not {0}")]
    Length(usize),
    /// A bit of the guest policy that must be one is zero, or an unknown one is set.
    #[error("the guest policy has unknown bits")]
    PolicyBits,
    /// A byte that must be zero is not.
    #[error("the reserved byte at {0:#x} is not zero")]
    Reserved(usize),
    /// The layout is of a version that this crate does not know.
    #[error("reports of version {0} are not supported")]
    Version(u32),
}

impl ReportError {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::HclUnsupported => "report.hcl_unsupported",
            Self::KeyInfo => "report.key_info",
            Self::Length(_) => "report.length",
            Self::PolicyBits => "report.policy_bits",
            Self::Reserved(_) => "report.reserved",
            Self::Version(_) => "report.version",
        }
    }
}

impl Report {
    /// Parses the bytes of a report: exactly 1,184 of them.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.starts_with(HCL_MAGIC) {
            return Err(ReportError::HclUnsupported);
        }
        let raw: &[u8; REPORT_LEN] = bytes
            .try_into()
            .map_err(|_| ReportError::Length(bytes.len()))?;
        let version = u32::from_le_bytes(*layout::VERSION.of(raw));
        if !matches!(version, 2 | 3 | 5) {
            return Err(ReportError::Version(version));
        }
        parse_reserved(raw, version)?;
        Ok(Self {
            version,
            policy: GuestPolicy::parse(u64::from_le_bytes(*layout::POLICY.of(raw)))?,
            signer: SignerInfo::parse(u32::from_le_bytes(*layout::KEY_INFO.of(raw)))?,
            raw: Box::new(*raw),
        })
    }

    /// The bytes as they came.
    pub fn raw(&self) -> &[u8; REPORT_LEN] {
        &self.raw
    }

    /// The bytes that the signature covers.
    pub fn signed_part(&self) -> &[u8] {
        match self.raw.first_chunk::<SIGNED_LEN>() {
            Some(signed) => signed,
            None => unreachable!("the signed part is shorter than a report"),
        }
    }

    /// R of the signature: 72 bytes, little endian.
    pub fn signature_r(&self) -> &[u8; 72] {
        layout::SIGNATURE_R.of(&self.raw)
    }

    /// S of the signature: 72 bytes, little endian.
    pub fn signature_s(&self) -> &[u8; 72] {
        layout::SIGNATURE_S.of(&self.raw)
    }

    /// Version of the layout: 2, 3 or 5.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Security version of the guest.
    pub fn guest_svn(&self) -> u32 {
        u32::from_le_bytes(*layout::GUEST_SVN.of(&self.raw))
    }

    /// What the host may do with the guest.
    pub fn policy(&self) -> GuestPolicy {
        self.policy
    }

    /// VMPL of the requester; `u32::MAX` when the host asked for the report.
    pub fn vmpl(&self) -> u32 {
        u32::from_le_bytes(*layout::VMPL.of(&self.raw))
    }

    /// Signature algorithm; 1 is ECDSA P-384 with SHA-384.
    pub fn signature_algorithm(&self) -> u32 {
        u32::from_le_bytes(*layout::SIGNATURE_ALGO.of(&self.raw))
    }

    /// TCB of the running firmware.
    pub fn current_tcb(&self) -> Tcb {
        Tcb(*layout::CURRENT_TCB.of(&self.raw))
    }

    /// Facts about the platform, as bits.
    pub fn platform_info(&self) -> u64 {
        u64::from_le_bytes(*layout::PLATFORM_INFO.of(&self.raw))
    }

    /// Who signed.
    pub fn signer(&self) -> SignerInfo {
        self.signer
    }

    /// The bytes that the guest chose.
    pub fn report_data(&self) -> ReportData {
        ReportData::in_report(*layout::REPORT_DATA.of(&self.raw))
    }

    /// Launch measurement.
    pub fn measurement(&self) -> [u8; 48] {
        *layout::MEASUREMENT.of(&self.raw)
    }

    /// The bytes that the host chose at launch: on Kata the digest of policy or initdata.
    pub fn host_data(&self) -> [u8; 32] {
        *layout::HOST_DATA.of(&self.raw)
    }

    /// Id of this guest instance.
    pub fn report_id(&self) -> [u8; 32] {
        *layout::REPORT_ID.of(&self.raw)
    }

    /// TCB that the signing key was derived for: the one that the VCEK must name.
    pub fn reported_tcb(&self) -> Tcb {
        Tcb(*layout::REPORTED_TCB.of(&self.raw))
    }

    /// CPUID of the processor; reports of version 2 do not tell.
    pub fn cpuid(&self) -> Option<CpuId> {
        let [family] = *layout::CPUID_FAMILY.of(&self.raw);
        let [model] = *layout::CPUID_MODEL.of(&self.raw);
        let [stepping] = *layout::CPUID_STEPPING.of(&self.raw);
        (self.version >= 3).then_some(CpuId {
            family,
            model,
            stepping,
        })
    }

    /// Id of the chip.
    pub fn chip_id(&self) -> [u8; 64] {
        *layout::CHIP_ID.of(&self.raw)
    }

    /// Lowest TCB that the platform can be set back to.
    pub fn committed_tcb(&self) -> Tcb {
        Tcb(*layout::COMMITTED_TCB.of(&self.raw))
    }

    /// Current TCB when the guest was launched.
    pub fn launch_tcb(&self) -> Tcb {
        Tcb(*layout::LAUNCH_TCB.of(&self.raw))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("version", &self.version)
            .field("policy", &self.policy)
            .field("vmpl", &self.vmpl())
            .field("signer", &self.signer)
            .field("reported_tcb", &self.reported_tcb())
            .finish_non_exhaustive()
    }
}

/// Reserved bytes must be zero: in a version that we know, anything else is a field that we do not
/// know and would pass over.
fn parse_reserved(raw: &[u8; REPORT_LEN], version: u32) -> Result<(), ReportError> {
    let after_reported_tcb = match version {
        2 => layout::CPUID_FAMILY.offset(),
        _ => layout::RESERVED_18B.offset(),
    };
    let after_launch_tcb = match version {
        5 => layout::RESERVED_208.offset(),
        _ => layout::LAUNCH_MIT_VECTOR.offset(),
    };
    let tail_of_r = layout::SIGNATURE_R.range().start.saturating_add(SCALAR_LEN);
    let tail_of_s = layout::SIGNATURE_S.range().start.saturating_add(SCALAR_LEN);
    let ranges = [
        layout::RESERVED_04C.range(),
        after_reported_tcb..layout::CHIP_ID.offset(),
        layout::RESERVED_1EB.range(),
        layout::RESERVED_1EF.range(),
        after_launch_tcb..SIGNED_LEN,
        tail_of_r..layout::SIGNATURE_R.range().end,
        tail_of_s..layout::SIGNATURE_S.range().end,
        layout::RESERVED_330.range(),
    ];
    for offset in ranges.into_iter().flatten() {
        if raw.get(offset) != Some(&0) {
            return Err(ReportError::Reserved(offset));
        }
    }
    Ok(())
}

/// Length of a P-384 scalar; the fields for R and S are longer.
const SCALAR_LEN: usize = 48;

impl GuestPolicy {
    const MUST_BE_ONE: u64 = 1 << 17;
    const MUST_BE_ZERO: u64 = !0 << 26;

    fn parse(bits: u64) -> Result<Self, ReportError> {
        if bits & Self::MUST_BE_ONE == 0 || bits & Self::MUST_BE_ZERO != 0 {
            return Err(ReportError::PolicyBits);
        }
        Ok(Self(bits))
    }

    /// The policy as the ABI encodes it.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Lowest minor and major version of the firmware's ABI that the guest runs on.
    pub fn abi(self) -> (u8, u8) {
        let [minor, major, ..] = self.0.to_le_bytes();
        (minor, major)
    }

    /// Simultaneous multithreading may be on.
    pub fn smt(self) -> bool {
        self.bit(16)
    }

    /// A migration agent may be associated with the guest, and gets its keys.
    pub fn migrate_ma(self) -> bool {
        self.bit(18)
    }

    /// The host may read and write the guest's memory.
    pub fn debug(self) -> bool {
        self.bit(19)
    }

    /// The guest may run on one socket only.
    pub fn single_socket(self) -> bool {
        self.bit(20)
    }

    /// CXL devices may be populated.
    pub fn cxl_allow(self) -> bool {
        self.bit(21)
    }

    /// Memory must be encrypted with AES-256-XTS.
    pub fn mem_aes_256_xts(self) -> bool {
        self.bit(22)
    }

    /// Power measurement (RAPL) must be off.
    pub fn rapl_dis(self) -> bool {
        self.bit(23)
    }

    /// Ciphertext hiding must be on.
    pub fn ciphertext_hiding(self) -> bool {
        self.bit(24)
    }

    /// The guest's pages must not be swapped by the firmware.
    pub fn page_swap_disable(self) -> bool {
        self.bit(25)
    }

    fn bit(self, index: u32) -> bool {
        self.0
            .checked_shr(index)
            .is_some_and(|shifted| shifted & 1 == 1)
    }
}

impl SignerInfo {
    fn parse(bits: u32) -> Result<Self, ReportError> {
        let signing_key = match bits >> 2 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::Unsigned,
            // The other values of the three bits, and all with an unknown bit above them.
            _ => return Err(ReportError::KeyInfo),
        };
        Ok(Self {
            author_key_enabled: bits & 1 == 1,
            chip_key_masked: bits >> 1 & 1 == 1,
            signing_key,
        })
    }
}

#[cfg(test)]
mod tests;
