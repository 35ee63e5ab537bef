//! Adapter: a simulated chip: reports signed by a key in a file. For laptops and tests.
//!
//! Compiled with the feature `simulator` alone, and chosen by the configuration alone. It protects
//! nothing: whoever reads the chip's directory can sign any report. What the simulated host
//! launched (measurement, HOST_DATA, guest policy) stands in a launch file that the host writes, as
//! a real host passes them to the secure processor: the agent cannot choose them.

use std::ops::Range;
use std::path::Path;

use attest::anchors::{self, TrustAnchors};
use attest::binding::ReportData;
use attest::report::layout;
use openssl::ecdsa::EcdsaSig;
use openssl::pkey::{PKey, Private};
use openssl::sha::sha384;
use serde::Deserialize;

use super::{Evidence, Platform, PlatformError};
use crate::hex;

/// A chip whose key lies in a directory.
#[derive(Debug)]
pub struct Simulator {
    key: PKey<Private>,
    vcek_pem: Vec<u8>,
    chain_pem: Vec<u8>,
    ark_pem: Vec<u8>,
    chip: Chip,
    launch: Launch,
}

/// `chip.toml`: what the chip's certificate says about it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chip {
    /// HWID, 64 bytes, hexadecimal.
    chip_id: String,
    /// Bootloader, TEE, SNP firmware and microcode versions.
    tcb: [u8; 4],
}

/// The launch file: what the simulated host launched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Launch {
    /// 48 bytes, hexadecimal.
    measurement: String,
    /// 32 bytes, hexadecimal.
    host_data: String,
    /// Guest policy; SMT allowed, no debugging, no migration when absent.
    #[serde(default = "default_policy")]
    policy: u64,
    /// Privilege level of the report.
    #[serde(default)]
    vmpl: u32,
}

/// ABI 0.31 as Azure's confidential containers have it, SMT allowed, bit 17 as the ABI demands.
fn default_policy() -> u64 {
    0x3_001f
}

impl Simulator {
    /// Reads the chip's directory and the launch file.
    pub fn open(chip: &Path, launch: &Path) -> Result<Self, PlatformError> {
        let read = |name: &str| std::fs::read(chip.join(name)).map_err(PlatformError::Missing);
        let key = PKey::private_key_from_pem(&read("vcek.key")?);
        let ark_pem = read("ark.pem")?;
        let launch = std::fs::read_to_string(launch).map_err(PlatformError::Missing)?;
        let chip = String::from_utf8(read("chip.toml")?).map_err(|_| PlatformError::Simulator)?;
        Ok(Self {
            key: key.map_err(|_| PlatformError::Simulator)?,
            vcek_pem: read("vcek.pem")?,
            chain_pem: [read("ask.pem")?, ark_pem.clone()].concat(),
            ark_pem,
            chip: toml::from_str(&chip).map_err(|_| PlatformError::Simulator)?,
            launch: toml::from_str(&launch).map_err(|_| PlatformError::Simulator)?,
        })
    }

    fn report(&self, report_data: &ReportData) -> Option<Vec<u8>> {
        let mut report = vec![0; layout::REPORT_LEN];
        let mut put = |field: Range<usize>, bytes: &[u8]| {
            report
                .get_mut(field)
                .map(|field| field.copy_from_slice(bytes))
        };
        let [bootloader, tee, snp, microcode] = self.chip.tcb;
        let tcb = [bootloader, tee, 0, 0, 0, 0, snp, microcode];
        put(layout::VERSION.range(), &2_u32.to_le_bytes())?;
        put(layout::POLICY.range(), &self.launch.policy.to_le_bytes())?;
        put(layout::VMPL.range(), &self.launch.vmpl.to_le_bytes())?;
        put(layout::SIGNATURE_ALGO.range(), &1_u32.to_le_bytes())?;
        put(layout::PLATFORM_INFO.range(), &1_u64.to_le_bytes())?;
        put(layout::REPORT_DATA.range(), report_data.as_bytes())?;
        put(
            layout::MEASUREMENT.range(),
            &hex::decode_array::<48>(&self.launch.measurement)?,
        )?;
        put(
            layout::HOST_DATA.range(),
            &hex::decode_array::<32>(&self.launch.host_data)?,
        )?;
        put(
            layout::CHIP_ID.range(),
            &hex::decode_array::<64>(&self.chip.chip_id)?,
        )?;
        for field in [
            layout::CURRENT_TCB.range(),
            layout::REPORTED_TCB.range(),
            layout::COMMITTED_TCB.range(),
            layout::LAUNCH_TCB.range(),
        ] {
            put(field, &tcb)?;
        }
        let mut report_id = [0; 32];
        openssl::rand::rand_bytes(&mut report_id).ok()?;
        put(layout::REPORT_ID.range(), &report_id)?;
        put(layout::REPORT_ID_MA.range(), &[0xff; 32])?;
        self.sign(&mut report)?;
        Some(report)
    }

    /// ECDSA P-384 over the signed part; R and S little endian in fields of 72 bytes.
    fn sign(&self, report: &mut [u8]) -> Option<()> {
        let digest = sha384(report.get(..layout::SIGNED_LEN)?);
        let signature = EcdsaSig::sign(&digest, self.key.ec_key().ok()?.as_ref()).ok()?;
        for (field, number) in [
            (layout::SIGNATURE_R.range(), signature.r()),
            (layout::SIGNATURE_S.range(), signature.s()),
        ] {
            let mut bytes = number.to_vec_padded(72).ok()?;
            bytes.reverse();
            report.get_mut(field)?.copy_from_slice(&bytes);
        }
        Some(())
    }
}

impl Platform for Simulator {
    fn evidence(&self, report_data: &ReportData) -> Result<Evidence, PlatformError> {
        Ok(Evidence {
            report: self.report(report_data).ok_or(PlatformError::Simulator)?,
            vcek_pem: self.vcek_pem.clone(),
            chain_pem: self.chain_pem.clone(),
        })
    }

    fn trust_anchors(&self) -> Result<TrustAnchors, PlatformError> {
        anchors::danger::with_root(&self.ark_pem).map_err(|_| PlatformError::Simulator)
    }

    fn vmpl(&self) -> u32 {
        0
    }

    fn simulated(&self) -> bool {
        true
    }
}
