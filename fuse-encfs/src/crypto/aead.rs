//! Port: AES-256-GCM, by whichever provider is fastest on this CPU.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{NotAuthentic, SealError};
use crate::format::TAG_LEN;

mod aws_lc;
mod portable;
#[cfg(test)]
pub(crate) mod recorder;

/// Code of AES-256-GCM in the AAD.
pub(super) const AES_256_GCM: u8 = 1;
/// Seals of 4 KiB that a provider is timed with.
const MEASURED_SEALS: u8 = 64;

/// A provider of AES-256-GCM.
pub(crate) trait Aead: fmt::Debug + Send + Sync {
    /// Name for the log.
    fn name(&self) -> &'static str;
    /// Prepares a key; its copy is wiped when the result is dropped.
    fn key(&self, key: &[u8; 32]) -> Box<dyn AeadKey>;
}

/// A prepared key.
pub(crate) trait AeadKey: Send + Sync {
    /// Seals `plaintext` into `sealed`, which is longer by a tag. The caller never gives one nonce
    /// twice.
    fn seal(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        plaintext: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), SealError>;

    /// Opens `sealed` into `plaintext`, which is shorter by a tag. After an error the contents of
    /// `plaintext` are void and must not be shown.
    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), NotAuthentic>;
}

/// Every provider there is.
pub(crate) fn providers() -> [Arc<dyn Aead>; 2] {
    [Arc::new(aws_lc::AwsLc), Arc::new(portable::Portable)]
}

/// The provider that seals fastest here, found by trying for less than a millisecond.
pub(crate) fn fastest() -> Arc<dyn Aead> {
    let [mut best, rest @ ..] = providers();
    let mut best_time = time_of(&*best);
    for other in rest {
        let time = time_of(&*other);
        if time < best_time {
            (best, best_time) = (other, time);
        }
    }
    tracing::debug!(
        provider = best.name(),
        micros = best_time.as_micros(),
        "chose a provider"
    );
    best
}

fn time_of(aead: &dyn Aead) -> Duration {
    // An all-zero key that seals zeros protects nothing and is used for nothing else.
    let key = aead.key(&[0; 32]);
    let (plaintext, mut sealed) = ([0; 4096], [0; 4096 + TAG_LEN]);
    let began = Instant::now();
    for i in 0..MEASURED_SEALS {
        if key.seal(&[i; 12], &[], &plaintext, &mut sealed).is_err() {
            return Duration::MAX;
        }
    }
    began.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// McGrew and Viega, "The Galois/Counter Mode of Operation", test case 16.
    #[test]
    fn known_answer() {
        let hex = |text: &str| -> Vec<u8> {
            let digit =
                |digit: &u8| u8::try_from(char::from(*digit).to_digit(16).unwrap()).unwrap();
            let byte = |pair: &[u8]| digit(&pair[0]) << 4 | digit(&pair[1]);
            text.as_bytes().chunks(2).map(byte).collect()
        };
        let key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
        let nonce = hex("cafebabefacedbaddecaf888");
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plaintext = hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ));
        let want = hex(concat!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b"
        ));
        let nonce: [u8; 12] = nonce.try_into().unwrap();
        for provider in providers() {
            let key = provider.key(&key.clone().try_into().unwrap());
            let mut sealed = vec![0; want.len()];
            key.seal(&nonce, &aad, &plaintext, &mut sealed).unwrap();
            assert_eq!(sealed, want, "{}", provider.name());
        }
    }

    #[test]
    fn each_provider_opens_what_the_others_sealed_and_nothing_else() {
        let plaintext: Vec<u8> = (0..4096_u32).map(|i| (i % 251) as u8).collect();
        for a in providers() {
            let mut sealed = vec![0; plaintext.len() + TAG_LEN];
            a.key(&[7; 32])
                .seal(&[1; 12], b"aad", &plaintext, &mut sealed)
                .unwrap();
            for b in providers() {
                let key = b.key(&[7; 32]);
                let mut opened = vec![0; plaintext.len()];
                key.open(&[1; 12], b"aad", &sealed, &mut opened).unwrap();
                assert_eq!(opened, plaintext);

                let what = format!("{} opening {}", b.name(), a.name());
                let other = b.key(&[8; 32]);
                assert!(
                    other.open(&[1; 12], b"aad", &sealed, &mut opened).is_err(),
                    "{what}"
                );
                assert!(
                    key.open(&[2; 12], b"aad", &sealed, &mut opened).is_err(),
                    "{what}"
                );
                assert!(
                    key.open(&[1; 12], b"aae", &sealed, &mut opened).is_err(),
                    "{what}"
                );
                for i in [0, 2000, 4096, 4111] {
                    let mut bent = sealed.clone();
                    bent[i] ^= 1;
                    assert!(
                        key.open(&[1; 12], b"aad", &bent, &mut opened).is_err(),
                        "{what} {i}"
                    );
                }
            }
        }
    }
}
