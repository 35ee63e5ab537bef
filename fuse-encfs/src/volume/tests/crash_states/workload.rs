//! Core: what is done to a volume whose crashes are looked at.

use std::sync::Arc;

use super::oracle::{File, History, Names, Node};
use crate::error::{FsError, OpenError};
use crate::format::{FileKind, Ino};
use crate::fs::{Fs, NewEntry, RenameRule, SetAttr};
use crate::store::memory::{Dice, MemoryStore};
use crate::testing::{CACHED, DIRECTORY, FILE, ROOT_USER, checkpoint, pattern, sync_all};
use crate::volume::Volume;

/// A kind of use that crashes are looked at under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Workload {
    /// Files and directories come, go, and change their names and modes.
    Names,
    /// A few files are overwritten at random, now and then flushed.
    Overwrites,
    /// As a database does: records appended to a log, each flushed, and a table that is flushed
    /// before the log begins anew.
    Log,
    /// As an editor does: a new file is written, flushed, and takes the old one's name.
    Replace,
    /// Files shrink, grow, get holes and further names.
    Shapes,
    /// All of these at once, over several mounts with checkpoints in between.
    Remounts,
}

pub(in super::super) const ALL: [Workload; 6] = [
    Workload::Names,
    Workload::Overwrites,
    Workload::Log,
    Workload::Replace,
    Workload::Shapes,
    Workload::Remounts,
];

/// A volume that is worked on, and all that was done to it.
pub(in super::super) struct Driver {
    /// The store, or where it keeps what it is given.
    store: Arc<MemoryStore>,
    /// How to mount it.
    opening: Opening,
    /// `None` only while it is mounted anew.
    volume: Option<Volume>,
    pub(in super::super) history: History,
    dice: Dice,
    /// Names for what is made, none of them twice.
    serial: u64,
}

/// Mounts the volume that a driver works on.
pub(in super::super) type Opening = Box<dyn Fn() -> Result<Volume, OpenError>>;

type Done = Result<(), FsError>;

impl Workload {
    /// Works until `steps` operations are done or one fails.
    pub(in super::super) fn run(self, driver: &mut Driver, steps: usize) -> Done {
        for i in 0..steps {
            match self {
                Self::Names => driver.change_names()?,
                Self::Overwrites => driver.overwrite()?,
                Self::Log => driver.log(i)?,
                Self::Replace => driver.replace()?,
                Self::Shapes => driver.reshape()?,
                Self::Remounts if i % 13 == 12 => driver.remount()?,
                Self::Remounts if i % 5 == 4 => driver.checkpoint()?,
                Self::Remounts => match driver.dice.roll(4) {
                    0 => driver.change_names()?,
                    1 => driver.overwrite()?,
                    2 => driver.replace()?,
                    _ => driver.reshape()?,
                },
            }
        }
        Ok(())
    }
}

impl Driver {
    /// Mounts the new volume in `store`, to do with it what `seed` decides.
    pub(in super::super) fn new(
        store: Arc<MemoryStore>,
        opening: Opening,
        seed: u64,
    ) -> Result<Self, OpenError> {
        let volume = opening()?;
        Ok(Self {
            history: History::new(store.call_count()),
            store,
            opening,
            volume: Some(volume),
            dice: Dice(seed),
            serial: 0,
        })
    }

    fn fs(&self) -> Arc<Fs> {
        Arc::clone(self.volume.as_ref().unwrap().fs())
    }

    fn change_names(&mut self) -> Done {
        let dirs = self.paths(FileKind::Directory);
        match self.dice.roll(12) {
            0 if dirs.len() < 4 => self.make(FileKind::Directory).map(|_| ()),
            1 => self.make(FileKind::Symlink).map(|_| ()),
            2..=4 => self.make(FileKind::Regular).map(|_| ()),
            5 | 6 => match self.pick(|_| true) {
                Some(from) => self.move_to_new_name(&from),
                None => Ok(()),
            },
            7 => match self.two_files() {
                Some((from, to)) => self.rename(&from, &to),
                None => Ok(()),
            },
            8 => match self.pick(|node| node.kind != FileKind::Directory) {
                Some(path) => self.unlink(&path),
                None => Ok(()),
            },
            9 => match self.pick(|node| node.kind == FileKind::Directory) {
                Some(path) => self.rmdir(&path),
                None => Ok(()),
            },
            10 => match self.pick(|node| node.kind == FileKind::Regular) {
                Some(path) => self.chmod(&path),
                None => Ok(()),
            },
            _ => self.sync_all(),
        }
    }

