//! Core: whether the state that was found in a store is the remembered one or came after it.

use super::Anchored;

/// What recovery found in the store.
pub(crate) struct Found<'a> {
    /// Number and head of the last commit that was recovered.
    pub(crate) newest: (u64, [u8; 32]),
    /// Epoch of the newest master key in the superblock.
    pub(crate) vmk_epoch: u32,
    /// Whether the superblock says that a lasting anchor ever acknowledged a head.
    pub(crate) anchored_once: bool,
    /// Whether replay met this head under this number; where the starting checkpoint was taken
    /// counts as met.
    pub(crate) met: &'a dyn Fn(u64, &[u8; 32]) -> bool,
    /// The pairs that the starting checkpoint sealed.
    pub(crate) sealed: &'a [(u64, [u8; 32])],
}

/// What the operator's measured configuration says about freshness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The state with this head is accepted, whatever the anchor says.
    pub(crate) accept_head: Option<[u8; 32]>,
    /// The lowest epoch of the master key that is accepted.
    pub(crate) vmk_epoch_min: u32,
}

/// Why the state was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// Replay went through the anchored head.
    Met,
    /// Nothing is remembered, and nothing ever was.
    New,
    /// The operator named this very state.
    Overridden,
    /// The starting checkpoint carries the anchored pair.
    Sealed,
}

/// Why the state in the store was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The volume had an anchor, and now nothing is remembered.
    #[error(
        "the volume had an anchor, which remembers nothing now; the store holds commit {} with head {}",
        found.0, Hex(&found.1)
    )]
    Forgotten {
        /// Number and head of the last commit in the store.
        found: (u64, [u8; 32]),
    },
    /// The history in the store never had the remembered head.
    #[error(
        "the store was set back, or holds another history: commit {anchored} is remembered and was \
         not found; the store holds commit {} with head {}",
        found.0, Hex(&found.1)
    )]
    RolledBack {
        /// Number of the remembered commit.
        anchored: u64,
        /// Number and head of the last commit in the store.
        found: (u64, [u8; 32]),
    },
    /// The volume was written under an older master key than the remembered or the configured one.
    #[error("the volume's master key is of epoch {found}, older than the expected {least}")]
    StaleKeys {
        /// Epoch of the newest key in the store.
        found: u32,
        /// The lowest that is accepted.
        least: u32,
    },
}

impl Refusal {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Forgotten { .. } => "fs.anchor_missing",
            Self::RolledBack { .. } => "fs.rolled_back",
            Self::StaleKeys { .. } => "fs.stale_keys",
        }
    }
}

/// Compares what was found with what is remembered.
///
/// A higher number proves nothing: a fork may be longer. Only the head itself does, met in the
/// chain or sealed by a checkpoint of that chain.
pub(crate) fn judge(
    anchored: Option<&Anchored>,
    found: &Found<'_>,
    rules: &Rules,
) -> Result<Acceptance, Refusal> {
    // No override of these: a key that was replaced for a reason is no state of the volume.
    let least = anchored.map_or(0, |a| a.vmk_epoch).max(rules.vmk_epoch_min);
    if found.vmk_epoch < least {
        return Err(Refusal::StaleKeys {
            found: found.vmk_epoch,
            least,
        });
    }
    let refusal = match anchored {
        None if !found.anchored_once => return Ok(Acceptance::New),
        None => Refusal::Forgotten {
            found: found.newest,
        },
        Some(a) if (found.met)(a.seq, &a.head) => return Ok(Acceptance::Met),
        Some(a) if found.sealed.contains(&(a.seq, a.head)) => return Ok(Acceptance::Sealed),
        Some(a) => Refusal::RolledBack {
            anchored: a.seq,
            found: found.newest,
        },
    };
    if rules.accept_head == Some(found.newest.1) {
        return Ok(Acceptance::Overridden);
    }
    Err(refusal)
}

/// Bytes as an operator writes them.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
