//! Core: every HKDF label of the derivation tree, each once.
//!
//! A label names the thing derived, its version and, where the thing comes in several, ends with
//! a separator after which the encoded parameters follow. Parameters have a fixed width, so no two
//! (label, parameters) pairs give the same `info`. Drawn in docs/format.md.

/// Salt of the one extract step: names this product and the version of the tree.
pub const EXTRACT_SALT: &[u8] = b"enclaveid/v1/extract";
/// `MasterSecret` -> `IntermediateSecret`. No parameters.
pub const INTERMEDIATE: &[u8] = b"enclaveid/v1/intermediate";
/// `IntermediateSecret` -> `CaSeed`. Followed by the generation, 4 bytes big endian.
pub const MESH_CA: &[u8] = b"enclaveid/mesh-ca/v1/seed/";
/// `IntermediateSecret` -> `VolumeKek`. Followed by the volume id, 16 bytes, and the epoch,
/// 4 bytes big endian.
pub const VOLUME_KEK: &[u8] = b"enclaveid/encfs/v1/kek/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_is_a_prefix_of_another() {
        let labels = [EXTRACT_SALT, INTERMEDIATE, MESH_CA, VOLUME_KEK];
        for (i, a) in labels.iter().enumerate() {
            for (j, b) in labels.iter().enumerate() {
                assert!(i == j || !b.starts_with(a), "{i} is a prefix of {j}");
            }
        }
    }
}
