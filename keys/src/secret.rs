//! Core: a fixed number of secret bytes that cannot leak by accident.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// `N` secret bytes on the heap, wiped when dropped.
///
/// On the heap, because a value that moves leaves copies of itself on the stack; a box moves only
/// its pointer. There is no `Clone`, no `PartialEq` (comparison would invite timing leaks), no
/// serialisation; `Debug` prints no byte.
pub struct Secret<const N: usize>(Box<[u8; N]>);

/// A slice had another length than the secret it should fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthMismatch {
    /// Bytes that the secret has.
    pub want: usize,
    /// Bytes that were offered.
    pub got: usize,
}

impl fmt::Display for LengthMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a secret of {} bytes was offered {}",
            self.want, self.got
        )
    }
}

impl std::error::Error for LengthMismatch {}

impl<const N: usize> Secret<N> {
    /// Fills a new secret in place, so that the bytes never exist anywhere else.
    pub fn fill_with<E>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self(Box::new([0; N]));
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// Takes the bytes of `source` and wipes them there, also when the length is wrong.
    pub fn take_from(source: &mut [u8]) -> Result<Self, LengthMismatch> {
        let got = source.len();
        let taken = Self::fill_with(|bytes| {
            if got != N {
                return Err(LengthMismatch { want: N, got });
            }
            bytes.copy_from_slice(source);
            Ok(())
        });
        source.zeroize();
        taken
    }

    /// The bytes, for the one computation that needs them.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> ZeroizeOnDrop for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_wipes_the_source_even_on_a_wrong_length() {
        let mut good = [7_u8; 32];
        assert_eq!(
            Secret::<32>::take_from(&mut good).unwrap().expose(),
            &[7; 32]
        );
        assert_eq!(good, [0; 32]);

        let mut short = [7_u8; 31];
        let refused = Secret::<32>::take_from(&mut short).unwrap_err();
        assert_eq!(refused, LengthMismatch { want: 32, got: 31 });
        assert_eq!(short, [0; 31]);
    }

    #[test]
    fn debug_prints_no_byte() {
        let secret = Secret::<4>::take_from(&mut [0xde, 0xad, 0xbe, 0xef]).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
