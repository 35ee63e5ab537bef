//! Core: `enclaveid evidence verify` as a caller sees it: files in, rows and an exit code out.

use std::path::{Path, PathBuf};
use std::process::Command;

use attest::binding::{Binding, ReportData, Role, local_caller_challenge};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use enclaveid::verify::{VerifyArgs, run_with};
use enclaveid_tests::fixture::{Need, enabled, product_binary, real_data};
use enclaveid_tests::hex;
use enclaveid_tests::snp::{
    ChipOptions, Product, ReportBuilder, SimulatedChip, SimulatedRoots, layout,
};
use runtime::clock::{ManualClock, UnixTime};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const NOW: UnixTime = UnixTime(1_795_500_000);
const MEASUREMENT: [u8; 48] = [0x3E; 48];
const HOST_DATA: [u8; 32] = [0x40; 32];

/// Rows that are always there, in their order.
const ROWS: [&str; 9] = [
    "signature",
    "chain",
    "dates",
    "tcb",
    "chip",
    "guest policy",
    "binding",
    "measurement",
    "host_data",
];

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    args: VerifyArgs,
}

/// What a caller sees.
struct Answer {
    exit: u8,
    out: String,
    err: String,
}

/// Files of one simulated pod's evidence.
struct Files {
    dir: TempDir,
    chip: SimulatedChip,
}

impl Files {
    /// Evidence that is good in every row.
    fn good() -> Self {
        let keys = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let roots = SimulatedRoots::cached(Product::Milan, keys).unwrap();
        let chip = roots.mint_chip(ChipOptions::new(NOW).unwrap()).unwrap();
        let files = Self {
            dir: TempDir::new().unwrap(),
            chip,
        };
        files.write("vcek.pem", &files.chip.vcek_pem().unwrap());
        files.write("chain.pem", &files.chip.chain_pem().unwrap());
        files.write("ark.pem", &files.chip.ark_pem().unwrap());
        files.write("binding.json", binding_json().to_string().as_bytes());
        files.write(
            "policy.toml",
            policy_toml(&MEASUREMENT, &HOST_DATA).as_bytes(),
        );
        files.sign(|report| report);
        files
    }

