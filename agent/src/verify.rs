//! Edge: `enclaveid evidence verify`: verifies evidence files offline, and shows what became of
//! each rule.
//!
//! Nothing here decides: the rules are those of the crate `attest`. A rule that nobody asked for
//! is a row too, so that an answer of "accepted" never hides what it did not look at.

use std::io::{self, Write};
use std::path::PathBuf;

use attest::UnixSeconds;
use attest::anchors::TrustAnchors;
use attest::appraise::{Appraisal, Expectations, Status, appraise};
use attest::binding::ReportData;
use attest::evidence::{Examination, VerifyError, examine};
use clap::Args;
use runtime::clock::{Clock, SystemClock};
use serde_json::json;

use crate::catalogue::Exit;

mod input;
mod rfc3339;

use input::{Inputs, MalformedInput};

/// Verify evidence files offline, and show what became of each rule.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exits with 0 when the evidence is accepted, 41 when it is rejected, 65 when \
                        a file is malformed, 64 on wrong usage."
)]
pub struct VerifyArgs {
    /// Attestation report: 1,184 bytes, raw or in hexadecimal
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
    /// VCEK certificate, PEM or DER; PEM may hold the chain above it too
    #[arg(long, value_name = "FILE")]
    pub vcek: PathBuf,
    /// ASK and ARK certificates, PEM [default: AMD's own, compiled in]
    #[arg(long, value_name = "FILE")]
    pub chain: Option<PathBuf>,
    /// The moment at which certificates must be valid, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = rfc3339::parse)]
    pub at: Option<UnixSeconds>,
    /// The 64 bytes that the report must carry, in hexadecimal
    #[arg(long, value_name = "HEX", value_parser = ReportData::from_hex)]
    #[arg(conflicts_with = "binding")]
    pub report_data: Option<ReportData>,
    /// What the report must be bound to: binding.json, as `evidence --out` writes it
    #[arg(long, value_name = "FILE")]
    pub binding: Option<PathBuf>,
    /// Reference values: TOML with vmpl, smt and `allow` tables of measurement and host_data
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Reject evidence that was not checked in every row
    #[arg(long)]
    pub strict: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Root certificate to believe instead of AMD's: for simulated evidence
    #[cfg(feature = "simulator")]
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
}

/// The outcome of one rule.
#[derive(Debug)]
struct Row {
    name: &'static str,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Accepted,
    NotChecked,
    Rejected { code: &'static str, message: String },
}

/// All rules together.
#[derive(Debug)]
struct Verdict {
    rows: Vec<Row>,
    accepted: bool,
    simulated: bool,
}

/// Verifies, writes rows to standard output, and returns the exit code.
pub fn run(args: &VerifyArgs) -> u8 {
    run_with(
        args,
        &SystemClock,
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    )
}

/// Verifies at the time of `clock` unless the arguments state one; rows go to `out`, what is wrong
/// with a file to `err`. Returns the exit code.
pub fn run_with(
    args: &VerifyArgs,
    clock: &dyn Clock,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let (exit, written) = match Inputs::read(args) {
        Ok(inputs) => {
            let at = args.at.unwrap_or_else(|| UnixSeconds(clock.now().0));
            let verdict = judge(&inputs, at, args.strict);
            let exit = if verdict.accepted {
                0
            } else {
                Exit::EvidenceRefused.code()
            };
            let written = if args.json {
                writeln!(out, "{:#}", verdict.to_json(&inputs))
            } else {
                verdict.write_rows(out, args.strict)
            };
            (exit, written)
        }
        Err(malformed) => (
            Exit::Malformed.code(),
            write_malformed(&malformed, args.json, out, err),
        ),
    };
    match written.and_then(|()| out.flush()) {
        Ok(()) => exit,
        // An answer that nobody could read must not pass for a good one.
        Err(_) => exit.max(Exit::Malformed.code()),
    }
}

fn judge(inputs: &Inputs, at: UnixSeconds, strict: bool) -> Verdict {
    let examination = examine(&inputs.report, &inputs.endorsements, &inputs.anchors, at);
    let appraisal = appraise(&inputs.report, &inputs.expectations);
    let rows = rows(examination, &appraisal);
    let accepted = rows.iter().all(|row| match row.outcome {
        Outcome::Accepted => true,
        Outcome::NotChecked => !strict,
        Outcome::Rejected { .. } => false,
    });
    Verdict {
        rows,
        accepted,
        simulated: inputs.anchors.simulated(),
    }
}

fn rows(examination: Examination, appraisal: &Appraisal) -> Vec<Row> {
    let evidence = |name, result: Result<(), VerifyError>| Row {
        name,
        outcome: match result {
            Ok(()) => Outcome::Accepted,
            Err(error) => Outcome::Rejected {
                code: error.code(),
                message: error.to_string(),
            },
        },
    };
    let appraised = |name, status: Status| Row {
        name,
        outcome: match status {
            Status::Accepted => Outcome::Accepted,
            Status::NotChecked => Outcome::NotChecked,
            Status::Rejected(finding) => Outcome::Rejected {
                code: finding.code(),
                message: finding.to_string(),
            },
        },
    };
    vec![
        evidence("signature", examination.signature),
        evidence("chain", examination.chain),
        evidence("dates", examination.dates),
        evidence("tcb", examination.tcb),
        evidence("chip", examination.chip),
        appraised("guest policy", appraisal.guest_policy),
        appraised("binding", appraisal.binding),
        appraised("measurement", appraisal.measurement),
        appraised("host_data", appraisal.host_data),
    ]
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NotChecked => "not checked",
            Self::Rejected { .. } => "rejected",
        }
    }
}

