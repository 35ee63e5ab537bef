//! Core: what a crash leaves of a store, found from the calls that it saw. For tests.
#![allow(clippy::unwrap_used, reason = "only tests are built with it")]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ObjectName;

/// A device writes whole sectors, or not.
const SECTOR: usize = 512;

/// A call that changes the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Create(ObjectName),
    Delete(ObjectName),
    Put(ObjectName, Vec<u8>),
    Sync(ObjectName),
    Write(ObjectName, u64, Vec<u8>),
}

/// What a crash leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Crash {
    /// The daemon dies: what it wrote stays, flushed or not.
    Daemon,
    /// The power fails: each write that was not flushed stays, goes, or is torn between sectors,
    /// and an object that was deleted may be there again, or as a hole, as this seed decides.
    Power(u64),
}

/// A store as the calls so far left it, what is not flushed apart. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    objects: BTreeMap<ObjectName, Object>,
    /// Objects whose removal is not durable.
    deleted: BTreeMap<ObjectName, Object>,
}

/// Writes that a power failure took, and that an old cache could bring back.
pub(crate) type Lost = Vec<(ObjectName, Write)>;

#[derive(Debug, Clone, Default)]
struct Object {
    durable: Arc<Vec<u8>>,
    seen: Arc<Vec<u8>>,
    unflushed: Vec<Write>,
}

/// Bytes and where in an object they belong.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    at: usize,
    bytes: Arc<Vec<u8>>,
}

/// How much a power failure takes.
enum Loss {
    All,
    Last,
    Some,
}

impl Image {
    /// An image of these objects, all of them durable.
    pub(crate) fn of(objects: BTreeMap<ObjectName, Vec<u8>>) -> Self {
        let objects = objects.into_iter();
        Self {
            objects: objects.map(|(name, o)| (name, Object::of(o))).collect(),
            deleted: BTreeMap::new(),
        }
    }

    /// Does what a call that succeeded did.
    pub(crate) fn apply(&mut self, call: &Call) {
        match call {
            Call::Create(name) => {
                self.objects.insert(*name, Object::default());
            }
            Call::Delete(name) => {
                if let Some(object) = self.objects.remove(name) {
                    self.deleted.insert(*name, object);
                }
            }
            Call::Put(name, bytes) => {
                self.objects.insert(*name, Object::of(bytes.clone()));
            }
            Call::Sync(name) => {
                if let Some(object) = self.objects.get_mut(name) {
                    object.flush();
                }
            }
            Call::Write(name, at, bytes) => {
                if let Some(object) = self.objects.get_mut(name) {
                    object.write(Write {
                        at: usize::try_from(*at).unwrap(),
                        bytes: Arc::new(bytes.clone()),
                    });
                }
            }
        }
    }

    /// What a crash now would leave, and what it would take.
    pub(crate) fn crash(&self, crash: Crash) -> (Self, Lost) {
        let (mut left, mut lost) = (self.clone(), Vec::new());
        let Crash::Power(seed) = crash else {
            left.objects.values_mut().for_each(Object::flush);
            left.deleted.clear();
            return (left, lost);
        };
        let mut dice = Dice(seed);
        let loss = match dice.roll(4) {
            0 => Loss::All,
            1 => Loss::Last,
            _ => Loss::Some,
        };
        for (name, object) in &mut left.objects {
            let gone = object.lose(&loss, &mut dice);
            lost.extend(gone.into_iter().map(|write| (*name, write)));
        }
        for (name, mut object) in std::mem::take(&mut left.deleted) {
            match dice.roll(3) {
                0 => continue,
                1 => drop(object.lose(&loss, &mut dice)),
                _ => object = Object::of(vec![0; object.durable.len()]),
            }
            left.objects.entry(name).or_insert(object);
        }
        (left, lost)
    }

    /// Brings back some of the writes that an earlier crash took, as `seed` decides.
    pub(crate) fn bring_back(&mut self, lost: &Lost, seed: u64) {
        let mut dice = Dice(seed);
        for (name, write) in lost {
            if dice.roll(4) != 0
                && let Some(object) = self.objects.get_mut(name)
            {
                object.write(write.clone());
                object.flush();
            }
        }
    }

    /// The bytes of an object.
    pub(crate) fn get(&self, name: ObjectName) -> Option<&[u8]> {
        self.objects.get(&name).map(|object| object.seen.as_slice())
    }

    /// All objects with their bytes.
    pub(crate) fn objects(&self) -> impl Iterator<Item = (ObjectName, &[u8])> {
        let objects = self.objects.iter();
        objects.map(|(name, object)| (*name, object.seen.as_slice()))
    }

    /// What was written to an object since it was flushed is forgotten.
    pub(crate) fn forget_unflushed(&mut self, name: ObjectName) {
        if let Some(object) = self.objects.get_mut(&name) {
            object.unflushed.clear();
            object.seen = Arc::clone(&object.durable);
        }
    }
}

