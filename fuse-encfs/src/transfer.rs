//! Core: taking whole trees out of a volume, and bringing them in.
//!
//! What is taken out comes from the authenticated map alone: no length, time or name is asked of
//! the store. A file that is hurt is left out and named; all others are whole.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use crate::error::{CloseError, FsError, OpenError};
use crate::exit::Exit;
use crate::format::{FileKind, Ino, InodeRecord, Mapped, Timestamp};
use crate::fsck::{Progress, Tell, names};
use crate::offline::Offline;
use crate::segment::ReadError;
use crate::tables::{Dirent, XattrEntry};

pub(crate) mod directory;
pub(crate) mod import;
pub(crate) mod tar;
#[cfg(test)]
mod tests;

/// Contents are compared in blocks of this many bytes; one of zeros is as good as a hole.
const BLOCK: usize = 4096;
/// Bytes of contents that are handed over at once, a multiple of a block.
const PIECE: usize = 1 << 20;
/// Entries or extents that are looked up at once.
const SLICE: usize = 256;

/// Extended attributes with their values.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Anything with a name, without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// From the root of the tree, without a slash at either end; the root's own is empty.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Device number, of devices alone.
    pub(crate) rdev: (u32, u32),
    /// Bytes of a regular file.
    pub(crate) size: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    /// Of a symbolic link alone.
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: Xattrs,
}

