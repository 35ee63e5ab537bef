//! Adapter: no anchor. Across guests the store can bring back any state of the volume.

use super::{AdvanceError, Anchor, AnchorError, Anchored};

/// Remembers nothing and takes everything.
#[derive(Debug)]
pub(super) struct NoAnchor;

impl NoAnchor {
    /// Says once, in the log, what is not protected.
    pub(super) fn announced() -> Self {
        tracing::warn!(
            error_code = "fs.anchor_none",
            "no anchor: when the guest starts anew, the store can bring back an older state of the \
             whole volume without being noticed"
        );
        Self
    }
}

impl Anchor for NoAnchor {
    fn load(&self) -> Result<Option<Anchored>, AnchorError> {
        Ok(None)
    }

    fn advance(&self, _: Option<&Anchored>, _: &Anchored) -> Result<(), AdvanceError> {
        Ok(())
    }

    fn is_lasting(&self) -> bool {
        false
    }

    fn kind(&self) -> &'static str {
        "none"
    }
}
