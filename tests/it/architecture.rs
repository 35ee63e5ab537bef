//! Core: the rules of ARCHITECTURE.md that a program can check.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Each crate, the crates of ours that it may import, and the outside crates that it must not.
const CRATES: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "keys",
        "keys",
        &[],
        &["serde", "tokio", "tracing", "openssl"],
    ),
    (
        "attest",
        "attest",
        &[],
        &["tokio", "hyper", "tracing", "openssl"],
    ),
    ("runtime", "runtime", &[], &["hyper", "tonic", "openssl"]),
    (
        "fuse-encfs",
        "fuse-encfs",
        &["keys", "runtime"],
        &["tokio", "hyper", "openssl", "tonic"],
    ),
    (
        "enclaveid-envoy",
        "envoy",
        &["keys", "runtime"],
        &["fuser", "aes-gcm", "aws-lc-rs"],
    ),
    (
        "enclaveid",
        "agent",
        &["attest", "enclaveid-envoy", "fuse-encfs", "keys", "runtime"],
        &["fuser", "tonic", "aes-gcm", "aws-lc-rs"],
    ),
];

/// An outside crate or module that only some files may name: pattern, crate folder, files.
const CONFINED: &[(&str, &str, &[&str])] = &[
    ("fuser::", "fuse-encfs", &["fuse.rs", "fuse/", "mount.rs"]),
    ("aes_gcm::", "fuse-encfs", &["crypto/"]),
    ("aws_lc_rs::", "fuse-encfs", &["crypto/"]),
    ("pb::", "envoy", &["sds.rs", "sds/"]),
    ("std::env::", "agent", &["config.rs"]),
    ("std::env::", "attest", &[]),
    ("std::fs::", "keys", &[]),
    ("std::fs::", "attest", &[]),
    ("SystemTime", "attest", &[]),
];

/// The files that may hold unsafe code.
const UNSAFE: &[&str] = &["fuse-encfs/src/sys.rs", "runtime/src/locked.rs"];

#[test]
fn crates_import_along_the_graph() {
    let metadata = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--locked",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        metadata.status.success(),
        "{}",
        String::from_utf8_lossy(&metadata.stderr)
    );
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages: BTreeMap<&str, BTreeSet<&str>> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let normal = |d: &&Value| d["kind"].is_null();
            let dependencies = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(normal);
            let names = dependencies.map(|d| d["name"].as_str().unwrap()).collect();
            (package["name"].as_str().unwrap(), names)
        })
        .collect();
    let ours: BTreeSet<&str> = CRATES.iter().map(|(name, ..)| *name).collect();
    for (name, _, may, never) in CRATES {
        let dependencies = &packages[name];
        for dependency in dependencies.intersection(&ours) {
            assert!(
                may.contains(dependency),
                "{name} must not import {dependency}"
            );
        }
        for dependency in *never {
            assert!(
                !dependencies.contains(dependency),
                "{name} must not name {dependency}"
            );
        }
        assert!(
            !dependencies.contains("enclaveid-tests"),
            "{name} imports the tests"
        );
    }
}

#[test]
fn confined_crates_are_named_in_their_files_alone() {
    for (pattern, folder, allowed) in CONFINED {
        for (path, text) in sources(&root().join(folder).join("src")) {
            let path = path.to_string_lossy().replace('\\', "/");
            let inside = allowed
                .iter()
                .any(|file| path.contains(&format!("/src/{file}")));
            let names_it = code_lines(&text).any(|line| line.contains(pattern));
            assert!(inside || !names_it, "{path} names {pattern}");
        }
    }
}

#[test]
fn unsafe_code_is_where_it_is_declared() {
    for (path, text) in all_sources() {
        let shown = path
            .strip_prefix(root())
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let found = code_lines(&text).any(|line| line.contains("unsafe ") && !line.contains('"'));
        assert!(
            UNSAFE.contains(&shown.as_str()) || !found,
            "{shown} has unsafe code"
        );
    }
}

#[test]
fn every_file_says_what_it_is_and_is_no_longer_than_it_may_be() {
    const KINDS: [&str; 4] = ["//! Core:", "//! Port:", "//! Adapter:", "//! Edge:"];
    for (path, text) in all_sources() {
        let shown = path.strip_prefix(root()).unwrap().display();
        let generated = text.starts_with("// @generated");
        let tests_of = path.file_name().unwrap() == "tests.rs";
        let first = text.lines().next().unwrap_or_default();
        let named = KINDS.iter().any(|kind| first.starts_with(kind));
        assert!(
            named || generated || tests_of,
            "{shown} does not begin with its kind"
        );
        let lines = text.lines().count();
        assert!(lines <= 800, "{shown} has {lines} lines");
        for word in ["TODO", "FIXME", "XXX"] {
            let own = shown.to_string().ends_with("architecture.rs");
            assert!(own || !text.contains(word), "{shown} says {word}");
        }
    }
}

