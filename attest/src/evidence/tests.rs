use super::*;
use crate::anchors::danger;
use crate::report::layout::{self, REPORT_LEN};
use crate::testing::{self, CHIP_ID, Chain as Specs, NOW, Sign, TCB, vcek_extensions};

const AT: UnixSeconds = UnixSeconds(NOW);

/// Everything that a verification takes, before it is encoded.
struct Case {
    specs: Specs,
    root: testing::Spec,
    report: [u8; REPORT_LEN],
    sign: bool,
    at: UnixSeconds,
}

impl Case {
    fn good() -> Self {
        let specs = Specs::milan();
        let root = specs.ark.clone();
        Self {
            specs,
            root,
            report: testing::report(),
            sign: true,
            at: AT,
        }
    }

    fn parts(&self) -> (Report, Endorsements, TrustAnchors) {
        let chain = [self.specs.ask.der(), self.specs.ark.der()].map(|der| testing::pem(&der));
        let vcek = self.specs.vcek.der();
        let report = if self.sign {
            testing::sign_report(self.report)
        } else {
            self.report
        };
        (
            Report::parse(&report).unwrap(),
            Endorsements::parse(&vcek, Some(chain.concat().as_bytes())).unwrap(),
            danger::with_root(testing::pem(&self.root.der()).as_bytes()).unwrap(),
        )
    }

    fn verify(&self) -> Result<VerifiedReport, VerifyError> {
        let (report, endorsements, anchors) = self.parts();
        verify(&report, &endorsements, &anchors, self.at)
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Case), want: VerifyError) {
    let mut case = Case::good();
    change(&mut case);
    assert_eq!(case.verify().map(|_| ()), Err(want));
}

#[test]
fn good_evidence_is_verified_and_says_that_its_root_is_not_amds() {
    let verified = Case::good().verify().unwrap();
    assert_eq!(verified.product(), Product::Milan);
    assert_eq!(verified.report().measurement(), [0x3E; 48]);
    assert!(verified.simulated());
}

#[test]
fn genoa_evidence_is_verified() {
    let mut case = Case::good();
    let specs = &mut case.specs;
    (specs.ark.subject, specs.ark.issuer) = ("ARK-Genoa", "ARK-Genoa");
    (specs.ask.subject, specs.ask.issuer) = ("SEV-Genoa", "ARK-Genoa");
    specs.vcek.issuer = "SEV-Genoa";
    specs.vcek.extensions = vcek_extensions("Genoa", TCB, &CHIP_ID);
    case.root = specs.ark.clone();
    *layout::VERSION.of_mut(&mut case.report) = 3_u32.to_le_bytes();
    *layout::CPUID_FAMILY.of_mut(&mut case.report) = [0x19];
    *layout::CPUID_MODEL.of_mut(&mut case.report) = [0x11];
    assert_eq!(case.verify().unwrap().product(), Product::Genoa);
}

#[test]
fn a_hardware_id_that_is_wrapped_as_an_octet_string_is_read() {
    let mut case = Case::good();
    let wrapped = testing::tlv(4, &CHIP_ID);
    case.specs.vcek.extensions = vcek_extensions("Milan-B0", TCB, &wrapped);
    assert!(case.verify().is_ok());
}

#[test]
fn the_signature_covers_every_byte_of_the_signed_part() {
    let (_, endorsements, _) = Case::good().parts();
    let signed = testing::sign_report(testing::report());
    for offset in (0..layout::SIGNED_LEN)
        .step_by(7)
        .chain([layout::SIGNED_LEN - 1])
    {
        let mut raw = signed;
        raw[offset] ^= 1;
        // Bytes that may not have another value are the parser's to refuse.
        if let Ok(report) = Report::parse(&raw) {
            let found = verify_signature(&report, endorsements.vcek());
            let names_other_key = [0x34, 0x48].contains(&(offset & !3));
            assert!(
                names_other_key || found == Err(VerifyError::Signature),
                "{offset:#x}"
            );
        }
    }
}

#[test]
fn a_report_that_says_that_it_is_not_properly_signed_is_refused() {
    let key_info = |bits: u32| {
        move |case: &mut Case| *layout::KEY_INFO.of_mut(&mut case.report) = bits.to_le_bytes()
    };
    check(key_info(1 << 1), VerifyError::ChipKeyMasked);
    check(key_info(7 << 2), VerifyError::Unsigned);
    check(key_info(1 << 2), VerifyError::VlekUnsupported);
    check(|case| case.sign = false, VerifyError::Signature);
    check(
        |case| *layout::SIGNATURE_ALGO.of_mut(&mut case.report) = 2_u32.to_le_bytes(),
        VerifyError::SignatureAlgorithm(2),
    );
}

#[test]
fn a_vcek_with_another_key_is_refused() {
    let other = p384::ecdsa::SigningKey::from_slice(&[8; 48]).unwrap();
    check(
        |case| case.specs.vcek.spki = testing::ec_spki(&other),
        VerifyError::Signature,
    );
    check(
        |case| case.specs.vcek.spki = testing::rsa_spki(2),
        VerifyError::VcekKey,
    );
}

