//! Core: what a volume may show after a crash, told from what was done and what was acknowledged.
//!
//! **Names** go forward together: a crash leaves those after some operation. An fsync acknowledges
//! the last operation on its file and all before it, names of other files too. **Contents** go
//! forward file by file: each is that after some operation on the file, and never of one before
//! its own last fsync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::format::{FileKind, Ino};
use crate::fs::Fs;

/// How finely the contents of one file may be mixed of what it was since its last fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Grain {
    /// Not at all: operations on a file become durable in their order.
    Operation,
    /// Byte by byte, as a log may hold a truncation and not yet the write before it.
    Byte,
}

/// What this filesystem promises.
const GRAIN: Grain = Grain::Operation;

/// Number of an operation, in order.
type Step = usize;

/// Number of a file in the history.
pub(in super::super) type File = usize;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Node {
    pub(in super::super) kind: FileKind,
    pub(in super::super) perm: u16,
    /// Target of a symbolic link.
    pub(in super::super) target: Vec<u8>,
    pub(in super::super) file: File,
}

pub(in super::super) type Names = BTreeMap<String, Node>;

/// What is found at a path after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Found {
    pub(in super::super) ino: Ino,
    pub(in super::super) kind: FileKind,
    perm: u16,
    nlink: u32,
    /// Contents of a file, or target of a link.
    pub(in super::super) bytes: Vec<u8>,
}

pub(in super::super) type Tree = BTreeMap<String, Found>;

/// All that was done to a volume.
#[derive(Debug)]
pub(in super::super) struct History {
    /// Calls of the store when each operation was over; `None` for one that was not.
    ends: Vec<Option<usize>>,
    names: Vec<(Step, Arc<Names>)>,
    files: Vec<Past>,
    /// Operations that acknowledged something, and up to which operation they did the names.
    acknowledged: Vec<(Step, Step)>,
}

/// All that a file was.
#[derive(Debug)]
struct Past {
    ino: Ino,
    contents: Vec<(Step, Arc<Vec<u8>>)>,
    /// The last operation on it, of whatever kind.
    touched: Step,
    acknowledged: Vec<Step>,
}

impl History {
    /// The history of a new volume, which the store knows of since `calls`.
    pub(in super::super) fn new(calls: usize) -> Self {
        Self {
            ends: vec![Some(calls)],
            names: vec![(0, Arc::default())],
            files: Vec::new(),
            acknowledged: Vec::new(),
        }
    }

    /// An operation begins.
    pub(in super::super) fn begin(&mut self) {
        self.ends.push(None);
    }

    /// The operation that began last is over.
    pub(in super::super) fn end(&mut self, calls: usize) {
        let last = self.ends.len() - 1;
        self.ends[last] = Some(calls);
    }

    /// The operation acknowledged one file.
    pub(in super::super) fn acknowledge(&mut self, file: File) {
        let step = self.step();
        let past = &mut self.files[file];
        past.acknowledged.push(step);
        self.acknowledged.push((step, past.touched));
    }

    /// The operation acknowledged all that was done before it.
    pub(in super::super) fn acknowledge_all(&mut self) {
        let step = self.step();
        self.acknowledged.push((step, step));
        let all = self.files.iter_mut();
        all.for_each(|past| past.acknowledged.push(step));
    }

    /// The operation changes something of a file.
    pub(in super::super) fn touch(&mut self, file: File) {
        self.files[file].touched = self.step();
    }

    /// The operation makes a file, empty as yet.
    pub(in super::super) fn make(&mut self) -> File {
        let step = self.step();
        self.files.push(Past {
            ino: Ino(0),
            contents: vec![(step, Arc::default())],
            touched: step,
            acknowledged: vec![step],
        });
        self.files.len() - 1
    }

    /// Which inode a file is.
    pub(in super::super) fn identify(&mut self, file: File, ino: Ino) {
        self.files[file].ino = ino;
    }

    pub(in super::super) fn ino(&self, file: File) -> Ino {
        self.files[file].ino
    }

    pub(in super::super) fn names(&self) -> &Names {
        &self.names[self.names.len() - 1].1
    }

    /// The operation changes names.
    pub(in super::super) fn rename(&mut self, change: impl FnOnce(&mut Names)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.names.push((self.step(), Arc::new(names)));
    }

    pub(in super::super) fn contents(&self, file: File) -> &[u8] {
        let contents = &self.files[file].contents;
        &contents[contents.len() - 1].1
    }

