//! Edge: reading a key from a file, and from nowhere else.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use keys::{VolumeKek, VolumeMasterKey};
use zeroize::Zeroizing;

const RAW: usize = 32;
const HEX: usize = 64;
/// A byte more than the longest key.
const READ_MAX: usize = HEX + 2;

/// Where the key is read from: exactly 32 bytes, or 64 hexadecimal digits and at most one newline.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Key {
    /// File with the key.
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
    /// Open file descriptor with the key.
    #[arg(long, value_name = "N")]
    pub(super) key_fd: Option<u32>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    /// It cannot be read.
    #[error("the key cannot be read")]
    Unreadable(#[source] io::Error),
    /// It is no key.
    #[error("a key is exactly 32 bytes, or 64 hexadecimal digits and at most one newline")]
    Malformed,
}

impl Key {
    /// Reads the key. Its bytes are wiped wherever they passed through.
    pub(super) fn read(&self) -> Result<VolumeKek, KeyError> {
        let path = match (&self.key_file, self.key_fd) {
            (Some(path), _) => path.clone(),
            (None, Some(fd)) => PathBuf::from(format!("/proc/self/fd/{fd}")),
            (None, None) => return Err(KeyError::Malformed),
        };
        let mut raw = read(&path)?;
        VolumeKek::take_from(raw.as_mut_slice()).map_err(|_| KeyError::Malformed)
    }
}

/// Reads a volume's master key, of the same form.
pub(super) fn read_master_key(path: &Path) -> Result<VolumeMasterKey, KeyError> {
    let mut raw = read(path)?;
    VolumeMasterKey::take_from(raw.as_mut_slice()).map_err(|_| KeyError::Malformed)
}

fn read(path: &Path) -> Result<Zeroizing<[u8; RAW]>, KeyError> {
    let mut file = File::open(path).map_err(KeyError::Unreadable)?;
    let mut bytes = Zeroizing::new([0; READ_MAX]);
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(KeyError::Unreadable(e)),
        }
    }
    parse(bytes.get(..len).ok_or(KeyError::Malformed)?)
}

/// The key that a file with these bytes holds.
pub(super) fn parse(bytes: &[u8]) -> Result<Zeroizing<[u8; RAW]>, KeyError> {
    let mut raw = Zeroizing::new([0; RAW]);
    if bytes.len() == RAW {
        raw.copy_from_slice(bytes);
        return Ok(raw);
    }
    let digits = match bytes {
        [digits @ .., b'\n'] => digits,
        digits => digits,
    };
    if digits.len() != HEX {
        return Err(KeyError::Malformed);
    }
    for (byte, pair) in raw.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit)
                .to_digit(16)
                .and_then(|v| u8::try_from(v).ok());
            *byte = *byte << 4 | value.ok_or(KeyError::Malformed)?;
        }
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], want: Option<[u8; 32]>) {
        let got = parse(bytes).ok().map(|key| *key);
        assert_eq!(got, want, "{bytes:?}");
    }

    #[test]
    fn keys_are_32_bytes_or_64_digits() {
        check(&[7; 32], Some([7; 32]));
        check("0f".repeat(32).as_bytes(), Some([0x0f; 32]));
        check(("0F".repeat(32) + "\n").as_bytes(), Some([0x0f; 32]));
        check(&[7; 31], None);
        check(&[7; 33], None);
        check(&[], None);
        check(("0f".repeat(32) + "\n\n").as_bytes(), None);
        check(("0f".repeat(32) + "0").as_bytes(), None);
        check(("+f".repeat(32)).as_bytes(), None);
    }
}