    fn overwrite(&mut self) -> Done {
        let files = self.paths(FileKind::Regular);
        if files.len() < 3 {
            return self.make(FileKind::Regular).map(|_| ());
        }
        let Some(path) = self.pick(|node| node.kind == FileKind::Regular) else {
            return Ok(());
        };
        let file = self.history.names()[&path].file;
        match self.dice.roll(4) {
            0 => self.fsync(file),
            _ => {
                let offset = self.dice.roll(30_000);
                let len = [1, 100, 4096, 9000][self.roll(4)];
                self.write(file, offset, len)
            }
        }
    }

    fn log(&mut self, i: usize) -> Done {
        let (log, table) = ("/log", "/table");
        for path in [log, table] {
            if !self.history.names().contains_key(path) {
                self.make_at(path, FileKind::Regular)?;
                return self.sync_all();
            }
        }
        let (log, table) = (
            self.history.names()[log].file,
            self.history.names()[table].file,
        );
        let end = self.history.contents(log).len() as u64;
        match i % 6 {
            5 if end > 20_000 => {
                self.fsync(table)?;
                self.truncate(log, 0)?;
                self.fsync(log)
            }
            2 => {
                let offset = self.dice.roll(8) * 8192;
                self.write(table, offset, 8192)
            }
            _ => {
                let len = 24 + self.roll(4000);
                self.write(log, end, len)?;
                self.fsync(log)
            }
        }
    }

    fn replace(&mut self) -> Done {
        let target = format!("/config{}", self.dice.roll(2));
        self.serial += 1;
        let fresh = format!("/fresh{}", self.serial);
        let file = self.make_at(&fresh, FileKind::Regular)?;
        let len = self.roll(20_000);
        self.write(file, 0, len)?;
        if self.dice.roll(4) != 0 {
            self.fsync(file)?;
        }
        self.rename(&fresh, &target)?;
        if self.dice.roll(3) == 0 {
            self.sync_all()?;
        }
        Ok(())
    }

    fn reshape(&mut self) -> Done {
        let Some(path) = self.pick(|node| node.kind == FileKind::Regular) else {
            return self.make(FileKind::Regular).map(|_| ());
        };
        let file = self.history.names()[&path].file;
        let len = self.history.contents(file).len() as u64;
        match self.dice.roll(10) {
            0 | 1 => {
                let size = self.dice.roll(len * 2 + 5000);
                self.truncate(file, size)
            }
            2 | 3 => {
                let begin = self.dice.roll(len + 1);
                let end = begin + self.dice.roll(12_000);
                self.punch(file, begin, end)
            }
            4 => self.link(&path),
            5 => self.unlink(&path),
            6 | 7 => self.fsync(file),
            _ => {
                let (offset, len) = (self.dice.roll(len + 6000), 1 + self.roll(9000));
                self.write(file, offset, len)
            }
        }
    }

    /// One operation: first what it changes if it gets so far, then the operation itself.
    fn step<T>(
        &mut self,
        change: impl FnOnce(&mut History) -> T,
        call: impl FnOnce(&Fs) -> Done,
    ) -> Result<T, FsError> {
        self.history.begin();
        let changed = change(&mut self.history);
        call(&self.fs())?;
        self.history.end(self.store.call_count());
        Ok(changed)
    }

    fn make(&mut self, kind: FileKind) -> Result<File, FsError> {
        self.serial += 1;
        let mut dirs = self.paths(FileKind::Directory);
        dirs.push(String::new());
        let dir = &dirs[self.roll(dirs.len())];
        self.make_at(&format!("{dir}/n{}", self.serial), kind)
    }

