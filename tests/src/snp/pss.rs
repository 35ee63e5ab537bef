//! Core: certificates signed with RSASSA-PSS, as AMD's are.

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};

/// `AlgorithmIdentifier` id-RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes
/// (RFC 4055 section 3.1), DER.
const RSASSA_PSS_SHA384: &[u8] = &[
    0x30, 0x41, // SEQUENCE
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, // id-RSASSA-PSS
    0x30, 0x34, // SEQUENCE
    0xa0, 0x0f, 0x30, 0x0d, // [0] hash algorithm
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, // SHA-384
    0xa1, 0x1c, 0x30, 0x1a, // [1] mask generation
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, // MGF1
    0x30, 0x0d, // SEQUENCE
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, // SHA-384
    0xa2, 0x03, 0x02, 0x01, 0x30, // [2] salt length 48
];

/// The same private key, restricted to the one signature scheme that AMD uses: certificates that
/// OpenSSL signs with it say RSASSA-PSS, while they still certify plain RSA keys.
pub(super) fn pss_only(key: &PKey<Private>) -> Result<PKey<Private>, ErrorStack> {
    let private_key = key.rsa()?.private_key_to_der()?;
    let mut body = vec![0x02, 0x01, 0x00];
    body.extend_from_slice(RSASSA_PSS_SHA384);
    push_tagged(&mut body, 0x04, &private_key);
    let mut pkcs8 = Vec::with_capacity(body.len() + 8);
    push_tagged(&mut pkcs8, 0x30, &body);
    PKey::private_key_from_pkcs8(&pkcs8)
}

/// Appends an element whose length takes four octets. DER would want the shortest form; OpenSSL
/// reads any.
fn push_tagged(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    // Private keys are a few kilobytes long.
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&[tag, 0x84]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(content);
}
