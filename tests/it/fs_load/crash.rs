//! Core: the daemon is killed while workers change and sync files, again and again; each mount
//! shows what was acknowledged to them, and nothing that they did not do.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use enclaveid_tests::fixture::{Dice, Load, Mount, Need, Rounds, enabled};
use runtime::sync::{Condvar, Mutex};
use rustix::process::Signal;

use super::oracle::Oracle;
use super::{programs, space};
use crate::fs_mount::Scene;

/// Time that the workers have for the acknowledgements that a kill waits for.
const PATIENCE: Duration = Duration::from_secs(60);
const WORKERS: usize = 3;
const ACKNOWLEDGED_MAX: usize = 150;
/// Bytes that the store takes at rest in the end: less than 20 MiB live in it.
const STORED_MAX: u64 = (192 + 32) << 20;

/// What the workers tell.
#[derive(Default)]
struct Progress {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    acknowledged: usize,
    killed: bool,
    /// A worker that failed while the daemon lived.
    failed: Option<io::Error>,
}

#[test]
fn fuse_load_what_was_acknowledged_survives_every_kill() {
    let Some(scene) = Scene::new() else { return };
    let mut workers: Vec<Oracle> = Vec::new();
    for mut round in Rounds::of("crash") {
        let mount = scene.mount();
        let root = mount.path();
        if round.number == 0 {
            workers.extend((0..WORKERS).map(|i| worker(i, &mut round.dice)));
            for worker in &mut workers {
                worker.prepare(&root).unwrap();
            }
        }
        for worker in &mut workers {
            worker.verify(&root);
        }
        read_everything(&root.join("load"));
        let mut others = start_others(&mount, scene.dir.path(), &mut round.dice);
        let acknowledged = 1 + round.dice.roll(ACKNOWLEDGED_MAX);
        let progress = Progress::default();
        thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| progress.run(worker, &root));
            }
            // Killed also when this panics: the scope waits for the workers.
            let mount = mount;
            progress.wait_for(acknowledged);
            for other in &mut others {
                assert!(other.runs(), "a program ended before the daemon did");
            }
            progress.state.lock().killed = true;
            // Cleanly now and then: the next crash then begins at a checkpoint.
            let cleanly = round.dice.roll(6) == 0;
            let signal = if cleanly { Signal::TERM } else { Signal::KILL };
            let end = mount.end_by(signal).unwrap();
            assert_eq!(end.code, cleanly.then_some(0), "{end}");
        });
        let failed = progress.state.into_inner().failed;
        assert!(failed.is_none(), "with the daemon alive: {failed:?}");
    }
    for _ in 0..2 {
        let mount = scene.mount();
        for worker in &mut workers {
            worker.verify(&mount.path());
        }
        space::wait_until_at_most(STORED_MAX, &scene.store());
        let end = mount.unmount().unwrap();
        assert_eq!(end.code, Some(0), "{end}");
    }
}

fn worker(i: usize, dice: &mut Dice) -> Oracle {
    Oracle::new(&format!("worker-{i}"), Dice::new(dice.draw()))
}

/// Programs that fill and empty the volume meanwhile, so that there is something to clean up and
/// to write checkpoints of.
fn start_others(mount: &Mount, outside: &Path, dice: &mut Dice) -> Vec<Load> {
    let mut bulk = mount.command("sh");
    bulk.args([
        "-euc",
        "mkdir -p load; i=0
         while :; do
             dd if=/dev/urandom of=load/bulk-$((i % 3)) bs=256k count=$((1 + i % 7)) 2>/dev/null
             i=$((i + 1))
         done",
    ]);
    let mut others = vec![Load::start(bulk).unwrap()];
    if enabled(Need::Fsx) {
        fs::create_dir_all(mount.path().join("load")).unwrap();
        let seed = dice.draw() % 1_000_000;
        let fsx = programs::fsx(mount, outside, "load/fsx", seed, None);
        others.push(Load::start(fsx).unwrap());
    }
    others
}

/// What is not the workers' may be old or cut off, but it is authentic.
fn read_everything(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

impl Progress {
    /// Lets a worker act until its mount is gone.
    fn run(&self, worker: &mut Oracle, root: &Path) {
        let error = loop {
            match worker.act(root) {
                Ok(durable) => {
                    self.state.lock().acknowledged += usize::from(durable);
                    self.news.notify_all();
                }
                Err(error) => break error,
            }
        };
        let mut state = self.state.lock();
        if !state.killed {
            state.failed.get_or_insert(error);
        }
        self.news.notify_all();
    }

    /// Returns when so much is acknowledged, or when a worker has failed.
    fn wait_for(&self, acknowledged: usize) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        while state.acknowledged < acknowledged && state.failed.is_none() {
            let waited = self.news.wait_until(&mut state, until);
            assert!(!waited.timed_out(), "{} syncs", state.acknowledged);
        }
    }
}
