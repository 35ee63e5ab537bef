//! Core: A whole volume: any sequence of operations against the model, and a store whose objects somebody
//! has changed in any way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::error::FsError;
use crate::format::{FileKind, Ino};
use crate::fs::model::{self, Model, Op};
use crate::fs::{Attr, Fs, RenameRule};
use crate::store::ObjectName;
use crate::store::memory::MemoryStore;
use crate::testing::{
    CACHED, DIRECTORY, FILE, ROOT_USER, Shown, check_consistent, new_store, open, pattern, walk,
};
use crate::volume::Volume;

/// Operations of one input at most.
const OPERATIONS_MAX: usize = 64;
/// Changes of a store by one input at most.
const CHANGES_MAX: usize = 32;
/// Bytes that a change adds to an object, or alters, at most.
const CHANGED_MAX: usize = 8192;
/// Frames begin on this, and what a log has beyond its frames is zeros.
const LOG_ALIGNMENT: usize = 512;

/// Takes numbers off the front of an input; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        let bytes = [self.byte(), self.byte(), self.byte(), 0];
        u32::from_le_bytes(bytes) as usize % end
    }

    /// A place in a file or a length: around the borders of chunks things go wrong first.
    fn place(&mut self) -> u32 {
        let (chunk, shift) = (u32::from(self.byte()), u32::from(self.byte()));
        (chunk % 5 * 4096 + shift * shift).saturating_sub(chunk / 5)
    }

    fn path(&mut self) -> Vec<u8> {
        let names = self.byte();
        let path = [names & 3, names >> 2 & 3, names >> 4 & 3].map(|name| name % 3);
        path[..1 + usize::from(names >> 6) % 3].to_vec()
    }

    fn operation(&mut self) -> Op {
        match self.byte() % 20 {
            0..=2 => Op::Create(self.path()),
            3..=4 => Op::Mkdir(self.path()),
            5..=8 => Op::Write {
                path: self.path(),
                offset: self.place(),
                len: self.place() % 9000,
                seed: self.byte(),
            },
            9 => Op::Truncate(self.path(), self.place()),
            10 => Op::Punch(self.path(), self.place(), self.place()),
            11 => Op::Unlink(self.path()),
            12 => Op::Rmdir(self.path()),
            13 => Op::Rename(self.path(), self.path(), self.rule()),
            14 => Op::Link(self.path(), self.path()),
            15 => Op::Symlink(self.path(), self.byte()),
            16 => Op::Chmod(self.path(), u16::from(self.byte())),
            17 => Op::Fsync(self.path()),
            18 => Op::Remount,
            _ => Op::Crash,
        }
    }

    fn rule(&mut self) -> RenameRule {
        match self.byte() % 3 {
            0 => RenameRule::Replace,
            1 => RenameRule::NoReplace,
            _ => RenameRule::Exchange,
        }
    }
}

/// Operations on a new volume: each goes as the model says, and in the end and after each remount
/// the volume shows what the model shows.
pub(super) fn operations(input: &[u8]) {
    let mut input = Input(input);
    let store = new_store();
    let mut volume = open(&store).unwrap();
    let (mut model, mut held) = (Model::default(), Vec::new());
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        let op = input.operation();
        let got = model::run(volume.fs(), &mut held, &op);
        assert_eq!(got.is_ok(), model.run(&op), "{op:?}: {got:?}");
        if let Op::Crash | Op::Remount = op {
            model.end();
            held.clear();
        }
        match op {
            Op::Remount => volume.close().unwrap(),
            Op::Crash => {
                volume.fs().sync().unwrap();
                drop(volume);
            }
            _ => continue,
        }
        volume = open(&store).unwrap();
        check_consistent(volume.fs());
        assert_eq!(walk(volume.fs()), model.walk(), "after {op:?}");
    }
    check_consistent(volume.fs());
    assert_eq!(walk(volume.fs()), model.walk());
    volume.close().unwrap();
}