    /// The operation changes the contents of a file.
    pub(in super::super) fn change(&mut self, file: File, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.contents(file).to_vec();
        change(&mut bytes);
        let step = self.step();
        self.files[file].contents.push((step, Arc::new(bytes)));
        self.touch(file);
    }

    fn step(&self) -> Step {
        self.ends.len() - 1
    }

    /// Whether `tree` may be found after a crash behind the first `calls` calls; what speaks
    /// against it if not.
    pub(in super::super) fn judge(&self, calls: usize, tree: &Tree) -> Result<(), String> {
        let is_over = |end: &Option<usize>| end.is_some_and(|end| end <= calls);
        // An operation that the crash interrupted may be in or not.
        let last = self.ends.iter().take_while(|end| is_over(end)).count();
        let done = last.saturating_sub(1);
        let so_far = self.acknowledged.iter().filter(|(at, _)| *at <= done);
        let floor = so_far.map(|(_, names)| *names).max().unwrap_or(0);
        let mut against = None;
        for (_, names) in window(&self.names, floor, last) {
            let refused = self
                .judge_names(names, tree)
                .map_err(|why| (0, why))
                .and_then(|()| {
                    self.judge_contents(names, tree, (done, last))
                        .map_err(|why| (1, why))
                });
            match refused {
                Ok(()) => return Ok(()),
                // What speaks against the contents is the more telling.
                Err(why) => against = against.max(Some(why)),
            }
        }
        let (_, why) = against.unwrap_or_default();
        Err(format!("{why}; operations {floor} to {last} were possible"))
    }

    /// Whether `tree` may be found on a store that lied about what is durable: names of one time,
    /// and contents of any.
    pub(in super::super) fn judge_after_lies(&self, tree: &Tree) -> Result<(), String> {
        let trusting = Self {
            acknowledged: Vec::new(),
            ends: self.ends.clone(),
            names: self.names.clone(),
            files: self.files.iter().map(Past::unacknowledged).collect(),
        };
        trusting.judge(usize::MAX, tree)
    }

    fn judge_names(&self, names: &Names, tree: &Tree) -> Result<(), String> {
        let (want, have): (BTreeSet<_>, BTreeSet<_>) =
            (names.keys().collect(), tree.keys().collect());
        if want != have {
            let differs: Vec<_> = want.symmetric_difference(&have).collect();
            return Err(format!("names differ in {differs:?}"));
        }
        for (path, node) in names {
            let found = &tree[path];
            let links = names.values().filter(|other| other.file == node.file);
            let is_same = found.kind == node.kind
                && found.perm == node.perm
                && found.ino == self.files[node.file].ino
                && (node.kind == FileKind::Directory
                    || u64::from(found.nlink) == links.count() as u64)
                && (node.kind != FileKind::Symlink || found.bytes == node.target);
            if !is_same {
                return Err(format!("{path} is {found:?}, not {node:?}"));
            }
        }
        Ok(())
    }

    fn judge_contents(
        &self,
        names: &Names,
        tree: &Tree,
        (done, last): (Step, Step),
    ) -> Result<(), String> {
        let regular = |(_, node): &(&String, &Node)| node.kind == FileKind::Regular;
        for (path, node) in names.iter().filter(regular) {
            let past = &self.files[node.file];
            let floor = newest(&past.acknowledged, done);
            let found = &tree[path].bytes;
            let possible: Vec<&[u8]> = window(&past.contents, floor, last)
                .map(|(_, bytes)| bytes.as_slice())
                .collect();
            if !is_possible(found, &possible) {
                let lens: Vec<_> = possible.iter().map(|bytes| bytes.len()).collect();
                let len = found.len();
                let near = possible
                    .iter()
                    .map(|p| p.iter().zip(found).take_while(|(a, b)| a == b).count());
                return Err(format!(
                    "{path} of {len} bytes is none of what it was since operation {floor}, \
                     lengths {lens:?}, equal up to {:?}",
                    near.max()
                ));
            }
        }
        Ok(())
    }
}

impl Past {
    fn unacknowledged(&self) -> Self {
        Self {
            ino: self.ino,
            contents: self.contents.clone(),
            touched: 0,
            acknowledged: Vec::new(),
        }
    }
}

fn is_possible(found: &[u8], possible: &[&[u8]]) -> bool {
    if possible.contains(&found) {
        return true;
    }
    GRAIN == Grain::Byte
        && possible.iter().any(|bytes| bytes.len() == found.len())
        && (0..found.len()).all(|i| possible.iter().any(|bytes| bytes.get(i) == Some(&found[i])))
}

