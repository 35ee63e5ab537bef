//! Core: the roots that evidence must lead to.

use crate::x509::Certificate;

/// AMD's roots and signing keys, compiled in: anchors/NOTICE says where they are from.
const AMD: [(&[u8], &[u8]); 2] = [
    (
        include_bytes!("anchors/ark-milan.pem"),
        include_bytes!("anchors/ask-milan.pem"),
    ),
    (
        include_bytes!("anchors/ark-genoa.pem"),
        include_bytes!("anchors/ask-genoa.pem"),
    ),
];

/// The root keys (ARK) that are believed without proof.
#[derive(Debug, Clone)]
pub struct TrustAnchors {
    anchors: Vec<Anchor>,
    simulated: bool,
}

/// One root with, where it is known, the signing key below it.
#[derive(Debug, Clone)]
pub(crate) struct Anchor {
    pub(crate) ark: Certificate,
    pub(crate) ask: Option<Certificate>,
}

impl TrustAnchors {
    /// AMD's roots for Milan and Genoa.
    pub fn amd() -> Self {
        // A root that did not parse would be one fewer that is believed; a test counts them.
        let parse = |pem: &[u8]| Certificate::parse_pem(pem).ok()?.into_iter().next();
        let anchor = |(ark, ask)| {
            Some(Anchor {
                ark: parse(ark)?,
                ask: parse(ask),
            })
        };
        Self {
            anchors: AMD.into_iter().filter_map(anchor).collect(),
            simulated: false,
        }
    }

    /// Whether the root is not AMD's: what leads to it is no evidence of hardware.
    pub fn simulated(&self) -> bool {
        self.simulated
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Anchor> {
        self.anchors.iter()
    }
}

/// Roots of one's own choice: for the simulator alone.
pub mod danger {
    use super::{Anchor, Certificate, TrustAnchors};
    use crate::endorsements::EndorsementsError;

    /// Believes the one root in `ark_pem` instead of AMD's. Everything that is verified with it
    /// says so: see [`TrustAnchors::simulated`].
    pub fn with_root(ark_pem: &[u8]) -> Result<TrustAnchors, EndorsementsError> {
        let certificates = Certificate::parse_any(ark_pem);
        let certificates = certificates.map_err(|_| EndorsementsError::Root)?;
        let [ark] =
            <[Certificate; 1]>::try_from(certificates).map_err(|_more| EndorsementsError::Root)?;
        Ok(TrustAnchors {
            anchors: vec![Anchor { ark, ask: None }],
            simulated: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::encoding::hex_array;
    use crate::public_key::{Hash, SignatureAlgorithm};

    /// The pins are written down in the browser's verifier too.
    #[test]
    fn the_compiled_in_roots_are_amds() {
        let pins = [
            "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
            "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
        ];
        let anchors = TrustAnchors::amd();
        let got: Vec<[u8; 32]> = anchors
            .iter()
            .map(|anchor| Sha256::digest(anchor.ark.spki()).into())
            .collect();
        assert_eq!(got, pins.map(|pin| hex_array::<32>(pin).unwrap()));
        assert!(!anchors.simulated());
    }

    #[test]
    fn each_root_signed_itself_and_its_signing_key() {
        let pss = |algorithm| algorithm == SignatureAlgorithm::RsaPss(Hash::Sha384);
        for anchor in TrustAnchors::amd().iter() {
            assert_eq!(anchor.ark.verify_issued_by(&anchor.ark, pss), Ok(()));
            let ask = anchor.ask.as_ref().unwrap();
            assert_eq!(ask.verify_issued_by(&anchor.ark, pss), Ok(()));
        }
    }
}
