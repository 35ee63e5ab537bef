//! Core: the verifier against real attestation data, which others made. Runs where
//! `ENCLAVEID_FIXTURES` names a folder with it; nothing of it is part of this project.

use attest::UnixSeconds;
use attest::anchors::TrustAnchors;
use attest::appraise::{GuestPolicyFinding, appraise_guest_policy};
use attest::endorsements::{Endorsements, EndorsementsError};
use attest::evidence::{Link, VerifiedReport, VerifyError, examine, verify};
use attest::product::Product;
use attest::release::{JwsRoots, ReleaseError, ReleaseExpectations, WrapAlgorithm, verify_release};
use attest::report::layout::{self, REPORT_LEN};
use attest::report::{Report, ReportError};
use attest::token::{
    AttestationToken, Jwks, PolicyHash, TokenError, TokenExpectations, verify_token,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use enclaveid_tests::fixture::real_data;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// 2026-11-24: all certificates but the VLEK are valid.
const AT: UnixSeconds = UnixSeconds(1_795_500_000);
const AFTER_ALL: UnixSeconds = UnixSeconds(4_000_000_000);

/// Verifies a report with AMD's roots; `None` where there is no real data.
fn verify_files(
    report: &str,
    vcek: &str,
    chain: Option<&str>,
) -> Option<Result<VerifiedReport, VerifyError>> {
    let report = Report::parse(&real_data(report)?).unwrap();
    let chain = chain.map(|name| real_data(name).unwrap());
    let endorsements = Endorsements::parse(&real_data(vcek).unwrap(), chain.as_deref()).unwrap();
    // A later moment refuses the same evidence, and for that reason alone.
    let expired = examine(&report, &endorsements, &TrustAnchors::amd(), AFTER_ALL);
    let verified = verify(&report, &endorsements, &TrustAnchors::amd(), AT);
    if verified.is_ok() {
        assert_eq!(expired.dates, Err(VerifyError::Expired(Link::Vcek)));
        assert_eq!((expired.signature, expired.chain), (Ok(()), Ok(())));
    }
    Some(verified)
}

#[test]
fn azure_confidential_container_on_milan_is_genuine_and_measured_its_policy() {
    let chain = "acisidecar/uvm_host_amd_certificate.pem";
    let Some(verified) = verify_files("acisidecar/snp_report.bin", chain, None) else {
        return;
    };
    let verified = verified.unwrap();
    let report = verified.report();
    assert_eq!(verified.product(), Product::Milan);
    assert!(!verified.simulated());
    assert_eq!(
        (report.version(), report.guest_svn(), report.vmpl()),
        (2, 2, 0)
    );
    assert_eq!(report.policy().bits(), 0x3_001F);
    assert_eq!(report.reported_tcb().0, [3, 0, 0, 0, 0, 0, 8, 0x73]);
    assert_eq!(appraise_guest_policy(report), Ok(()));

    let policy = real_data("acisidecar/uvm_security_policy.base64").unwrap();
    let policy = STANDARD.decode(policy.trim_ascii()).unwrap();
    assert_eq!(report.host_data(), <[u8; 32]>::from(Sha256::digest(policy)));
}

#[test]
fn milan_report_of_the_sev_crate_is_genuine() {
    let Some(hex) = real_data("sev-crate/report_milan.hex") else {
        return;
    };
    let raw = enclaveid::hex::decode(std::str::from_utf8(&hex).unwrap().trim()).unwrap();
    let report = Report::parse(&raw).unwrap();
    let vcek = real_data("sev-crate/vcek_milan.der").unwrap();
    let chain = real_data("sev-crate/cert_chain_milan").unwrap();
    for chain in [None, Some(chain.as_slice())] {
        let endorsements = Endorsements::parse(&vcek, chain).unwrap();
        let verified = verify(&report, &endorsements, &TrustAnchors::amd(), AT).unwrap();
        assert_eq!(verified.report().host_data(), [0; 32]);
    }
}

#[test]
fn debug_guest_is_genuine_and_still_refused() {
    let (vcek, chain) = ("go-sev-guest/vcek.testcer", "go-sev-guest/milan.testcer");
    let Some(verified) = verify_files("go-sev-guest/attestation.bin", vcek, Some(chain)) else {
        return;
    };
    let verified = verified.unwrap();
    assert!(
        verified
            .report()
            .report_data()
            .as_bytes()
            .starts_with(&[1, 2, 3, 4, 5])
    );
    assert_eq!(
        appraise_guest_policy(verified.report()),
        Err(GuestPolicyFinding::Debug)
    );
}

#[test]
fn azure_confidential_container_on_genoa_is_genuine() {
    let report = "tav/genoa_attestation_report.bin";
    for chain in [None, Some("tav/genoa_ask.pem")] {
        let Some(verified) = verify_files(report, "tav/genoa_vcek.pem", chain) else {
            return;
        };
        let verified = verified.unwrap();
        assert_eq!(
            (verified.product(), verified.report().version()),
            (Product::Genoa, 3)
        );
        assert_eq!(appraise_guest_policy(verified.report()), Ok(()));
    }
}

#[test]
fn a_vcek_of_another_chip_is_refused() {
    let vcek = "sev-crate/vcek_milan.der";
    let Some(refused) = verify_files("acisidecar/snp_report.bin", vcek, None) else {
        return;
    };
    assert_eq!(refused.map(|_| ()), Err(VerifyError::Signature));
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let Some(hcl) = real_data("trustee/hcl-report.bin") else {
        return;
    };
    assert_eq!(Report::parse(&hcl), Err(ReportError::HclUnsupported));

    let uvm = real_data("acisidecar/body.uvm_reference_info.bin").unwrap();
    let refused = Endorsements::parse(&uvm, None).map(|_| ());
    assert_eq!(refused, Err(EndorsementsError::UvmUnsupported));

    let vlek = "trustee/test-vlek.der";
    let refused = verify_files("trustee/test-vlek-report.bin", vlek, None).unwrap();
    assert_eq!(refused.map(|_| ()), Err(VerifyError::VlekUnsupported));

    let turin = (
        "sev-crate/vcek_turin.der",
        Some("sev-crate/cert_chain_turin"),
    );
    let refused = verify_files("acisidecar/snp_report.bin", turin.0, turin.1).unwrap();
    let want = VerifyError::ProductUnsupported(Product::Turin);
    assert_eq!(refused.map(|_| ()), Err(want));
}

/// The report that the real token is about is not public: one is laid out from the token's claims.
fn report_of(claims: &Value) -> Report {
    fn hex<const N: usize>(claims: &Value, name: &str) -> [u8; N] {
        let text = claims[format!("x-ms-sevsnpvm-{name}")].as_str().unwrap();
        enclaveid::hex::decode_array(text).unwrap()
    }
    let mut raw = [0; REPORT_LEN];
    *layout::VERSION.of_mut(&mut raw) = 3_u32.to_le_bytes();
    *layout::POLICY.of_mut(&mut raw) = 0x3_0000_u64.to_le_bytes();
    *layout::REPORT_DATA.of_mut(&mut raw) = hex(claims, "reportdata");
    *layout::MEASUREMENT.of_mut(&mut raw) = hex(claims, "launchmeasurement");
    *layout::HOST_DATA.of_mut(&mut raw) = hex(claims, "hostdata");
    *layout::REPORT_ID.of_mut(&mut raw) = hex(claims, "reportid");
    *layout::CHIP_ID.of_mut(&mut raw) = hex(claims, "chipid");
    Report::parse(&raw).unwrap()
}

#[test]
fn real_attestation_token_is_believed_in_its_time_and_about_its_guest_alone() {
    let Some(token) = real_data("maa/sevsnp-token.jwt") else {
        return;
    };
    let token = String::from_utf8(token).unwrap().trim_end().to_owned();
    let jwks = Jwks::parse(&real_data("maa/maa-jwks-eus.reduced.json").unwrap()).unwrap();
    let runtime_data = real_data("maa/sevsnp-runtime-data.json").unwrap();
    let claims = URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1).unwrap())
        .unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let policy_hash = URL_SAFE_NO_PAD.decode(claims["x-ms-policy-hash"].as_str().unwrap());
    let policy_hash: [u8; 32] = policy_hash.unwrap().try_into().unwrap();
    let report = report_of(&claims);
    let token = AttestationToken::new(token);

    type Change<'a> = &'a dyn Fn(&mut TokenExpectations<'_>);
    let verify_with = |change: Change<'_>| {
        let mut wanted = TokenExpectations {
            issuer: "https://sharedeus.eus.attest.azure.net",
            policy_hash: PolicyHash::Pinned(policy_hash),
            report: &report,
            runtime_data: &runtime_data,
            now: UnixSeconds(1_791_503_157),
            skew: 60,
        };
        change(&mut wanted);
        verify_token(&token, &jwks, &wanted).map(|result| result.expires())
    };
    assert_eq!(verify_with(&|_| {}), Ok(UnixSeconds(1_791_531_957)));
    let changes: [(Change<'_>, TokenError); 5] = [
        (
            &|wanted| wanted.issuer = "https://sharedweu.weu.attest.azure.net",
            TokenError::Issuer,
        ),
        (
            &|wanted| wanted.policy_hash = PolicyHash::Pinned([0; 32]),
            TokenError::PolicyHash,
        ),
        (
            &|wanted| wanted.runtime_data = b"{}",
            TokenError::RuntimeData,
        ),
        (
            &|wanted| wanted.now = UnixSeconds(1_791_531_957 + 60),
            TokenError::Expired,
        ),
        (
            &|wanted| wanted.now = UnixSeconds(1_791_503_157 - 61),
            TokenError::NotYetValid,
        ),
    ];
    for (change, want) in changes {
        assert_eq!(verify_with(change), Err(want));
    }
}