/// The last of these that is not behind `done`.
fn newest(steps: &[Step], done: Step) -> Step {
    steps
        .iter()
        .rev()
        .find(|step| **step <= done)
        .copied()
        .unwrap_or(0)
}

/// What was so at some time from operation `floor` to operation `last`, newest first.
fn window<T>(past: &[(Step, T)], floor: Step, last: Step) -> impl Iterator<Item = &(Step, T)> {
    let begin = past
        .iter()
        .rposition(|(step, _)| *step <= floor)
        .unwrap_or(0);
    let within = past[begin..]
        .iter()
        .take_while(move |(step, _)| *step <= last);
    within.collect::<Vec<_>>().into_iter().rev()
}

/// Everything below the root, by path. What cannot be read is an error.
pub(in super::super) fn look(fs: &Fs) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut todo = vec![(Ino::ROOT, String::new())];
    while let Some((dir, path)) = todo.pop() {
        let mut entries = Vec::new();
        fs.list(dir, 2, |entry| {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            entries.push((format!("{path}/{name}"), entry.attr));
            true
        })
        .map_err(|e| format!("{path}: {e}"))?;
        for (path, attr) in entries {
            if attr.kind == FileKind::Directory {
                todo.push((attr.ino, path.clone()));
            }
            let bytes = contents(fs, attr.ino, attr.kind, attr.size);
            let found = Found {
                ino: attr.ino,
                kind: attr.kind,
                perm: attr.perm,
                nlink: attr.nlink,
                bytes: bytes.map_err(|e| format!("{path}: {e}"))?,
            };
            tree.insert(path, found);
        }
    }
    Ok(tree)
}

fn contents(fs: &Fs, ino: Ino, kind: FileKind, size: u64) -> Result<Vec<u8>, String> {
    let failed = |e: crate::error::FsError| e.to_string();
    match kind {
        FileKind::Symlink => fs.readlink(ino).map_err(failed),
        FileKind::Regular => {
            let mut bytes = vec![0xee; usize::try_from(size).unwrap()];
            let got = fs.read(ino, 0, &mut bytes).map_err(failed)?;
            bytes.truncate(got);
            Ok(bytes)
        }
        FileKind::Directory
        | FileKind::BlockDevice
        | FileKind::CharDevice
        | FileKind::Fifo
        | FileKind::Socket => Ok(Vec::new()),
    }
}

/// The oracle itself finds what it is there to find.
mod tests {
    use super::*;

    /// A file of `a`, acknowledged with call 10, then `bb` by call 20, then `ccc` by call 30.
    fn history() -> History {
        let mut history = History::new(5);
        history.begin();
        let file = history.make();
        history.identify(file, Ino(2));
        history.rename(|names| {
            let node = Node {
                kind: FileKind::Regular,
                perm: 0o644,
                target: Vec::new(),
                file,
            };
            names.insert("/f".into(), node);
        });
        history.change(file, |bytes| *bytes = b"a".to_vec());
        history.end(8);
        history.begin();
        history.acknowledge(file);
        history.end(10);
        for (bytes, end) in [(&b"bb"[..], 20), (b"ccc", 30)] {
            history.begin();
            history.change(file, |now| *now = bytes.to_vec());
            history.end(end);
        }
        history
    }

    #[track_caller]
    fn check(calls: usize, bytes: Option<&[u8]>, want: bool) {
        let found = bytes.map(|bytes| Found {
            ino: Ino(2),
            kind: FileKind::Regular,
            perm: 0o644,
            nlink: 1,
            bytes: bytes.to_vec(),
        });
        let tree = found
            .map(|found| ("/f".into(), found))
            .into_iter()
            .collect();
        let judged = history().judge(calls, &tree);
        assert_eq!(
            judged.is_ok(),
            want,
            "{bytes:?} behind call {calls}: {judged:?}"
        );
    }

    #[test]
    fn a_file_is_what_it_was_between_its_fsync_and_the_crash() {
        check(5, None, true);
        check(6, Some(b"a"), true);
        check(9, None, true);
        check(10, None, false);
        check(10, Some(b""), false);
        check(10, Some(b"a"), true);
        check(15, Some(b"bb"), true);
        check(15, Some(b"ccc"), false);
        check(30, Some(b"a"), true);
        check(30, Some(b"ccc"), true);
        check(30, Some(b"bbc"), false);
        check(30, Some(b"b"), false);
    }
}