/// Takes the contents of a file, ascending.
pub(crate) type Pour<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), TransferError>;
/// Gives the contents of a file: what is not given is zeros.
pub(crate) type Contents<'a> = &'a mut dyn FnMut(Pour<'_>) -> Result<(), TransferError>;

/// Where a tree goes.
pub(crate) trait Target {
    /// Takes something new. A directory comes before what is in it.
    fn put(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError>;
    /// Takes one more name of what has the name `first`.
    fn link(&mut self, path: &[u8], first: &[u8]) -> Result<(), TransferError>;
    /// All is there.
    fn end(&mut self) -> Result<(), TransferError>;
    /// Whether contents that turn out to be hurt cannot be taken back.
    fn is_stream(&self) -> bool;
}

/// Why something was not transferred.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The volume does not open, or not any more.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The volume was not brought to rest.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// A file in the volume is hurt.
    #[error("the store does not hold what was written to it")]
    Hurt,
    /// The volume refuses something.
    #[error("{}: the volume does not take it", names::shown(path))]
    Refused {
        path: Vec<u8>,
        #[source]
        source: FsError,
    },
    /// What is outside of the volume cannot be read or written.
    #[error("{}: it cannot be read or written", names::shown(path))]
    Outside {
        path: Vec<u8>,
        #[source]
        source: io::Error,
    },
    /// An archive is no archive, or has something that is not known here.
    #[error("the archive cannot be read: {0}")]
    Archive(&'static str),
    /// Ended by a signal.
    #[error("it was ended early")]
    Cancelled,
}

/// What was transferred.
#[derive(Debug, Default)]
pub(crate) struct Transferred {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// What was left out, or is not the same on the other side, with the reason.
    pub(crate) left_out: Vec<(Vec<u8>, &'static str)>,
}

/// Takes the whole tree of a volume out.
pub(crate) fn export(
    volume: &Offline,
    target: &mut dyn Target,
    tell: Tell<'_>,
) -> Result<Transferred, TransferError> {
    let mut export = Export {
        volume,
        target,
        tell,
        progress: Progress {
            done: 0,
            total: volume.tables().counters().live,
        },
        first_names: BTreeMap::new(),
        done: Transferred::default(),
    };
    export.put(Ino::ROOT, &[])?;
    let mut way = vec![Listing::of(Ino::ROOT, Vec::new())];
    while let Some(listing) = way.last_mut() {
        let Some(entry) = export.next(listing)? else {
            way.pop();
            continue;
        };
        let path = joined(&listing.path, &entry.name);
        if export.put(entry.ino, &path)? == Some(FileKind::Directory) {
            // What is in a directory follows it: tar(1) sets its times when something else comes.
            way.push(Listing::of(entry.ino, path));
        }
    }
    export.target.end()?;
    Ok(export.done)
}

/// A directory whose entries are being put.
struct Listing {
    dir: Ino,
    path: Vec<u8>,
    /// The last entry that was read.
    cookie: u64,
    entries: VecDeque<Dirent>,
    /// Whether no more are to be read.
    is_over: bool,
}

impl Listing {
    fn of(dir: Ino, path: Vec<u8>) -> Self {
        Self {
            dir,
            path,
            cookie: 0,
            entries: VecDeque::new(),
            is_over: false,
        }
    }
}

struct Export<'a> {
    volume: &'a Offline,
    target: &'a mut dyn Target,
    tell: Tell<'a>,
    progress: Progress,
    /// Of files with more than one name.
    first_names: BTreeMap<Ino, Vec<u8>>,
    done: Transferred,
}

impl Export<'_> {
    /// The next entry of a directory.
    fn next(&mut self, listing: &mut Listing) -> Result<Option<Dirent>, TransferError> {
        if listing.entries.is_empty() && !listing.is_over {
            // A slice at a time: a directory may be larger than memory.
            let Listing {
                dir,
                cookie,
                entries,
                ..
            } = &mut *listing;
            let listed = self
                .volume
                .tables()
                .entries_after(*dir, *cookie, |at, entry| {
                    *cookie = at;
                    entries.push_back(entry);
                    match entries.len() {
                        ..SLICE => ControlFlow::Continue(()),
                        _ => ControlFlow::Break(()),
                    }
                });
            listing.is_over = listing.entries.len() < SLICE;
            match listed {
                Ok(()) => {}
                Err(ReadError::Tampered) => {
                    listing.is_over = true;
                    self.leave_out(&listing.path, "names in it are lost");
                }
                Err(e @ ReadError::Store(_)) => return Err(OpenError::from(e).into()),
            }
        }
        Ok(listing.entries.pop_front())
    }

    /// Puts what has a name, and gives what it is when it was put.
    fn put(&mut self, ino: Ino, path: &[u8]) -> Result<Option<FileKind>, TransferError> {
        if let Some(first) = self.first_names.get(&ino) {
            self.target.link(path, first)?;
            return Ok(None);
        }
        let record = match self.volume.tables().inode(ino) {
            Ok(Some(record)) => record,
            Ok(None) | Err(ReadError::Tampered) => {
                self.leave_out(path, "it is lost");
                return Ok(None);
            }
            Err(e @ ReadError::Store(_)) => return Err(OpenError::from(e).into()),
        };
        let put = item(self.volume, ino, path, &record)
            .and_then(|item| self.put_item(ino, &item, &record));
        match put {
            Ok(()) => {}
            Err(TransferError::Hurt) => {
                self.leave_out(path, "it is hurt");
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        self.done.files += 1;
        if record.nlink > 1 && record.kind != FileKind::Directory {
            self.first_names.insert(ino, path.to_vec());
        }
        Ok(Some(record.kind))
    }

    fn put_item(
        &mut self,
        ino: Ino,
        item: &Item,
        record: &InodeRecord,
    ) -> Result<(), TransferError> {
        let volume = self.volume;
        if self.target.is_stream() {
            contents(volume, ino, record, &mut |_, _| Ok(()))?;
        }
        let (tell, progress, done) = (&mut self.tell, &mut self.progress, &mut self.done);
        self.target.put(item, &mut |pour| {
            contents(volume, ino, record, &mut |at, bytes| {
                progress.done = progress.done.saturating_add(bytes.len() as u64);
                done.bytes = done.bytes.saturating_add(bytes.len() as u64);
                if tell(*progress).is_break() {
                    return Err(TransferError::Cancelled);
                }
                pour(at, bytes)
            })
        })
    }

    fn leave_out(&mut self, path: &[u8], why: &'static str) {
        self.done.left_out.push((path.to_vec(), why));
    }
}

/// What an inode is, with its attributes.
fn item(
    volume: &Offline,
    ino: Ino,
    path: &[u8],
    record: &InodeRecord,
) -> Result<Item, TransferError> {
    let mut xattrs = Xattrs::new();
    if record.xattrs > 0 {
        let mut found = Vec::new();
        let tables = volume.tables();
        tables.xattrs(ino, |name, entry| found.push((name.to_vec(), entry)))?;
        for (name, entry) in found {
            let value = match entry {
                XattrEntry::Inline(value) => value,
                XattrEntry::Extents { map, len } => volume.value(map, len)?,
            };
            xattrs.insert(name, value);
        }
    }
    let is_link = record.kind == FileKind::Symlink;
    let is_file = record.kind == FileKind::Regular;
    let dev = u64::from(record.rdev);
    Ok(Item {
        path: path.to_vec(),
        kind: record.kind,
        perm: record.perm,
        uid: record.uid,
        gid: record.gid,
        rdev: split_device(dev),
        size: if is_file { record.size } else { 0 },
        atime: record.atime,
        mtime: record.mtime,
        target: if is_link {
            record.inline.clone()
        } else {
            Vec::new()
        },
        xattrs,
    })
}

/// Shows what a file holds, all of it authenticated.
fn contents(
    volume: &Offline,
    ino: Ino,
    record: &InodeRecord,
    pour: Pour<'_>,
) -> Result<(), TransferError> {
    if record.kind != FileKind::Regular {
        return Ok(());
    }
    if !record.inline.is_empty() {
        pour(0, &record.inline)?;
    }
    let (mut at, mut scratch) = (0, Vec::new());
    loop {
        let mut extents = Vec::new();
        let range = at..record.size;
        volume.tables().mapped(ino, &range, |start, mapped| {
            at = start.saturating_add(mapped.live());
            if let Mapped::Data(extent) = mapped {
                extents.push((start, extent));
            }
            match extents.len() {
                ..SLICE => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
        let is_last = extents.len() < SLICE;
        for (start, extent) in extents {
            let mut bytes = vec![0; extent.live as usize];
            volume.read(&extent, 0, &mut bytes, &mut scratch)?;
            pour(start, &bytes)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// What tells two things apart that have the same path: everything about them but the access time
/// and the number of names.
pub(crate) struct Fingerprint {
    hash: Sha256,
    /// What is not a whole block yet, and where it begins.
    rest: Vec<u8>,
    at: u64,
}

impl Fingerprint {
    /// Begins with what something is.
    pub(crate) fn new(item: &Item) -> Self {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(&[item.kind.code()]);
        let is_link = item.kind == FileKind::Symlink;
        field(&if is_link { 0 } else { item.perm }.to_le_bytes());
        for n in [
            item.uid,
            item.gid,
            item.rdev.0,
            item.rdev.1,
            item.mtime.nanos,
        ] {
            field(&n.to_le_bytes());
        }
        field(&item.mtime.secs.to_le_bytes());
        field(&item.size.to_le_bytes());
        field(&item.target);
        for (name, value) in &item.xattrs {
            field(name);
            field(value);
        }
        Self {
            hash,
            rest: Vec::new(),
            at: 0,
        }
    }

    /// Goes on with contents, ascending.
    pub(crate) fn add(&mut self, at: u64, mut bytes: &[u8]) {
        let end = self.at.saturating_add(self.rest.len() as u64);
        if at != end {
            let block = at - at % BLOCK as u64;
            if block > self.at {
                self.end_block();
                self.at = block;
            }
            let gap = usize::try_from(at.saturating_sub(self.at)).unwrap_or(0);
            self.rest.resize(gap.min(BLOCK), 0);
        }
        while !bytes.is_empty() {
            let room = BLOCK.saturating_sub(self.rest.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.rest.extend(now);
            bytes = later;
            if self.rest.len() == BLOCK {
                self.end_block();
            }
        }
    }

    /// What came of it.
    pub(crate) fn end(mut self) -> [u8; 32] {
        self.end_block();
        self.hash.finalize().into()
    }

    fn end_block(&mut self) {
        self.rest.resize(BLOCK, 0);
        if self.rest.iter().any(|byte| *byte != 0) {
            self.hash.update(self.at.to_le_bytes());
            self.hash.update(&self.rest);
        }
        self.rest.clear();
        self.at = self.at.saturating_add(BLOCK as u64);
    }
}

impl TransferError {
    pub(super) fn outside(path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Outside {
            path: path.to_vec(),
            source: source.into(),
        }
    }

    /// Its stable name, as in docs/errors.md.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Archive(_) => "fs.archive",
            Self::Cancelled => "fs.cancelled",
            Self::Close(e) => e.code(),
            Self::Hurt => "fs.tampered",
            Self::Open(e) => e.code(),
            Self::Outside { .. } => "fs.outside",
            Self::Refused { .. } => "fs.import_refused",
        }
    }

    /// The exit code of a program that ends with it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Archive(_) => Exit::Malformed.code(),
            Self::Cancelled | Self::Outside { .. } => Exit::MountFailed.code(),
            Self::Close(e) => e.exit_code(),
            Self::Hurt => Exit::Tampered.code(),
            Self::Open(e) => e.exit_code(),
            Self::Refused {
                source: FsError::Full,
                ..
            } => Exit::StoreFull.code(),
            Self::Refused { .. } => Exit::MountFailed.code(),
        }
    }
}

impl From<ReadError> for TransferError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Tampered => Self::Hurt,
            e @ ReadError::Store(_) => Self::Open(e.into()),
        }
    }
}

/// A path and a name in it.
pub(crate) fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}

/// Major and minor number, as Linux packs them into 32 bits.
fn split_device(dev: u64) -> (u32, u32) {
    (rustix::fs::major(dev), rustix::fs::minor(dev))
}
