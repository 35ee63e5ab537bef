//! Core: the examples of docs/semantics.md, on a real mount.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use enclaveid_tests::fixture::Mount;
use rustix::process::Signal;

use crate::fs_mount::Scene;

/// What an example says where the server dies and the volume is mounted again.
const CRASH: &str = "! the server is killed, and the volume mounted again";
/// What separates what two commands have said.
const END: &str = "<<end of a command>>";

/// A command with what it is to say.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    says: String,
}

/// The parts of an example between crashes.
fn phases(example: &str) -> Vec<Vec<Step>> {
    let mut phases = vec![Vec::new()];
    for line in example.lines() {
        let phase: &mut Vec<Step> = phases.last_mut().unwrap();
        match (line.strip_prefix("$ "), phase.last_mut()) {
            (Some(command), _) => phase.push(Step {
                command: command.to_owned(),
                says: String::new(),
            }),
            (None, _) if line == CRASH => phases.push(Vec::new()),
            (None, Some(step)) => writeln!(step.says, "{line}").unwrap(),
            (None, None) => panic!("an example begins with a command: {line}"),
        }
    }
    phases
}

fn examples(document: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut rest = document;
    while let Some((_, begun)) = rest.split_once("```sh\n") {
        let (example, after) = begun.split_once("```").expect("a fence is closed");
        examples.push(example.to_owned());
        rest = after;
    }
    examples
}

fn check_phase(mount: &Mount, place: &str, steps: &[Step]) {
    let mut script = format!("set +eu; exec 2>&1; mkdir -p {place}; cd {place}\n");
    for step in steps {
        writeln!(script, "{}\necho '{END}'", step.command).unwrap();
    }
    let output = mount.shell(&script).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let got: Vec<&str> = said.split_terminator(&format!("{END}\n")).collect();
    assert_eq!(got.len(), steps.len(), "{said}");
    for (step, got) in steps.iter().zip(got) {
        assert_eq!(got, step.says, "$ {}", step.command);
    }
}

#[test]
fn fuse_the_examples_of_the_document_are_true() {
    let Some(scene) = Scene::new() else { return };
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/semantics.md");
    let examples = examples(&fs::read_to_string(document).unwrap());
    assert!(examples.len() >= 8, "{}", examples.len());
    let mut mount = scene.mount();
    for (number, example) in examples.iter().enumerate() {
        let place = format!("example-{number}");
        for (part, steps) in phases(example).iter().enumerate() {
            if part > 0 {
                mount.end_by(Signal::KILL).unwrap();
                mount = scene.mount();
            }
            check_phase(&mount, &place, steps);
        }
    }
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}