#[test]
fn every_link_must_hold_under_the_one_above() {
    check(
        |case| case.specs.vcek.signer = 2,
        VerifyError::ChainSignature(Link::Vcek),
    );
    check(
        |case| case.specs.ask.signer = 2,
        VerifyError::ChainSignature(Link::Ask),
    );
    check(
        |case| case.root.signer = 2,
        VerifyError::ChainSignature(Link::Ark),
    );
}

#[test]
fn a_root_that_is_not_pinned_is_refused_whatever_its_name() {
    let foreign = |case: &mut Case| {
        case.specs.ark.spki = testing::rsa_spki(2);
        case.specs.ark.signer = 2;
        case.specs.ask.signer = 2;
    };
    check(foreign, VerifyError::ChainUntrusted);
    let (report, endorsements, _) = Case::good().parts();
    let found = verify(&report, &endorsements, &TrustAnchors::amd(), AT);
    assert_eq!(found.map(|_| ()), Err(VerifyError::ChainUntrusted));
}

#[test]
fn a_chain_without_its_middle_is_incomplete() {
    let (report, _, anchors) = Case::good().parts();
    let vcek = Endorsements::parse(&Specs::milan().vcek.der(), None).unwrap();
    let found = verify(&report, &vcek, &anchors, AT);
    assert_eq!(
        found.map(|_| ()),
        Err(VerifyError::ChainIncomplete(Link::Ask))
    );
}

#[test]
fn the_chain_may_be_in_the_vceks_pem() {
    let specs = Specs::milan();
    let pem = [&specs.vcek, &specs.ask, &specs.ark].map(|spec| testing::pem(&spec.der()));
    let (report, _, anchors) = Case::good().parts();
    let endorsements = Endorsements::parse(pem.concat().as_bytes(), None).unwrap();
    assert!(verify(&report, &endorsements, &anchors, AT).is_ok());
}

#[test]
fn links_are_signed_with_pss_sha_384_and_a_salt_of_48_bytes() {
    for sign in [
        Sign::Pkcs1Sha256,
        Sign::Pkcs1Sha384,
        Sign::PssSha256,
        Sign::PssSha384 { salt: 32 },
        Sign::PssSha384 { salt: 0 },
    ] {
        check(
            |case| case.specs.vcek.sign = sign,
            VerifyError::ChainAlgorithm(Link::Vcek),
        );
        check(
            |case| case.specs.ask.sign = sign,
            VerifyError::ChainAlgorithm(Link::Ask),
        );
        // The signed part and the unsigned one must name the same algorithm.
        check(
            |case| case.specs.vcek.stated = Some(sign),
            VerifyError::ChainAlgorithm(Link::Vcek),
        );
    }
}

#[test]
fn links_have_the_names_that_amd_gives_them() {
    check(
        |case| case.specs.vcek.subject = "SEV-OTHER",
        VerifyError::ChainName(Link::Vcek),
    );
    check(
        |case| {
            case.specs.ask.subject = "SEV-Other";
            case.specs.vcek.issuer = "SEV-Other";
        },
        VerifyError::ChainName(Link::Ask),
    );
    check(
        |case| {
            case.root.subject = "ARK-Other";
            case.root.issuer = "ARK-Other";
            case.specs.ark = case.root.clone();
            case.specs.ask.issuer = "ARK-Other";
        },
        VerifyError::ChainName(Link::Ark),
    );
}

#[test]
fn only_a_ca_issues() {
    let no_ca = vec![testing::basic_constraints(false)];
    check(
        |case| case.specs.ask.extensions = no_ca.clone(),
        VerifyError::ChainConstraints(Link::Vcek),
    );
    check(
        |case| case.specs.ask.extensions = vec![],
        VerifyError::ChainConstraints(Link::Vcek),
    );
    check(
        |case| case.root.extensions = no_ca.clone(),
        VerifyError::ChainConstraints(Link::Ark),
    );
    check(
        |case| {
            case.specs
                .vcek
                .extensions
                .push(testing::basic_constraints(true));
        },
        VerifyError::ChainConstraints(Link::Vcek),
    );
    let usage = vec![
        testing::basic_constraints(true),
        testing::key_usage_digital_signature(),
    ];
    check(
        |case| case.specs.ask.extensions = usage,
        VerifyError::ChainConstraints(Link::Vcek),
    );
    let unknown = testing::critical_extension("1.2.3.4", &[5, 0]);
    check(
        |case| case.specs.vcek.extensions.push(unknown),
        VerifyError::ChainConstraints(Link::Vcek),
    );
}

