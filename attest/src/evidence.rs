//! Core: whether a report was signed by a genuine chip, at the TCB that it states.
//!
//! ```text
//! ARK (pinned) -> ASK "SEV-Milan" -> VCEK "SEV-VCEK" -> report
//!   RSA-PSS         RSA-PSS            ECDSA P-384
//! ```
//!
//! [`verify`] is the one way to a [`VerifiedReport`]. [`examine`] looks at all rules and reports
//! on each, for people who want to see more than the first thing that is wrong.

use crate::UnixSeconds;
use crate::anchors::TrustAnchors;
use crate::endorsements::{ChipClaims, Endorsements};
use crate::product::Product;
use crate::public_key::{Hash, SignatureAlgorithm};
use crate::report::{Report, SigningKey};
use crate::x509::{Certificate, DateError, LinkError};

/// A report whose signature, chain, dates, TCB and chip were verified.
///
/// It is genuine; whether it is *wanted* (which policy, measurement, host data, binding) is for
/// [`crate::appraise`] to say.
#[derive(Debug, Clone)]
pub struct VerifiedReport {
    report: Report,
    product: Product,
    simulated: bool,
}

/// What became of each rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examination {
    /// The report was signed by the key of the VCEK.
    pub signature: Result<(), VerifyError>,
    /// The VCEK leads to a pinned root.
    pub chain: Result<(), VerifyError>,
    /// Every certificate of the chain is valid at the time in question.
    pub dates: Result<(), VerifyError>,
    /// The VCEK is for the TCB that the report states.
    pub tcb: Result<(), VerifyError>,
    /// The VCEK is for the chip that the report states.
    pub chip: Result<(), VerifyError>,
}

/// Which certificate a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The root key.
    Ark,
    /// The signing key of the product.
    Ask,
    /// The chip's key.
    Vcek,
}

/// Why a report is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No certificate for the link was given, and none is compiled in.
    #[error("there is no certificate of the {}", .0.name())]
    ChainIncomplete(Link),
    /// The link was not signed with RSA-PSS and SHA-384.
    #[error("the {} is signed with an unexpected algorithm", .0.name())]
    ChainAlgorithm(Link),
    /// The certificate above the link may not issue it.
    #[error("the issuer of the {} may not issue certificates", .0.name())]
    ChainConstraints(Link),
    /// The link has another name than AMD gives it.
    #[error("the {} has an unexpected name", .0.name())]
    ChainName(Link),
    /// The signature over the link does not hold.
    #[error("the signature over the {} does not hold", .0.name())]
    ChainSignature(Link),
    /// The chain ends in a root that is not pinned.
    #[error("the root of the chain is not one of the pinned ones")]
    ChainUntrusted,
    /// The VCEK is for another chip.
    #[error("the VCEK is for another chip")]
    ChipId,
    /// The report hides its chip, so nobody signed it.
    #[error("the chip key is masked: the report has no signature")]
    ChipKeyMasked,
    /// The link is not valid any more.
    #[error("the {} has expired", .0.name())]
    Expired(Link),
    /// The link is not valid yet.
    #[error("the {} is not yet valid", .0.name())]
    NotYetValid(Link),
    /// The report's CPUID and the VCEK name different products.
    #[error("the report and the VCEK name different products")]
    ProductMismatch,
    /// The VCEK or the report names a product that nobody knows here.
    #[error("the product is unknown")]
    ProductUnknown,
    /// The product is known, and not supported.
    #[error("the product {0} is not supported")]
    ProductUnsupported(Product),
    /// The signature does not hold.
    #[error("the report's signature does not hold")]
    Signature,
    /// The report names another signature algorithm than ECDSA P-384 with SHA-384.
    #[error("the report names signature algorithm {0}")]
    SignatureAlgorithm(u32),
    /// The VCEK is for another TCB than the report states.
    #[error("the VCEK is for another TCB than the reported one")]
    Tcb,
    /// The report says that nobody signed it.
    #[error("the report says that it is not signed")]
    Unsigned,
    /// AMD's extensions in the VCEK are missing or malformed.
    #[error("the VCEK lacks well-formed AMD extensions")]
    VcekExtensions,
    /// The VCEK's key is not on P-384.
    #[error("the VCEK's key is not a P-384 key")]
    VcekKey,
    /// The report is signed by a provider's key.
    #[error("reports signed with a VLEK are not supported")]
    VlekUnsupported,
}

impl Link {
    fn name(self) -> &'static str {
        match self {
            Self::Ark => "ARK",
            Self::Ask => "ASK",
            Self::Vcek => "VCEK",
        }
    }
}