    fn make_at(&mut self, path: &str, kind: FileKind) -> Result<File, FsError> {
        let target = if kind == FileKind::Symlink {
            path.as_bytes()
        } else {
            &[]
        };
        let new = NewEntry {
            kind,
            target,
            ..if kind == FileKind::Directory {
                DIRECTORY
            } else {
                FILE
            }
        };
        let (parent, name) = self.place(path);
        self.history.begin();
        let file = self.history.make();
        let node = Node {
            kind,
            perm: new.perm,
            target: target.to_vec(),
            file,
        };
        self.history.rename(|names| {
            names.insert(path.into(), node);
        });
        let made = self.fs().make(parent, name.as_bytes(), &new, ROOT_USER)?;
        self.history.identify(file, made.ino);
        self.history.end(self.store.call_count());
        Ok(file)
    }

    fn move_to_new_name(&mut self, from: &str) -> Done {
        self.serial += 1;
        let dirs = self.paths(FileKind::Directory);
        // Not into itself.
        let dirs = dirs.iter().filter(|dir| !dir.starts_with(from));
        let mut dirs: Vec<&str> = dirs.map(String::as_str).collect();
        dirs.push("");
        let dir = dirs[self.roll(dirs.len())];
        self.rename(from, &format!("{dir}/m{}", self.serial))
    }

    fn rename(&mut self, from: &str, to: &str) -> Done {
        let (old, new) = (self.place(from), self.place(to));
        let replaced = self.history.names().get(to).map(|node| node.file);
        let file = self.history.names()[from].file;
        let change = |history: &mut History| {
            history.touch(file);
            history.rename(|names| {
                let below = format!("{from}/");
                let moves = |path: &String| *path == *from || path.starts_with(&below);
                let moved: Vec<String> = names.keys().filter(|path| moves(path)).cloned().collect();
                for path in moved {
                    if let Some(node) = names.remove(&path) {
                        let rest = path.strip_prefix(from).unwrap();
                        names.insert(format!("{to}{rest}"), node);
                    }
                }
            });
        };
        self.step(change, |fs| {
            let (old, new) = ((old.0, old.1.as_bytes()), (new.0, new.1.as_bytes()));
            fs.rename(old, new, RenameRule::Replace)
        })?;
        replaced.map_or(Ok(()), |file| self.forget(file))
    }

    fn link(&mut self, path: &str) -> Done {
        self.serial += 1;
        let new = format!("/l{}", self.serial);
        let node = self.history.names()[path].clone();
        let file = node.file;
        let ino = self.history.ino(node.file);
        let (parent, name) = self.place(&new);
        let change = |history: &mut History| {
            history.touch(file);
            history.rename(|names| {
                names.insert(new, node);
            });
        };
        self.step(change, |fs| {
            fs.link(ino, parent, name.as_bytes()).map(|_| ())
        })
    }

    fn unlink(&mut self, path: &str) -> Done {
        let (parent, name) = self.place(path);
        let file = self.history.names()[path].file;
        let change = |history: &mut History| {
            history.rename(|names| {
                names.remove(path);
            });
        };
        self.step(change, |fs| fs.unlink(parent, name.as_bytes()))?;
        self.forget(file)
    }

    fn rmdir(&mut self, path: &str) -> Done {
        let below = format!("{path}/");
        if self
            .history
            .names()
            .keys()
            .any(|other| other.starts_with(&below))
        {
            return Ok(());
        }
        let (parent, name) = self.place(path);
        let file = self.history.names()[path].file;
        let change = |history: &mut History| {
            history.rename(|names| {
                names.remove(path);
            });
        };
        self.step(change, |fs| fs.rmdir(parent, name.as_bytes()))?;
        self.forget(file)
    }

    /// The kernel forgets a file that has no name any more, and the filesystem removes it.
    fn forget(&mut self, file: File) -> Done {
        if self.history.names().values().any(|node| node.file == file) {
            return Ok(());
        }
        let ino = self.history.ino(file);
        self.step(
            |_| (),
            |fs| {
                fs.forget(ino, u64::MAX);
                Ok(())
            },
        )
    }

