//! Core: simulated ARK, ASK and VCEK with the extensions of the real ones.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use openssl::bn::BigNum;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, KeyUsage};
use openssl::x509::{X509, X509Builder};
use runtime::clock::{Clock, SystemClock, UnixTime};
use runtime::sync::Mutex;

use super::extensions::amd_extensions;
use super::pss::pss_only;
use super::report::ReportBuilder;
use crate::pki::{Validity, ec_key, name, rsa_key};

/// Modulus of ARK and ASK.
const ROOT_BITS: u32 = 4_096;

/// The hierarchy could not be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnpError {
    /// OpenSSL failed.
    #[error("cannot make the simulated chip")]
    Crypto(#[from] ErrorStack),
    /// A file could not be written or read.
    #[error("cannot keep the simulated chip's files")]
    File(#[from] std::io::Error),
}

/// A line of processors with a root key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// EPYC 9004.
    Genoa,
    /// EPYC 7003.
    Milan,
}

/// Security patch levels of Milan and Genoa.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcb {
    /// Bootloader.
    pub bootloader: u8,
    /// Secure processor's operating system.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

/// What a chip's certificate says.
#[derive(Debug, Clone, Copy)]
pub struct ChipOptions {
    /// HWID extension, and CHIP_ID of reports.
    pub chip_id: [u8; 64],
    /// TCB extensions, and TCB versions of reports.
    pub tcb: Tcb,
    /// Dates of the VCEK certificate.
    pub validity: Validity,
}

/// The two certificate authorities of a product. Slow to make: share them.
pub struct SimulatedRoots {
    product: Product,
    ark: X509,
    ask: X509,
    /// Signs VCEK certificates.
    ask_signer: PKey<Private>,
}

/// One chip: its key, and what certifies it.
pub struct SimulatedChip {
    product: Product,
    options: ChipOptions,
    ark: X509,
    ask: X509,
    vcek: X509,
    key: PKey<Private>,
}

impl Product {
    fn name(self) -> &'static str {
        match self {
            Self::Genoa => "Genoa",
            Self::Milan => "Milan",
        }
    }

    /// The product name extension: Milan's tells the stepping.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Genoa => "Genoa",
            Self::Milan => "Milan-B0",
        }
    }

    /// CPUID family, model and stepping, as reports from version 3 on tell them.
    pub(super) fn cpuid(self) -> [u8; 3] {
        match self {
            Self::Genoa => [0x19, 0x11, 1],
            Self::Milan => [0x19, 0x01, 1],
        }
    }
}

impl Tcb {
    /// The eight bytes of a report's TCB version, as Milan and Genoa lay them out.
    pub fn to_bytes(self) -> [u8; 8] {
        [
            self.bootloader,
            self.tee,
            0,
            0,
            0,
            0,
            self.snp,
            self.microcode,
        ]
    }
}

impl ChipOptions {
    /// A chip with a random id, certified from a day before `now` on.
    ///
    /// The microcode's level is over 127: in DER it takes two bytes, which a careless reader of
    /// certificates gets wrong.
    pub fn new(now: UnixTime) -> Result<Self, SnpError> {
        let mut chip_id = [0; 64];
        openssl::rand::rand_bytes(&mut chip_id)?;
        let tcb = Tcb {
            bootloader: 4,
            tee: 0,
            snp: 24,
            microcode: 0xd9,
        };
        Ok(Self {
            chip_id,
            tcb,
            validity: Validity::around(now),
        })
    }
}

impl SimulatedRoots {
    /// Makes the roots of `product`. Takes seconds: two RSA-4096 keys.
    pub fn mint(product: Product) -> Result<Self, SnpError> {
        let [ark, ask] = new_keys()?;
        Self::certify(product, &ark, &ask)
    }

    /// The roots whose keys lie in `dir`; makes them and keeps them there if none do.
    ///
    /// For test processes that would each wait for new keys otherwise. The certificates are new,
    /// so that it does not matter when two processes that keep keys at once mix theirs.
    pub fn cached(product: Product, dir: &Path) -> Result<Self, SnpError> {
        let files = ["ark", "ask"].map(|role| {
            dir.join(format!(
                "simulated-{}-{role}.key",
                product.name().to_ascii_lowercase()
            ))
        });
        if let (Some(ark), Some(ask)) = (read_key(&files[0]), read_key(&files[1])) {
            return Self::certify(product, &ark, &ask);
        }
        let keys = new_keys()?;
        std::fs::create_dir_all(dir)?;
        for (file, key) in files.iter().zip(&keys) {
            let mut draft = tempfile::NamedTempFile::new_in(dir)?;
            draft.write_all(&key.private_key_to_pem_pkcs8()?)?;
            draft.persist(file).map_err(|error| error.error)?;
        }
        Self::certify(product, &keys[0], &keys[1])
    }

    /// The roots of Milan, made once in this process.
    pub fn shared() -> Result<Arc<Self>, SnpError> {
        static ROOTS: Mutex<Option<Arc<SimulatedRoots>>> = Mutex::new(None);
        let mut roots = ROOTS.lock();
        if let Some(roots) = &*roots {
            return Ok(roots.clone());
        }
        Ok(roots.insert(Arc::new(Self::mint(Product::Milan)?)).clone())
    }

    fn certify(
        product: Product,
        ark_key: &PKey<Private>,
        ask_key: &PKey<Private>,
    ) -> Result<Self, SnpError> {
        let ark_signer = pss_only(ark_key)?;
        let ark = authority(
            &format!("ARK-{}", product.name()),
            ark_key,
            None,
            &ark_signer,
        )?;
        let ask_name = format!("SEV-{}", product.name());
        let ask = authority(&ask_name, ask_key, Some(&ark), &ark_signer)?;
        Ok(Self {
            product,
            ark,
            ask,
            ask_signer: pss_only(ask_key)?,
        })
    }

