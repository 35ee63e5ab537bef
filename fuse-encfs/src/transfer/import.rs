//! Core: bringing a tree into a volume that nobody has mounted.

use std::collections::BTreeMap;
use std::io::Read;

use super::directory::{Tree, pieces};
use super::tar::{Entry, Reader};
use super::{Contents, Fingerprint, Item, PIECE, Pour, Target, TransferError, Transferred, export};
use crate::error::FsError;
use crate::format::{FileKind, Ino};
use crate::fs::{Caller, Fs, NewEntry, SetAttr, WriteMode};
use crate::fsck::{Progress, Tell};
use crate::offline::Offline;
use crate::xattr::SetRule;

/// Bytes that are brought in before they are made durable.
const SYNC_EVERY: u64 = 64 << 20;
/// What a file without contents counts for in that.
const FILE_COST: u64 = 4096;
const OWNER: Caller = Caller { uid: 0, gid: 0 };
const QUIET: WriteMode = WriteMode {
    kernel_keeps_times: true,
    kills_privileges: false,
};

/// Fingerprints by path.
pub(crate) type Prints = BTreeMap<Vec<u8>, [u8; 32]>;

/// A tree on its way into a volume.
pub(crate) struct Import<'a> {
    fs: &'a Fs,
    tell: Tell<'a>,
    /// Directories, whose attributes are set when all is in them.
    directories: Vec<(Ino, Item)>,
    unsynced: u64,
    done: Transferred,
    /// `None` when nobody is going to compare.
    prints: Option<Prints>,
}

impl<'a> Import<'a> {
    pub(crate) fn new(fs: &'a Fs, verify: bool, tell: Tell<'a>) -> Self {
        Self {
            fs,
            tell,
            directories: Vec::new(),
            unsynced: 0,
            done: Transferred::default(),
            prints: verify.then(Prints::new),
        }
    }

    /// Takes a directory.
    pub(crate) fn tree(&mut self, tree: &Tree) -> Result<(), TransferError> {
        let mut firsts: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        tree.walk(&mut |found| {
            let item = found.item;
            if let Some(shared) = found.shared {
                if let Some(first) = firsts.get(&shared) {
                    return self.link(&item.path, first);
                }
                firsts.insert(shared, item.path.clone());
            }
            self.put(&item, &mut |pour: Pour<'_>| match &found.file {
                Some(file) => pieces(file, &item.path, item.size, pour),
                None => Ok(()),
            })
        })
    }

    /// Takes an archive.
    pub(crate) fn archive(&mut self, reader: &mut Reader<impl Read>) -> Result<(), TransferError> {
        let mut buffer = vec![0; PIECE];
        while let Some(entry) = reader.next()? {
            match entry {
                Entry::Link(path, first) => self.link(&path, &first)?,
                Entry::New(item) => self.put(&item, &mut |pour: Pour<'_>| {
                    let mut at = 0;
                    loop {
                        let got = reader.read(&mut buffer)?;
                        let bytes = buffer.get(..got).unwrap_or_default();
                        if bytes.is_empty() {
                            return Ok(());
                        }
                        // Zeros become holes: an archive does not say which were.
                        if bytes.iter().any(|byte| *byte != 0) {
                            pour(at, bytes)?;
                        }
                        at += got as u64;
                    }
                })?,
            }
        }
        Ok(())
    }

    /// Sets what was put off. Gives what was brought in, and how to know it again.
    pub(crate) fn end(mut self) -> Result<(Transferred, Option<Prints>), TransferError> {
        Target::end(&mut self)?;
        Ok((self.done, self.prints))
    }

    fn new_item(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError> {
        let refused = |source| TransferError::Refused {
            path: item.path.clone(),
            source,
        };
        let print = self.prints.is_some().then(|| Fingerprint::new(item));
        let ino = self.make(item).map_err(refused)?;
        let put = self.fill(ino, item, contents, print);
        self.fs.forget(ino, 1);
        if item.kind == FileKind::Directory && put.is_ok() {
            self.directories.push((ino, item.clone()));
        }
        put?;
        self.done.files += 1;
        self.unsynced += FILE_COST;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.fs.sync().map_err(|e| refused(e.into()))?;
        }
        Ok(())
    }

    fn fill(
        &mut self,
        ino: Ino,
        item: &Item,
        contents: Contents<'_>,
        mut print: Option<Fingerprint>,
    ) -> Result<(), TransferError> {
        let refused = |source| TransferError::Refused {
            path: item.path.clone(),
            source,
        };
        contents(&mut |at, bytes: &[u8]| {
            self.fs.write(ino, at, bytes, QUIET).map_err(refused)?;
            if let Some(print) = &mut print {
                print.add(at, bytes);
            }
            let len = bytes.len() as u64;
            self.done.bytes = self.done.bytes.saturating_add(len);
            self.unsynced = self.unsynced.saturating_add(len);
            let progress = Progress {
                done: self.done.bytes,
                total: 0,
            };
            match (self.tell)(progress).is_break() {
                true => Err(TransferError::Cancelled),
                false => Ok(()),
            }
        })?;
        if item.kind != FileKind::Directory {
            self.attribute(ino, item).map_err(refused)?;
        }
        if let (Some(print), Some(prints)) = (print, &mut self.prints) {
            prints.insert(item.path.clone(), print.end());
        }
        Ok(())
    }

    /// Makes it, or finds a directory that is there. Counts a lookup.
    fn make(&self, item: &Item) -> Result<Ino, FsError> {
        if item.path.is_empty() {
            return self.find(b"");
        }
        let (parent, name) = self.parent(&item.path)?;
        let rdev = rustix::fs::makedev(item.rdev.0, item.rdev.1);
        let new = NewEntry {
            kind: item.kind,
            perm: item.perm,
            umask: 0,
            rdev: u32::try_from(rdev).map_err(|_| FsError::Invalid)?,
            target: &item.target,
        };
        let made = match self.fs.make(parent, name, &new, OWNER) {
            Err(FsError::Exists) if item.kind == FileKind::Directory => {
                self.fs.lookup(parent, name)
            }
            made => made,
        };
        self.fs.forget(parent, 1);
        made.map(|attr| attr.ino)
    }

    /// The directory that a path lies in, which is made if need be, and the last name. Counts a
    /// lookup of it.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(Ino, &'p [u8]), FsError> {
        let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let name = parts.pop().unwrap_or_default();
        let mut at = self.find(b"")?;
        let plain = NewEntry {
            kind: FileKind::Directory,
            perm: 0o755,
            umask: 0,
            rdev: 0,
            target: &[],
        };
        for part in parts {
            let next = match self.fs.lookup(at, part) {
                Err(FsError::NoEntry) => self.fs.make(at, part, &plain, OWNER),
                found => found,
            };
            self.fs.forget(at, 1);
            at = next?.ino;
        }
        Ok((at, name))
    }

    /// What has a path. Counts a lookup.
    fn find(&self, path: &[u8]) -> Result<Ino, FsError> {
        self.fs.count_lookup(Ino::ROOT);
        let mut at = Ino::ROOT;
        for part in path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
        {
            let next = self.fs.lookup(at, part);
            self.fs.forget(at, 1);
            at = next?.ino;
        }
        Ok(at)
    }

    /// Sets attributes: the owner first, which takes privileges away, and times last.
    fn attribute(&self, ino: Ino, item: &Item) -> Result<(), FsError> {
        let is_file = item.kind == FileKind::Regular;
        let owner = SetAttr {
            uid: Some(item.uid),
            gid: Some(item.gid),
            perm: Some(item.perm),
            size: is_file.then_some(item.size),
            ..SetAttr::default()
        };
        self.fs.setattr(ino, owner, OWNER)?;
        for name in self.fs.list_xattrs(ino)? {
            // What it inherited.
            if !item.xattrs.contains_key(&name) {
                self.fs.remove_xattr(ino, &name, OWNER)?;
            }
        }
        for (name, value) in &item.xattrs {
            self.fs.set_xattr(ino, name, value, SetRule::Any, OWNER)?;
        }
        let times = SetAttr {
            atime: Some(item.atime),
            mtime: Some(item.mtime),
            ..SetAttr::default()
        };
        self.fs.setattr(ino, times, OWNER).map(|_| ())
    }
}

