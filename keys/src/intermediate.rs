//! Core: the secret that one deployment runs on.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;

use crate::master::expand;
use crate::secret::Secret;
use crate::{CaGeneration, CaSeed, KekEpoch, VolumeId, VolumeKek, label};

/// Parent of every working key of a deployment. Lives in the pods' memory, nowhere else.
pub struct IntermediateSecret(Secret<32>);

impl IntermediateSecret {
    pub(crate) fn new(secret: Secret<32>) -> Self {
        Self(secret)
    }

    /// Derives the seed of the mesh CA's key. Each rollover of the CA takes the next generation.
    pub fn derive_ca(&self, generation: CaGeneration) -> CaSeed {
        CaSeed::new(expand(
            &self.tree(),
            &[label::MESH_CA, &generation.0.to_be_bytes()],
        ))
    }

    /// Derives the key that wraps the master key of one volume in one epoch.
    pub fn derive_volume_kek(&self, volume: VolumeId, epoch: KekEpoch) -> VolumeKek {
        let info: [&[u8]; 3] = [label::VOLUME_KEK, &volume.0, &epoch.0.to_be_bytes()];
        VolumeKek::new(expand(&self.tree(), &info))
    }

    /// The intermediate secret is uniform already (an HKDF output), so it is the PRK itself: RFC
    /// 5869 section 3.3 allows to skip the extract step.
    fn tree(&self) -> Hkdf<Sha256> {
        match Hkdf::from_prk(self.0.expose()) {
            Ok(tree) => tree,
            Err(_) => unreachable!("32 bytes are a valid PRK of HKDF-SHA-256"),
        }
    }
}

impl fmt::Debug for IntermediateSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntermediateSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use crate::{CaGeneration, KekEpoch, MasterSecret, VolumeId};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[track_caller]
    fn check(what: &str, got: &[u8], want: &str) {
        assert_eq!(hex(got), want, "{what}");
    }

    /// Golden vectors: computed once with Python's hmac module from RFC 5869 alone
    /// (tests/vectors/keys.py prints them). A change here orphans every deployment's data.
    #[test]
    fn derivation_vectors() {
        let mut released: [u8; 32] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let tree = MasterSecret::from_release(&mut released)
            .unwrap()
            .derive_intermediate();
        let volume = VolumeId([0x11; 16]);
        check("intermediate", tree.0.expose(), VECTORS[0]);
        check("ca 0", tree.derive_ca(CaGeneration(0)).expose(), VECTORS[1]);
        check("ca 1", tree.derive_ca(CaGeneration(1)).expose(), VECTORS[2]);
        check(
            "kek 0",
            tree.derive_volume_kek(volume, KekEpoch(0)).expose(),
            VECTORS[3],
        );
        check(
            "kek 1",
            tree.derive_volume_kek(volume, KekEpoch(1)).expose(),
            VECTORS[4],
        );
    }

    const VECTORS: [&str; 5] = [
        "54ce89d5009cf8362ab42cac6334b8135794c8ea143b5e2072e734631299fe99",
        "c9b40d7aae079a76d8e061ebf6e5637a45dda3ba06aae21ed9ab7a6e57d89e3b015c8cd65ecfdf3523d1f464bc4da9ce",
        "2b56d48bee0146daec710cd07dd743c97b4b00202b4b17ab82474aef4b3930bffc6772e1082d1a825d7d2ee6484a680d",
        "47c638011e572960ab804132aa77ede46d8495e61c92daf4cb2d9e6b757f4f3b",
        "763c3c2d361977509aa2489c159475c49e58f864a6566345a99ab9e115b624a3",
    ];
}
