//! Core: authenticating the records that an anchor keeps in a file.
//!
//! A record is small, rewritten in place, and not secret: a tag is all that it needs, and a tag has
//! no nonce that could repeat.

use super::VolumeKeys;

/// Bytes of a tag.
pub(crate) const ANCHOR_TAG_LEN: usize = 32;

impl VolumeKeys {
    /// The tag of `record`, which must have a fixed length, under the master key of an epoch; `None`
    /// when there is none of that epoch.
    pub(crate) fn anchor_tag(&self, vmk_epoch: u32, record: &[u8]) -> Option<[u8; ANCHOR_TAG_LEN]> {
        // The first block of HKDF-Expand is HMAC-SHA-256 over `info` and a constant.
        Some(*self.derive_anchor_tag(vmk_epoch, record)?.expose())
    }

    /// Whether `tag` is that of `record`. Takes as long for a wrong tag as for the right one.
    pub(crate) fn is_anchor_tag(&self, vmk_epoch: u32, record: &[u8], tag: &[u8]) -> bool {
        let Some(want) = self.anchor_tag(vmk_epoch, record) else {
            return false;
        };
        let differing = want.iter().zip(tag).fold(0, |acc, (a, b)| acc | (a ^ b));
        tag.len() == want.len() && differing == 0
    }
}