#[test]
fn only_the_composition_root_builds_adapters() {
    const BUILDS: [&str; 5] = [
        "SevGuest::open(",
        "Simulator::open(",
        "Maa::new(",
        "ManagedHsm::new(",
        "WorkloadIdentity::new(",
    ];
    for (path, text) in sources(&root().join("agent/src")) {
        for build in BUILDS {
            let found = code_lines(&text).any(|line| line.contains(build));
            assert!(
                !found || path.ends_with("run.rs"),
                "{} has {build}",
                path.display()
            );
        }
    }
}

#[test]
fn error_codes_are_in_the_catalogue_and_the_catalogue_is_documented() {
    let documented = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    for entry in enclaveid::catalogue::ENTRIES {
        let row = format!("| `{}` | {} |", entry.code, entry.exit.code());
        assert!(documented.contains(&row), "docs/errors.md lacks {row}");
    }
    let known: BTreeSet<&str> = enclaveid::catalogue::ENTRIES
        .iter()
        .map(|entry| entry.code)
        .collect();
    assert_eq!(
        known.len(),
        enclaveid::catalogue::ENTRIES.len(),
        "a code is listed twice"
    );
    // What the library crates call their failures: the arms of their `code` functions.
    for folder in ["attest", "envoy", "fuse-encfs", "runtime", "agent"] {
        for (path, text) in sources(&root().join(folder).join("src")) {
            for code in codes_in(&text) {
                assert!(
                    known.contains(code),
                    "{} has {code}, not in the catalogue",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_row_of_the_threat_model_names_a_test_that_exists_or_says_accepted() {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let refusals = std::fs::read_to_string(root().join("tests/it/refusals.rs")).unwrap();
    let all: String = all_sources().into_iter().map(|(_, text)| text).collect();
    let rows = text.lines().filter(|line| line.starts_with("| T-"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [id, _, outcome, _, tests] = cells.as_slice() else {
            panic!("{row}")
        };
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        let quoted: Vec<&str> = tests.split('"').skip(1).step_by(2).collect();
        for name in &named {
            assert!(all.contains(&format!("fn {name}(")), "{id}: no test {name}");
        }
        for name in &quoted {
            assert!(
                refusals.contains(&format!("\"{name}\"")),
                "{id}: no row {name}"
            );
        }
        let tested = !named.is_empty() || !quoted.is_empty();
        assert!(
            tested || outcome.contains("**accepted**"),
            "{id} has no test"
        );
        count += 1;
    }
    assert!(count > 20, "only {count} rows were read");
}

#[test]
fn no_secret_type_can_be_copied_shown_or_serialised() {
    for (path, text) in sources(&root().join("keys/src")) {
        for line in code_lines(&text).filter(|line| line.contains("#[derive(")) {
            let after = text.split(line).nth(1).unwrap_or_default();
            let declares = after
                .lines()
                .find(|l| l.contains("struct "))
                .unwrap_or_default();
            for secret in [
                "MasterSecret",
                "IntermediateSecret",
                "VolumeKek",
                "VolumeMasterKey",
                "CaSeed",
                "Secret<",
            ] {
                let named = declares.contains(&format!("struct {secret}"));
                assert!(!named, "{}: {declares} derives", path.display());
            }
        }
    }
}

#[test]
fn the_product_binary_holds_no_simulator() {
    let product = enclaveid_tests::fixture::product_binary("enclaveid");
    let version = Command::new(&product).arg("--version").output().unwrap();
    assert!(!String::from_utf8_lossy(&version.stdout).contains("simulator"));
    let bytes = std::fs::read(&product).unwrap();
    for trace in ["simulator_chip", "SIMULATED:", "+simulator"] {
        let found = bytes
            .windows(trace.len())
            .any(|window| window == trace.as_bytes());
        assert!(!found, "the product binary holds {trace:?}");
    }
    let refused = Command::new(&product)
        .args([
            "evidence", "verify", "--report", "r", "--vcek", "v", "--root", "x",
        ])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(64));
}

/// Texts of the form "area.reason" in the arms of `code` functions, and codes of log events.
fn codes_in(text: &str) -> Vec<&str> {
    let mut codes = Vec::new();
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    for function in product.split("fn code(&self) -> &").skip(1) {
        let body = function.split("\n    }\n").next().unwrap_or_default();
        let literals = body.split('"').skip(1).step_by(2);
        codes.extend(literals.filter(|text| is_code(text)));
    }
    for field in product.split("error_code = \"").skip(1) {
        codes.extend(field.split('"').next());
    }
    codes
}

fn is_code(text: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    text.split_once('.')
        .is_some_and(|(area, reason)| word(area) && word(reason))
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim_start)
        .filter(|line| !line.starts_with("//"))
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let folders = [
        "keys",
        "attest",
        "runtime",
        "fuse-encfs",
        "envoy",
        "agent",
        "tests",
    ];
    folders
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
        .collect()
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}