#[test]
fn released_keys_of_an_independent_implementation_are_read() {
    let Some(expected) = real_data("akv/expected.json") else {
        return;
    };
    let expected: Vec<Value> = serde_json::from_slice(&expected).unwrap();
    let roots = JwsRoots::parse_pem(&real_data("akv/root.pem").unwrap()).unwrap();
    assert_eq!(expected.len(), 9);
    for row in &expected {
        let text = |name: &str| row[name].as_str().unwrap();
        let reply = real_data(&format!("akv/{}", text("file"))).unwrap();
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        let algorithm = WrapAlgorithm::from_name(text("enc"));
        let wanted = ReleaseExpectations {
            host: "testhsm.managedhsm.azure.net",
            kid: "https://testhsm.managedhsm.azure.net/keys/master-secret/\
                  0123456789abcdef0123456789abcdef",
            enc: algorithm.clone().unwrap_or(WrapAlgorithm::RsaAesKeyWrap256),
            nonce: "bm9uY2U",
            now: AT,
        };
        let released = verify_release(reply["value"].as_str().unwrap(), &roots, &wanted);
        match algorithm {
            Ok(algorithm) => {
                let released = released.unwrap();
                assert_eq!(
                    (released.kty.as_str(), released.enc),
                    (text("kty"), algorithm)
                );
                // RSA-OAEP to a 2048-bit key, then at least one block and the header of AES-KWP.
                assert!(released.ciphertext.len() >= 256 + 16);
                let policy: Value = serde_json::from_slice(&released.release_policy).unwrap();
                assert_eq!(policy["version"], "1.0.0");
                assert!(released.exportable);
            }
            // The service's default, with SHA-1.
            Err(error) => {
                assert_eq!(text("enc"), "CKM_RSA_AES_KEY_WRAP");
                assert_eq!(error, ReleaseError::WrapUnsupported);
                assert_eq!(released.map(|_| ()), Err(ReleaseError::WrapUnsupported));
            }
        }
    }
}
