//! Adapter: trees in directories.
//!
//! Everything is done from an open directory on, a name at a time, and no symbolic link is ever
//! followed; so depth is not bounded by the length of a path.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{Contents, Item, PIECE, Target, TransferError, Xattrs, joined};
use crate::format::{FileKind, Timestamp};
use crate::sys;

/// Bytes of the names of all attributes of a file, and of a value, as the kernel limits them.
const ATTRIBUTES_MAX: usize = 64 << 10;
const OPEN_DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A new tree in an empty directory.
pub(crate) struct NewTree {
    root: OwnedFd,
    /// Whether owners can be given away.
    is_root: bool,
    /// Directories, whose attributes are set when all is in them.
    directories: Vec<Item>,
    /// What was not taken by the filesystem there.
    pub(crate) not_kept: Vec<(Vec<u8>, &'static str)>,
}

/// A tree that is read.
pub(crate) struct Tree {
    root: OwnedFd,
}

/// Something in a tree that is read.
pub(crate) struct Found {
    pub(crate) item: Item,
    /// What tells it from all others, when it has more than one name.
    pub(crate) shared: Option<(u64, u64)>,
    /// Of a regular file alone.
    pub(crate) file: Option<File>,
}

impl NewTree {
    /// In the directory at `path`, which is made or is empty.
    pub(crate) fn new(path: &Path) -> Result<Self, TransferError> {
        let outside = |e: Errno| TransferError::outside(path.as_os_str().as_bytes(), e);
        match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(outside(e)),
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(outside)?;
        if !names(&root).map_err(outside)?.is_empty() {
            return Err(outside(Errno::NOTEMPTY));
        }
        let (uid, _) = sys::effective_owner();
        Ok(Self {
            root,
            is_root: uid == 0,
            directories: Vec::new(),
            not_kept: Vec::new(),
        })
    }

    fn make(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError> {
        let outside = |e: Errno| TransferError::outside(&item.path, e);
        let (dir, name) = above(&self.root, &item.path).map_err(outside)?;
        let device = rustix::fs::makedev(item.rdev.0, item.rdev.1);
        let node = |kind, device| {
            let private = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(&dir, name, kind, private, device).map_err(outside)
        };
        match item.kind {
            FileKind::Regular => return self.make_file(&dir, name, item, contents),
            FileKind::Directory => {
                let private = Mode::from_raw_mode(0o700);
                rustix::fs::mkdirat(&dir, name, private).map_err(outside)?;
                self.directories.push(item.clone());
                return Ok(());
            }
            FileKind::Symlink => {
                let target = OsStr::from_bytes(&item.target);
                rustix::fs::symlinkat(target, &dir, name).map_err(outside)?;
            }
            FileKind::BlockDevice => node(FileType::BlockDevice, device)?,
            FileKind::CharDevice => node(FileType::CharacterDevice, device)?,
            FileKind::Fifo => node(FileType::Fifo, 0)?,
            FileKind::Socket => node(FileType::Socket, 0)?,
        }
        self.attribute(&dir, name, item)
    }

    fn make_file(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        item: &Item,
        contents: Contents<'_>,
    ) -> Result<(), TransferError> {
        let outside = |e: io::Error| TransferError::outside(&item.path, e);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let private = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, private);
        let file = File::from(file.map_err(|e| outside(e.into()))?);
        let written =
            contents(&mut |at, bytes: &[u8]| file.write_all_at(bytes, at).map_err(outside))
                .and_then(|()| file.set_len(item.size).map_err(outside))
                .and_then(|()| file.sync_all().map_err(outside));
        if let Err(e) = written {
            // What is not whole is not left behind under its name.
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
            return Err(e);
        }
        drop(file);
        self.attribute(dir, name, item)
    }

