//! Core: a worker that changes files at random, remembers outside of the mount what was
//! acknowledged, and tells after a crash whether what is there can have come from what it did.
//!
//! What it holds a mount to: names are those after some prefix of the worker's operations, which
//! holds each one on what was synced after it, as the log is one sequence. Each page of a file is
//! as one operation left it that is no older than the file's last sync (the kernel writes pages
//! back in any order). Inode numbers and link counts stay. What was seen after a crash stays.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use enclaveid_tests::fixture::Dice;
use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags, fallocate, renameat_with};

mod history;
mod verdict;

use history::History;

const PAGE: usize = 4096;
/// Where writes begin, at most; some files stay small enough to be stored with their names.
const OFFSETS: [usize; 3] = [1_000, 40_000, 200_000];
const LENGTHS: [usize; 3] = [100, 5_000, 50_000];
/// Names in a directory; few, so that files are replaced often.
const SLOTS: usize = 4;
/// The directory that holds all that a worker does.
const BASE: Id = 0;
/// A file is synced when it has changed this often since, to bound what is remembered.
const VERSIONS_MAX: usize = 40;

type Id = u64;
/// Counts a worker's operations over all crashes.
type Step = u64;
type Names = BTreeMap<String, Entry>;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Directory {
        id: Id,
    },
    File {
        id: Id,
        /// The file is no older than this where it has this name: a file that replaced another did
        /// so with all that it held.
        since: Step,
    },
}

/// Names, and what the step that led to them changed.
#[derive(Debug, Default)]
struct State {
    names: Names,
    changed: Vec<Id>,
}

/// A worker.
#[derive(Debug)]
pub(super) struct Oracle {
    directory: String,
    dice: Dice,
    step: Step,
    next_id: Id,
    /// The newest names that are known to be durable, and all after them.
    states: Vec<State>,
    files: BTreeMap<Id, History>,
    open: BTreeMap<Id, File>,
    /// What was done since the last crash, for who has to understand a failure.
    trail: Vec<String>,
    syncs: usize,
}

impl Oracle {
    /// A worker in a directory that it has to make, in the root of the mount.
    pub(super) fn new(directory: &str, dice: Dice) -> Self {
        Self {
            directory: directory.to_owned(),
            dice,
            step: 0,
            next_id: BASE + 1,
            states: vec![State::default()],
            files: BTreeMap::new(),
            open: BTreeMap::new(),
            trail: Vec::new(),
            syncs: 0,
        }
    }

    /// Makes its directories, durably.
    pub(super) fn prepare(&mut self, root: &Path) -> io::Result<()> {
        let base = root.join(&self.directory);
        fs::create_dir(&base)?;
        for name in ["a", "b"] {
            fs::create_dir(base.join(name))?;
            let id = self.new_id();
            self.change_names([BASE], |names| {
                names.insert(name.to_owned(), Entry::Directory { id })
            });
        }
        self.synced(BASE);
        File::open(&base)?.sync_all()?;
        File::open(root)?.sync_all()
    }

    /// Does one thing at random; true when something has become durable by it.
    pub(super) fn act(&mut self, root: &Path) -> io::Result<bool> {
        self.step += 1;
        let syncs = self.syncs;
        let base = root.join(&self.directory);
        let name = self.any_slot();
        let Some(Entry::File { id, .. }) = self.now().get(&name).copied() else {
            return self.create(&base, &name).map(|_| false);
        };
        if self.files[&id].versions.len() >= VERSIONS_MAX {
            return self.sync_file(&base, &name, id).map(|()| true);
        }
        match self.dice.roll(24) {
            0..=6 => self.write(&base, &name, id, false)?,
            7 => self.write(&base, &name, id, true)?,
            8 | 9 => self.set_len(&base, &name, id)?,
            10 | 11 => self.allocate(&base, &name, id)?,
            12 | 13 => self.sync_file(&base, &name, id)?,
            14 => self.sync_directory(&base, &name)?,
            15..=17 => self.replace(&base, &name)?,
            18 => self.unlink(&base, &name, id)?,
            19 | 20 => self.rename(&base, &name, id)?,
            21 => self.link(&base, &name, id)?,
            22 => self.exchange(&base, &name)?,
            _ => self.rename_directory(&base, &name)?,
        }
        Ok(self.syncs > syncs)
    }

