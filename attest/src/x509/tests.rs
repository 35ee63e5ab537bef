use proptest::prelude::*;

use super::*;
use crate::testing::{self, Chain};

fn vcek() -> Vec<u8> {
    Chain::milan().vcek.der()
}

#[test]
fn pem_may_have_text_around_its_certificates() {
    let pem = testing::pem(&vcek());
    let with_text = format!("subject=SEV-VCEK\n{pem}\nissuer=SEV-Milan\n{pem}bye\n");
    assert_eq!(
        Certificate::parse_any(with_text.as_bytes()).unwrap().len(),
        2
    );
    let one_line = pem.replacen("-----\n", "-----", 1);
    assert_eq!(
        Certificate::parse_any(one_line.as_bytes()).unwrap().len(),
        1
    );
}

#[test]
fn what_is_no_certificate_is_malformed() {
    let pem = testing::pem(&vcek());
    let trailing = [vcek(), vec![0]].concat();
    let other_label = pem.replace("CERTIFICATE", "PRIVATE KEY");
    let no_base64 = pem.replacen("MI", "!!", 1);
    let cases: [&[u8]; 8] = [
        b"",
        b"hello",
        b"\xFF\xFE",
        &vcek()[..vcek().len() - 1],
        &trailing,
        &pem.as_bytes()[..pem.len() - 30],
        other_label.as_bytes(),
        no_base64.as_bytes(),
    ];
    for case in cases {
        assert_eq!(Certificate::parse_any(case).map(|_| ()), Err(Malformed));
    }
    let too_many = pem.repeat(CERTIFICATES_MAX + 1);
    assert_eq!(
        Certificate::parse_pem(too_many.as_bytes()).map(|_| ()),
        Err(Malformed)
    );
}

#[test]
fn an_extension_that_appears_twice_is_malformed() {
    let mut spec = Chain::milan().ask;
    spec.extensions.push(testing::basic_constraints(true));
    assert_eq!(
        Certificate::parse_der(&spec.der()).map(|_| ()),
        Err(Malformed)
    );
}

#[test]
fn host_names_match_exactly_or_by_one_whole_label() {
    let check = |pattern: &str, host: &str, want: bool| {
        let mut spec = Chain::milan().ask;
        spec.extensions
            .push(testing::alt_names(&["other.example", pattern]));
        let certificate = Certificate::parse_der(&spec.der()).unwrap();
        assert_eq!(certificate.matches_host(host), want, "{pattern} {host}");
    };
    check("a.vault.example", "a.vault.example", true);
    check("a.vault.example", "A.Vault.example", true);
    check("*.vault.example", "a.vault.example", true);
    check("*.vault.example", "b.a.vault.example", false);
    check("*.vault.example", "vault.example", false);
    check("*.vault.example", ".vault.example", false);
    check("a*.vault.example", "ab.vault.example", false);
    check("*.example", "vault.example", false);
    check("*", "vault", false);
    check("", "", false);
    check("a.vault.example", "b.vault.example", false);
    let nameless = Certificate::parse_der(&Chain::milan().ask.der()).unwrap();
    assert!(!nameless.matches_host("SEV-Milan"));
}

proptest! {
    #[test]
    fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Certificate::parse_any(&bytes);
        let _ = PublicKey::from_spki(&bytes);
    }

    #[test]
    fn a_damaged_certificate_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut der = vcek();
        for (offset, byte) in damage {
            let offset = offset.index(der.len());
            der[offset] = byte;
        }
        if let Ok(certificate) = Certificate::parse_der(&der) {
            let _ = certificate.verify_issued_by(&certificate, |_| true);
            let _ = certificate.verify_dates(UnixSeconds(testing::NOW));
            let _ = crate::endorsements::ChipClaims::of(&certificate);
            let _ = certificate.matches_host("a.example");
        }
    }
}
