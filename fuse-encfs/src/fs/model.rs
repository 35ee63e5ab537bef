//! Core: a filesystem that is nothing but maps, and operations to run on it and on the real one.
//! For tests.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a model that contradicts itself must stop the test"
)]

use std::collections::BTreeMap;

use crate::error::FsError;
use crate::format::{FileKind, Ino, Timestamp};
use crate::fs::{Fs, NewEntry, RenameRule, Seek, SetAttr};
use crate::testing::{CACHED, DIRECTORY, FILE, ROOT_USER, Shown, pattern};
use crate::xattr::SetRule;

/// A path of one to three short names.
pub(crate) type Path = Vec<u8>;

/// An operation on both.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Allocate(Path, u32, u32, bool),
    Chmod(Path, u16),
    Clean,
    Copy {
        from: (Path, u32),
        to: (Path, u32),
        len: u32,
    },
    Crash,
    Create(Path),
    Fsync(Path),
    /// Opens a file, and keeps it open also when it loses its name.
    Hold(Path),
    Link(Path, Path),
    Mkdir(Path),
    Punch(Path, u32, u32),
    /// Closes all that is held.
    Release,
    Remount,
    RemoveXattr(Path, u8),
    Rename(Path, Path, RenameRule),
    Rmdir(Path),
    SetMtime(Path, i64),
    SetXattr {
        path: Path,
        name: u8,
        len: u32,
        seed: u8,
    },
    Symlink(Path, u8),
    Truncate(Path, u32),
    Unlink(Path),
    Write {
        path: Path,
        offset: u32,
        len: u32,
        seed: u8,
    },
    /// Writes to the beginning of all that is held.
    WriteHeld(u32, u8),
    Zero(Path, u32, u32, bool),
}

/// What of an inode is not its contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Details {
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The modification time, where it was set by hand and is still so.
    mtime: Option<i64>,
}