#[test]
fn every_certificate_must_be_valid_at_the_time() {
    let past = ["200101000000Z", "260101000000Z"];
    let future = ["400101000000Z", "450101000000Z"];
    check(
        |case| case.specs.vcek.validity = past,
        VerifyError::Expired(Link::Vcek),
    );
    check(
        |case| case.specs.ask.validity = past,
        VerifyError::Expired(Link::Ask),
    );
    check(
        |case| case.root.validity = past,
        VerifyError::Expired(Link::Ark),
    );
    check(
        |case| case.specs.vcek.validity = future,
        VerifyError::NotYetValid(Link::Vcek),
    );
    check(
        |case| case.at = UnixSeconds(-1),
        VerifyError::NotYetValid(Link::Vcek),
    );
    // 2045-01-01T00:00:00Z is the last second of all three.
    check(
        |case| case.at = UnixSeconds(2_366_841_601),
        VerifyError::Expired(Link::Vcek),
    );
    let mut last_second = Case::good();
    last_second.at = UnixSeconds(2_366_841_600);
    assert!(last_second.verify().is_ok());
}

#[test]
fn the_vcek_must_be_for_the_reported_tcb_in_every_part() {
    for index in 0..8 {
        let mut tcb = TCB;
        tcb[index] ^= 1;
        let extensions = vcek_extensions("Milan-B0", tcb, &CHIP_ID);
        check(
            |case| case.specs.vcek.extensions = extensions,
            VerifyError::Tcb,
        );
        check(
            |case| *layout::REPORTED_TCB.of_mut(&mut case.report) = tcb,
            VerifyError::Tcb,
        );
    }
}

#[test]
fn the_vcek_must_be_for_the_chip() {
    let mut other = CHIP_ID;
    other[63] ^= 1;
    let extensions = vcek_extensions("Milan-B0", TCB, &other);
    check(
        |case| case.specs.vcek.extensions = extensions,
        VerifyError::ChipId,
    );
    check(
        |case| *layout::CHIP_ID.of_mut(&mut case.report) = [0; 64],
        VerifyError::ChipId,
    );
}

#[test]
fn amds_extensions_must_all_be_there_and_well_formed() {
    let all = vcek_extensions("Milan-B0", TCB, &CHIP_ID);
    // The four spare numbers may be left out; they are 4 to 7 in the list.
    for index in (0..all.len()).filter(|index| !(4..8).contains(index)) {
        let mut extensions = all.clone();
        extensions.remove(index);
        check(
            |case| case.specs.vcek.extensions = extensions,
            VerifyError::VcekExtensions,
        );
    }
    let amd =
        |arcs: &str, value: &[u8]| testing::extension(&format!("1.3.6.1.4.1.3704.1.{arcs}"), value);
    let malformed = [
        (0, amd("1", &testing::integer(1))),
        (2, amd("3.1", &[2, 2, 1, 0])),
        (2, amd("3.1", &[2, 2, 0, 4])),
        (2, amd("3.1", &[2, 1, 0xFF])),
        (2, amd("3.1", &[4])),
        (10, amd("4", &CHIP_ID[..63])),
        (10, amd("4", &CHIP_ID[..8])),
    ];
    for (index, extension) in malformed {
        let mut extensions = all.clone();
        extensions[index] = extension;
        check(
            |case| case.specs.vcek.extensions = extensions,
            VerifyError::VcekExtensions,
        );
    }
}

#[test]
fn products_that_are_not_supported_are_refused_by_name() {
    let product = |name: &'static str| {
        move |case: &mut Case| {
            case.specs.vcek.extensions = vcek_extensions(name, TCB, &CHIP_ID);
        }
    };
    check(
        product("Turin"),
        VerifyError::ProductUnsupported(Product::Turin),
    );
    check(product("Rome-B0"), VerifyError::ProductUnknown);
    check(product(""), VerifyError::ProductUnknown);
    check(
        |case| case.specs.vcek.subject = "SEV-VLEK",
        VerifyError::VlekUnsupported,
    );
}

#[test]
fn a_report_that_names_another_product_than_the_vcek_is_refused() {
    let cpuid = |family: u8, model: u8| {
        move |case: &mut Case| {
            *layout::VERSION.of_mut(&mut case.report) = 3_u32.to_le_bytes();
            *layout::CPUID_FAMILY.of_mut(&mut case.report) = [family];
            *layout::CPUID_MODEL.of_mut(&mut case.report) = [model];
        }
    };
    check(cpuid(0x19, 0x11), VerifyError::ProductMismatch);
    check(cpuid(0x1A, 0x02), VerifyError::ProductMismatch);
    check(cpuid(0x17, 0x31), VerifyError::ProductUnknown);
}

#[test]
fn an_examination_looks_at_every_rule() {
    let mut case = Case::good();
    case.sign = false;
    case.specs.vcek.validity = ["200101000000Z", "260101000000Z"];
    case.specs.vcek.extensions = vcek_extensions("Milan-B0", [0; 8], &[0; 64]);
    case.specs.vcek.signer = 2;
    let (report, endorsements, anchors) = case.parts();
    let want = Examination {
        signature: Err(VerifyError::Signature),
        chain: Err(VerifyError::ChainSignature(Link::Vcek)),
        dates: Err(VerifyError::Expired(Link::Vcek)),
        tcb: Err(VerifyError::Tcb),
        chip: Err(VerifyError::ChipId),
    };
    assert_eq!(examine(&report, &endorsements, &anchors, case.at), want);
}