impl Verdict {
    /// A reader who looks for "accepted" alone must not take a simulation for hardware.
    fn words(&self) -> &'static str {
        // Constant in the product, which then does not even hold the words.
        let simulated = cfg!(feature = "simulator") && self.simulated;
        match (simulated, self.accepted) {
            (false, true) => "accepted",
            (false, false) => "rejected",
            (true, true) => "SIMULATED accepted",
            (true, false) => "SIMULATED rejected",
        }
    }

    fn unchecked(&self) -> Vec<&'static str> {
        let unchecked = |row: &&Row| matches!(row.outcome, Outcome::NotChecked);
        self.rows
            .iter()
            .filter(unchecked)
            .map(|row| row.name)
            .collect()
    }

    fn write_rows(&self, out: &mut dyn Write, strict: bool) -> io::Result<()> {
        for row in &self.rows {
            match &row.outcome {
                Outcome::Rejected { code, message } => {
                    writeln!(out, "{:<13} rejected  {code}: {message}", row.name)?;
                }
                Outcome::Accepted | Outcome::NotChecked => {
                    writeln!(out, "{:<13} {}", row.name, row.outcome.word())?;
                }
            }
        }
        let unchecked = self.unchecked();
        if strict && !unchecked.is_empty() {
            writeln!(out, "strict: not checked: {}", unchecked.join(", "))?;
        }
        writeln!(out, "verdict: {}", self.words())
    }

    fn to_json(&self, inputs: &Inputs) -> serde_json::Value {
        let row = |row: &Row| match &row.outcome {
            Outcome::Rejected { code, message } => {
                json!({"row": row.name, "status": "rejected", "code": code, "message": message})
            }
            Outcome::Accepted | Outcome::NotChecked => {
                json!({"row": row.name, "status": row.outcome.word()})
            }
        };
        json!({
            "verdict": self.words(),
            "simulated": self.simulated,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "measurement": crate::hex::encode(&inputs.report.measurement()),
            "host_data": crate::hex::encode(&inputs.report.host_data()),
            "vmpl": inputs.report.vmpl(),
        })
    }
}

fn write_malformed(
    malformed: &MalformedInput,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<()> {
    writeln!(err, "enclaveid: {}: {malformed}", malformed.code())?;
    if json {
        let answer = json!({
            "verdict": "malformed",
            "code": malformed.code(),
            "message": malformed.to_string(),
        });
        writeln!(out, "{answer:#}")?;
    }
    Ok(())
}

/// The roots that the arguments name. The product knows AMD's alone.
#[cfg(not(feature = "simulator"))]
fn anchors(_args: &VerifyArgs) -> Result<TrustAnchors, MalformedInput> {
    Ok(TrustAnchors::amd())
}

/// The roots that the arguments name.
#[cfg(feature = "simulator")]
fn anchors(args: &VerifyArgs) -> Result<TrustAnchors, MalformedInput> {
    match &args.root {
        Some(root) => input::read_root(root),
        None => Ok(TrustAnchors::amd()),
    }
}

fn expectations(args: &VerifyArgs) -> Result<Expectations, MalformedInput> {
    use attest::appraise::Asked;
    let binding = match (&args.report_data, &args.binding) {
        (Some(report_data), _) => Asked::For(report_data.clone()),
        (None, Some(binding)) => Asked::For(input::read_binding(binding)?),
        (None, None) => Asked::Not,
    };
    let reference = match &args.policy {
        Some(policy) => Asked::For(input::read_policy(policy)?),
        None => Asked::Not,
    };
    Ok(Expectations { binding, reference })
}