    /// Sets what is left of the attributes. Owners first, which takes privileges away; times last.
    fn attribute(&mut self, dir: &OwnedFd, name: &OsStr, item: &Item) -> Result<(), TransferError> {
        let outside = |e: Errno| TransferError::outside(&item.path, e);
        let here = AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            let owner = (Uid::from_raw(item.uid), Gid::from_raw(item.gid));
            rustix::fs::chownat(dir, name, Some(owner.0), Some(owner.1), here).map_err(outside)?;
        }
        if item.kind != FileKind::Symlink {
            let mode = Mode::from_raw_mode(item.perm.into());
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).map_err(outside)?;
        }
        let path = through(dir, name);
        for (attribute, value) in &item.xattrs {
            let attribute =
                CString::new(attribute.as_slice()).map_err(|_| outside(Errno::INVAL))?;
            match rustix::fs::lsetxattr(&path, &attribute, value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::NOTSUP | Errno::NOSPC | Errno::TOOBIG | Errno::ACCESS) => {
                    let why = "an extended attribute is not taken there";
                    self.not_kept.push((item.path.clone(), why));
                }
                Err(e) => return Err(outside(e)),
            }
        }
        let times = Timestamps {
            last_access: timespec(item.atime),
            last_modification: timespec(item.mtime),
        };
        rustix::fs::utimensat(dir, name, &times, here).map_err(outside)
    }
}

impl Target for NewTree {
    fn put(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError> {
        if item.path.is_empty() {
            self.directories.push(item.clone());
            return Ok(());
        }
        self.make(item, contents)
    }

    fn link(&mut self, path: &[u8], first: &[u8]) -> Result<(), TransferError> {
        let outside = |e: Errno| TransferError::outside(path, e);
        let (from, old) = above(&self.root, first).map_err(outside)?;
        let (to, new) = above(&self.root, path).map_err(outside)?;
        rustix::fs::linkat(&from, old, &to, new, AtFlags::empty()).map_err(outside)
    }

    fn end(&mut self) -> Result<(), TransferError> {
        // What is in a directory before the directory itself.
        for item in std::mem::take(&mut self.directories).into_iter().rev() {
            let outside = |e: Errno| TransferError::outside(&item.path, e);
            if item.path.is_empty() {
                let root = rustix::fs::openat(&self.root, ".", OPEN_DIRECTORY, Mode::empty());
                self.attribute(&root.map_err(outside)?, OsStr::new("."), &item)?;
            } else {
                let (dir, name) = above(&self.root, &item.path).map_err(outside)?;
                self.attribute(&dir, name, &item)?;
            }
        }
        rustix::fs::syncfs(&self.root).map_err(|e| TransferError::outside(b"", e))
    }

    fn is_stream(&self) -> bool {
        false
    }
}

impl Tree {
    /// The tree in the directory at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, TransferError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty());
        let root = root.map_err(|e| TransferError::outside(path.as_os_str().as_bytes(), e))?;
        Ok(Self { root })
    }

    /// Shows everything in it, a directory before what is in it, the root first.
    pub(crate) fn walk(
        &self,
        see: &mut dyn FnMut(Found) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        see(self.found(b"")?)?;
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let outside = |e: Errno| TransferError::outside(&path, e);
            let dir = open_directory(&self.root, &path).map_err(outside)?;
            for name in names(&dir).map_err(outside)? {
                let path = joined(&path, &name);
                let found = self.found(&path)?;
                let is_directory = found.item.kind == FileKind::Directory;
                see(found)?;
                if is_directory {
                    todo.push(path);
                }
            }
        }
        Ok(())
    }

    fn found(&self, path: &[u8]) -> Result<Found, TransferError> {
        let outside = |e: Errno| TransferError::outside(path, e);
        let (dir, name) = if path.is_empty() {
            let root = rustix::fs::openat(&self.root, ".", OPEN_DIRECTORY, Mode::empty());
            (root.map_err(outside)?, OsStr::new("."))
        } else {
            above(&self.root, path).map_err(outside)?
        };
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(outside)?;
        let mut item = item(path, &stat).ok_or_else(|| outside(Errno::INVAL))?;
        let mut file = None;
        if item.kind == FileKind::Regular {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(outside)?;
            let now = rustix::fs::fstat(&opened).map_err(outside)?;
            if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(outside(Errno::STALE));
            }
            file = Some(File::from(opened));
        }
        if item.kind == FileKind::Symlink {
            let target = rustix::fs::readlinkat(&dir, name, Vec::new()).map_err(outside)?;
            item.target = target.into_bytes();
        }
        item.xattrs = xattrs(&through(&dir, name)).map_err(outside)?;
        let is_shared = stat.st_nlink > 1 && item.kind != FileKind::Directory;
        Ok(Found {
            item,
            shared: is_shared.then_some((stat.st_dev, stat.st_ino)),
            file,
        })
    }
}

