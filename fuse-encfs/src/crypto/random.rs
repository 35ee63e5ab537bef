//! Core: the one source of salts, uids and keys.

use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::{Head, SealError, label};
use crate::format::SegmentUid;
use crate::sys;

/// Draws that may look broken in a row before the source counts as broken.
const TRIES: u32 = 4;

/// Random bytes: words of RDRAND XOR bytes of the kernel's generator.
///
/// RDRAND, because a guest that was cloned while it ran has two kernels with equal state, but the
/// CPU gives each of them words of its own. The kernel, because the CPU need not be trusted alone.
#[derive(Debug, Default)]
pub(crate) struct Entropy {
    /// First word of the last draw, so that a stuck source is noticed.
    last: AtomicU64,
    /// Uids drawn so far.
    uids: AtomicU64,
}

impl Entropy {
    /// Fills `out`. Never waits but for the kernel's generator to be seeded at boot.
    pub(crate) fn fill(&self, out: &mut [u8]) -> Result<(), SealError> {
        for _ in 0..TRIES {
            sys::getrandom(out).map_err(|_| SealError::Entropy)?;
            let mut stuck = false;
            for chunk in out.chunks_mut(8) {
                let word = sys::rdrand64().ok_or(SealError::Entropy)?;
                stuck |= matches!(word, 0 | u64::MAX);
                for (byte, more) in chunk.iter_mut().zip(word.to_le_bytes()) {
                    *byte ^= more;
                }
            }
            if !stuck && self.is_fresh(out) {
                return Ok(());
            }
        }
        Err(SealError::Entropy)
    }

    /// `N` fresh bytes.
    pub(crate) fn draw<const N: usize>(&self) -> Result<[u8; N], SealError> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// A fresh segment uid. Hedged: even a broken source does not repeat one, as time, a counter
    /// and the chain's head go in under a key that the store does not know.
    pub(crate) fn uid(&self, hedge: &[u8; 32], head: &Head) -> Result<SegmentUid, SealError> {
        let random: [u8; 32] = self.draw()?;
        let (secs, nanos) = sys::time_of_day();
        let digest = Sha256::new()
            .chain_update(label::UID)
            .chain_update(hedge)
            .chain_update(random)
            .chain_update(secs.to_le_bytes())
            .chain_update(nanos.to_le_bytes())
            .chain_update(self.uids.fetch_add(1, Ordering::Relaxed).to_le_bytes())
            .chain_update(head.0)
            .finalize();
        digest
            .first_chunk()
            .copied()
            .map(SegmentUid)
            .ok_or(SealError::Entropy)
    }

    fn is_fresh(&self, out: &[u8]) -> bool {
        let Some(first) = out.first_chunk() else {
            return true;
        };
        let word = u64::from_le_bytes(*first);
        !matches!(word, 0 | u64::MAX) && self.last.swap(word, Ordering::Relaxed) != word
    }
}
