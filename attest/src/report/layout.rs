//! Core: where each field of an attestation report lies (SEV-SNP ABI, ATTESTATION_REPORT).
//!
//! Integers are little endian. The constants are the contract of the parser and of the simulator,
//! which writes the same bytes.

use std::ops::Range;

/// Length of a report in bytes.
pub const REPORT_LEN: usize = 0x4A0;
/// The signature covers the bytes before this offset.
pub const SIGNED_LEN: usize = 0x2A0;

/// One field: `LEN` bytes at `OFFSET`.
#[derive(Debug, Clone, Copy)]
pub struct Field<const OFFSET: usize, const LEN: usize>;

impl<const OFFSET: usize, const LEN: usize> Field<OFFSET, LEN> {
    const IN_REPORT: () = assert!(OFFSET + LEN <= REPORT_LEN, "a field lies inside the report");

    /// Offset of the first byte.
    pub const fn offset(self) -> usize {
        OFFSET
    }

    /// The bytes of the field, as a range of offsets.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "constants, checked when compiled"
    )]
    pub const fn range(self) -> Range<usize> {
        let () = Self::IN_REPORT;
        OFFSET..OFFSET + LEN
    }

    /// The field in `report`.
    pub fn of(self, report: &[u8; REPORT_LEN]) -> &[u8; LEN] {
        match report
            .get(self.range())
            .and_then(|bytes| bytes.try_into().ok())
        {
            Some(field) => field,
            None => unreachable!("a field lies inside the report: checked when compiled"),
        }
    }

    /// The field in `report`, for writing.
    pub fn of_mut(self, report: &mut [u8; REPORT_LEN]) -> &mut [u8; LEN] {
        match report
            .get_mut(self.range())
            .and_then(|bytes| bytes.try_into().ok())
        {
            Some(field) => field,
            None => unreachable!("a field lies inside the report: checked when compiled"),
        }
    }
}

/// Version of the layout, u32.
pub const VERSION: Field<0x000, 4> = Field;
/// Security version of the guest, from its launch, u32.
pub const GUEST_SVN: Field<0x004, 4> = Field;
/// Guest policy, u64.
pub const POLICY: Field<0x008, 8> = Field;
/// Family id, from the id block.
pub const FAMILY_ID: Field<0x010, 16> = Field;
/// Image id, from the id block.
pub const IMAGE_ID: Field<0x020, 16> = Field;
/// VMPL of the requester, u32; all ones when the host asked.
pub const VMPL: Field<0x030, 4> = Field;
/// Signature algorithm, u32.
pub const SIGNATURE_ALGO: Field<0x034, 4> = Field;
/// TCB of the running firmware.
pub const CURRENT_TCB: Field<0x038, 8> = Field;
/// Facts about the platform, u64 of bits.
pub const PLATFORM_INFO: Field<0x040, 8> = Field;
/// Which key signed, u32 of bits.
pub const KEY_INFO: Field<0x048, 4> = Field;
/// Must be zero.
pub const RESERVED_04C: Field<0x04C, 4> = Field;
/// 64 bytes that the guest chose.
pub const REPORT_DATA: Field<0x050, 64> = Field;
/// Launch measurement.
pub const MEASUREMENT: Field<0x090, 48> = Field;
/// 32 bytes that the host chose at launch.
pub const HOST_DATA: Field<0x0C0, 32> = Field;
/// SHA-384 of the id key.
pub const ID_KEY_DIGEST: Field<0x0E0, 48> = Field;
/// SHA-384 of the author key.
pub const AUTHOR_KEY_DIGEST: Field<0x110, 48> = Field;
/// Id of this guest instance.
pub const REPORT_ID: Field<0x140, 32> = Field;
/// Id of the migration agent.
pub const REPORT_ID_MA: Field<0x160, 32> = Field;
/// TCB that the signing key was derived for.
pub const REPORTED_TCB: Field<0x180, 8> = Field;
/// CPUID family (extended and base), from version 3 on.
pub const CPUID_FAMILY: Field<0x188, 1> = Field;
/// CPUID model (extended and base), from version 3 on.
pub const CPUID_MODEL: Field<0x189, 1> = Field;
/// CPUID stepping, from version 3 on.
pub const CPUID_STEPPING: Field<0x18A, 1> = Field;
/// Must be zero.
pub const RESERVED_18B: Field<0x18B, 21> = Field;
/// Id of the chip, or zeros when masked.
pub const CHIP_ID: Field<0x1A0, 64> = Field;
/// Lowest TCB that the platform can be set back to.
pub const COMMITTED_TCB: Field<0x1E0, 8> = Field;
/// Build, minor and major version of the running firmware.
pub const CURRENT_VERSION: Field<0x1E8, 3> = Field;
/// Must be zero.
pub const RESERVED_1EB: Field<0x1EB, 1> = Field;
/// Build, minor and major version of the committed firmware.
pub const COMMITTED_VERSION: Field<0x1EC, 3> = Field;
/// Must be zero.
pub const RESERVED_1EF: Field<0x1EF, 1> = Field;
/// Current TCB when the guest was launched.
pub const LAUNCH_TCB: Field<0x1F0, 8> = Field;
/// Mitigations that were on at launch, u64 of bits, from version 5 on.
pub const LAUNCH_MIT_VECTOR: Field<0x1F8, 8> = Field;
/// Mitigations that are on now, u64 of bits, from version 5 on.
pub const CURRENT_MIT_VECTOR: Field<0x200, 8> = Field;
/// Must be zero.
pub const RESERVED_208: Field<0x208, 152> = Field;
/// R of the signature, little endian; the value takes 48 bytes, the rest is zero.
pub const SIGNATURE_R: Field<0x2A0, 72> = Field;
/// S of the signature, in the same form.
pub const SIGNATURE_S: Field<0x2E8, 72> = Field;
/// Must be zero.
pub const RESERVED_330: Field<0x330, 368> = Field;
