//! Core: a volume reduced to its chain, under crashes, outages and a store that goes back.
//!
//! Two promises, over every sequence of events: a state that the store kept honestly is accepted,
//! and what lacks the remembered head is refused.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::super::judge::judge;
use super::super::keeping::{Keeping, Step};
use super::super::testing::{FakeAnchor, Fate};
use super::super::{Anchor, Anchored, Anchors, Found, FreshnessError, Rules, admit, anchor_mount};

type Pair = (u64, [u8; 32]);

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    /// Commits are appended.
    Commit(u8),
    /// What was appended is flushed.
    Flush,
    /// The tree is cloned for a checkpoint, at the newest durable commit.
    CloneTree,
    /// The CHECKPOINT is sealed and appended.
    Seal,
    /// It is flushed and named by the superblock.
    Publish,
    /// Time passes and the keeper does one step.
    Keep(u16, Fate),
    /// Requests on their way arrive.
    Deliver,
    /// The daemon ends without notice, with or without the guest; so many of the commits that were
    /// not flushed are still there.
    Crash { guest_too: bool, survive: u8 },
    /// The volume is mounted as the store has kept it.
    Mount(Vec<Fate>),
    /// The adversary copies the store.
    Copy,
    /// The adversary brings a copy back, with so many commits cut off, and the volume is mounted.
    Fork { copy: prop::sample::Index, cut: u8 },
}

#[derive(Debug, Clone)]
struct Commit {
    pair: Pair,
    /// Of a CHECKPOINT: where it was taken, and the pairs in it.
    checkpoint: Option<(Pair, Vec<Pair>)>,
}

#[derive(Debug, Clone)]
struct Chain {
    commits: Vec<Commit>,
    durable: usize,
    /// Index of the CHECKPOINT that the superblock names.
    named: usize,
    /// Commits that the superblock knows of: nothing shorter is recovered.
    floor: usize,
}

/// An open volume.
struct Mounted {
    keeping: Keeping,
    now: Duration,
    /// Where the tree was cloned.
    cloned: Option<Pair>,
    /// Index of a CHECKPOINT that the superblock does not name yet.
    sealed: Option<usize>,
}

struct World {
    store: Chain,
    copies: Vec<Chain>,
    mounted: Option<Mounted>,
    anchor: Arc<FakeAnchor>,
    /// What the guest's tmpfs holds.
    guest: Option<Anchored>,
    heads: u64,
}

impl Chain {
    fn has(&self, anchored: &Anchored) -> bool {
        let pair = (anchored.seq, anchored.head);
        self.commits.iter().any(|commit| commit.pair == pair)
    }

    fn newest_durable(&self) -> Pair {
        self.commits[self.durable - 1].pair
    }
}

impl World {
    fn new() -> Self {
        let first = Commit {
            pair: (0, [0; 32]),
            checkpoint: Some(((0, [0; 32]), Vec::new())),
        };
        let store = Chain {
            commits: vec![first],
            durable: 1,
            named: 0,
            floor: 1,
        };
        Self {
            copies: vec![store.clone()],
            store,
            mounted: None,
            anchor: Arc::new(FakeAnchor::default()),
            guest: None,
            heads: 0,
        }
    }

    fn append(&mut self, checkpoint: Option<(Pair, Vec<Pair>)>) {
        self.heads += 1;
        let mut head = [0xaa; 32];
        head[..8].copy_from_slice(&self.heads.to_le_bytes());
        let seq = self.store.commits.last().unwrap().pair.0 + 1;
        let pair = (seq, head);
        self.store.commits.push(Commit { pair, checkpoint });
    }

