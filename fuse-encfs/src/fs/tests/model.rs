//! Core: a filesystem that is nothing but maps, and operations to run on it and on the real one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::error::FsError;
use crate::format::{FileKind, Ino};
use crate::fs::{Fs, NewEntry, RenameRule, SetAttr};
use crate::testing::{CACHED, DIRECTORY, FILE, ROOT_USER, Shown, pattern};

/// A path of one to three short names.
pub(super) type Path = Vec<u8>;

/// An operation on both.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Chmod(Path, u16),
    Crash,
    Create(Path),
    Fsync(Path),
    Link(Path, Path),
    Mkdir(Path),
    Punch(Path, u32, u32),
    Remount,
    Rename(Path, Path, RenameRule),
    Rmdir(Path),
    Symlink(Path, u8),
    Truncate(Path, u32),
    Unlink(Path),
    Write {
        path: Path,
        offset: u32,
        len: u32,
        seed: u8,
    },
}

pub(super) fn any_op() -> impl Strategy<Value = Op> {
    let path = || prop::collection::vec(0..3_u8, 1..=3);
    // Around chunk borders things go wrong first.
    let offset = || {
        prop_oneof![
            0..20_000_u32,
            (0..5_u32).prop_map(|n| n * 4096),
            (1..5_u32).prop_map(|n| n * 4096 - 1)
        ]
    };
    let rule = prop_oneof![
        Just(RenameRule::Replace),
        Just(RenameRule::NoReplace),
        Just(RenameRule::Exchange)
    ];
    let write = (path(), offset(), 0..9000_u32, any::<u8>());
    prop_oneof![
        4 => path().prop_map(Op::Create),
        3 => path().prop_map(Op::Mkdir),
        8 => write.prop_map(|(path, offset, len, seed)| Op::Write { path, offset, len, seed }),
        3 => (path(), offset()).prop_map(|(path, size)| Op::Truncate(path, size)),
        2 => (path(), offset(), 0..9000_u32).prop_map(|(path, at, n)| Op::Punch(path, at, n)),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        4 => (path(), path(), rule).prop_map(|(from, to, rule)| Op::Rename(from, to, rule)),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => (path(), any::<u8>()).prop_map(|(path, target)| Op::Symlink(path, target)),
        1 => (path(), 0..0o1000_u16).prop_map(|(path, perm)| Op::Chmod(path, perm)),
        1 => path().prop_map(Op::Fsync),
        1 => Just(Op::Remount),
        1 => Just(Op::Crash),
    ]
}

/// Runs an operation on the real filesystem, as the kernel would: names are looked up, and
/// forgotten when it is done.
#[expect(clippy::too_many_lines, reason = "a table of the operations")]
pub(super) fn run(fs: &Fs, op: &Op) -> Result<(), FsError> {
    let name = |n: u8| [b'a' + n];
    let find = |path: &[u8]| {
        let mut ino = Ino::ROOT;
        for n in path {
            let found = fs.lookup(ino, &name(*n))?.ino;
            fs.forget(found, 1);
            ino = found;
        }
        Ok::<_, FsError>(ino)
    };
    let above = |path: &[u8]| {
        let (last, above) = path.split_last().unwrap();
        Ok::<_, FsError>((find(above)?, name(*last)))
    };
    let make = |path: &[u8], new: &NewEntry<'_>| {
        let (parent, name) = above(path)?;
        let made = fs.make(parent, &name, new, ROOT_USER)?;
        fs.forget(made.ino, 1);
        Ok(())
    };
    let set = |path: &[u8], set| fs.setattr(find(path)?, set, ROOT_USER).map(|_| ());
    match op {
        Op::Chmod(path, perm) => set(
            path,
            SetAttr {
                perm: Some(*perm),
                ..SetAttr::default()
            },
        ),
        Op::Crash | Op::Remount => Ok(()),
        Op::Create(path) => make(path, &FILE),
        Op::Fsync(path) => fs.fsync(find(path)?),
        Op::Link(from, to) => {
            let (parent, name) = above(to)?;
            let linked = fs.link(find(from)?, parent, &name)?;
            fs.forget(linked.ino, 1);
            Ok(())
        }
        Op::Mkdir(path) => make(path, &DIRECTORY),
        Op::Punch(path, at, n) => fs.punch(find(path)?, u64::from(*at)..u64::from(*at + *n), false),
        Op::Rename(from, to, rule) => {
            let ((from, old), (to, new)) = (above(from)?, above(to)?);
            fs.rename((from, &old), (to, &new), *rule)
        }
        Op::Rmdir(path) => {
            let (parent, name) = above(path)?;
            fs.rmdir(parent, &name)
        }
        Op::Symlink(path, target) => {
            let target = [b'/', b'a' + target % 26];
            make(
                path,
                &NewEntry {
                    kind: FileKind::Symlink,
                    target: &target,
                    ..FILE
                },
            )
        }
        Op::Truncate(path, size) => set(
            path,
            SetAttr {
                size: Some(u64::from(*size)),
                ..SetAttr::default()
            },
        ),
        Op::Unlink(path) => {
            let (parent, name) = above(path)?;
            fs.unlink(parent, &name)
        }
        Op::Write {
            path,
            offset,
            len,
            seed,
        } => {
            let data = pattern(u64::from(*seed), *len as usize);
            let ino = find(path)?;
            if fs.getattr(ino)?.kind != FileKind::Regular {
                return Err(FsError::Invalid);
            }
            fs.write(ino, u64::from(*offset), &data, CACHED).map(|_| ())
        }
    }
}

