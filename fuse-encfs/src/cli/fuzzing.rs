//! Core: The file of a key, from any bytes.

use super::key;

/// A key is its 32 bytes, or what its 64 digits say, and nothing else is one.
pub(crate) fn key_file(input: &[u8]) {
    let Ok(key) = key::parse(input) else {
        assert!(input.len() != 32);
        return;
    };
    if input.len() == 32 {
        assert_eq!(input, *key);
        return;
    }
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = input.strip_suffix(b"\n").unwrap_or(input);
    assert_eq!(digits.as_bytes(), text.to_ascii_lowercase());
}

/// What the target begins with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
    vec![
        vec![7; 32],
        digits.as_bytes().to_vec(),
        format!("{digits}\n").into_bytes(),
    ]
}
