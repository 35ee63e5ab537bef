use proptest::prelude::*;

use super::*;
use crate::testing;

#[track_caller]
fn check(change: impl FnOnce(&mut [u8; REPORT_LEN]), want: Result<(), ReportError>) {
    let mut raw = testing::report();
    change(&mut raw);
    assert_eq!(Report::parse(&raw).map(|_| ()), want);
}

fn set_version(raw: &mut [u8; REPORT_LEN], version: u32) {
    *layout::VERSION.of_mut(raw) = version.to_le_bytes();
}

/// Offsets that are reserved in a version, from the ABI's table, written down a second time.
fn reserved(version: u32) -> Vec<usize> {
    let mut ranges = vec![0x4C..0x50, 0x1EB..0x1EC, 0x1EF..0x1F0, 0x208..0x2A0];
    ranges.extend([0x2A0 + 48..0x2E8, 0x2E8 + 48..0x330, 0x330..0x4A0]);
    ranges.push(if version == 2 {
        0x188..0x1A0
    } else {
        0x18B..0x1A0
    });
    if version != 5 {
        ranges.push(0x1F8..0x208);
    }
    ranges.into_iter().flatten().collect()
}

#[test]
fn only_versions_2_3_and_5_are_read() {
    for version in [2, 3, 5] {
        check(|raw| set_version(raw, version), Ok(()));
    }
    for version in [0, 1, 4, 6, u32::MAX] {
        check(
            |raw| set_version(raw, version),
            Err(ReportError::Version(version)),
        );
    }
}

#[test]
fn a_report_has_exactly_1184_bytes() {
    let raw = testing::report();
    for len in [0, 1, 1183] {
        assert_eq!(Report::parse(&raw[..len]), Err(ReportError::Length(len)));
    }
    let long = [raw.as_slice(), &[0]].concat();
    assert_eq!(Report::parse(&long), Err(ReportError::Length(1185)));
}

#[test]
fn the_blob_of_a_confidential_vm_is_refused_by_name() {
    let blob = [b"HCLA".as_slice(), &[0; 2596]].concat();
    assert_eq!(Report::parse(&blob), Err(ReportError::HclUnsupported));
}

#[test]
fn every_reserved_byte_must_be_zero_and_no_other_byte_need_be() {
    for version in [2, 3, 5] {
        let reserved = reserved(version);
        // Version, policy and KEY_INFO have rules of their own.
        let ruled = [0x00..0x04, 0x08..0x10, 0x48..0x4C];
        for offset in 0..REPORT_LEN {
            if ruled.iter().any(|range| range.contains(&offset)) {
                continue;
            }
            let want = match reserved.contains(&offset) {
                true => Err(ReportError::Reserved(offset)),
                false => Ok(()),
            };
            let change = |raw: &mut [u8; REPORT_LEN]| {
                set_version(raw, version);
                raw[offset] ^= 0x80;
            };
            check(change, want);
        }
    }
}

#[test]
fn every_bit_of_the_policy_is_known_or_refused() {
    for bit in 0..64 {
        let want = match bit {
            17 | 26.. => Err(ReportError::PolicyBits),
            _ => Ok(()),
        };
        let flip = |raw: &mut [u8; REPORT_LEN]| {
            let policy = u64::from_le_bytes(*layout::POLICY.of(raw)) ^ 1 << bit;
            *layout::POLICY.of_mut(raw) = policy.to_le_bytes();
        };
        check(flip, want);
    }
}

#[test]
fn each_bit_of_the_policy_has_its_name() {
    type Bit = fn(GuestPolicy) -> bool;
    let names: [(u32, Bit); 9] = [
        (16, GuestPolicy::smt),
        (18, GuestPolicy::migrate_ma),
        (19, GuestPolicy::debug),
        (20, GuestPolicy::single_socket),
        (21, GuestPolicy::cxl_allow),
        (22, GuestPolicy::mem_aes_256_xts),
        (23, GuestPolicy::rapl_dis),
        (24, GuestPolicy::ciphertext_hiding),
        (25, GuestPolicy::page_swap_disable),
    ];
    for (bit, _) in names {
        let policy = GuestPolicy::parse(1 << 17 | 1 << bit).unwrap();
        for (other, name) in names {
            assert_eq!(name(policy), other == bit, "bits {bit} and {other}");
        }
    }
    assert_eq!(GuestPolicy::parse(0x2_011F).unwrap().abi(), (0x1F, 1));
}

#[test]
fn key_info_names_the_signer() {
    let parse = |bits| SignerInfo::parse(bits).map(|info| info.signing_key);
    assert_eq!(parse(0), Ok(SigningKey::Vcek));
    assert_eq!(parse(1 << 2), Ok(SigningKey::Vlek));
    assert_eq!(parse(7 << 2), Ok(SigningKey::Unsigned));
    for unknown in [2 << 2, 6 << 2, 1 << 5, 1 << 31] {
        assert_eq!(parse(unknown), Err(ReportError::KeyInfo), "{unknown:#x}");
    }
    let flags = SignerInfo::parse(0b11).unwrap();
    assert!(flags.author_key_enabled && flags.chip_key_masked);
}

#[test]
fn fields_are_read_from_their_offsets() {
    let mut raw = testing::report();
    set_version(&mut raw, 3);
    raw[0x188..0x18B].copy_from_slice(&[0x19, 0x11, 1]);
    *layout::VMPL.of_mut(&mut raw) = 2_u32.to_le_bytes();
    *layout::GUEST_SVN.of_mut(&mut raw) = 65_549_u32.to_le_bytes();
    let report = Report::parse(&raw).unwrap();
    assert_eq!(report.version(), 3);
    assert_eq!(report.vmpl(), 2);
    assert_eq!(report.guest_svn(), 65_549);
    assert_eq!(
        report.cpuid(),
        Some(CpuId {
            family: 0x19,
            model: 0x11,
            stepping: 1
        })
    );
    assert_eq!(report.measurement(), [0x3E; 48]);
    assert_eq!(report.host_data(), [0x40; 32]);
    assert_eq!(report.report_data().as_bytes(), &[0xDA; 64]);
    assert_eq!(report.reported_tcb(), Tcb(testing::TCB));
    let shown = report.reported_tcb().to_string();
    assert_eq!(shown, "bootloader 4 tee 1 snp 23 microcode 209");
    assert_eq!(report.raw(), &raw);
    assert_eq!(report.signed_part(), &raw[..0x2A0]);
}

#[test]
fn reports_of_version_2_do_not_tell_the_product() {
    assert_eq!(Report::parse(&testing::report()).unwrap().cpuid(), None);
}

proptest! {
    #[test]
    fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
        let _ = Report::parse(&bytes);
    }

    #[test]
    fn parsing_a_damaged_report_never_panics(
        damage in prop::collection::vec((0..REPORT_LEN, any::<u8>()), 0..8),
    ) {
        let mut raw = testing::report();
        for (offset, byte) in damage {
            raw[offset] = byte;
        }
        if let Ok(report) = Report::parse(&raw) {
            prop_assert_eq!(report.raw(), &raw);
        }
    }
}