    fn create(&mut self, base: &Path, name: &str) -> io::Result<Id> {
        self.note(&format!("create {name}"));
        let id = self.new_id();
        let history = History {
            versions: vec![(self.step, Vec::new())],
            ..History::default()
        };
        self.files.insert(id, history);
        let directory = self.parent_id(name);
        self.change_names([id, directory], |names| {
            names.insert(name.to_owned(), Entry::File { id, since: 0 })
        });
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true);
        let file = file.open(base.join(name))?;
        self.history(id).inode = Some(file.metadata()?.ino());
        self.open.insert(id, file);
        Ok(id)
    }

    fn write(&mut self, base: &Path, name: &str, id: Id, synced: bool) -> io::Result<()> {
        let range = self.range();
        let (at, len) = (range.start, range.len());
        self.note(&format!(
            "write {name} {at}+{len}{}",
            if synced { " synced" } else { "" }
        ));
        let data = pattern(id, self.step, len);
        self.change_file(id, |bytes| {
            bytes.resize(bytes.len().max(range.end), 0);
            bytes[range].copy_from_slice(&data);
        });
        if !synced {
            return self.handle(base, name, id)?.write_all_at(&data, at as u64);
        }
        let flags = i32::try_from(OFlags::DSYNC.bits()).unwrap();
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(flags);
        file.open(base.join(name))?.write_all_at(&data, at as u64)?;
        // The kernel syncs these pages alone.
        let step = self.step;
        let history = self.history(id);
        let pages = at / PAGE..(at + len).div_ceil(PAGE);
        history.synced_pages.extend(pages.map(|page| (page, step)));
        history.synced_end = (step, at + len);
        self.synced(id);
        Ok(())
    }

    fn set_len(&mut self, base: &Path, name: &str, id: Id) -> io::Result<()> {
        let len = self.range().start;
        self.note(&format!("truncate {name} {len}"));
        self.change_file(id, |bytes| bytes.resize(len, 0));
        self.handle(base, name, id)?.set_len(len as u64)
    }

    /// Holes, zeros and space, where the mount has them.
    fn allocate(&mut self, base: &Path, name: &str, id: Id) -> io::Result<()> {
        let range = self.range();
        let (at, len) = (range.start as u64, range.len() as u64);
        let kinds = [
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::empty(),
        ];
        let kind = kinds[self.dice.roll(kinds.len())];
        if !kind.contains(FallocateFlags::KEEP_SIZE) {
            // The kernel asks the server to let the file grow before it has written back what it
            // holds of it, so without this the server may know of one and not of the other.
            self.sync_file(base, name, id)?;
        }
        self.note(&format!("allocate {name} {kind:?} {at}+{len}"));
        self.change_file(id, |bytes| {
            if !kind.contains(FallocateFlags::KEEP_SIZE) {
                bytes.resize(bytes.len().max(range.end), 0);
            }
            let end = bytes.len();
            if kind.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
                bytes[range.start.min(end)..range.end.min(end)].fill(0);
            }
        });
        Ok(fallocate(self.handle(base, name, id)?, kind, at, len)?)
    }

    fn sync_file(&mut self, base: &Path, name: &str, id: Id) -> io::Result<()> {
        self.note(&format!("sync {name}"));
        let data_alone = self.dice.roll(2) == 0;
        let file = self.handle(base, name, id)?;
        if data_alone {
            file.sync_data()?;
        } else {
            file.sync_all()?;
        }
        let history = self.history(id);
        history.versions.drain(..history.versions.len() - 1);
        self.synced(id);
        Ok(())
    }

    fn sync_directory(&mut self, base: &Path, name: &str) -> io::Result<()> {
        self.note(&format!("sync the directory of {name}"));
        let (directory, _) = name.split_once('/').unwrap();
        File::open(base.join(directory))?.sync_all()?;
        self.synced(self.parent_id(name));
        Ok(())
    }

    /// A new file takes the place of another, as editors and package managers do it.
    fn replace(&mut self, base: &Path, name: &str) -> io::Result<()> {
        let (directory, _) = name.split_once('/').unwrap();
        let new = format!("{directory}/new");
        if let Some(Entry::File { id, .. }) = self.now().get(&new).copied() {
            self.unlink(base, &new, id)?;
        }
        let id = self.create(base, &new)?;
        self.write(base, &new, id, false)?;
        if self.dice.roll(3) == 0 {
            self.sync_file(base, &new, id)?;
        }
        self.rename_to(base, &new, name, id)
    }

    fn unlink(&mut self, base: &Path, name: &str, id: Id) -> io::Result<()> {
        self.note(&format!("unlink {name}"));
        if self.dice.roll(2) == 0 {
            self.open.remove(&id);
        }
        let directory = self.parent_id(name);
        self.change_names([id, directory], |names| names.remove(name));
        fs::remove_file(base.join(name))
    }

    fn rename(&mut self, base: &Path, name: &str, id: Id) -> io::Result<()> {
        let to = self.any_slot();
        self.rename_to(base, name, &to, id)
    }

    fn rename_to(&mut self, base: &Path, name: &str, to: &str, id: Id) -> io::Result<()> {
        self.note(&format!("rename {name} {to}"));
        // What other handles wrote is in the kernel alone until one is closed.
        self.open.remove(&id);
        let replaced = self.now().get(to).copied();
        let same = matches!(replaced, Some(Entry::File { id: other, .. }) if other == id);
        if !same {
            let newest = self.files[&id].versions.last().unwrap().0;
            let since = if replaced.is_some() { newest } else { 0 };
            let changed = [id, self.parent_id(name), self.parent_id(to)];
            let changed = changed.into_iter().chain(replaced.map(|entry| entry.id()));
            self.change_names(changed, |names| {
                names.remove(name);
                names.insert(to.to_owned(), Entry::File { id, since })
            });
        }
        fs::rename(base.join(name), base.join(to))
    }

    fn link(&mut self, base: &Path, name: &str, id: Id) -> io::Result<()> {
        let to = self.any_slot();
        if self.now().contains_key(&to) {
            return Ok(());
        }
        self.note(&format!("link {name} {to}"));
        let directory = self.parent_id(&to);
        self.change_names([id, directory], |names| {
            names.insert(to.clone(), Entry::File { id, since: 0 })
        });
        fs::hard_link(base.join(name), base.join(to))
    }

    fn exchange(&mut self, base: &Path, name: &str) -> io::Result<()> {
        let other = self.any_slot();
        let (Some(one), Some(two)) = (self.now().get(name), self.now().get(&other)) else {
            return Ok(());
        };
        let (one, two) = (*one, *two);
        self.note(&format!("exchange {name} {other}"));
        let directories = [self.parent_id(name), self.parent_id(&other)];
        let changed = directories.into_iter().chain([one.id(), two.id()]);
        self.change_names(changed, |names| {
            names.insert(name.to_owned(), two);
            names.insert(other.clone(), one)
        });
        let (from, to) = (base.join(name), base.join(&other));
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?)
    }

    /// A directory goes to a name that is free, with all that is in it.
    fn rename_directory(&mut self, base: &Path, name: &str) -> io::Result<()> {
        let (from, _) = name.split_once('/').unwrap();
        let is_free = |to: &&str| !self.now().contains_key(*to);
        let to = ["a", "b", "c"].into_iter().find(is_free).unwrap();
        self.note(&format!("rename {from} {to}"));
        self.change_names([BASE, self.parent_id(name)], |names| {
            let inside = format!("{from}/");
            let moved = |name: &String| name == from || name.starts_with(&inside);
            let all: Vec<_> = names.extract_if(.., |name, _| moved(name)).collect();
            names.extend(all.into_iter().map(|(name, entry)| {
                let rest = name.strip_prefix(from).unwrap();
                (format!("{to}{rest}"), entry)
            }));
        });
        fs::rename(base.join(from), base.join(to))
    }

    /// A handle that may have been open for long.
    fn handle(&mut self, base: &Path, name: &str, id: Id) -> io::Result<&File> {
        if self.dice.roll(3) == 0 {
            self.open.remove(&id);
        }
        match self.open.entry(id) {
            Slot::Occupied(file) => Ok(file.into_mut()),
            Slot::Vacant(slot) => {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).open(base.join(name))?;
                Ok(slot.insert(file))
            }
        }
    }

    fn any_slot(&mut self) -> String {
        let directories = self.now().iter();
        let directories = directories.filter(|(name, _)| !name.contains('/'));
        let directories: Vec<String> = directories.map(|(name, _)| name.clone()).collect();
        let directory = &directories[self.dice.roll(directories.len())];
        format!("{directory}/{}", self.dice.roll(SLOTS))
    }

    fn range(&mut self) -> std::ops::Range<usize> {
        let offset_max = OFFSETS[self.dice.roll(OFFSETS.len())];
        let len_max = LENGTHS[self.dice.roll(LENGTHS.len())];
        let at = self.dice.roll(offset_max);
        at..at + 1 + self.dice.roll(len_max)
    }

    fn now(&self) -> &Names {
        &self.states.last().unwrap().names
    }

    fn new_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id - 1
    }

    fn parent_id(&self, name: &str) -> Id {
        let (directory, _) = name.split_once('/').unwrap();
        self.now()[directory].id()
    }

    fn history(&mut self, id: Id) -> &mut History {
        self.files.get_mut(&id).unwrap()
    }

    /// Before the call that does it: whether that has happened is not known when it fails.
    fn change_names<T>(
        &mut self,
        changed: impl IntoIterator<Item = Id>,
        change: impl FnOnce(&mut Names) -> T,
    ) {
        let mut names = self.now().clone();
        change(&mut names);
        let changed = changed.into_iter().collect();
        self.states.push(State { names, changed });
    }

    fn change_file(&mut self, id: Id, change: impl FnOnce(&mut Vec<u8>)) {
        let step = self.step;
        let versions = &mut self.history(id).versions;
        let mut bytes = versions.last().unwrap().1.clone();
        change(&mut bytes);
        versions.push((step, bytes));
    }

    fn note(&mut self, what: &str) {
        self.trail.push(format!("{} {what}", self.step));
    }

    /// All that was done to a file's or directory's names is durable, and so is what was before.
    fn synced(&mut self, id: Id) {
        self.syncs += 1;
        self.trail.push("done".to_owned());
        let concerns_it = |state: &State| state.changed.contains(&id);
        if let Some(last) = self.states.iter().rposition(concerns_it) {
            self.states.drain(..last);
        }
        let states = self.states.iter();
        let named = states.flat_map(|state| state.names.values().map(Entry::id));
        let named: BTreeSet<Id> = named.collect();
        self.files.retain(|id, _| named.contains(id));
        self.open.retain(|id, _| named.contains(id));
    }
}

impl Entry {
    fn id(&self) -> Id {
        match self {
            Self::Directory { id } | Self::File { id, .. } => *id,
        }
    }
}

/// Bytes that tell whose they are.
fn pattern(id: Id, step: Step, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(id << 32 ^ step);
    let words = (0..len.div_ceil(8)).flat_map(|_| dice.draw().to_le_bytes());
    words.take(len).collect()
}
