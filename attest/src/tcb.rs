//! Core: TCB versions as Milan and Genoa write them.

use std::fmt;

/// A TCB version: the security version numbers of the parts of the platform's firmware.
///
/// The 8 bytes as in the report. On Milan and Genoa: boot loader, TEE, four reserved bytes, SNP
/// firmware, microcode. Turin orders them differently and is not supported.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tcb(pub [u8; 8]);

impl Tcb {
    /// Security version of the boot loader.
    pub fn bootloader(self) -> u8 {
        let [bootloader, ..] = self.0;
        bootloader
    }

    /// Security version of the secure processor's operating system.
    pub fn tee(self) -> u8 {
        let [_, tee, ..] = self.0;
        tee
    }

    /// Security version of the SNP firmware.
    pub fn snp(self) -> u8 {
        let [.., snp, _] = self.0;
        snp
    }

    /// Security version of the microcode.
    pub fn microcode(self) -> u8 {
        let [.., microcode] = self.0;
        microcode
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bootloader {} tee {} snp {} microcode {}",
            self.bootloader(),
            self.tee(),
            self.snp(),
            self.microcode()
        )
    }
}

impl fmt::Debug for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tcb({self})")
    }
}
