//! Core: the files of `evidence verify`, from bytes to types, each with a limit on its size.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use attest::anchors::TrustAnchors;
use attest::appraise::{Allowed, Expectations, ReferenceValues};
use attest::binding::{Binding, BindingError, ReportData, Role, local_caller_challenge};
use attest::endorsements::{Endorsements, EndorsementsError};
use attest::report::{Report, ReportError, layout::REPORT_LEN};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::VerifyArgs;
use crate::hex;

/// Largest file. Statements and allow lists are the longest inputs, and are short of this by far.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything that a verification takes.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) report: Report,
    pub(super) endorsements: Endorsements,
    pub(super) anchors: TrustAnchors,
    pub(super) expectations: Expectations,
}

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MalformedInput {
    #[error("the binding is not JSON of the documented form")]
    Binding,
    #[error("the binding is malformed: {0}")]
    BindingPart(BindingError),
    #[error("{0}")]
    Endorsements(EndorsementsError),
    #[error("the policy is not TOML of the documented form")]
    Policy,
    #[error("{0}")]
    Report(ReportError),
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        path: PathBuf,
        reason: io::ErrorKind,
    },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
}

impl MalformedInput {
    /// Stable code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Binding => "binding.malformed",
            Self::BindingPart(error) => error.code(),
            Self::Endorsements(error) => error.code(),
            Self::Policy => "reference.malformed",
            Self::Report(error) => error.code(),
            Self::Unreadable { .. } => "input.unreadable",
            Self::TooLarge(_) => "input.too_large",
        }
    }
}

impl Inputs {
    /// Reads all files that the arguments name.
    pub(super) fn read(args: &VerifyArgs) -> Result<Self, MalformedInput> {
        let vcek = read(&args.vcek)?;
        let chain = args.chain.as_deref().map(read).transpose()?;
        let endorsements = Endorsements::parse(&vcek, chain.as_deref());
        Ok(Self {
            report: read_report(&args.report)?,
            endorsements: endorsements.map_err(MalformedInput::Endorsements)?,
            anchors: super::anchors(args)?,
            expectations: super::expectations(args)?,
        })
    }
}

/// A root of one's own choice, for simulated evidence.
#[cfg(feature = "simulator")]
pub(super) fn read_root(path: &Path) -> Result<TrustAnchors, MalformedInput> {
    attest::anchors::danger::with_root(&read(path)?).map_err(MalformedInput::Endorsements)
}

fn read(path: &Path) -> Result<Vec<u8>, MalformedInput> {
    let mut bytes = Vec::new();
    let limited = File::open(path).map(|file| file.take(FILE_BYTES_MAX + 1));
    let length = limited.and_then(|mut file| file.read_to_end(&mut bytes));
    let length = length.map_err(|error| MalformedInput::Unreadable {
        path: path.to_owned(),
        reason: error.kind(),
    })?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(MalformedInput::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// Raw bytes, or the same in hexadecimal with white space anywhere.
fn read_report(path: &Path) -> Result<Report, MalformedInput> {
    let bytes = read(path)?;
    let report = match hex_report(&bytes) {
        Some(decoded) => Report::parse(&decoded),
        None => Report::parse(&bytes),
    };
    report.map_err(MalformedInput::Report)
}

fn hex_report(bytes: &[u8]) -> Option<Vec<u8>> {
    // Raw bytes of the right length are taken as they are, whatever they spell.
    if bytes.len() == REPORT_LEN {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let digits: String = text.split_ascii_whitespace().collect();
    if digits.is_empty() {
        None
    } else {
        hex::decode(&digits)
    }
}

/// `binding.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingFile {
    role: u8,
    nonce: String,
    audience: String,
    tls: String,
    keys: String,
    ca: String,
    statement: String,
}

/// Recomputes the report data of a local caller's evidence.
pub(super) fn read_binding(path: &Path) -> Result<ReportData, MalformedInput> {
    let bytes = read(path)?;
    let file: BindingFile = serde_json::from_slice(&bytes).map_err(|_| MalformedInput::Binding)?;
    // The challenge of another role is not made of a nonce and an audience.
    if file.role != Role::LocalCaller as u8 {
        return Err(MalformedInput::Binding);
    }
    let digest = |text: &str| hex::decode_array::<32>(text).ok_or(MalformedInput::Binding);
    let challenge = local_caller_challenge(&digest(&file.nonce)?, &file.audience);
    let statement = STANDARD
        .decode(&file.statement)
        .map_err(|_| MalformedInput::Binding)?;
    Ok(ReportData::bind(&Binding {
        role: Role::LocalCaller,
        challenge: challenge.map_err(MalformedInput::BindingPart)?,
        tls: digest(&file.tls)?,
        keys: digest(&file.keys)?,
        ca: digest(&file.ca)?,
        statement: Sha256::digest(statement).into(),
    }))
}

/// `policy.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    vmpl: u32,
    smt: bool,
    allow: Vec<AllowEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowEntry {
    measurement: String,
    host_data: String,
}

pub(super) fn read_policy(path: &Path) -> Result<ReferenceValues, MalformedInput> {
    let text = String::from_utf8(read(path)?).map_err(|_| MalformedInput::Policy)?;
    let file: PolicyFile = toml::from_str(&text).map_err(|_| MalformedInput::Policy)?;
    let allowed = |entry: &AllowEntry| {
        Some(Allowed {
            measurement: hex::decode_array(&entry.measurement)?,
            host_data: hex::decode_array(&entry.host_data)?,
        })
    };
    let allow: Option<Vec<Allowed>> = file.allow.iter().map(allowed).collect();
    Ok(ReferenceValues {
        vmpl: file.vmpl,
        smt: file.smt,
        allow: allow.ok_or(MalformedInput::Policy)?,
    })
}
