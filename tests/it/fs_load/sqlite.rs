//! Core: SQLite databases whose filesystem dies: sound afterwards, with each row that was
//! acknowledged.

use std::process::Command;
use std::time::Duration;

use enclaveid_tests::fixture::{Load, Mount, Need, Rounds, enabled};
use rustix::process::Signal;

use crate::fs_mount::Scene;

const SCRIPT: &str = include_str!("sqlite.py");
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows that a database gains in one round, at most.
const ROWS_MAX: usize = 200;

/// One database for each way to keep a journal.
const MODES: [&str; 4] = ["delete", "persist", "truncate", "wal"];

#[test]
fn fuse_load_databases_keep_what_they_acknowledged() {
    if !enabled(Need::Sqlite) {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let mut acknowledged = [0; MODES.len()];
    for mut round in Rounds::of("sqlite") {
        let mount = scene.mount();
        if round.number > 0 {
            check_all(&mount, &mut acknowledged);
        }
        let writers = MODES.map(|mode| {
            let writer = script(&mount, &["write", &format!("{mode}.db"), mode]);
            Load::start(writer).unwrap()
        });
        let rows = 1 + round.dice.roll(ROWS_MAX);
        let first = round.dice.roll(writers.len());
        for writer in &writers {
            assert!(writer.out.wait_for_count(1, PATIENCE), "no row at all");
        }
        assert!(writers[first].out.wait_for_count(rows, PATIENCE), "too few");
        mount.end_by(Signal::KILL).unwrap();
        for (mut writer, acknowledged) in writers.into_iter().zip(&mut acknowledged) {
            assert!(
                !writer.wait().unwrap().success(),
                "it went on without files"
            );
            *acknowledged = writer.out.last().unwrap().parse().unwrap();
        }
    }
    let mount = scene.mount();
    check_all(&mount, &mut acknowledged);
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}

fn script(mount: &Mount, arguments: &[&str]) -> Command {
    let mut python = mount.command("python3");
    python.args(["-c", SCRIPT]).args(arguments);
    python
}

#[track_caller]
fn check_all(mount: &Mount, acknowledged: &mut [u64]) {
    for (mode, acknowledged) in MODES.into_iter().zip(acknowledged) {
        let output = script(mount, &["check", &format!("{mode}.db")]).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mode}: {said}");
        let last: u64 = String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // One more may have been committed, and not said.
        let may_be = *acknowledged..=*acknowledged + 1;
        assert!(
            may_be.contains(&last),
            "{mode}: {last} rows of {acknowledged}"
        );
        *acknowledged = last;
    }
}