    /// Writes a report of the chip, good but for `change`.
    fn sign(&self, change: impl FnOnce(ReportBuilder) -> ReportBuilder) {
        let report = self
            .chip
            .report()
            .measurement(&MEASUREMENT)
            .host_data(&HOST_DATA);
        let report = change(report.report_data(report_data().as_bytes()));
        self.write("report.bin", &report.sign(self.chip.key()).unwrap());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Verifies with everything asked for, and `more` arguments.
    fn verify(&self, more: &[&str]) -> Answer {
        let path = |name: &str| self.path(name).display().to_string();
        let (report, vcek, chain) = (path("report.bin"), path("vcek.pem"), path("chain.pem"));
        let (root, binding) = (path("ark.pem"), path("binding.json"));
        let policy = path("policy.toml");
        let mut args = vec!["--report", &report, "--vcek", &vcek, "--chain", &chain];
        args.extend(["--root", &root, "--binding", &binding, "--policy", &policy]);
        args.extend(more);
        verify(&args)
    }
}

fn verify(args: &[&str]) -> Answer {
    let line = CommandLine::try_parse_from([&["verify"], args].concat()).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run_with(&line.args, &ManualClock::new(NOW), &mut out, &mut err);
    Answer {
        exit,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

impl Answer {
    /// Exit 41, with exactly these findings.
    #[track_caller]
    fn rejects(&self, codes: &[&str]) {
        let found: Vec<&str> = self
            .out
            .lines()
            .filter_map(|line| line.split_once("rejected  ")?.1.split_once(": "))
            .map(|(code, _message)| code)
            .collect();
        assert_eq!((self.exit, found.as_slice()), (41, codes), "{}", self.out);
        assert!(self.out.ends_with("rejected\n"), "{}", self.out);
    }

    /// Exit 65, with this code on standard error and no verdict.
    #[track_caller]
    fn is_malformed(&self, code: &str) {
        assert_eq!(self.exit, 65, "{}", self.out);
        assert!(
            self.err.starts_with(&format!("enclaveid: {code}: ")),
            "{}",
            self.err
        );
        assert_eq!(self.out, "");
    }

    fn status(&self, row: &str) -> &str {
        let line = self
            .out
            .lines()
            .find_map(|line| line.strip_prefix(row))
            .unwrap();
        line.trim_start().split("  ").next().unwrap()
    }
}

const NONCE: [u8; 32] = [0xA0; 32];
const STATEMENT: &str = r#"{"v":1}"#;

fn binding_json() -> Value {
    json!({
        "role": 4,
        "nonce": hex(&NONCE),
        "audience": "demo",
        "tls": hex(&[1; 32]),
        "keys": hex(&[0; 32]),
        "ca": hex(&[2; 32]),
        "statement": STANDARD.encode(STATEMENT),
    })
}

fn report_data() -> ReportData {
    ReportData::bind(&Binding {
        role: Role::LocalCaller,
        challenge: local_caller_challenge(&NONCE, "demo").unwrap(),
        tls: [1; 32],
        keys: [0; 32],
        ca: [2; 32],
        statement: Sha256::digest(STATEMENT).into(),
    })
}

fn policy_toml(measurement: &[u8], host_data: &[u8]) -> String {
    format!(
        "vmpl = 0\nsmt = true\n[[allow]]\nmeasurement = \"{}\"\nhost_data = \"{}\"\n",
        hex(measurement),
        hex(host_data)
    )
}

#[test]
fn good_evidence_is_accepted_in_every_row_and_called_simulated() {
    let answer = Files::good().verify(&["--strict"]);
    assert_eq!(answer.exit, 0, "{}", answer.out);
    for row in ROWS {
        assert_eq!(answer.status(row), "accepted", "{row}");
    }
    assert!(
        answer.out.ends_with("verdict: SIMULATED accepted\n"),
        "{}",
        answer.out
    );
}

#[test]
fn the_json_form_says_the_same() {
    let files = Files::good();
    let answer = files.verify(&["--json", "--strict"]);
    let json: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (answer.exit, &json["verdict"]),
        (0, &json!("SIMULATED accepted"))
    );
    let rows: Vec<&str> = json["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["row"].as_str().unwrap())
        .collect();
    assert_eq!(rows, ROWS);

    files.sign(ReportBuilder::debug);
    let answer = files.verify(&["--json"]);
    let json: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (answer.exit, &json["verdict"]),
        (41, &json!("SIMULATED rejected"))
    );
    assert_eq!(json["rows"][5]["code"], "evidence.debug");

    files.write("report.bin", b"");
    let answer = files.verify(&["--json"]);
    let json: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((answer.exit, &json["code"]), (65, &json!("report.length")));
}

#[test]
fn simulated_evidence_leads_to_none_of_amds_roots() {
    let files = Files::good();
    let [report, vcek, chain] =
        ["report.bin", "vcek.pem", "chain.pem"].map(|name| files.path(name).display().to_string());
    let answer = verify(&["--report", &report, "--vcek", &vcek, "--chain", &chain]);
    answer.rejects(&["evidence.chain_untrusted", "evidence.chain_untrusted"]);
    assert!(
        answer.out.ends_with("verdict: rejected\n"),
        "{}",
        answer.out
    );
}

#[test]
fn one_wrong_field_of_a_report_is_one_finding() {
    let files = Files::good();
    let check = |change: fn(ReportBuilder) -> ReportBuilder, codes: &[&str]| {
        files.sign(change);
        files.verify(&[]).rejects(codes);
    };
    check(ReportBuilder::debug, &["evidence.debug"]);
    check(|report| report.policy(0x7_001F), &["evidence.migration"]);
    check(|report| report.vmpl(1), &["evidence.vmpl"]);
    check(|report| report.vmpl(u32::MAX), &["evidence.host_requested"]);
    check(|report| report.report_data(&[0; 64]), &["evidence.binding"]);
    check(|report| report.host_data(&[0; 32]), &["evidence.host_data"]);
    check(
        |report| report.measurement(&[0; 48]),
        &["evidence.measurement", "evidence.host_data"],
    );
    check(|report| report.chip_id(&[1; 64]), &["evidence.chip_id"]);
    check(
        |report| report.put(layout::REPORTED_TCB, &[0; 8]),
        &["evidence.tcb"],
    );
    check(
        |report| report.u32(layout::SIGNATURE_ALGO, 2),
        &["evidence.signature_algorithm"],
    );
}

#[test]
fn the_current_tcb_is_not_what_the_vcek_is_for() {
    let files = Files::good();
    files.sign(|report| report.put(layout::CURRENT_TCB, &[9; 8]));
    assert_eq!(files.verify(&["--strict"]).exit, 0);
}

#[test]
fn a_flipped_bit_breaks_the_signature() {
    let files = Files::good();
    let mut report = std::fs::read(files.path("report.bin")).unwrap();
    report[0x140] ^= 1;
    files.write("report.bin", &report);
    files.verify(&[]).rejects(&["evidence.signature"]);
}

#[test]
fn evidence_has_its_time() {
    let files = Files::good();
    files
        .verify(&["--at", "2000-01-01T00:00:00Z"])
        .rejects(&["evidence.not_yet_valid"]);
    files
        .verify(&["--at", "2126-01-01T00:00:00+01:00"])
        .rejects(&["evidence.expired"]);
    assert_eq!(files.verify(&["--at", "2026-11-24T12:00:00Z"]).exit, 0);
}

#[test]
fn what_nobody_asked_for_is_not_checked_and_strict_wants_everything() {
    let files = Files::good();
    let [report, vcek, root] =
        ["report.bin", "vcek.pem", "ark.pem"].map(|name| files.path(name).display().to_string());
    let chain = files.path("chain.pem").display().to_string();
    let args = [
        "--report", &report, "--vcek", &vcek, "--chain", &chain, "--root", &root,
    ];
    let answer = verify(&args);
    assert_eq!(answer.exit, 0, "{}", answer.out);
    for row in ["binding", "measurement", "host_data"] {
        assert_eq!(answer.status(row), "not checked");
    }
    let strict = verify(&[&args[..], &["--strict"]].concat());
    strict.rejects(&[]);
    assert!(
        strict
            .out
            .contains("strict: not checked: binding, measurement, host_data\n")
    );

    let bound_to = |report_data: &[u8; 64]| {
        verify(&[&args[..], &["--report-data", &hex(report_data)]].concat())
    };
    assert_eq!(
        bound_to(report_data().as_bytes()).status("binding"),
        "accepted"
    );
    bound_to(&[0; 64]).rejects(&["evidence.binding"]);
}

#[test]
fn every_field_of_a_binding_counts() {
    let files = Files::good();
    let other = hex(&[7; 32]);
    for (field, value) in [
        ("nonce", json!(other)),
        ("audience", json!("another")),
        ("tls", json!(other)),
        ("keys", json!(other)),
        ("ca", json!(other)),
        ("statement", json!(STANDARD.encode(r#"{"v":2}"#))),
    ] {
        let mut binding = binding_json();
        binding[field] = value;
        files.write("binding.json", binding.to_string().as_bytes());
        files.verify(&[]).rejects(&["evidence.binding"]);
    }
}

#[test]
fn smt_and_vmpl_are_the_policys_to_allow() {
    let files = Files::good();
    let policy = policy_toml(&MEASUREMENT, &HOST_DATA);
    files.write(
        "policy.toml",
        policy.replace("smt = true", "smt = false").as_bytes(),
    );
    files.verify(&[]).rejects(&["evidence.smt"]);
    files.write(
        "policy.toml",
        policy.replace("vmpl = 0", "vmpl = 2").as_bytes(),
    );
    files.verify(&[]).rejects(&["evidence.vmpl"]);
    files.sign(|report| report.vmpl(2));
    assert_eq!(files.verify(&["--strict"]).exit, 0);
}

#[test]
fn reports_may_be_in_hexadecimal_and_certificates_in_der() {
    let files = Files::good();
    let raw = std::fs::read(files.path("report.bin")).unwrap();
    let lines: Vec<String> = raw
        .chunks(32)
        .map(|line| hex(line).to_uppercase())
        .collect();
    files.write("report.bin", format!("{}\n", lines.join("\n")).as_bytes());
    files.write("vcek.pem", &files.chip.vcek().to_der().unwrap());
    assert_eq!(files.verify(&["--strict"]).exit, 0);
}

#[test]
fn a_malformed_file_is_named_and_ends_with_65() {
    let files = Files::good();
    let check = |name: &str, bytes: &[u8], code: &str| {
        let good = std::fs::read(files.path(name)).unwrap();
        files.write(name, bytes);
        files.verify(&[]).is_malformed(code);
        files.write(name, &good);
    };
    let report = std::fs::read(files.path("report.bin")).unwrap();
    check("report.bin", b"", "report.length");
    check("report.bin", &report[1..], "report.length");
    check("report.bin", hex(&report[1..]).as_bytes(), "report.length");
    check(
        "report.bin",
        &[b"HCLA".as_slice(), &report].concat(),
        "report.hcl_unsupported",
    );
    let damaged = |offset: usize, byte: u8| {
        let mut damaged = report.clone();
        damaged[offset] = byte;
        damaged
    };
    check("report.bin", &damaged(0, 4), "report.version");
    check("report.bin", &damaged(0x4C, 1), "report.reserved");
    check("report.bin", &damaged(0xF, 1), "report.policy_bits");
    check("report.bin", &damaged(0x48, 8), "report.key_info");
    check("report.bin", &vec![b'0'; 2 << 20], "input.too_large");
    check("vcek.pem", b"none", "endorsements.vcek");
    check("vcek.pem", &[0xD2, 0x84], "endorsements.uvm_unsupported");
    check("chain.pem", b"", "endorsements.chain");
    check(
        "ark.pem",
        b"-----BEGIN CERTIFICATE-----",
        "endorsements.root",
    );
    check("binding.json", b"{}", "binding.malformed");
    check(
        "policy.toml",
        b"vmpl = 0\nsmt = true\n",
        "reference.malformed",
    );
    check("policy.toml", &[0xFF], "reference.malformed");
    std::fs::remove_file(files.path("report.bin")).unwrap();
    files.verify(&[]).is_malformed("input.unreadable");
}

#[test]
fn bindings_and_policies_have_exactly_their_documented_members() {
    let files = Files::good();
    for (field, value, code) in [
        ("role", json!(1), "binding.malformed"),
        ("role", json!("4"), "binding.malformed"),
        ("nonce", json!("00"), "binding.malformed"),
        ("audience", json!(""), "binding.audience"),
        ("audience", json!("a".repeat(257)), "binding.audience"),
        ("statement", json!("?"), "binding.malformed"),
        ("extra", json!(1), "binding.malformed"),
    ] {
        let mut binding = binding_json();
        binding[field] = value;
        files.write("binding.json", binding.to_string().as_bytes());
        files.verify(&[]).is_malformed(code);
    }
    files.write("binding.json", binding_json().to_string().as_bytes());
    let policy = policy_toml(&MEASUREMENT, &HOST_DATA);
    for bad in [
        policy.replace("vmpl = 0\n", ""),
        policy.replace("smt = true\n", ""),
        policy.replace("vmpl = 0", "vmpl = -1"),
        policy.replace(&hex(&HOST_DATA), "00"),
        format!("debug = true\n{policy}"),
        format!("{policy}note = \"x\"\n"),
    ] {
        files.write("policy.toml", bad.as_bytes());
        files.verify(&[]).is_malformed("reference.malformed");
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let zeros = hex(&[0; 64]);
    let good = ["verify", "--report", "r", "--vcek", "v"];
    assert!(CommandLine::try_parse_from(good).is_ok());
    for more in [
        &["--at", "yesterday"][..],
        &["--report-data", "00"],
        &["--report-data", &zeros, "--binding", "b"],
        &["--policy"],
        &["--unknown"],
        &["extra"],
    ] {
        assert!(
            CommandLine::try_parse_from([&good[..], more].concat()).is_err(),
            "{more:?}"
        );
    }
    assert!(CommandLine::try_parse_from(&good[..3]).is_err());
}

#[test]
fn the_product_knows_no_root_but_amds() {
    if !enabled(Need::Programs) {
        return;
    }
    let files = Files::good();
    let run = |more: &[&Path]| {
        let verify = Command::new(product_binary("enclaveid"))
            .args(["evidence", "verify", "--report"])
            .arg(files.path("report.bin"))
            .arg("--vcek")
            .arg(files.path("vcek.pem"))
            .args(more)
            .output();
        verify.unwrap().status.code()
    };
    assert_eq!(run(&[]), Some(41));
    assert_eq!(
        run(&[Path::new("--root"), &files.path("ark.pem")]),
        Some(64)
    );
}

#[test]
fn real_evidence_is_judged_as_its_makers_say() {
    let check = |report: &str, vcek: &str, more: &[&str], exit: u8, finding: &str| {
        let (Some(report), Some(vcek)) = (real_data(report), real_data(vcek)) else {
            return;
        };
        let dir = TempDir::new().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let (report, vcek) = (write("report", &report), write("vcek", &vcek));
        let answer = verify(&[&["--report", &report, "--vcek", &vcek], more].concat());
        assert_eq!(answer.exit, exit, "{}{}", answer.out, answer.err);
        assert!([answer.out, answer.err].concat().contains(finding));
    };
    let aci = "acisidecar/snp_report.bin";
    let thim = "acisidecar/uvm_host_amd_certificate.pem";
    check(aci, thim, &[], 0, "verdict: accepted");
    check(aci, thim, &["--strict"], 41, "strict: not checked");
    check(
        "sev-crate/report_milan.hex",
        "sev-crate/vcek_milan.der",
        &[],
        0,
        "verdict: accepted",
    );
    check(
        "tav/genoa_attestation_report.bin",
        "tav/genoa_vcek.pem",
        &[],
        0,
        "verdict: accepted",
    );
    let debug = "go-sev-guest/attestation.bin";
    check(
        debug,
        "go-sev-guest/vcek.testcer",
        &[],
        41,
        "evidence.debug",
    );
    check(aci, "sev-crate/vcek_milan.der", &[], 41, "evidence.chip_id");
    check(
        aci,
        "sev-crate/vcek_turin.der",
        &[],
        41,
        "evidence.product_unsupported",
    );
    let vlek = "trustee/test-vlek-report.bin";
    check(
        vlek,
        "trustee/test-vlek.der",
        &[],
        41,
        "evidence.vlek_unsupported",
    );
    check(
        "trustee/hcl-report.bin",
        "trustee/vcek.pem",
        &[],
        65,
        "report.hcl_unsupported",
    );
}