/// Runs an operation on the real filesystem, as the kernel would: names are looked up, and
/// forgotten when it is done, but for those of files that are `held`.
#[expect(clippy::too_many_lines, reason = "a table of the operations")]
pub(crate) fn run(fs: &Fs, held: &mut Vec<Ino>, op: &Op) -> Result<(), FsError> {
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
    let range = |at: u32, n: u32| u64::from(at)..u64::from(at + n);
    match op {
        Op::Allocate(path, at, n, grow) => fs.allocate(find(path)?, range(*at, *n), *grow),
        Op::Copy { from, to, len } => {
            let (from, to) = ((find(&from.0)?, from.1.into()), (find(&to.0)?, to.1.into()));
            fs.copy_range(from, to, (*len).into()).map(|_| ())
        }
        Op::Hold(path) => {
            let ino = find(path)?;
            if fs.getattr(ino)?.kind != FileKind::Regular {
                return Err(FsError::Invalid);
            }
            fs.count_lookup(ino);
            held.push(ino);
            Ok(())
        }
        Op::Release => {
            held.drain(..).for_each(|ino| fs.forget(ino, 1));
            Ok(())
        }
        Op::RemoveXattr(path, name) => fs.remove_xattr(find(path)?, &xattr_name(*name), ROOT_USER),
        Op::SetMtime(path, secs) => {
            let mtime = Timestamp {
                secs: *secs,
                nanos: 7,
            };
            set(
                path,
                SetAttr {
                    mtime: Some(mtime),
                    ..SetAttr::default()
                },
            )
        }
        Op::SetXattr {
            path,
            name,
            len,
            seed,
        } => {
            let value = pattern((*seed).into(), *len as usize);
            let name = xattr_name(*name);
            fs.set_xattr(find(path)?, &name, &value, SetRule::Any, ROOT_USER)
        }
        Op::WriteHeld(len, seed) => {
            let data = pattern((*seed).into(), *len as usize);
            held.iter()
                .try_for_each(|ino| fs.write(*ino, 0, &data, CACHED).map(|_| ()))
        }
        Op::Zero(path, at, n, grow) => fs.zero(find(path)?, range(*at, *n), *grow),
        Op::Chmod(path, perm) => set(
            path,
            SetAttr {
                perm: Some(*perm),
                ..SetAttr::default()
            },
        ),
        Op::Clean => {
            fs.sync()?;
            fs.journal().clean_all()
        }
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
        Op::Punch(path, at, n) => fs.punch(find(path)?, range(*at, *n), false),
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

fn xattr_name(name: u8) -> Vec<u8> {
    format!("user.{name}").into_bytes()
}

/// What of an inode is not its contents, with what must hold of any file: a hole is nothing but
/// zeros, data and holes alternate to its end, and what is not zeros takes blocks.
pub(super) fn details(fs: &Fs, ino: Ino, bytes: &[u8]) -> Details {
    let attr = fs.getattr(ino).unwrap();
    let names = fs.list_xattrs(ino).unwrap().into_iter();
    let xattrs = names
        .map(|name| (name.clone(), fs.get_xattr(ino, &name).unwrap()))
        .collect();
    if attr.kind == FileKind::Regular {
        assert_eq!(attr.size, bytes.len() as u64);
        let count = bytes.iter().filter(|byte| **byte != 0).count();
        assert!(attr.blocks * 512 >= count as u64, "{attr:?}");
        let mut at = 0;
        while at < bytes.len() {
            let data = fs.seek(ino, at as u64, Seek::Data);
            let hole = match data {
                Ok(data) => at..usize::try_from(data).unwrap(),
                Err(FsError::NoData) => at..bytes.len(),
                Err(e) => panic!("{e}"),
            };
            assert!(
                bytes[hole.clone()].iter().all(|byte| *byte == 0),
                "{hole:?}"
            );
            at = hole.end;
            if at < bytes.len() {
                let end = usize::try_from(fs.seek(ino, at as u64, Seek::Hole).unwrap()).unwrap();
                assert!(end > at && end <= bytes.len(), "{end} behind {at}");
                at = end;
            }
        }
    }
    let is_file = attr.kind == FileKind::Regular;
    let by_hand = is_file && attr.mtime.nanos == 7 && attr.mtime.secs.abs() < 100;
    Details {
        xattrs,
        mtime: by_hand.then_some(attr.mtime.secs),
    }
}

/// The model.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    nodes: BTreeMap<u32, Node>,
    next: u32,
    held: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Node {
    perm: u16,
    body: Body,
    details: Details,
}

#[derive(Debug, Clone)]
enum Body {
    Directory(BTreeMap<u8, u32>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Whiteout,
}

impl Default for Model {
    fn default() -> Self {
        let root = Node {
            perm: 0o755,
            body: Body::Directory(BTreeMap::new()),
            details: Details::default(),
        };
        Self {
            nodes: BTreeMap::from([(0, root)]),
            next: 1,
            held: Vec::new(),
        }
    }
}

impl Model {
    /// Runs an operation and says whether it succeeds.
    pub(crate) fn run(&mut self, op: &Op) -> bool {
        self.try_run(op).is_some()
    }

    /// What `details` gives of a path, with the contents.
    pub(super) fn details(&self, path: &str) -> Details {
        let path: Vec<u8> = path
            .bytes()
            .filter(|byte| *byte != b'/')
            .map(|c| c - b'a')
            .collect();
        self.nodes[&self.find(&path).unwrap()].details.clone()
    }

    /// Contents of what is held, in the order in which it was opened.
    pub(super) fn held(&self) -> Vec<Vec<u8>> {
        let contents = |id: &u32| match &self.nodes[id].body {
            Body::File(bytes) => bytes.clone(),
            other => panic!("{other:?} is held"),
        };
        self.held.iter().map(contents).collect()
    }

    /// The mount ends, and with it all that is held.
    pub(crate) fn end(&mut self) {
        self.held.clear();
    }

    /// Everything below the root, as the real one shows it.
    pub(crate) fn walk(&self) -> BTreeMap<String, Shown> {
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
                    Body::Whiteout => (FileKind::CharDevice, self.links(*id), Vec::new()),
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
            Body::File(_) | Body::Symlink(_) | Body::Whiteout => None,
        }
    }

    fn entries_mut(&mut self, id: u32) -> Option<&mut BTreeMap<u8, u32>> {
        match &mut self.nodes.get_mut(&id)?.body {
            Body::Directory(entries) => Some(entries),
            Body::File(_) | Body::Symlink(_) | Body::Whiteout => None,
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
        self.contents(id)
    }

    fn contents(&mut self, id: u32) -> Option<&mut Vec<u8>> {
        match &mut self.nodes.get_mut(&id)?.body {
            Body::File(bytes) => Some(bytes),
            Body::Directory(_) | Body::Symlink(_) | Body::Whiteout => None,
        }
    }

    /// A file whose modification time changes now.
    fn touched(&mut self, path: &[u8]) -> Option<&mut Vec<u8>> {
        let id = self.find(path)?;
        self.contents(id)?;
        self.nodes.get_mut(&id)?.details.mtime = None;
        self.contents(id)
    }

    /// The attributes of what may have any of the user's.
    fn xattrs(&mut self, path: &[u8]) -> Option<&mut BTreeMap<Vec<u8>, Vec<u8>>> {
        let id = self.find(path)?;
        let node = self.nodes.get_mut(&id)?;
        match node.body {
            Body::Directory(_) | Body::File(_) => Some(&mut node.details.xattrs),
            Body::Symlink(_) | Body::Whiteout => None,
        }
    }

    fn copy(&mut self, from: &(Path, u32), to: &(Path, u32), len: u32) -> Option<()> {
        let (source, target) = (self.find(&from.0)?, self.find(&to.0)?);
        let bytes = self.contents(source)?.clone();
        self.contents(target)?;
        let (at, there) = (from.1 as usize, to.1 as usize);
        let len = (len as usize).min(bytes.len().saturating_sub(at));
        if len == 0 {
            return Some(());
        }
        if source == target && at < there + len && there < at + len {
            return None;
        }
        let out = self.touched(&to.0)?;
        out.resize(out.len().max(there + len), 0);
        out[there..there + len].copy_from_slice(&bytes[at..at + len]);
        Some(())
    }

    fn make(&mut self, path: &[u8], perm: u16, body: Body) -> Option<()> {
        let (parent, name) = self.above(path)?;
        let id = self.next;
        let entries = self.entries_mut(parent)?;
        if entries.contains_key(&name) {
            return None;
        }
        entries.insert(name, id);
        let details = Details::default();
        self.nodes.insert(
            id,
            Node {
                perm,
                body,
                details,
            },
        );
        self.next += 1;
        Some(())
    }

    #[expect(clippy::too_many_lines, reason = "a table of the operations")]
    fn try_run(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::Allocate(path, at, n, grow) => {
                let (len, end) = (self.file(path)?.len(), (*at + *n) as usize);
                if *grow && end > len {
                    self.touched(path)?.resize(end, 0);
                }
            }
            Op::Copy { from, to, len } => self.copy(from, to, *len)?,
            Op::Hold(path) => {
                let id = self.find(path)?;
                self.contents(id)?;
                self.held.push(id);
            }
            Op::Release => self.held.clear(),
            Op::RemoveXattr(path, name) => {
                self.xattrs(path)?.remove(&xattr_name(*name))?;
            }
            Op::SetMtime(path, secs) => {
                let id = self.find(path)?;
                let node = self.nodes.get_mut(&id)?;
                // Directories change theirs with their entries; there it is not followed.
                if let Body::File(_) = node.body {
                    node.details.mtime = Some(*secs);
                }
            }
            Op::SetXattr {
                path,
                name,
                len,
                seed,
            } => {
                let value = pattern((*seed).into(), *len as usize);
                self.xattrs(path)?.insert(xattr_name(*name), value);
            }
            Op::WriteHeld(len, seed) => {
                let data = pattern((*seed).into(), *len as usize);
                for id in self.held.clone() {
                    let bytes = self.contents(id)?;
                    bytes.resize(bytes.len().max(data.len()), 0);
                    bytes[..data.len()].copy_from_slice(&data);
                }
            }
            Op::Zero(path, at, n, grow) => {
                let bytes = self.touched(path)?;
                let (begin, end) = (*at as usize, (*at + *n) as usize);
                if *grow {
                    bytes.resize(bytes.len().max(end), 0);
                }
                let len = bytes.len();
                bytes[begin.min(len)..end.min(len)].fill(0);
            }
            Op::Chmod(path, perm) => {
                let id = self.find(path)?;
                self.nodes.get_mut(&id)?.perm = *perm;
            }
            Op::Clean | Op::Crash | Op::Remount => {}
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
                let bytes = self.touched(path)?;
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
            Op::Truncate(path, size) => self.touched(path)?.resize(*size as usize, 0),
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
        if rule == RenameRule::Whiteout {
            self.make(from, 0, Body::Whiteout)?;
        }
        Some(())
    }
}
