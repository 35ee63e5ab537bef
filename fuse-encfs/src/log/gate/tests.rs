//! Core: under every order of threads that a model checker tries, and whatever fails, who is let
//! through finds his commit durable.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync as modelled;

use super::{Failed, Flush, Gate, IN_FLIGHT_MAX, Monitor, Parked, State};

/// The monitor of the model checker.
struct Modelled<S> {
    state: modelled::Mutex<S>,
    changed: modelled::Condvar,
}

struct ModelledGuard<'a, S>(modelled::MutexGuard<'a, S>);

impl<S> Monitor<S> for Modelled<S> {
    type Guard<'a>
        = ModelledGuard<'a, S>
    where
        S: 'a;

    fn new(state: S) -> Self {
        Self {
            state: modelled::Mutex::new(state),
            changed: modelled::Condvar::new(),
        }
    }

    fn lock(&self) -> Self::Guard<'_> {
        ModelledGuard(self.state.lock().unwrap())
    }

    fn wait<'a>(&'a self, guard: Self::Guard<'a>) -> Self::Guard<'a> {
        ModelledGuard(self.changed.wait(guard.0).unwrap())
    }

    fn notify_all(&self) {
        self.changed.notify_all();
    }
}

impl<S> Deref for ModelledGuard<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S> DerefMut for ModelledGuard<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.0
    }
}

/// A log on a disk that takes each write into a cache. A flush writes what is dirty when it begins,
/// and waits for what others write then; one that fails drops what it was to write. Each of the two
/// lanes for flushes is told of every failure, its own and the other's, once.
struct Disk {
    lanes: usize,
    log: modelled::Mutex<u64>,
    pages: modelled::Mutex<Pages>,
    flushed: modelled::Condvar,
}

#[derive(Default)]
struct Pages {
    /// Every commit, to be written again.
    kept: BTreeSet<u64>,
    dirty: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    /// Whether each flush has ended.
    flushes: Vec<bool>,
    /// Flushes that failed so far.
    failures: usize,
    lanes: [Lane; IN_FLIGHT_MAX],
    /// Flushes that will fail yet.
    faults: usize,
}

#[derive(Default)]
struct Lane {
    is_busy: bool,
    /// Failures that it was told of.
    told: usize,
}

impl Disk {
    fn new(lanes: usize, faults: usize) -> Self {
        Self {
            lanes,
            log: modelled::Mutex::new(0),
            pages: modelled::Mutex::new(Pages {
                faults,
                ..Pages::default()
            }),
            flushed: modelled::Condvar::new(),
        }
    }

    fn append(&self, gate: &Gate<Modelled<State>>) -> u64 {
        let mut last = self.log.lock().unwrap();
        *last += 1;
        let mut pages = self.pages.lock().unwrap();
        pages.kept.insert(*last);
        pages.dirty.insert(*last);
        drop(pages);
        gate.note_written(*last);
        *last
    }

    fn rewrite(&self) -> Option<u64> {
        let mut pages = self.pages.lock().unwrap();
        assert!(
            pages.under_way().is_empty(),
            "what is mended is flushed alone"
        );
        let kept = pages.kept.clone();
        pages.dirty.extend(&kept);
        drop(pages);
        self.flush(0).then(|| kept.last().copied().unwrap_or(0))
    }

    #[track_caller]
    fn check_durable(&self, upto: u64) {
        let pages = self.pages.lock().unwrap();
        let missing: Vec<u64> = (1..=upto).filter(|n| !pages.durable.contains(n)).collect();
        assert!(
            missing.is_empty(),
            "let through up to {upto} without {missing:?}"
        );
    }
}

impl Pages {
    fn under_way(&self) -> Vec<usize> {
        let flushes = self.flushes.iter().enumerate();
        let under_way = flushes.filter(|(_, ended)| !**ended);
        under_way.map(|(n, _)| n).collect()
    }
}

impl Flush for Disk {
    fn flush(&self, lane: usize) -> bool {
        let mut pages = self.pages.lock().unwrap();
        assert!(!pages.lanes[lane].is_busy, "a lane is used twice at once");
        pages.lanes[lane].is_busy = true;
        let others = pages.under_way();
        let own = pages.flushes.len();
        pages.flushes.push(false);
        let taken = std::mem::take(&mut pages.dirty);
        let fails = pages.faults > 0 && thread_rng().gen_bool(0.5);
        pages.faults -= usize::from(fails);
        drop(pages);
        shuttle::thread::yield_now();
        let mut pages = self.pages.lock().unwrap();
        if fails {
            pages.failures += 1;
        } else {
            pages.durable.extend(taken);
        }
        pages.flushes[own] = true;
        self.flushed.notify_all();
        while others.iter().any(|n| !pages.flushes[*n]) {
            pages = self.flushed.wait(pages).unwrap();
        }
        let failures = pages.failures;
        let told = std::mem::replace(&mut pages.lanes[lane].told, failures);
        pages.lanes[lane].is_busy = false;
        told == failures
    }

    fn mend(&self) -> Option<u64> {
        // Where there is another lane, the first attempt may tell of what that one told already.
        let again = || (self.lanes > 1).then(|| self.rewrite()).flatten();
        self.rewrite().or_else(again)
    }
}