    /// As in the volume: the guest remembers before anybody is told.
    fn flush(&mut self) {
        self.store.durable = self.store.commits.len();
        let (seq, head) = self.store.newest_durable();
        let Some(mounted) = &mut self.mounted else {
            return;
        };
        mounted.keeping.durable(seq, head);
        self.guest = Some(mounted.keeping.newest());
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Copy => self.copies.push(self.store.clone()),
            Event::Deliver => self.anchor.deliver(),
            Event::Mount(fates) => return self.remount(fates),
            Event::Fork { copy, cut } => return self.fork(copy, *cut),
            Event::Crash { guest_too, survive } => {
                let tail = self.store.commits.len() - self.store.durable;
                let kept = self.store.durable + usize::from(*survive).min(tail);
                self.store.commits.truncate(kept);
                self.mounted = None;
                if *guest_too {
                    self.guest = None;
                }
            }
            Event::Commit(_)
            | Event::Flush
            | Event::CloneTree
            | Event::Seal
            | Event::Publish
            | Event::Keep(..) => return self.run(event),
        }
        Ok(())
    }

    /// What only a mounted volume does.
    fn run(&mut self, event: &Event) -> Result<(), TestCaseError> {
        let Some(mounted) = &mut self.mounted else {
            return Ok(());
        };
        match event {
            Event::Commit(count) => (0..*count).for_each(|_| self.append(None)),
            Event::Flush => self.flush(),
            Event::CloneTree => mounted.cloned = Some(self.store.newest_durable()),
            Event::Seal => {
                if let Some(as_of) = mounted.cloned.take() {
                    let pairs = mounted.keeping.pairs().chain(self.guest);
                    let pairs = pairs.map(|pair| (pair.seq, pair.head)).collect();
                    mounted.sealed = Some(self.store.commits.len());
                    self.append(Some((as_of, pairs)));
                }
            }
            Event::Publish => {
                if let Some(checkpoint) = mounted.sealed.take() {
                    self.flush();
                    self.store.named = checkpoint;
                    self.store.floor = self.store.floor.max(checkpoint + 1);
                }
            }
            Event::Keep(ms, fate) => {
                mounted.now += Duration::from_millis(u64::from(*ms));
                self.anchor.fates(&[*fate]);
                match mounted.keeping.step(mounted.now) {
                    Step::Advance { prev, next } => {
                        let outcome = self.anchor.advance(Some(&prev), &next);
                        mounted.keeping.advanced(&outcome, mounted.now);
                    }
                    Step::Load => mounted.keeping.loaded(&self.anchor.load(), mounted.now),
                    Step::Wait(_) | Step::End => {}
                }
                self.anchor.fates(&[]);
                prop_assert!(!mounted.keeping.is_lost(), "there is no other writer");
            }
            Event::Copy
            | Event::Crash { .. }
            | Event::Deliver
            | Event::Fork { .. }
            | Event::Mount(_) => {}
        }
        Ok(())
    }

    fn remount(&mut self, fates: &[Fate]) -> Result<(), TestCaseError> {
        if self.mounted.is_some() {
            return Ok(());
        }
        match self.mount(fates) {
            Ok(()) => Ok(()),
            // It is not served, and that is no alarm.
            Err(e) if e.code() == "fs.anchor_unavailable" => Ok(()),
            Err(e) => Err(TestCaseError::fail(format!("false alarm: {e:?}"))),
        }
    }

    fn fork(&mut self, copy: &prop::sample::Index, cut: u8) -> Result<(), TestCaseError> {
        self.mounted = None;
        let mut fork = copy.get(&self.copies).clone();
        let left = fork.commits.len().saturating_sub(usize::from(cut));
        fork.commits.truncate(left.max(fork.floor));
        fork.durable = fork.durable.min(fork.commits.len());
        self.anchor.deliver();
        let remembered = [self.guest, self.anchor.held()];
        let fits = remembered.iter().flatten().all(|pair| fork.has(pair));
        let true_one = std::mem::replace(&mut self.store, fork);
        let mounted = self.mount(&[]);
        prop_assert_eq!(
            mounted.is_ok(),
            fits,
            "{:?}: {:?}",
            remembered,
            mounted.err()
        );
        if !fits {
            self.store = true_one;
        }
        Ok(())
    }

    fn mount(&mut self, fates: &[Fate]) -> Result<(), FreshnessError> {
        let chain = self.store.clone();
        let (as_of, sealed) = chain.commits[chain.named].checkpoint.as_ref().unwrap();
        let after = |commit: &&Commit| commit.pair.0 >= as_of.0;
        let met: Vec<Pair> = chain.commits.iter().filter(after).map(|c| c.pair).collect();
        let found = Found {
            newest: chain.commits.last().unwrap().pair,
            vmk_epoch: 0,
            anchored_once: false,
            met: &|seq, head| met.contains(&(seq, *head)),
            sealed,
        };
        let rules = Rules::default();
        judge(self.guest.as_ref(), &found, &rules)?;
        let anchors = Anchors {
            guest: None,
            anchor: Arc::clone(&self.anchor) as Arc<dyn Anchor>,
            strict: false,
        };
        let anchor = Arc::clone(&self.anchor);
        // What is late arrives while the mount waits.
        let pause = |_| anchor.deliver();
        let loaded = admit(&anchors, &found, &rules, &pause)?;

        self.append(None);
        self.flush();
        self.store.floor = self.store.commits.len();
        let (seq, head) = self.store.newest_durable();
        let first = Anchored {
            seq,
            head,
            vmk_epoch: 0,
        };
        self.anchor.fates(fates);
        let taken = anchor_mount(&anchors, loaded, first, (&found, &rules), &pause);
        self.anchor.fates(&[]);
        taken?;
        self.guest = Some(first);
        self.mounted = Some(Mounted {
            keeping: Keeping::new(first, Duration::ZERO),
            now: Duration::ZERO,
            cloned: None,
            sealed: None,
        });
        Ok(())
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Works),
        1 => Just(Fate::Dropped),
        1 => Just(Fate::Unanswered),
        1 => Just(Fate::Late),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let fork = (any::<prop::sample::Index>(), 0..4_u8);
    prop_oneof![
        6 => (1..4_u8).prop_map(Event::Commit),
        6 => Just(Event::Flush),
        2 => Just(Event::CloneTree),
        2 => Just(Event::Seal),
        2 => Just(Event::Publish),
        6 => (0..15_000_u16, fate()).prop_map(|(ms, fate)| Event::Keep(ms, fate)),
        1 => Just(Event::Deliver),
        1 => (any::<bool>(), 0..4_u8)
            .prop_map(|(guest_too, survive)| Event::Crash { guest_too, survive }),
        3 => prop::collection::vec(fate(), 0..4).prop_map(Event::Mount),
        2 => Just(Event::Copy),
        1 => fork.prop_map(|(copy, cut)| Event::Fork { copy, cut }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_honest_state_is_refused_and_no_fork_before_the_remembered_head_is_accepted(
        events in prop::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event)?;
        }
        // Whatever happened, the state that the store has kept can be mounted.
        world.mounted = None;
        world.anchor.deliver();
        world.remount(&[])?;
        prop_assert!(world.mounted.is_some());
    }
}

/// The anchor answers nothing while three checkpoints are written: the pair that it holds is older
/// than all the log that is replayed.
#[test]
fn an_outage_over_three_checkpoints_and_a_crash_is_no_rollback() {
    use Event::{CloneTree, Commit, Flush, Keep, Publish, Seal};
    for outage in [Fate::Dropped, Fate::Unanswered, Fate::Late] {
        let mut world = World::new();
        world.remount(&[]).unwrap();
        world.happen(&Event::Copy).unwrap();
        for _ in 0..3 {
            for event in [
                Commit(2),
                Flush,
                Keep(11_000, outage),
                CloneTree,
                Commit(1),
                Seal,
                Publish,
            ] {
                world.happen(&event).unwrap();
            }
        }
        let held = world.anchor.held().unwrap();
        let named = &world.store.commits[world.store.named];
        assert!(held.seq < named.checkpoint.as_ref().unwrap().0.0);
        let crash = Event::Crash {
            guest_too: true,
            survive: 0,
        };
        world.happen(&crash).unwrap();
        world.remount(&[]).unwrap();
        assert!(world.mounted.is_some(), "{outage:?}");
    }
}
