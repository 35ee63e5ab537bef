//! Core: the store fails, or lies, at each of its calls in turn.
#![expect(
    clippy::print_stdout,
    reason = "how much was tried is for people to see"
)]

use std::sync::Arc;

use super::crash_states::oracle::{History, look};
use super::crash_states::workload::{Driver, Workload};
use crate::error::OpenError;
use crate::format::{FileKind, Ino};
use crate::store::crash::{Call, Crash};
use crate::store::fault::{Fault, FaultStore, Kind, Rule};
use crate::store::memory::MemoryStore;
use crate::store::{ObjectName, Store};
use crate::testing::{ID, aead, check_consistent, kek, new_store, open, put_file, sync_all};
use crate::volume::Volume;

const SEED: u64 = 3;
const STEPS: usize = 30;

/// A workload on a store with planned faults, up to its end or to the first that shows.
struct Run {
    memory: Arc<MemoryStore>,
    faulty: Arc<FaultStore>,
    driver: Result<Driver, OpenError>,
    failed: bool,
}

impl Run {
    fn new(workload: Workload, rule: Option<Rule>) -> Self {
        let memory = new_store();
        let faulty = Arc::new(FaultStore::new(memory.clone()));
        faulty.plan_all(rule);
        let store = Arc::clone(&faulty);
        let opening = move || Volume::open_on(store.clone(), &aead(), &kek(), ID);
        let mut driver = Driver::new(Arc::clone(&memory), Box::new(opening), SEED);
        let failed = match &mut driver {
            Ok(driver) => workload.run(driver, STEPS).is_err(),
            Err(_) => true,
        };
        Self {
            memory,
            faulty,
            driver,
            failed,
        }
    }

    /// Ends as the death of the daemon does, and gives the history if it ever began.
    fn die(self) -> (Arc<MemoryStore>, Option<History>) {
        (self.memory, self.driver.ok().map(|driver| driver.history))
    }
}

const WORKLOADS: [Workload; 2] = [Workload::Remounts, Workload::Log];

/// Whatever call fails, once or from then on: what was acknowledged is there, the volume is
/// consistent, and every file can be removed.
#[test]
fn whatever_call_fails_nothing_that_was_acknowledged_is_lost() {
    let kinds = [
        Kind::Create,
        Kind::Delete,
        Kind::Put,
        Kind::Sync,
        Kind::Write,
    ];
    let (mut runs, mut hits, mut failures) = (0, 0, 0);
    for workload in WORKLOADS {
        let plain = Run::new(workload, None);
        assert!(!plain.failed && plain.faulty.hits() == 0);
        for kind in kinds {
            let calls = plain.faulty.count(kind);
            let stride = usize::try_from(calls / 25 + 1).unwrap();
            for at in (0..calls).step_by(stride) {
                for fault in [Fault::Io, Fault::Full, Fault::Torn(at)] {
                    for rule in [Rule::once, Rule::for_ever] {
                        let rule = rule(kind, at, fault.clone());
                        let what = format!("{workload:?}: {rule:?}");
                        let run = Run::new(workload, Some(rule));
                        runs += 1;
                        hits += usize::from(run.faulty.hits() > 0);
                        failures += usize::from(run.failed);
                        check_after_failure(run, &what);
                    }
                }
            }
        }
    }
    println!("{runs} runs with a fault, {hits} met it, {failures} showed it");
    assert!(runs > 500 && hits > runs * 9 / 10 && failures > runs / 10);
}