/// Threads that each append and wait, twice, while flushes fail.
fn appenders(lanes: usize, faults: usize) {
    let gate = Gate::<Modelled<State>>::new(0, lanes);
    let scene = modelled::Arc::new((gate, Disk::new(lanes, faults)));
    let append_twice = move |scene: &(Gate<Modelled<State>>, Disk)| {
        let (gate, disk) = scene;
        for _ in 0..2 {
            let seq = disk.append(gate);
            match gate.wait(seq, disk) {
                Ok(()) => disk.check_durable(seq),
                Err(Failed) => assert!(faults > 1 && gate.has_failed()),
            }
        }
    };
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let scene = modelled::Arc::clone(&scene);
            shuttle::thread::spawn(move || append_twice(&scene))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let (gate, disk) = &*scene;
    disk.check_durable(gate.durable());
    assert!(faults > 1 || gate.durable() == 6);
}

#[test]
fn who_is_let_through_finds_his_commit_durable() {
    for lanes in [1, 2] {
        shuttle::check_random(move || appenders(lanes, 0), 500);
        shuttle::check_pct(move || appenders(lanes, 0), 500, 3);
    }
}

#[test]
fn a_flush_that_fails_once_is_mended_whoever_else_flushes() {
    for lanes in [1, 2] {
        shuttle::check_random(move || appenders(lanes, 1), 2000);
        shuttle::check_pct(move || appenders(lanes, 1), 2000, 4);
    }
}

#[test]
fn a_flush_that_fails_again_lets_nobody_through_who_must_not() {
    for lanes in [1, 2] {
        shuttle::check_random(move || appenders(lanes, 4), 3000);
        shuttle::check_pct(move || appenders(lanes, 4), 3000, 4);
    }
}

/// As the owner of a log does: who is refused first goes on elsewhere, everybody else waits again.
fn reopeners(lanes: usize) {
    let gate = Gate::<Modelled<State>>::new(0, lanes);
    let scene = modelled::Arc::new((gate, Disk::new(lanes, 3)));
    let append = |scene: &(Gate<Modelled<State>>, Disk)| {
        let (gate, disk) = scene;
        let seq = disk.append(gate);
        while let Err(Failed) = gate.wait(seq, disk) {
            let mut last = disk.log.lock().unwrap();
            if gate.has_failed() {
                gate.stop();
                let mut pages = disk.pages.lock().unwrap();
                assert!(pages.under_way().is_empty());
                // An OPEN of its own, and everything behind it by new numbers.
                *last += 1;
                pages.durable.extend(1..=*last);
                pages.dirty.clear();
                drop(pages);
                gate.restart(*last);
            }
        }
        disk.check_durable(seq);
    };
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let scene = modelled::Arc::clone(&scene);
            shuttle::thread::spawn(move || append(&scene))
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn everybody_is_let_through_once_the_log_goes_on_elsewhere() {
    for lanes in [1, 2] {
        shuttle::check_random(move || reopeners(lanes), 2000);
        shuttle::check_pct(move || reopeners(lanes), 2000, 4);
    }
}

/// Two flushes under way, for commits 1 and 2, which end as said, the later one first. Gives what
/// is durable after each, and who must mend.
fn two_flushes(later_ends_well: bool, earlier_ends_well: bool) -> [(u64, bool); 2] {
    let gate = Gate::<Parked<State>>::new(0, 2);
    gate.note_written(1);
    let (earlier, _) = gate.monitor.lock().begin(1).unwrap();
    assert!(gate.monitor.lock().begin(1).is_none(), "1 is covered");
    assert!(gate.monitor.lock().begin(2).is_none(), "2 is not written");
    gate.note_written(2);
    let (later, lane) = gate.monitor.lock().begin(2).unwrap();
    assert_eq!(lane, 1);
    gate.note_written(3);
    assert!(gate.monitor.lock().begin(3).is_none(), "no lane is free");
    let ends = [(later, later_ends_well), (earlier, earlier_ends_well)];
    ends.map(|(flight, flushed)| {
        let must_mend = gate.monitor.lock().end(flight, flushed);
        assert!(!must_mend || gate.monitor.lock().begin(3).is_none());
        (gate.durable(), must_mend)
    })
}

#[test]
fn two_flushes_under_way_acknowledge_in_order() {
    assert_eq!(two_flushes(true, true), [(0, false), (2, false)]);
}

#[test]
fn a_flush_that_fails_takes_another_one_with_it() {
    assert_eq!(two_flushes(true, false), [(0, false), (0, true)]);
    assert_eq!(two_flushes(false, true), [(0, true), (0, false)]);
    assert_eq!(two_flushes(false, false), [(0, true), (0, false)]);
}

#[test]
fn one_lane_has_one_flush_under_way() {
    let gate = Gate::<Parked<State>>::new(0, 1);
    gate.note_written(1);
    let (first, _) = gate.monitor.lock().begin(1).unwrap();
    gate.note_written(2);
    assert!(gate.monitor.lock().begin(2).is_none());
    assert!(!gate.monitor.lock().end(first, true));
    assert!(gate.monitor.lock().begin(2).is_some());
}
