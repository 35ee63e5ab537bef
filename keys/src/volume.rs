//! Core: the key of one encrypted volume.

use std::fmt;
use std::str::FromStr;

use crate::secret::{LengthMismatch, Secret};

/// Names a volume for ever. Comes from the measured configuration, never from the store alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VolumeId(pub [u8; 16]);

/// A text is not a volume id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeIdError;

/// How often a volume's key-encryption key was replaced: 0 at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KekEpoch(pub u32);

/// Key-encryption key of one volume in one epoch: wraps the volume's own random master key.
pub struct VolumeKek(Secret<32>);

impl VolumeKek {
    pub(crate) fn new(secret: Secret<32>) -> Self {
        Self(secret)
    }

    /// A key that comes from outside of the tree (a key file), wiped in `bytes`.
    pub fn take_from(bytes: &mut [u8]) -> Result<Self, LengthMismatch> {
        Secret::take_from(bytes).map(Self)
    }

    /// The bytes, for the derivations of the volume's format.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl fmt::Debug for VolumeKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKek(..)")
    }
}

/// Master key of one volume: random, wrapped by the [`VolumeKek`], parent of all keys of the volume.
///
/// Only an owner who opened a volume's recovery wrap ever holds one outside of the filesystem.
pub struct VolumeMasterKey(Secret<32>);

impl VolumeMasterKey {
    /// Fills a new key in place, so that the bytes never exist anywhere else.
    pub fn fill_with<E>(fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Self, E> {
        Secret::fill_with(fill).map(Self)
    }

    /// A key that comes from outside, wiped in `bytes`.
    pub fn take_from(bytes: &mut [u8]) -> Result<Self, LengthMismatch> {
        Secret::take_from(bytes).map(Self)
    }

    /// The bytes, for the derivations of the volume's format.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl fmt::Debug for VolumeMasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeMasterKey(..)")
    }
}

impl fmt::Display for KekEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeId({self})")
    }
}

impl fmt::Display for VolumeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a volume id is 32 hexadecimal digits")
    }
}

impl std::error::Error for VolumeIdError {}

impl FromStr for VolumeId {
    type Err = VolumeIdError;

    fn from_str(text: &str) -> Result<Self, VolumeIdError> {
        let digits: [u8; 32] = text.as_bytes().try_into().map_err(|_| VolumeIdError)?;
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).ok_or(VolumeIdError)?;
                *byte = *byte << 4 | u8::try_from(value).map_err(|_| VolumeIdError)?;
            }
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_as_they_print() {
        let id = VolumeId(core::array::from_fn(|i| u8::try_from(i * 17).unwrap()));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "00",
            "00112233445566778899aabbccddeef",
            "+0112233445566778899aabbccddeeff",
        ] {
            assert_eq!(bad.parse::<VolumeId>(), Err(VolumeIdError), "{bad}");
        }
    }
}