    /// Makes a chip of this product.
    pub fn mint_chip(&self, options: ChipOptions) -> Result<SimulatedChip, SnpError> {
        let key = ec_key(Nid::SECP384R1)?;
        let mut builder = draft("SEV-VCEK", &key, Some(&self.ask), options.validity)?;
        // Real ones have this serial number, which a strict parser may trip over.
        builder.set_serial_number(&*BigNum::from_u32(0)?.to_asn1_integer()?)?;
        for extension in amd_extensions(self.product, &options)? {
            builder.append_extension(extension)?;
        }
        builder.sign(&self.ask_signer, MessageDigest::sha384())?;
        Ok(SimulatedChip {
            product: self.product,
            options,
            ark: self.ark.clone(),
            ask: self.ask.clone(),
            vcek: builder.build(),
            key,
        })
    }

    /// The root certificate, PEM: what has to be trusted for any of this to be believed.
    pub fn ark_pem(&self) -> Result<Vec<u8>, SnpError> {
        Ok(self.ark.to_pem()?)
    }
}

impl SimulatedChip {
    /// A chip of [`SimulatedRoots::shared`], certified around the present.
    pub fn mint() -> Result<Self, SnpError> {
        SimulatedRoots::shared()?.mint_chip(ChipOptions::new(SystemClock.now())?)
    }

    /// The key that signs reports.
    pub fn key(&self) -> &PKey<Private> {
        &self.key
    }

    /// The VCEK certificate.
    pub fn vcek(&self) -> &X509 {
        &self.vcek
    }

    /// The VCEK certificate, PEM.
    pub fn vcek_pem(&self) -> Result<Vec<u8>, SnpError> {
        Ok(self.vcek.to_pem()?)
    }

    /// ASK and ARK, in this order, PEM.
    pub fn chain_pem(&self) -> Result<Vec<u8>, SnpError> {
        Ok([self.ask.to_pem()?, self.ark.to_pem()?].concat())
    }

    /// The root certificate, PEM.
    pub fn ark_pem(&self) -> Result<Vec<u8>, SnpError> {
        Ok(self.ark.to_pem()?)
    }

    /// A report of this chip, ready to be changed and signed with [`Self::key`].
    pub fn report(&self) -> ReportBuilder {
        ReportBuilder::new()
            .cpuid(self.product.cpuid())
            .chip_id(&self.options.chip_id)
            .tcb(self.options.tcb)
    }

    /// Writes what the agent's simulated platform reads to `dir`: `ark.pem`, `ask.pem`,
    /// `vcek.pem`, `vcek.key` (PKCS#8, PEM) and `chip.toml`.
    pub fn write_to(&self, dir: &Path) -> Result<(), SnpError> {
        std::fs::create_dir_all(dir)?;
        let files = [
            ("ark.pem", self.ark.to_pem()?),
            ("ask.pem", self.ask.to_pem()?),
            ("vcek.pem", self.vcek.to_pem()?),
            ("vcek.key", self.key.private_key_to_pem_pkcs8()?),
            ("chip.toml", self.chip_toml().into_bytes()),
        ];
        for (name, content) in files {
            std::fs::write(dir.join(name), content)?;
        }
        Ok(())
    }
}

impl SimulatedChip {
    fn chip_toml(&self) -> String {
        let Tcb {
            bootloader,
            tee,
            snp,
            microcode,
        } = self.options.tcb;
        let chip_id = crate::hex(&self.options.chip_id);
        format!("chip_id = \"{chip_id}\"\ntcb = [{bootloader}, {tee}, {snp}, {microcode}]\n")
    }
}

impl fmt::Debug for SimulatedRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedRoots")
            .field("product", &self.product)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SimulatedChip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedChip")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Keys of ARK and ASK, made side by side.
fn new_keys() -> Result<[PKey<Private>; 2], ErrorStack> {
    std::thread::scope(|scope| {
        let ask = scope.spawn(|| rsa_key(ROOT_BITS));
        let ark = rsa_key(ROOT_BITS)?;
        // A thread that could not do it says nothing that trying again here would not.
        Ok([ark, ask.join().unwrap_or_else(|_| rsa_key(ROOT_BITS))?])
    })
}

fn read_key(file: &Path) -> Option<PKey<Private>> {
    PKey::private_key_from_pem(&std::fs::read(file).ok()?).ok()
}

fn draft(
    common_name: &str,
    key: &PKey<Private>,
    issuer: Option<&X509>,
    validity: Validity,
) -> Result<X509Builder, ErrorStack> {
    let subject = name(common_name)?;
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.subject_name()))?;
    builder.set_pubkey(key)?;
    validity.apply(&mut builder)?;
    Ok(builder)
}

fn authority(
    common_name: &str,
    key: &PKey<Private>,
    issuer: Option<&X509>,
    signer: &PKey<Private>,
) -> Result<X509, ErrorStack> {
    // As long as AMD's roots: a test may look far ahead.
    let validity = Validity {
        not_before: UnixTime(1_577_836_800),
        not_after: UnixTime(2_366_755_200),
    };
    let mut builder = draft(common_name, key, issuer, validity)?;
    let serial = if issuer.is_some() { 0x1_0001 } else { 0x1_0000 };
    builder.set_serial_number(&*BigNum::from_u32(serial)?.to_asn1_integer()?)?;
    let mut constraints = BasicConstraints::new();
    constraints.critical().ca();
    if issuer.is_some() {
        constraints.pathlen(0);
    }
    builder.append_extension(constraints.build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().build()?)?;
    builder.sign(signer, MessageDigest::sha384())?;
    Ok(builder.build())
}