impl VerifyError {
    /// Stable code for logs and exit codes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ChainIncomplete(_) => "evidence.chain_incomplete",
            Self::ChainAlgorithm(_) => "evidence.chain_algorithm",
            Self::ChainConstraints(_) => "evidence.chain_constraints",
            Self::ChainName(_) => "evidence.chain_name",
            Self::ChainSignature(_) => "evidence.chain_signature",
            Self::ChainUntrusted => "evidence.chain_untrusted",
            Self::ChipId => "evidence.chip_id",
            Self::ChipKeyMasked => "evidence.chip_key_masked",
            Self::Expired(_) => "evidence.expired",
            Self::NotYetValid(_) => "evidence.not_yet_valid",
            Self::ProductMismatch => "evidence.product_mismatch",
            Self::ProductUnknown => "evidence.product_unknown",
            Self::ProductUnsupported(_) => "evidence.product_unsupported",
            Self::Signature => "evidence.signature",
            Self::SignatureAlgorithm(_) => "evidence.signature_algorithm",
            Self::Tcb => "evidence.tcb",
            Self::Unsigned => "evidence.unsigned",
            Self::VcekExtensions => "evidence.vcek_extensions",
            Self::VcekKey => "evidence.vcek_key",
            Self::VlekUnsupported => "evidence.vlek_unsupported",
        }
    }
}

impl VerifiedReport {
    /// The report.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The product whose chip signed it.
    pub fn product(&self) -> Product {
        self.product
    }

    /// Whether the root was not AMD's: then this is no evidence of hardware.
    pub fn simulated(&self) -> bool {
        self.simulated
    }
}

impl Examination {
    fn first_error(&self) -> Option<&VerifyError> {
        let rules = [
            &self.chain,
            &self.dates,
            &self.signature,
            &self.tcb,
            &self.chip,
        ];
        rules.into_iter().find_map(|rule| rule.as_ref().err())
    }
}

/// Verifies a report: signature, chain to a pinned root, dates at `at`, TCB and chip.
///
/// The time comes from the caller, whose clock an adversary may control: a wrong one can make an
/// expired certificate pass or a good one fail, and nothing else.
pub fn verify(
    report: &Report,
    endorsements: &Endorsements,
    anchors: &TrustAnchors,
    at: UnixSeconds,
) -> Result<VerifiedReport, VerifyError> {
    // By name first: everything else that would be found is a consequence.
    let product = supported_product(report, endorsements.vcek())?;
    let examination = examine(report, endorsements, anchors, at);
    match examination.first_error() {
        Some(error) => Err(error.clone()),
        None => Ok(VerifiedReport {
            report: report.clone(),
            product,
            simulated: anchors.simulated(),
        }),
    }
}

/// Looks at every rule of [`verify`], also after one that does not hold.
pub fn examine(
    report: &Report,
    endorsements: &Endorsements,
    anchors: &TrustAnchors,
    at: UnixSeconds,
) -> Examination {
    let chain = Chain::build(report, endorsements, anchors);
    Examination {
        signature: verify_signature(report, endorsements.vcek()),
        dates: chain
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|chain| chain.verify_dates(at)),
        chain: chain.and_then(|chain| chain.verify()),
        tcb: verify_tcb(report, endorsements.vcek()),
        chip: verify_chip(report, endorsements.vcek()),
    }
}

/// The product, when it is one whose evidence we verify; what is known but not supported is
/// refused by its name.
fn supported_product(report: &Report, vcek: &Certificate) -> Result<Product, VerifyError> {
    let provider_key = vcek.subject_common_name().as_deref() == Some("SEV-VLEK");
    if report.signer().signing_key == SigningKey::Vlek || provider_key {
        return Err(VerifyError::VlekUnsupported);
    }
    let name = ChipClaims::product_name_of(vcek).ok_or(VerifyError::VcekExtensions)?;
    let product = Product::from_vcek_name(name).ok_or(VerifyError::ProductUnknown)?;
    if let Some(cpuid) = report.cpuid() {
        let reported = Product::from_cpuid(cpuid).ok_or(VerifyError::ProductUnknown)?;
        if reported != product {
            return Err(VerifyError::ProductMismatch);
        }
    }
    match product {
        Product::Milan | Product::Genoa => Ok(product),
        Product::Turin => Err(VerifyError::ProductUnsupported(product)),
    }
}

/// The certificates from the VCEK to a pinned root, found by their names.
struct Chain<'a> {
    product: Product,
    vcek: &'a Certificate,
    ask: &'a Certificate,
    ark: &'a Certificate,
}

impl<'a> Chain<'a> {
    fn build(
        report: &Report,
        endorsements: &'a Endorsements,
        anchors: &'a TrustAnchors,
    ) -> Result<Self, VerifyError> {
        let vcek = endorsements.vcek();
        let product = supported_product(report, vcek)?;
        let given = endorsements.chain().iter();
        let built_in = anchors.iter().filter_map(|anchor| anchor.ask.as_ref());
        let ask = given.chain(built_in).find(|ask| vcek.names_issuer(ask));
        let ask = ask.ok_or(VerifyError::ChainIncomplete(Link::Ask))?;
        let ark = anchors
            .iter()
            .map(|anchor| &anchor.ark)
            .find(|ark| ask.names_issuer(ark));
        let ark = ark.ok_or(VerifyError::ChainUntrusted)?;
        // A root that came along makes nothing trusted, but says which one the sender meant.
        let mut roots = endorsements
            .chain()
            .iter()
            .filter(|root| ask.names_issuer(root));
        if roots.any(|root| root.spki() != ark.spki()) {
            return Err(VerifyError::ChainUntrusted);
        }
        Ok(Self {
            product,
            vcek,
            ask,
            ark,
        })
    }