/// The model.
#[derive(Debug, Clone)]
pub(super) struct Model {
    nodes: BTreeMap<u32, Node>,
    next: u32,
}

#[derive(Debug, Clone)]
struct Node {
    perm: u16,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Directory(BTreeMap<u8, u32>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

impl Default for Model {
    fn default() -> Self {
        let root = Node {
            perm: 0o755,
            body: Body::Directory(BTreeMap::new()),
        };
        Self {
            nodes: BTreeMap::from([(0, root)]),
            next: 1,
        }
    }
}

impl Model {
    /// Runs an operation and says whether it succeeds.
    pub(super) fn run(&mut self, op: &Op) -> bool {
        self.try_run(op).is_some()
    }

    /// Everything below the root, as the real one shows it.
    pub(super) fn walk(&self) -> BTreeMap<String, Shown> {
        let mut shown = BTreeMap::new();
        let mut todo = vec![(0, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for (name, id) in self.entries(dir).unwrap() {
                let path = format!("{path}/{}", char::from(b'a' + name));
                let node = &self.nodes[id];
                let (kind, nlink, bytes) = match &node.body {
                    Body::Directory(entries) => {
                        todo.push((*id, path.clone()));
                        let is_dir = |id: &&u32| self.entries(**id).is_some();
                        let below = entries.values().filter(is_dir).count();
                        (
                            FileKind::Directory,
                            2 + u32::try_from(below).unwrap(),
                            Vec::new(),
                        )
                    }
                    Body::File(bytes) => (FileKind::Regular, self.links(*id), bytes.clone()),
                    Body::Symlink(target) => (FileKind::Symlink, self.links(*id), target.clone()),
                };
                shown.insert(
                    path,
                    Shown {
                        kind,
                        perm: node.perm,
                        nlink,
                        bytes,
                    },
                );
            }
        }
        shown
    }

    fn links(&self, id: u32) -> u32 {
        let directories = self.nodes.keys().filter_map(|id| self.entries(*id));
        let names = directories
            .flat_map(BTreeMap::values)
            .filter(|other| **other == id);
        u32::try_from(names.count()).unwrap()
    }

    fn entries(&self, id: u32) -> Option<&BTreeMap<u8, u32>> {
        match &self.nodes.get(&id)?.body {
            Body::Directory(entries) => Some(entries),
            Body::File(_) | Body::Symlink(_) => None,
        }
    }

    fn entries_mut(&mut self, id: u32) -> Option<&mut BTreeMap<u8, u32>> {
        match &mut self.nodes.get_mut(&id)?.body {
            Body::Directory(entries) => Some(entries),
            Body::File(_) | Body::Symlink(_) => None,
        }
    }

    fn find(&self, path: &[u8]) -> Option<u32> {
        path.iter()
            .try_fold(0, |id, name| self.entries(id)?.get(name).copied())
    }

    fn above(&self, path: &[u8]) -> Option<(u32, u8)> {
        let (last, above) = path.split_last()?;
        let above = self.find(above)?;
        self.entries(above).map(|_| (above, *last))
    }

    fn file(&mut self, path: &[u8]) -> Option<&mut Vec<u8>> {
        let id = self.find(path)?;
        match &mut self.nodes.get_mut(&id)?.body {
            Body::File(bytes) => Some(bytes),
            Body::Directory(_) | Body::Symlink(_) => None,
        }
    }

    fn make(&mut self, path: &[u8], perm: u16, body: Body) -> Option<()> {
        let (parent, name) = self.above(path)?;
        let id = self.next;
        let entries = self.entries_mut(parent)?;
        if entries.contains_key(&name) {
            return None;
        }
        entries.insert(name, id);
        self.nodes.insert(id, Node { perm, body });
        self.next += 1;
        Some(())
    }

    fn try_run(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::Chmod(path, perm) => {
                let id = self.find(path)?;
                self.nodes.get_mut(&id)?.perm = *perm;
            }
            Op::Crash | Op::Remount => {}
            Op::Create(path) => self.make(path, 0o644, Body::File(Vec::new()))?,
            Op::Fsync(path) => {
                self.find(path)?;
            }
            Op::Link(from, to) => {
                let (parent, name) = self.above(to)?;
                let id = self.find(from)?;
                if self.entries(id).is_some() || self.entries(parent)?.contains_key(&name) {
                    return None;
                }
                self.entries_mut(parent)?.insert(name, id);
            }
            Op::Mkdir(path) => self.make(path, 0o755, Body::Directory(BTreeMap::new()))?,
            Op::Punch(path, at, n) => {
                let bytes = self.file(path)?;
                let len = bytes.len();
                let (begin, end) = (*at as usize, (*at + *n) as usize);
                bytes[begin.min(len)..end.min(len)].fill(0);
            }
            Op::Rename(from, to, rule) => self.rename(from, to, *rule)?,
            Op::Rmdir(path) => {
                let (parent, name) = self.above(path)?;
                if !self.entries(self.find(path)?)?.is_empty() {
                    return None;
                }
                self.entries_mut(parent)?.remove(&name);
            }
            Op::Symlink(path, target) => {
                self.make(path, 0o644, Body::Symlink(vec![b'/', b'a' + target % 26]))?;
            }
            Op::Truncate(path, size) => self.file(path)?.resize(*size as usize, 0),
            Op::Unlink(path) => {
                let (parent, name) = self.above(path)?;
                if self.entries(self.find(path)?).is_some() {
                    return None;
                }
                self.entries_mut(parent)?.remove(&name);
            }
            Op::Write {
                path,
                offset,
                len,
                seed,
            } => {
                let bytes = self.file(path)?;
                let (begin, end) = (*offset as usize, (*offset + *len) as usize);
                if *len > 0 {
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[begin..end].copy_from_slice(&pattern(u64::from(*seed), *len as usize));
                }
            }
        }
        Some(())
    }

    fn rename(&mut self, from: &[u8], to: &[u8], rule: RenameRule) -> Option<()> {
        let ((from_dir, old), (to_dir, new)) = (self.above(from)?, self.above(to)?);
        let moved = *self.entries(from_dir)?.get(&old)?;
        let taken = self.entries(to_dir)?.get(&new).copied();
        let is_below = |dir: &[u8], other: &[u8]| dir.len() > other.len() && dir.starts_with(other);
        let is_dir = |id| self.entries(id).is_some();
        if is_dir(moved) && is_below(to, from) {
            return None;
        }
        match (rule, taken) {
            (RenameRule::NoReplace, Some(_)) | (RenameRule::Exchange, None) => return None,
            (RenameRule::Exchange, Some(other)) => {
                if is_dir(other) && is_below(from, to) {
                    return None;
                }
                self.entries_mut(from_dir)?.insert(old, other);
                self.entries_mut(to_dir)?.insert(new, moved);
                return Some(());
            }
            (_, Some(other)) if other == moved => return Some(()),
            (_, Some(other)) => match (is_dir(moved), is_dir(other)) {
                (true, true) if self.entries(other)?.is_empty() => {}
                (false, false) => {}
                _ => return None,
            },
            (_, None) => {}
        }
        self.entries_mut(from_dir)?.remove(&old);
        self.entries_mut(to_dir)?.insert(new, moved);
        Some(())
    }
}
