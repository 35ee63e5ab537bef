//! Core: the simulated AMD hierarchy, as OpenSSL sees it.

use enclaveid_tests::pki::Validity;
use enclaveid_tests::snp::{ChipOptions, Product, SimulatedChip, SimulatedRoots};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{X509, X509StoreContext};
use runtime::clock::{Clock, SystemClock, UnixTime};

use super::support::{chip, roots};

fn parse(pem: &[u8]) -> Vec<X509> {
    X509::stack_from_pem(pem).unwrap()
}

/// What OpenSSL says about the VCEK at a time, trusting the ARK alone.
fn verify(chip: &SimulatedChip, at: UnixTime) -> Result<bool, ErrorStack> {
    let chain = parse(&chip.chain_pem().unwrap());
    let mut store = X509StoreBuilder::new()?;
    store.add_cert(chain[1].clone())?;
    let mut param = X509VerifyParam::new()?;
    param.set_time(at.0);
    store.set_param(&param)?;
    let mut intermediates = Stack::new()?;
    intermediates.push(chain[0].clone())?;
    let vcek = chip.vcek();
    X509StoreContext::new()?.init(&store.build(), vcek, &intermediates, |c| c.verify_cert())
}

#[test]
fn openssl_verifies_the_chain_while_it_is_valid() {
    let now = SystemClock.now();
    let year = std::time::Duration::from_secs(365 * 24 * 60 * 60);
    let expired = ChipOptions {
        validity: Validity {
            not_before: now.minus(year * 2),
            not_after: now.minus(year),
        },
        ..ChipOptions::new(now).unwrap()
    };
    let expired = roots().mint_chip(expired).unwrap();
    assert!(verify(&chip(now), now).unwrap());
    assert!(!verify(&expired, now).unwrap());
    assert!(verify(&expired, now.minus(year * 3 / 2)).unwrap());
}

#[test]
fn certificates_have_the_keys_and_the_signatures_of_real_ones() {
    let chip = chip(SystemClock.now());
    let chain = parse(&chip.chain_pem().unwrap());
    for certificate in [&chain[0], &chain[1]] {
        let key = certificate.public_key().unwrap();
        assert_eq!(
            key.id(),
            openssl::pkey::Id::RSA,
            "not restricted to PSS itself"
        );
        assert_eq!(key.bits(), 4_096);
    }
    for certificate in [&chain[0], &chain[1], chip.vcek()] {
        assert_eq!(
            certificate.signature_algorithm().object().nid(),
            Nid::RSASSAPSS
        );
    }
    let key = chip.vcek().public_key().unwrap();
    assert_eq!(
        key.ec_key().unwrap().group().curve_name(),
        Some(Nid::SECP384R1)
    );
    let name = |certificate: &X509| {
        let text = |nid| {
            let entry = certificate
                .subject_name()
                .entries_by_nid(nid)
                .next()
                .unwrap();
            entry.data().to_string().unwrap()
        };
        (text(Nid::COMMONNAME), text(Nid::ORGANIZATIONNAME))
    };
    let simulator = "EnclaveID Simulator".to_owned();
    assert_eq!(
        name(chip.vcek()),
        ("SEV-VCEK".to_owned(), simulator.clone())
    );
    assert_eq!(name(&chain[0]), ("SEV-Milan".to_owned(), simulator.clone()));
    assert_eq!(name(&chain[1]), ("ARK-Milan".to_owned(), simulator));
}

/// The extensions' DER, found as bytes: OID, then the OCTET STRING around the value.
#[test]
fn the_vcek_carries_amds_extensions_in_their_real_encoding() {
    let now = SystemClock.now();
    let options = ChipOptions {
        chip_id: [0x43; 64],
        ..ChipOptions::new(now).unwrap()
    };
    let der = roots().mint_chip(options).unwrap().vcek().to_der().unwrap();
    let arc = [0x2b, 6, 1, 4, 1, 0x9c, 0x78, 1];
    let oid = |below: &[u8]| {
        let len = u8::try_from(arc.len() + below.len()).unwrap();
        [&[6, len], &arc[..], below].concat()
    };
    let chip_id = [&[4, 64], &[0x43; 64][..]].concat();
    for (below, value) in [
        (&[1][..], &[4, 3, 2, 1, 0][..]),
        (&[2], b"\x04\x0a\x16\x08Milan-B0"),
        (&[3, 1], &[4, 3, 2, 1, 4]),
        (&[3, 2], &[4, 3, 2, 1, 0]),
        (&[3, 3], &[4, 3, 2, 1, 24]),
        (&[3, 8], &[4, 4, 2, 2, 0, 0xd9]),
        (&[4], &chip_id),
    ] {
        let wanted = [&oid(below)[..], value].concat();
        let found = der
            .windows(wanted.len())
            .filter(|window| *window == wanted)
            .count();
        assert_eq!(found, 1, "extension {below:?}");
    }
}

#[test]
fn cached_roots_are_the_same_keys_again() {
    let dir = tempfile::tempdir().unwrap();
    let key = || {
        let roots = SimulatedRoots::cached(Product::Genoa, dir.path()).unwrap();
        let ark = X509::from_pem(&roots.ark_pem().unwrap()).unwrap();
        ark.public_key().unwrap().public_key_to_der().unwrap()
    };
    assert_eq!(key(), key());
}