    fn chmod(&mut self, path: &str) -> Done {
        let file = self.history.names()[path].file;
        let perm = [0o600, 0o640, 0o755][self.roll(3)];
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        let change = |history: &mut History| {
            history.touch(file);
            history.rename(|names: &mut Names| {
                let same = names.values_mut().filter(|node| node.file == file);
                same.for_each(|node| node.perm = perm);
            });
        };
        let ino = self.history.ino(file);
        self.step(change, |fs| fs.setattr(ino, set, ROOT_USER).map(|_| ()))
    }

    fn write(&mut self, file: File, offset: u64, len: usize) -> Done {
        self.serial += 1;
        let data = pattern(self.serial, len);
        let at = usize::try_from(offset).unwrap();
        let change = |history: &mut History| {
            history.change(file, |bytes| {
                bytes.resize(bytes.len().max(at + len), 0);
                bytes[at..at + len].copy_from_slice(&data);
            });
        };
        let ino = self.history.ino(file);
        self.step(change, |fs| {
            fs.write(ino, offset, &data, CACHED).map(|_| ())
        })
    }

    fn truncate(&mut self, file: File, size: u64) -> Done {
        let len = usize::try_from(size).unwrap();
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let ino = self.history.ino(file);
        self.step(
            |history| history.change(file, |bytes| bytes.resize(len, 0)),
            |fs| fs.setattr(ino, set, ROOT_USER).map(|_| ()),
        )
    }

    fn punch(&mut self, file: File, begin: u64, end: u64) -> Done {
        let range = usize::try_from(begin).unwrap()..usize::try_from(end).unwrap();
        let change = |history: &mut History| {
            history.change(file, |bytes| {
                let end = range.end.min(bytes.len());
                let begin = range.start.min(end);
                bytes[begin..end].fill(0);
            });
        };
        let ino = self.history.ino(file);
        self.step(change, |fs| fs.punch(ino, begin..end, false))
    }

    fn fsync(&mut self, file: File) -> Done {
        let ino = self.history.ino(file);
        self.step(|_| (), |fs| fs.fsync(ino))?;
        self.history.acknowledge(file);
        Ok(())
    }

    /// Makes everything durable.
    pub(in super::super) fn sync_all(&mut self) -> Done {
        self.step(|_| (), sync_all)?;
        self.history.acknowledge_all();
        Ok(())
    }

    fn checkpoint(&mut self) -> Done {
        self.step(|_| (), checkpoint)?;
        self.history.acknowledge_all();
        Ok(())
    }

    fn remount(&mut self) -> Done {
        self.sync_all()?;
        self.history.begin();
        let closed = self.volume.take().unwrap().close();
        closed.map_err(|_| FsError::Failed("the volume is not closed"))?;
        let opened = (self.opening)();
        self.volume = Some(opened.map_err(|_| FsError::Failed("the volume is not opened"))?);
        self.history.end(self.store.call_count());
        Ok(())
    }

    /// The directory that a path is in, and the name there.
    fn place(&self, path: &str) -> (Ino, String) {
        let (dir, name) = path.rsplit_once('/').unwrap();
        let parent = match self.history.names().get(dir) {
            Some(node) => self.history.ino(node.file),
            None => Ino::ROOT,
        };
        (parent, name.into())
    }

    fn paths(&self, kind: FileKind) -> Vec<String> {
        let names = self.history.names().iter();
        let kinds = names.filter(|(_, node)| node.kind == kind);
        kinds.map(|(path, _)| path.clone()).collect()
    }

    fn pick(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<String> {
        let names = self.history.names().iter();
        let some: Vec<String> = names
            .filter(|(_, node)| wanted(node))
            .map(|(path, _)| path.clone())
            .collect();
        let at = self.roll(some.len().max(1));
        some.get(at).cloned()
    }

    fn two_files(&mut self) -> Option<(String, String)> {
        let regular = |node: &Node| node.kind == FileKind::Regular;
        let (from, to) = (self.pick(regular)?, self.pick(regular)?);
        let names = self.history.names();
        // Two names of one file stay as they are.
        (names[&from].file != names[&to].file).then_some((from, to))
    }

    fn roll(&mut self, sides: usize) -> usize {
        usize::try_from(self.dice.roll(sides as u64)).unwrap()
    }
}