/// Shows what a file holds, without its holes.
pub(crate) fn pieces(
    file: &File,
    path: &[u8],
    size: u64,
    pour: super::Pour<'_>,
) -> Result<(), TransferError> {
    let outside = |e: io::Error| TransferError::outside(path, e);
    let (mut at, mut buffer) = (0, vec![0; PIECE]);
    while at < size {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)).unwrap_or(size);
        let end = hole.clamp(data, size);
        at = data;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..len).unwrap_or_default();
            file.read_exact_at(piece, at).map_err(outside)?;
            pour(at, piece)?;
            at += len as u64;
        }
        if data >= size {
            break;
        }
    }
    Ok(())
}

fn item(path: &[u8], stat: &Stat) -> Option<Item> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::Directory => FileKind::Directory,
        FileType::Fifo => FileKind::Fifo,
        FileType::RegularFile => FileKind::Regular,
        FileType::Socket => FileKind::Socket,
        FileType::Symlink => FileKind::Symlink,
        FileType::Unknown => return None,
    };
    let time = |secs, nanos: u64| Timestamp {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    };
    let is_device = matches!(kind, FileKind::BlockDevice | FileKind::CharDevice);
    Some(Item {
        path: path.to_vec(),
        kind,
        perm: u16::try_from(stat.st_mode & 0o7777).ok()?,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: match is_device {
            true => (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            ),
            false => (0, 0),
        },
        size: match kind {
            FileKind::Regular => u64::try_from(stat.st_size).ok()?,
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::Symlink => 0,
        },
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        target: Vec::new(),
        xattrs: Xattrs::new(),
    })
}

fn xattrs(path: &Path) -> Result<Xattrs, Errno> {
    let mut names = vec![0; ATTRIBUTES_MAX];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(e),
    };
    names.truncate(len);
    let mut found = Xattrs::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; ATTRIBUTES_MAX];
        match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(len) => value.truncate(len),
            // Of another system's, which only lists it.
            Err(Errno::NODATA | Errno::NOTSUP) => continue,
            Err(e) => return Err(e),
        }
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// Names in a directory but its own and the one above, sorted.
fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// The directory of a path below `root`, and the last name.
fn above<'a>(root: &OwnedFd, path: &'a [u8]) -> Result<(OwnedFd, &'a OsStr), Errno> {
    let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (dir, name) = path.split_at(slash);
            (dir, name.get(1..).unwrap_or_default())
        }
        None => (&[][..], path),
    };
    Ok((open_directory(root, dir)?, OsStr::from_bytes(name)))
}

fn open_directory(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut dir = rustix::fs::openat(root, ".", OPEN_DIRECTORY, Mode::empty())?;
    for name in path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
    {
        dir = rustix::fs::openat(&dir, OsStr::from_bytes(name), OPEN_DIRECTORY, Mode::empty())?;
    }
    Ok(dir)
}

/// A path for the calls that take no directory, by way of this process's descriptors.
fn through(dir: &OwnedFd, name: &OsStr) -> std::path::PathBuf {
    Path::new("/proc/self/fd")
        .join(dir.as_fd().as_raw_fd().to_string())
        .join(name)
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec {
        tv_sec: time.secs,
        tv_nsec: time.nanos.into(),
    }
}