    fn verify(&self) -> Result<(), VerifyError> {
        let names = [
            (Link::Vcek, self.vcek, "SEV-VCEK".to_owned()),
            (Link::Ask, self.ask, format!("SEV-{}", self.product)),
            (Link::Ark, self.ark, format!("ARK-{}", self.product)),
        ];
        for (link, certificate, name) in names {
            if certificate.subject_common_name() != Some(name) {
                return Err(VerifyError::ChainName(link));
            }
        }
        verify_link(Link::Ark, self.ark, self.ark)?;
        verify_link(Link::Ask, self.ask, self.ark)?;
        verify_link(Link::Vcek, self.vcek, self.ask)?;
        // The ASK certifies chips, not further CAs.
        if self.vcek.ca_path_len().is_some() {
            return Err(VerifyError::ChainConstraints(Link::Vcek));
        }
        Ok(())
    }

    fn verify_dates(&self, at: UnixSeconds) -> Result<(), VerifyError> {
        let links = [
            (Link::Vcek, self.vcek),
            (Link::Ask, self.ask),
            (Link::Ark, self.ark),
        ];
        for (link, certificate) in links {
            certificate.verify_dates(at).map_err(|error| match error {
                DateError::Expired => VerifyError::Expired(link),
                DateError::NotYetValid => VerifyError::NotYetValid(link),
            })?;
        }
        Ok(())
    }
}

fn verify_link(link: Link, below: &Certificate, above: &Certificate) -> Result<(), VerifyError> {
    let pss_sha384 = |algorithm| algorithm == SignatureAlgorithm::RsaPss(Hash::Sha384);
    below
        .verify_issued_by(above, pss_sha384)
        .map_err(|error| match error {
            LinkError::Algorithm => VerifyError::ChainAlgorithm(link),
            LinkError::Constraints => VerifyError::ChainConstraints(link),
            LinkError::Name => VerifyError::ChainName(link),
            LinkError::Signature => VerifyError::ChainSignature(link),
        })
}

/// The report's signature: ECDSA P-384 over SHA-384 of the signed part (SEV-SNP ABI,
/// ATTESTATION_REPORT and "signature formats").
fn verify_signature(report: &Report, vcek: &Certificate) -> Result<(), VerifyError> {
    use p384::ecdsa::Signature;
    use p384::ecdsa::signature::Verifier;

    let signer = report.signer();
    if signer.chip_key_masked {
        return Err(VerifyError::ChipKeyMasked);
    }
    match signer.signing_key {
        SigningKey::Vcek => {}
        SigningKey::Vlek => return Err(VerifyError::VlekUnsupported),
        SigningKey::Unsigned => return Err(VerifyError::Unsigned),
    }
    if report.signature_algorithm() != 1 {
        return Err(VerifyError::SignatureAlgorithm(
            report.signature_algorithm(),
        ));
    }
    let key = vcek.public_key().ok_or(VerifyError::VcekKey)?;
    let key = key.p384().ok_or(VerifyError::VcekKey)?;
    let r = scalar_big_endian(report.signature_r());
    let s = scalar_big_endian(report.signature_s());
    let signature = Signature::from_scalars(r, s).map_err(|_| VerifyError::Signature)?;
    key.verify(report.signed_part(), &signature)
        .map_err(|_| VerifyError::Signature)
}

/// The report writes scalars little endian, with zeros behind (which the parser checked).
fn scalar_big_endian(little_endian: &[u8; 72]) -> [u8; 48] {
    let mut scalar = [0; 48];
    for (to, from) in scalar.iter_mut().rev().zip(little_endian) {
        *to = *from;
    }
    scalar
}

/// The VCEK is derived for one TCB: it must be the *reported* one, which can differ from the
/// current one.
fn verify_tcb(report: &Report, vcek: &Certificate) -> Result<(), VerifyError> {
    supported_product(report, vcek)?;
    let claims = ChipClaims::of(vcek).ok_or(VerifyError::VcekExtensions)?;
    if claims.tcb == report.reported_tcb() {
        Ok(())
    } else {
        Err(VerifyError::Tcb)
    }
}

fn verify_chip(report: &Report, vcek: &Certificate) -> Result<(), VerifyError> {
    supported_product(report, vcek)?;
    let claims = ChipClaims::of(vcek).ok_or(VerifyError::VcekExtensions)?;
    if claims.hardware_id == report.chip_id() {
        Ok(())
    } else {
        Err(VerifyError::ChipId)
    }
}

#[cfg(test)]
mod tests;
