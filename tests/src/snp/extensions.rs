//! Core: AMD's extensions of VCEK certificates (VCEK certificate and KDS interface specification).

use openssl::asn1::{Asn1Object, Asn1OctetString};
use openssl::error::ErrorStack;
use openssl::x509::X509Extension;

use super::chain::{ChipOptions, Product};

/// What all of them are below.
const AMD_ARC: &str = "1.3.6.1.4.1.3704.1";

/// The extensions of a chip's certificate, in the order of real ones.
pub(super) fn amd_extensions(
    product: Product,
    options: &ChipOptions,
) -> Result<Vec<X509Extension>, ErrorStack> {
    let tcb = options.tcb;
    [
        ("1", integer(0)),
        ("2", ia5_string(product.extension())),
        ("3.1", integer(tcb.bootloader)),
        ("3.2", integer(tcb.tee)),
        ("3.4", integer(0)),
        ("3.5", integer(0)),
        ("3.6", integer(0)),
        ("3.7", integer(0)),
        ("3.3", integer(tcb.snp)),
        ("3.8", integer(tcb.microcode)),
        // Raw, without a tag of its own: as in real certificates.
        ("4", options.chip_id.to_vec()),
    ]
    .iter()
    .map(|(arc, value)| extension(arc, value))
    .collect()
}

fn extension(arc: &str, value: &[u8]) -> Result<X509Extension, ErrorStack> {
    let oid = Asn1Object::from_str(&format!("{AMD_ARC}.{arc}"))?;
    X509Extension::new_from_der(&oid, false, &*Asn1OctetString::new_from_bytes(value)?)
}

/// DER INTEGER: a level over 127 takes a leading zero, or it would be negative.
fn integer(value: u8) -> Vec<u8> {
    if value < 0x80 {
        vec![0x02, 1, value]
    } else {
        vec![0x02, 2, 0, value]
    }
}

/// DER IA5String of a short text.
fn ia5_string(text: &'static str) -> Vec<u8> {
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0x16, len], text.as_bytes()].concat()
}