pub(super) fn operation_seeds() -> Vec<Vec<u8>> {
    // Paths of one name: 0x00, 0x01, 0x02; of two, below the first: 0x40, 0x44, 0x48.
    vec![
        vec![
            0, 0x00, 5, 0x00, 1, 9, 2, 30, 7, 17, 0x00, 19, 9, 0x00, 0, 20,
        ],
        vec![
            3, 0x00, 0, 0x40, 5, 0x40, 0, 0, 4, 3, 1, 13, 0x40, 0x01, 1, 18, 11, 0x01,
        ],
        vec![
            0, 0x00, 5, 0x00, 4, 90, 1, 90, 3, 10, 0x00, 1, 1, 2, 0, 14, 0x00, 0x01, 19, 11, 0x00,
        ],
        vec![
            3, 0x00, 3, 0x01, 15, 0x40, 9, 16, 0x40, 200, 13, 0x00, 0x01, 2, 12, 0x00, 18,
        ],
    ]
}

type Objects = BTreeMap<ObjectName, Vec<u8>>;

/// A volume as it was and as it is, and all that it ever showed.
struct History {
    older: Objects,
    newer: Objects,
    shown: BTreeMap<String, Vec<Shown>>,
}

impl History {
    fn note(&mut self, fs: &Fs) {
        for (path, shown) in walk(fs) {
            let ever = self.shown.entry(path).or_default();
            if !ever.contains(&shown) {
                ever.push(shown);
            }
        }
    }
}

fn history() -> &'static History {
    static HISTORY: OnceLock<History> = OnceLock::new();
    HISTORY.get_or_init(|| {
        let mut history = History {
            older: Objects::new(),
            newer: Objects::new(),
            shown: BTreeMap::new(),
        };
        let store = new_store();
        let volume = open(&store).unwrap();
        grow(volume.fs(), &mut history, 0);
        volume.close().unwrap();
        history.older = objects(&store);
        let volume = open(&store).unwrap();
        grow(volume.fs(), &mut history, 1);
        volume.fs().checkpoint().unwrap();
        let kept = volume.fs().lookup(Ino::ROOT, b"f0-2").unwrap().ino;
        volume
            .fs()
            .write(kept, 100, &pattern(99, 6000), CACHED)
            .unwrap();
        history.note(volume.fs());
        volume.fs().unlink(Ino::ROOT, b"f0-1").unwrap();
        history.note(volume.fs());
        // As a crash leaves it: there is a log to be replayed.
        volume.fs().sync().unwrap();
        drop(volume);
        history.newer = objects(&store);
        history
    })
}

fn grow(fs: &Fs, history: &mut History, round: u64) {
    let name = format!("d{round}");
    let dir = fs
        .make(Ino::ROOT, name.as_bytes(), &DIRECTORY, ROOT_USER)
        .unwrap();
    history.note(fs);
    for i in 0..6_u64 {
        let name = format!("f{round}-{i}");
        let file = fs
            .make(Ino::ROOT, name.as_bytes(), &FILE, ROOT_USER)
            .unwrap()
            .ino;
        history.note(fs);
        let contents = pattern(10 * round + i, usize::try_from(1 + i * i * 700).unwrap());
        fs.write(file, 0, &contents, CACHED).unwrap();
        history.note(fs);
        fs.fsync(file).unwrap();
        if i == 3 {
            fs.link(file, dir.ino, b"also").unwrap();
            history.note(fs);
        }
    }
}

/// What is on the store, less the zeros that logs are made with.
fn objects(store: &MemoryStore) -> Objects {
    let mut objects = store.objects();
    for bytes in objects.values_mut() {
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        bytes.truncate(used.next_multiple_of(LOG_ALIGNMENT).min(bytes.len()));
    }
    objects
}

