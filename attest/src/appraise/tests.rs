use super::*;
use crate::report::layout::{self, REPORT_LEN};
use crate::testing;

const SMT: u64 = 1 << 16;
const MIGRATE_MA: u64 = 1 << 18;
const DEBUG: u64 = 1 << 19;

fn reference() -> ReferenceValues {
    ReferenceValues {
        vmpl: 0,
        smt: true,
        allow: vec![
            Allowed {
                measurement: [1; 48],
                host_data: [0x40; 32],
            },
            Allowed {
                measurement: [0x3E; 48],
                host_data: [2; 32],
            },
            Allowed {
                measurement: [0x3E; 48],
                host_data: [0x40; 32],
            },
        ],
    }
}

fn parse(change: impl FnOnce(&mut [u8; REPORT_LEN])) -> Report {
    let mut raw = testing::report();
    change(&mut raw);
    Report::parse(&raw).unwrap()
}

fn policy(bits: u64) -> Report {
    parse(|raw| *layout::POLICY.of_mut(raw) = (1 << 17 | bits).to_le_bytes())
}

fn vmpl(vmpl: u32) -> Report {
    parse(|raw| *layout::VMPL.of_mut(raw) = vmpl.to_le_bytes())
}

#[track_caller]
fn check(report: &Report, reference: ReferenceValues, want: Result<(), Finding>) {
    let expectations = Expectations {
        binding: Asked::For(ReportData::in_report([0xDA; 64])),
        reference: Asked::For(reference),
    };
    let got = appraise(report, &expectations);
    let rows = [
        got.guest_policy,
        got.binding,
        got.measurement,
        got.host_data,
    ];
    let rejected: Vec<Finding> = rows
        .into_iter()
        .filter_map(|row| match row {
            Status::Rejected(finding) => Some(finding),
            Status::Accepted | Status::NotChecked => None,
        })
        .collect();
    assert_eq!(rejected.first().copied().map_or(Ok(()), Err), want);
    assert!(!rows.contains(&Status::NotChecked));
}

#[test]
fn a_wanted_report_is_accepted() {
    check(&parse(|_| {}), reference(), Ok(()));
    // That SMT may be on does not mean that it must.
    check(&policy(0), reference(), Ok(()));
}

#[test]
fn a_guest_that_the_host_may_look_into_is_never_accepted() {
    let finding = |finding| Err(Finding::GuestPolicy(finding));
    check(
        &policy(DEBUG),
        reference(),
        finding(GuestPolicyFinding::Debug),
    );
    check(
        &policy(MIGRATE_MA),
        reference(),
        finding(GuestPolicyFinding::Migration),
    );
    check(
        &vmpl(u32::MAX),
        reference(),
        finding(GuestPolicyFinding::HostRequested),
    );
    for report in [policy(DEBUG), policy(MIGRATE_MA), vmpl(u32::MAX)] {
        let unasked = Expectations {
            binding: Asked::Not,
            reference: Asked::Not,
        };
        let status = appraise(&report, &unasked).guest_policy;
        assert!(matches!(status, Status::Rejected(_)), "{report:?}");
    }
}

#[test]
fn vmpl_and_smt_are_as_the_reference_says() {
    let finding = |finding| Err(Finding::GuestPolicy(finding));
    check(&vmpl(1), reference(), finding(GuestPolicyFinding::Vmpl));
    check(
        &vmpl(1),
        ReferenceValues {
            vmpl: 1,
            ..reference()
        },
        Ok(()),
    );
    let no_smt = ReferenceValues {
        smt: false,
        ..reference()
    };
    check(
        &policy(SMT),
        no_smt.clone(),
        finding(GuestPolicyFinding::Smt),
    );
    check(&policy(0), no_smt, Ok(()));
}

#[test]
fn measurement_and_host_data_match_as_a_pair() {
    let measurement = |byte: u8| parse(|raw| *layout::MEASUREMENT.of_mut(raw) = [byte; 48]);
    check(&measurement(9), reference(), Err(Finding::Measurement));
    let host_data = |byte: u8| parse(|raw| *layout::HOST_DATA.of_mut(raw) = [byte; 32]);
    check(&host_data(2), reference(), Ok(()));
    check(&host_data(9), reference(), Err(Finding::HostData));
    let crossed = parse(|raw| {
        *layout::MEASUREMENT.of_mut(raw) = [1; 48];
        *layout::HOST_DATA.of_mut(raw) = [2; 32];
    });
    check(&crossed, reference(), Err(Finding::HostData));
    let nothing = ReferenceValues {
        allow: vec![],
        ..reference()
    };
    check(&parse(|_| {}), nothing, Err(Finding::Measurement));
}

#[test]
fn a_report_that_is_bound_to_anything_else_is_refused() {
    for offset in 0x50..0x90 {
        check(
            &parse(|raw| raw[offset] ^= 1),
            reference(),
            Err(Finding::Binding),
        );
    }
}

#[test]
fn what_nobody_asked_for_says_so() {
    let unasked = Expectations {
        binding: Asked::Not,
        reference: Asked::Not,
    };
    let want = Appraisal {
        guest_policy: Status::Accepted,
        binding: Status::NotChecked,
        measurement: Status::NotChecked,
        host_data: Status::NotChecked,
    };
    assert_eq!(appraise(&parse(|_| {}), &unasked), want);
}
