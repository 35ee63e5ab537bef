//! Core: whatever state a crash leaves of the store, a mount shows one that the oracle allows.
//!
//! Each workload is recorded once; then every prefix of the calls that the store saw is brought
//! back as a dead daemon and as power failures would have left it, mounted, and judged. From some
//! of them a second life begins, which dies at each of its own calls.
#![expect(
    clippy::print_stdout,
    reason = "how much was tried is for people to see"
)]

use std::sync::Arc;
use std::time::Instant;

use self::oracle::{History, Tree, look};
use self::workload::{ALL, Driver, Workload};
use crate::store::crash::{Crash, Dice, Image, Lost};
use crate::store::memory::{Call, MemoryStore};
use crate::testing::{check_consistent, new_store, open, pattern, put_file};
use crate::volume::Volume;

pub(super) mod oracle;
pub(super) mod workload;

/// States that must be looked at: the whole number by a build that is optimised, which is that of
/// `make crash`.
const STATES_MIN: usize = if cfg!(debug_assertions) {
    2_000
} else {
    20_000
};
/// The first seed; each round over all workloads takes the next.
const SEED: u64 = 1;
/// Operations of one workload.
const STEPS: usize = 40;
/// Power failures that are tried at each call.
const POWER_FAILURES: u64 = 4;
/// One prefix of so many gets a second life.
const SECOND_LIVES: u64 = 24;
/// The file by which a second life shows that it was acknowledged.
const MARK: &str = "second-life";
const MARK_LEN: usize = 5000;

/// A workload as it went.
struct Recording {
    workload: Workload,
    seed: u64,
    calls: Vec<Call>,
    /// Calls of making the volume and mounting it first, which are not crashed.
    begin: usize,
    history: History,
}

/// Counts the states that were looked at.
#[derive(Default)]
struct Count(usize);

impl Recording {
    fn new(workload: Workload, seed: u64) -> Self {
        let store = new_store();
        let at = Arc::clone(&store);
        let opening = Box::new(move || open(&at));
        let mut driver = Driver::new(Arc::clone(&store), opening, seed).unwrap();
        let begin = store.call_count();
        workload.run(&mut driver, STEPS).unwrap();
        Self {
            workload,
            seed,
            begin,
            calls: store.calls(),
            history: driver.history,
        }
    }

    /// Looks at what crashes behind every call leave.
    fn explore(&self, count: &mut Count) {
        let mut dice = Dice(self.seed);
        let mut image = Image::default();
        for at in 0..=self.calls.len() {
            if at >= self.begin {
                let seeds = (0..POWER_FAILURES).map(|i| Crash::Power(dice.roll(1 << 30) + i));
                let crashes: Vec<_> = [Crash::Daemon].into_iter().chain(seeds).collect();
                for crash in crashes {
                    let store = Arc::new(MemoryStore::with(image.crash(crash).0));
                    self.judge(at, &store, &format!("{crash:?}"), count);
                }
                if dice.roll(SECOND_LIVES) == 0 {
                    self.second_life(at, &image, &mut dice, count);
                }
            }
            if let Some(call) = self.calls.get(at) {
                image.apply(call);
            }
        }
    }

    /// What is mounted after a crash behind call `at` dies itself at each of its calls, by a power
    /// failure. Once it has been mounted, what it showed and acknowledged is there.
    fn second_life(&self, at: usize, image: &Image, dice: &mut Dice, count: &mut Count) {
        let (after_power, lost) = image.crash(Crash::Power(dice.roll(1 << 30)));
        // After the death of the daemon the system still holds what was not flushed. After a power
        // failure some of what was lost may yet come back, when it is least wanted.
        for (kind, image, lost) in [
            ("daemon", image.clone(), Lost::new()),
            ("power", after_power.clone(), Lost::new()),
            ("power, the old tail comes back", after_power, lost),
        ] {
            let store = Arc::new(MemoryStore::with(image.clone()));
            let volume = self.mount(at, &store, kind, count);
            let (shown, _) = self.see(at, &volume, kind);
            self.check(at, &shown, kind);
            let answered = store.call_count();
            let mark = put_file(volume.fs(), MARK, &pattern(at as u64, MARK_LEN));
            volume.fs().fsync(mark).unwrap();
            let calls = store.calls();
            drop(volume);

            let mut second = image.clone();
            second.bring_back(&lost, dice.roll(1 << 30));
            for cut in 0..=calls.len() {
                let crash = Crash::Power(dice.roll(1 << 30));
                let what = format!("{kind}, then call {cut} of {} and {crash:?}", calls.len());
                let left = Arc::new(MemoryStore::with(second.crash(crash).0));
                let (tree, mark) = self.see(at, &self.mount(at, &left, &what, count), &what);
                if cut < answered {
                    self.check(at, &tree, &what);
                } else {
                    assert!(
                        tree == shown,
                        "{}: {what}: what was shown is gone",
                        self.name(at)
                    );
                }
                if cut == calls.len() {
                    assert_eq!(
                        mark,
                        Some(pattern(at as u64, MARK_LEN)),
                        "{}: {what}",
                        self.name(at)
                    );
                }
                if let Some(call) = calls.get(cut) {
                    second.apply(call);
                }
            }
        }
    }

    /// Mounts what a crash behind call `at` left, and judges what it shows.
    fn judge(&self, at: usize, store: &Arc<MemoryStore>, what: &str, count: &mut Count) {
        let volume = self.mount(at, store, what, count);
        let (tree, _) = self.see(at, &volume, what);
        self.check(at, &tree, what);
    }

    fn mount(&self, at: usize, left: &Arc<MemoryStore>, what: &str, count: &mut Count) -> Volume {
        count.0 += 1;
        open(left).unwrap_or_else(|e| panic!("{}: {what}: {e}", self.name(at)))
    }

    /// What a mount shows, and apart from it the contents of the mark of a second life.
    fn see(&self, at: usize, volume: &Volume, what: &str) -> (Tree, Option<Vec<u8>>) {
        check_consistent(volume.fs());
        let seen = look(volume.fs());
        let mut tree = seen.unwrap_or_else(|e| panic!("{}: {what}: {e}", self.name(at)));
        let mark = tree.remove(&format!("/{MARK}")).map(|found| found.bytes);
        (tree, mark)
    }

    fn check(&self, at: usize, tree: &Tree, what: &str) {
        if let Err(why) = self.history.judge(at, tree) {
            panic!("{}: {what}: {why}", self.name(at));
        }
    }

    fn name(&self, at: usize) -> String {
        format!("{:?}, seed {}, behind call {at}", self.workload, self.seed)
    }
}

#[test]
fn crash_states_of_every_workload_are_allowed() {
    let began = Instant::now();
    let mut count = Count::default();
    let mut seed = SEED;
    while count.0 < STATES_MIN {
        for workload in ALL {
            Recording::new(workload, seed).explore(&mut count);
        }
        seed += 1;
    }
    println!(
        "crash states: {} of {} workloads, seeds {SEED} to {}, {} s",
        count.0,
        ALL.len(),
        seed - 1,
        began.elapsed().as_secs()
    );
    assert!(count.0 >= STATES_MIN);
}
