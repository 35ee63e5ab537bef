//! Core: reports that are made here, as the product's verifier sees them.

use std::path::Path;

use attest::UnixSeconds;
use attest::anchors::danger::with_root;
use attest::endorsements::Endorsements;
use attest::evidence::{self, VerifiedReport};
use attest::report::Report;
use enclaveid_tests::snp::{
    Product, ReportBuilder, SIGNED_BYTES, SimulatedChip, SimulatedRoots, Tcb, layout,
};
use runtime::clock::{Clock, SystemClock};

use super::support::{HOST_DATA, MEASUREMENT, chip};

/// The verifier's answer: nothing, or the code of its refusal.
fn verify(chip: &SimulatedChip, report: &[u8], ark_pem: &[u8]) -> Result<VerifiedReport, String> {
    let report = Report::parse(report).map_err(|error| error.code().to_owned())?;
    let chain = chip.chain_pem().unwrap();
    let endorsements = Endorsements::parse(&chip.vcek_pem().unwrap(), Some(&chain)).unwrap();
    let anchors = with_root(ark_pem).unwrap();
    let now = UnixSeconds(SystemClock.now().0);
    evidence::verify(&report, &endorsements, &anchors, now).map_err(|error| error.code().to_owned())
}

fn signed(chip: &SimulatedChip, report: &ReportBuilder) -> Vec<u8> {
    report.sign(chip.key()).unwrap().to_vec()
}

#[test]
fn a_built_report_is_accepted_and_read_as_it_was_meant() {
    let chip = chip(SystemClock.now());
    let tcb = Tcb {
        bootloader: 4,
        tee: 0,
        snp: 24,
        microcode: 0xd9,
    };
    let report = chip
        .report()
        .guest_svn(7)
        .measurement(&MEASUREMENT)
        .host_data(&HOST_DATA)
        .report_data(&[0x44; 64])
        .report_id(&[0x52; 32]);
    let report = signed(&chip, &report);
    let verified = verify(&chip, &report, &chip.ark_pem().unwrap()).unwrap();
    assert!(verified.simulated());
    let read = verified.report();
    assert_eq!(read.version(), 3);
    assert_eq!(read.guest_svn(), 7);
    assert_eq!(read.vmpl(), 0);
    assert_eq!(read.measurement(), MEASUREMENT);
    assert_eq!(read.host_data(), HOST_DATA);
    assert_eq!(read.report_id(), [0x52; 32]);
    assert_eq!(read.report_data().as_bytes(), &[0x44; 64]);
    assert_eq!(read.reported_tcb().0, tcb.to_bytes());
    assert_eq!(read.committed_tcb().0, tcb.to_bytes());
    assert_eq!(read.launch_tcb().0, tcb.to_bytes());
    assert_eq!(read.current_tcb().0, tcb.to_bytes());
    assert!(read.policy().smt() && !read.policy().debug() && !read.policy().migrate_ma());
}

/// One bit in every byte that the signature covers, and in the signature.
#[test]
fn every_changed_byte_of_a_signed_report_is_noticed() {
    let chip = chip(SystemClock.now());
    let report = signed(&chip, &chip.report());
    let ark_pem = chip.ark_pem().unwrap();
    let scalars = [layout::SIGNATURE..layout::SIGNATURE + 48, 0x2e8..0x2e8 + 48];
    for offset in (0..SIGNED_BYTES).chain(scalars.into_iter().flatten()) {
        let mut changed = report.clone();
        changed[offset] ^= 1;
        assert!(
            verify(&chip, &changed, &ark_pem).is_err(),
            "byte {offset:#x}"
        );
    }
}

#[test]
fn reports_that_are_signed_and_wrong_are_refused_by_name() {
    let chip = chip(SystemClock.now());
    let refused = |report: ReportBuilder| {
        verify(&chip, &signed(&chip, &report), &chip.ark_pem().unwrap()).err()
    };
    let check = |report: ReportBuilder, code: &str| {
        assert_eq!(refused(report).as_deref(), Some(code));
    };
    check(chip.report().chip_id(&[1; 64]), "evidence.chip_id");
    let older = Tcb {
        bootloader: 4,
        tee: 0,
        snp: 23,
        microcode: 0xd9,
    };
    check(chip.report().tcb(older), "evidence.tcb");
    check(
        chip.report().u32(layout::KEY_INFO, 1 << 1),
        "evidence.chip_key_masked",
    );
    check(
        chip.report().u32(layout::KEY_INFO, 1 << 2),
        "evidence.vlek_unsupported",
    );
    check(
        chip.report().u32(layout::SIGNATURE_ALGO, 2),
        "evidence.signature_algorithm",
    );
    check(
        chip.report().cpuid([0x19, 0x11, 0]),
        "evidence.product_mismatch",
    );
    // The current TCB may differ: the certificate is for the reported one.
    assert_eq!(
        refused(chip.report().put(layout::CURRENT_TCB, &[9; 8])),
        None
    );
    // What a guest may do is for appraisal, not for verification.
    assert_eq!(refused(chip.report().debug()), None);
    assert_eq!(refused(chip.report().version(2).cpuid([0; 3])), None);
}

#[test]
fn a_chip_below_another_root_is_refused() {
    let chip = chip(SystemClock.now());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign");
    let foreign = SimulatedRoots::cached(Product::Milan, &dir).unwrap();
    let report = signed(&chip, &chip.report());
    let refused = verify(&chip, &report, &foreign.ark_pem().unwrap()).err();
    assert_eq!(refused.as_deref(), Some("evidence.chain_untrusted"));
}