#[track_caller]
fn check_after_failure(run: Run, what: &str) {
    let (memory, history) = run.die();
    let calls = memory.call_count();
    let volume = open(&memory).unwrap_or_else(|e| panic!("{what}: {e}"));
    let fs = volume.fs();
    check_consistent(fs);
    let tree = look(fs).unwrap_or_else(|e| panic!("{what}: {e}"));
    if let Some(history) = history
        && let Err(why) = history.judge(calls, &tree)
    {
        panic!("{what}: {why}");
    }
    // Deepest first.
    for (path, found) in tree.iter().rev() {
        let (dir, name) = path.rsplit_once('/').unwrap();
        let parent = tree.get(dir).map_or(Ino::ROOT, |dir| dir.ino);
        let removed = match found.kind {
            FileKind::Directory => fs.rmdir(parent, name.as_bytes()),
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Fifo
            | FileKind::Regular
            | FileKind::Socket
            | FileKind::Symlink => fs.unlink(parent, name.as_bytes()),
        };
        removed.unwrap_or_else(|e| panic!("{what}: {path}: {e}"));
    }
    put_file(fs, "after", b"it goes on");
    sync_all(fs).unwrap();
    volume.close().unwrap();
}

/// A store that says it flushed and did not, and then loses power: the volume is refused, or shows
/// a state that once was; never anything else.
#[test]
fn a_store_that_lies_about_a_flush_is_refused_or_shows_what_once_was() {
    let (mut refused, mut older, mut hurt) = (0, 0, 0);
    for workload in WORKLOADS {
        let calls = Run::new(workload, None).faulty.count(Kind::Sync);
        for at in 0..calls {
            let run = Run::new(workload, Some(Rule::for_ever(Kind::Sync, at, Fault::Lies)));
            let what = format!("{workload:?}: lies from flush {at} on");
            let (memory, history) = run.die();
            let left = MemoryStore::after(&memory.calls(), Crash::Power(at));
            match open(&Arc::new(left)) {
                Err(OpenError::Tampered { .. }) => refused += 1,
                Err(e) => panic!("{what}: {e}"),
                Ok(volume) => match (look(volume.fs()), history) {
                    (Ok(tree), Some(history)) => {
                        older += 1;
                        history
                            .judge_after_lies(&tree)
                            .unwrap_or_else(|why| panic!("{what}: {why}"));
                    }
                    (Ok(_), None) => {}
                    (Err(why), _) => {
                        hurt += 1;
                        let is_found = why.ends_with("does not hold what was written to it");
                        assert!(is_found, "{what}: {why}");
                    }
                },
            }
        }
    }
    println!("{refused} refused, {older} as it once was, {hurt} with a hurt file");
    assert!(refused > 0 && older > 0);
}

/// A superblock of an earlier time is accepted where nothing outside of the store tells better,
/// and shows what was then; or it names what is gone, and is refused.
#[test]
fn stale_superblocks_lead_to_an_earlier_state_or_nowhere() {
    let run = Run::new(Workload::Remounts, None);
    let (memory, history) = run.die();
    let history = history.unwrap();
    let calls = memory.calls();
    let puts = calls.iter().filter_map(|call| match call {
        Call::Put(name, bytes) => Some((name, bytes)),
        Call::Create(_) | Call::Delete(_) | Call::Sync(_) | Call::Write(..) => None,
    });
    let (mut refused, mut older) = (0, 0);
    for (name, bytes) in puts {
        let copy = Arc::new(MemoryStore::of(memory.objects()));
        let faulty = Arc::new(FaultStore::new(copy.clone()));
        for slot in [ObjectName::Superblock(0), ObjectName::Superblock(1)] {
            faulty.plan_all(Some(Rule {
                name: Some(slot),
                ..Rule::for_ever(Kind::Get, 0, Fault::Stale(bytes.clone()))
            }));
        }
        let objects = copy.objects();
        match Volume::open_on(faulty, &aead(), &kek(), ID) {
            Err(e) => {
                refused += 1;
                assert!(matches!(e, OpenError::Tampered { .. }), "{name}: {e}");
                assert!(copy.objects() == objects, "a refused mount wrote something");
                assert!(!copy.is_empty().unwrap());
            }
            Ok(volume) => {
                older += 1;
                if let Ok(tree) = look(volume.fs()) {
                    history.judge_after_lies(&tree).unwrap();
                }
            }
        }
    }
    println!("{refused} refused, {older} as it once was");
    assert!(refused + older > 4);
}
