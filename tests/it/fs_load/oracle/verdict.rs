//! Core: whether what a crash left can have come from what a worker did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::history::History;
use super::{Entry, Id, Names, Oracle, State};

/// What a crash left.
#[derive(Debug)]
struct Found {
    names: BTreeMap<String, FoundEntry>,
}

#[derive(Debug, PartialEq, Eq)]
enum FoundEntry {
    Directory,
    File {
        inode: u64,
        links: u64,
        bytes: Vec<u8>,
    },
}

impl Oracle {
    /// Compares what is there with what may be there, and takes it for the truth from now on.
    #[track_caller]
    pub(in crate::fs_load) fn verify(&mut self, root: &Path) {
        self.open.clear();
        let found = Found::read(&root.join(&self.directory));
        let mut refusals = Vec::new();
        for (age, state) in self.states.iter().rev().enumerate() {
            match self.explain(&state.names, &found) {
                Ok(()) => return self.adopt(found),
                Err(why) => refusals.push(format!("{age} changes of names ago: {why}")),
            }
        }
        panic!(
            "{}: nothing explains what the crash left:\n{}\ndone {}\nfound {:?}",
            self.directory,
            refusals.join("\n"),
            self.trail.join("; "),
            found.names.keys().collect::<Vec<_>>()
        );
    }

    fn explain(&self, names: &Names, found: &Found) -> Result<(), String> {
        if !names.keys().eq(found.names.keys()) {
            return Err(format!("the names were {:?}", names.keys()));
        }
        let mut inodes = BTreeMap::new();
        for ((name, entry), found) in names.iter().zip(found.names.values()) {
            let (id, since, inode, links, bytes) = match (entry, found) {
                (Entry::Directory { .. }, FoundEntry::Directory) => continue,
                (
                    Entry::File { id, since },
                    FoundEntry::File {
                        inode,
                        links,
                        bytes,
                    },
                ) => (id, *since, *inode, *links, bytes),
                _ => return Err(format!("{name} is of another kind")),
            };
            let names_of_it = names.values().filter(|entry| entry.id() == *id);
            if links != names_of_it.count() as u64 {
                return Err(format!("{name} has {links} links"));
            }
            let history = &self.files[id];
            let known = *inodes
                .entry(*id)
                .or_insert_with(|| history.inode.unwrap_or(inode));
            if known != inode {
                return Err(format!("{name} is inode {inode}, was {known}"));
            }
            history
                .explain(since, bytes)
                .map_err(|why| format!("{name} (file {id}): {why}"))?;
        }
        let distinct: BTreeSet<&u64> = inodes.values().collect();
        if distinct.len() != inodes.len() {
            return Err("two files have become one".to_owned());
        }
        Ok(())
    }

    fn adopt(&mut self, found: Found) {
        let mut names = Names::new();
        let mut ids: BTreeMap<u64, Id> = BTreeMap::new();
        self.files.clear();
        for (name, entry) in found.names {
            let FoundEntry::File { inode, bytes, .. } = entry else {
                let id = self.new_id();
                names.insert(name, Entry::Directory { id });
                continue;
            };
            let id = *ids.entry(inode).or_insert(self.next_id);
            self.next_id = self.next_id.max(id + 1);
            names.insert(name, Entry::File { id, since: 0 });
            let history = History {
                inode: Some(inode),
                versions: vec![(self.step, bytes)],
                ..History::default()
            };
            self.files.insert(id, history);
        }
        let changed = Vec::new();
        self.states = vec![State { names, changed }];
        self.trail = vec![format!("found {:?}", self.now())];
    }
}

impl Found {
    fn read(base: &Path) -> Self {
        let mut names = BTreeMap::new();
        let mut folders: Vec<PathBuf> = vec![base.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(base).unwrap().to_str().unwrap();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let found = if metadata.is_dir() {
                    folders.push(path.clone());
                    FoundEntry::Directory
                } else {
                    FoundEntry::File {
                        inode: metadata.ino(),
                        links: metadata.nlink(),
                        bytes: fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}")),
                    }
                };
                let before = names.insert(name.to_owned(), found);
                assert!(before.is_none(), "{name} is listed twice");
            }
        }
        Self { names }
    }
}
