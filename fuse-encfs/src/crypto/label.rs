//! Core: every label of the volume's derivations, each once.
//!
//! Parameters that follow a label have a fixed width, and no label is a prefix of another, so no
//! two (label, parameters) pairs give the same `info`.

/// KEK -> commitment in the superblock. Followed by the volume id and the KEK epoch.
pub(super) const KEK_COMMITMENT: &[u8] = b"enclaveid/encfs/v1/kek-commitment/";
/// KEK -> key that wraps a VMK ([`super::seal_once`]).
pub(super) const VMK_WRAP: &[u8] = b"enclaveid/encfs/v1/vmk-wrap/";
/// VMK -> key that wraps the VMK before it ([`super::seal_once`]).
pub(super) const OLDER_VMK_WRAP: &[u8] = b"enclaveid/encfs/v1/older-vmk-wrap/";
/// VMK -> commitment in the superblock. Followed by the volume id and the VMK epoch.
pub(super) const VMK_COMMITMENT: &[u8] = b"enclaveid/encfs/v1/vmk-commitment/";
/// VMK -> commitment in the genesis of the chain.
pub(super) const GENESIS_COMMITMENT: &[u8] = b"enclaveid/encfs/v1/genesis-commitment";
/// VMK -> K_data.
pub(super) const DATA: &[u8] = b"enclaveid/encfs/v1/data";
/// VMK -> K_node.
pub(super) const NODE: &[u8] = b"enclaveid/encfs/v1/node";
/// VMK -> K_log.
pub(super) const LOG: &[u8] = b"enclaveid/encfs/v1/log";
/// VMK -> K_super.
pub(super) const SUPERBLOCK: &[u8] = b"enclaveid/encfs/v1/superblock";
/// VMK -> K_anchor.
pub(super) const ANCHOR: &[u8] = b"enclaveid/encfs/v1/anchor";
/// VMK -> key that uids are hedged with.
pub(super) const UID: &[u8] = b"enclaveid/encfs/v1/uid";
/// K_data, K_node or K_log -> key of a segment's units. Followed by uid and VMK epoch.
pub(super) const SEGMENT: &[u8] = b"enclaveid/encfs/v1/segment/";
/// K_log -> parent of a segment's commits. Followed by uid and VMK epoch.
pub(super) const COMMITS: &[u8] = b"enclaveid/encfs/v1/commits/";
/// Parent -> key of one commit. Followed by its salt.
pub(super) const COMMIT: &[u8] = b"enclaveid/encfs/v1/once-commit/";
/// K_super -> key of one superblock body. Followed by its salt.
pub(super) const BODY: &[u8] = b"enclaveid/encfs/v1/once-superblock/";
/// K_data, K_node or K_log -> key of one segment header. Followed by its salt.
pub(super) const HEADER: &[u8] = b"enclaveid/encfs/v1/once-segment-header/";
/// K_anchor -> tag of a record that an anchor keeps in a file. Followed by the record.
pub(super) const ANCHOR_TAG: &[u8] = b"enclaveid/encfs/v1/tag-anchor-record/";
/// Domain of the chain's first head.
pub(super) const GENESIS: &[u8] = b"enclaveid/encfs/v1/head/genesis/";
/// Domain of the chain's further heads.
pub(super) const HEAD: &[u8] = b"enclaveid/encfs/v1/head/next/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_is_a_prefix_of_another() {
        let labels = [
            KEK_COMMITMENT,
            VMK_WRAP,
            OLDER_VMK_WRAP,
            VMK_COMMITMENT,
            GENESIS_COMMITMENT,
            DATA,
            NODE,
            LOG,
            SUPERBLOCK,
            ANCHOR,
            UID,
            SEGMENT,
            COMMITS,
            COMMIT,
            BODY,
            HEADER,
            ANCHOR_TAG,
            GENESIS,
            HEAD,
        ];
        for (i, a) in labels.iter().enumerate() {
            for (j, b) in labels.iter().enumerate() {
                assert!(i == j || !b.starts_with(a), "{i} is a prefix of {j}");
            }
        }
    }
}