impl Target for Import<'_> {
    fn put(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError> {
        self.new_item(item, contents)
    }

    fn link(&mut self, path: &[u8], first: &[u8]) -> Result<(), TransferError> {
        let linked = self.find(first).and_then(|ino| {
            let (parent, name) = self.parent(path)?;
            let linked = self.fs.link(ino, parent, name);
            self.fs.forget(parent, 1);
            self.fs.forget(ino, 1);
            linked.map(|attr| self.fs.forget(attr.ino, 1))
        });
        linked.map_err(|source| TransferError::Refused {
            path: path.to_vec(),
            source,
        })?;
        if let Some(prints) = &mut self.prints {
            let print = prints.get(first).copied();
            prints.extend(print.map(|print| (path.to_vec(), print)));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), TransferError> {
        // What is in a directory before the directory itself.
        for (ino, item) in std::mem::take(&mut self.directories).into_iter().rev() {
            let set = self.attribute(ino, &item);
            set.map_err(|source| TransferError::Refused {
                path: item.path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn is_stream(&self) -> bool {
        false
    }
}

/// Compares a volume with what was brought into it, and gives the paths that differ or are gone.
pub(crate) fn differing(
    volume: &Offline,
    wanted: Prints,
    tell: Tell<'_>,
) -> Result<Vec<Vec<u8>>, TransferError> {
    let mut compare = Compare {
        wanted,
        found: BTreeMap::new(),
    };
    export(volume, &mut compare, tell)?;
    let Compare { wanted, found } = compare;
    let differs =
        |(path, print): (Vec<u8>, [u8; 32])| (found.get(&path) != Some(&print)).then_some(path);
    Ok(wanted.into_iter().filter_map(differs).collect())
}

struct Compare {
    wanted: Prints,
    found: Prints,
}

impl Target for Compare {
    fn put(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError> {
        let mut print = Fingerprint::new(item);
        contents(&mut |at, bytes: &[u8]| {
            print.add(at, bytes);
            Ok(())
        })?;
        self.found.insert(item.path.clone(), print.end());
        Ok(())
    }

    fn link(&mut self, path: &[u8], first: &[u8]) -> Result<(), TransferError> {
        let print = self.found.get(first).copied();
        self.found.extend(print.map(|print| (path.to_vec(), print)));
        Ok(())
    }

    fn end(&mut self) -> Result<(), TransferError> {
        Ok(())
    }

    fn is_stream(&self) -> bool {
        false
    }
}