impl Object {
    fn of(bytes: Vec<u8>) -> Self {
        let bytes = Arc::new(bytes);
        Self {
            durable: Arc::clone(&bytes),
            seen: bytes,
            unflushed: Vec::new(),
        }
    }

    fn write(&mut self, write: Write) {
        put(Arc::make_mut(&mut self.seen), write.at, &write.bytes);
        self.unflushed.push(write);
    }

    fn flush(&mut self) {
        for write in std::mem::take(&mut self.unflushed) {
            put(Arc::make_mut(&mut self.durable), write.at, &write.bytes);
        }
    }

    /// Gives the writes that were lost.
    fn lose(&mut self, loss: &Loss, dice: &mut Dice) -> Vec<Write> {
        let mut lost = Vec::new();
        let writes = std::mem::take(&mut self.unflushed);
        if writes.is_empty() {
            return lost;
        }
        let last = writes.len() - 1;
        let durable = Arc::make_mut(&mut self.durable);
        for (i, write) in writes.into_iter().enumerate() {
            let fate = match loss {
                Loss::All => 1,
                Loss::Last if i < last => 0,
                Loss::Last => 2,
                Loss::Some => dice.roll(3),
            };
            match fate {
                0 => put(durable, write.at, &write.bytes),
                1 => lost.push(write),
                _ => {
                    tear(durable, &write, dice);
                    lost.push(write);
                }
            }
        }
        self.seen = Arc::clone(&self.durable);
        lost
    }
}

/// Writes some of the sectors that a write reaches into.
fn tear(durable: &mut Vec<u8>, write: &Write, dice: &mut Dice) {
    let mut begin = 0;
    while begin < write.bytes.len() {
        let end = (write.at + begin + 1).next_multiple_of(SECTOR) - write.at;
        let end = end.min(write.bytes.len());
        if dice.roll(2) == 0 {
            put(durable, write.at + begin, &write.bytes[begin..end]);
        }
        begin = end;
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, write: &[u8]) {
    let end = at + write.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(write);
}

/// A small generator (xorshift64*), so that a seed reproduces a crash.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: ObjectName = ObjectName::Superblock(0);

    /// What a crash leaves of an object of 1,024 flushed bytes `a`, with 1,024 bytes `b` written
    /// over the second half and beyond, and not flushed.
    fn left(crash: Crash) -> (Vec<u8>, usize) {
        let mut image = Image::default();
        image.apply(&Call::Create(NAME));
        image.apply(&Call::Write(NAME, 0, vec![b'a'; 1024]));
        image.apply(&Call::Sync(NAME));
        image.apply(&Call::Write(NAME, 512, vec![b'b'; 1024]));
        let (left, lost) = image.crash(crash);
        (left.get(NAME).unwrap().to_vec(), lost.len())
    }

    #[test]
    fn a_dead_daemon_takes_nothing() {
        let want = [[b'a'; 512], [b'b'; 512], [b'b'; 512]].concat();
        assert_eq!(left(Crash::Daemon), (want, 0));
    }

    #[test]
    fn a_power_failure_leaves_each_mixture_of_sectors_and_all_that_was_flushed() {
        let mut seen = BTreeMap::new();
        for seed in 0..200 {
            let (bytes, lost) = left(Crash::Power(seed));
            assert_eq!(bytes[..512], [b'a'; 512]);
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            assert!(
                bytes
                    .chunks(512)
                    .all(|s| s.iter().all(|byte| *byte == s[0]))
            );
            seen.insert(sectors, lost);
        }
        let keys: Vec<_> = seen.keys().map(|k| String::from_utf8_lossy(k)).collect();
        assert_eq!(keys, ["aa", "aab", "ab", "abb"]);
    }

    #[test]
    fn a_seed_decides() {
        for seed in 0..20 {
            assert_eq!(left(Crash::Power(seed)), left(Crash::Power(seed)));
        }
    }

    #[test]
    fn what_was_lost_comes_back_beneath_what_was_flushed_since() {
        let mut image = Image::default();
        image.apply(&Call::Create(NAME));
        image.apply(&Call::Write(NAME, 0, vec![b'a'; 512]));
        image.apply(&Call::Write(NAME, 512, vec![b'a'; 512]));
        let all = (0..100).find_map(|seed| {
            let (left, lost) = image.crash(Crash::Power(seed));
            (lost.len() == 2 && left.get(NAME) == Some(&[])).then_some((left, lost))
        });
        let (mut left, lost) = all.unwrap();
        left.bring_back(&lost, 1);
        left.apply(&Call::Write(NAME, 0, vec![b'b'; 512]));
        left.apply(&Call::Sync(NAME));
        let (left, _) = left.crash(Crash::Power(0));
        let sectors = left.get(NAME).unwrap().chunks(512);
        assert_eq!(sectors.map(|s| s[0]).collect::<Vec<_>>(), *b"ba");
    }
}