/// Changes to a store: a mount refuses it, or shows of each file what it once was, or an error, and
/// nothing that is done with it then ends in a panic.
pub(super) fn hostile_store(input: &[u8]) {
    let history = history();
    let mut input = Input(input);
    let mut objects = history.newer.clone();
    for _ in 0..CHANGES_MAX {
        if input.is_empty() {
            break;
        }
        change(&mut objects, &history.older, &mut input);
    }
    let store = Arc::new(MemoryStore::of(objects));
    match open(&store) {
        Ok(volume) => live_on(history, volume),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

fn live_on(history: &History, volume: Volume) {
    let fs = volume.fs();
    look(fs, |path, attr, contents| {
        let Some(ever) = history.shown.get(path) else {
            panic!("{path} was never there");
        };
        let fits = |was: &&Shown| was.kind == attr.kind && was.perm == attr.perm;
        let mut was = ever.iter().filter(fits);
        match contents {
            Some(contents) => assert!(
                was.any(|was| was.bytes == contents),
                "{path} shows what it never was"
            ),
            None => assert!(was.next().is_some(), "{path} is what it never was"),
        }
    });
    // Whatever becomes of these: it is said by an error.
    let made = fs.make(Ino::ROOT, b"new", &FILE, ROOT_USER);
    let written = made.and_then(|new| fs.write(new.ino, 0, &pattern(5, 5000), CACHED));
    let _ = (written, fs.sync(), fs.unlink(Ino::ROOT, b"f0-2"));
    let _ = (fs.journal().clean(1 << 20), fs.checkpoint(), volume.close());
}

/// Everything below the root that can be read; contents are `None` where they cannot.
fn look(fs: &Fs, mut show: impl FnMut(&str, &Attr, Option<Vec<u8>>)) {
    let mut todo = vec![(Ino::ROOT, String::new())];
    let mut met = BTreeSet::new();
    while let Some((dir, path)) = todo.pop() {
        assert!(met.insert(dir), "a directory is below itself");
        let mut entries = Vec::new();
        let _ = fs.list(dir, 2, |entry| {
            let name = String::from_utf8_lossy(entry.name);
            entries.push((format!("{path}/{name}"), entry.attr));
            true
        });
        for (path, attr) in entries {
            let contents = match attr.kind {
                FileKind::Directory => {
                    todo.push((attr.ino, path.clone()));
                    Some(Vec::new())
                }
                FileKind::Symlink => fs.readlink(attr.ino).ok(),
                _ => read(fs, &attr).ok(),
            };
            show(&path, &attr, contents);
        }
    }
}

fn read(fs: &Fs, attr: &Attr) -> Result<Vec<u8>, FsError> {
    let mut bytes = vec![0xee; usize::try_from(attr.size).unwrap()];
    let got = fs.read(attr.ino, 0, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// One change of the objects of a store.
fn change(objects: &mut Objects, older: &Objects, input: &mut Input<'_>) {
    let kind = input.byte() % 9;
    let names: Vec<ObjectName> = objects.keys().chain(older.keys()).copied().collect();
    let mut pick = || names[usize::from(input.byte()) % names.len()];
    let (name, other) = (pick(), pick());
    let bytes = objects.get(&name).cloned().unwrap_or_default();
    let at = input.below(bytes.len() + 1);
    let mut changed = bytes.clone();
    match kind {
        0 => {
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= input.byte().max(1);
            }
        }
        1 => {
            let end = (at + input.below(CHANGED_MAX)).min(changed.len());
            changed[at..end].fill(input.byte());
        }
        2 => changed.truncate(at),
        3 => {
            let len = changed.len() + input.below(CHANGED_MAX);
            changed.resize(len, input.byte());
        }
        4 => {
            objects.remove(&name);
            return;
        }
        // What it was before, where it is from before.
        5 => match older.get(&name) {
            Some(was) => changed.clone_from(was),
            None => return,
        },
        // Two exchanged.
        6 => {
            if let Some(theirs) = objects.get(&other).cloned() {
                objects.insert(other, bytes);
                changed = theirs;
            }
        }
        // A part of another one, or of what that was, in the same place.
        kind => {
            let from = if kind == 7 { &*objects } else { older };
            let theirs = from.get(&other).map_or(&[][..], Vec::as_slice);
            let end = (at + input.below(CHANGED_MAX))
                .min(theirs.len())
                .min(changed.len());
            if at < end {
                changed[at..end].copy_from_slice(&theirs[at..end]);
            }
        }
    }
    objects.insert(name, changed);
}

pub(super) fn hostile_seeds() -> Vec<Vec<u8>> {
    let at = |n: u32| n.to_le_bytes()[..3].to_vec();
    let change = |kind: u8, name: u8, other: u8, place: u32, more: &[u8]| {
        [&[kind, name, other][..], &at(place), more].concat()
    };
    let mut seeds = vec![Vec::new()];
    for name in 0..12 {
        seeds.push(change(0, name, 0, 4100, &[1]));
        seeds.push(change(2, name, 0, 5000, &[]));
        seeds.push(change(5, name, 0, 0, &[]));
        seeds.push(change(8, name, name, 4096, &at(2048)));
    }
    // Both superblocks as they were.
    seeds.push([change(5, 0, 0, 0, &[]), change(5, 1, 0, 0, &[])].concat());
    seeds.push(change(6, 0, 1, 0, &[]));
    seeds
}
