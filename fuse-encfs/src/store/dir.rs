//! Adapter: a store that is a directory, one file an object.
//!
//! For development, benchmarks and clusters that are not confidential: on a filesystem that the
//! host made or serves, the adversary's metadata is parsed by the guest's kernel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::sync::{Mutex, RwLock};

use super::lease::FileLease;
use super::{Appendable, Lease, ObjectName, Space, Store, StoreError, holds, read_fully};
use crate::format::{LOG_ALIGNMENT, SegmentKind};
use crate::sys;

/// Open files kept at most. Bounded, because growing a process's table of descriptors stops all
/// of its threads for milliseconds at each doubling.
const FILES_MAX: usize = 192;
/// Newest log segments that can be flushed by two lanes: the one in use and one made ahead, with
/// some to spare.
const LANES_MAX: usize = 4;
const LOCK: &str = "lock";
/// What ext4 puts into every new filesystem.
const LOST_AND_FOUND: &str = "lost+found";

/// A directory as a store.
#[derive(Debug)]
pub(crate) struct DirStore {
    root: PathBuf,
    files: RwLock<BTreeMap<ObjectName, Arc<File>>>,
    replacing: Mutex<()>,
    /// Descriptions of the newest log segments to flush by, two each, never closed while one may
    /// be in use: the kernel tells each of every failed write once, and a new one only of what
    /// nobody was told of.
    lanes: Mutex<VecDeque<(ObjectName, Arc<[File; 2]>)>>,
}

impl DirStore {
    /// Opens the directory `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        let root = root.canonicalize()?;
        if !root.is_dir() {
            return Err(StoreError::NotAnObject);
        }
        Ok(Self {
            root,
            files: RwLock::new(BTreeMap::new()),
            replacing: Mutex::new(()),
            lanes: Mutex::new(VecDeque::new()),
        })
    }

    /// Opens the directory `root`, making it when it is absent.
    pub(crate) fn open_or_make(root: &Path) -> Result<Self, StoreError> {
        match DirBuilder::new().mode(0o700).create(root) {
            Ok(()) => sync_directory(root.parent().filter(|p| !p.as_os_str().is_empty()))?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
        Self::open(root)
    }

    fn path(&self, name: ObjectName) -> PathBuf {
        self.root.join(name.to_string())
    }

    fn file(&self, name: ObjectName) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.files.read().get(&name) {
            return Ok(Arc::clone(file));
        }
        let file = self.open_file(name)?;
        if !file.metadata()?.is_file() {
            return Err(StoreError::NotAnObject);
        }
        Ok(self.keep(name, file))
    }

    fn open_file(&self, name: ObjectName) -> Result<File, StoreError> {
        let mut options = hardened();
        options.read(true).write(true);
        Ok(options.open(self.path(name))?)
    }

    /// Writes and flushes a file that is to become the object `name`.
    fn write_fresh(&self, name: ObjectName, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let fresh = self.root.join(format!("{name}.new"));
        let mut file = hardened()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(fresh)
    }

    fn keep(&self, name: ObjectName, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let mut files = self.files.write();
        if files.len() >= FILES_MAX {
            files.clear();
        }
        files.insert(name, Arc::clone(&file));
        file
    }
}

impl Store for DirStore {
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let fresh = self.write_fresh(name, bytes)?;
        fs::rename(&fresh, self.path(name))?;
        self.files.write().remove(&name);
        sync_directory(Some(&self.root))
    }

    fn put_if_absent(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let fresh = self.write_fresh(name, bytes)?;
        // A link, unlike a rename, never replaces.
        let linked = fs::hard_link(&fresh, self.path(name));
        fs::remove_file(&fresh)?;
        linked?;
        sync_directory(Some(&self.root))
    }

    fn put_if_match(
        &self,
        name: ObjectName,
        current: &[u8],
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        // The lease keeps others away; the lock keeps two threads of this process apart.
        let _one = self.replacing.lock();
        if !holds(self, name, current)? {
            return Err(StoreError::Changed);
        }
        self.put(name, bytes)
    }

    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let file = self.file(name)?;
        if i64::try_from(offset).is_err() {
            return Ok(0);
        }
        read_fully(buffer, |done, rest| {
            file.read_at(rest, offset.saturating_add(done))
        })
    }

    fn len(&self, name: ObjectName) -> Result<u64, StoreError> {
        Ok(self.file(name)?.metadata()?.len())
    }

    fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        self.files.write().remove(&name);
        self.lanes.lock().retain(|(kept, _)| *kept != name);
        fs::remove_file(self.path(name)).map_err(StoreError::from)
    }

    fn list(&self, after: Option<ObjectName>, max: usize) -> Result<Vec<ObjectName>, StoreError> {
        let mut page = BTreeSet::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let name = name
                .to_str()
                .and_then(|name| name.parse::<ObjectName>().ok());
            page.extend(name.filter(|name| after.is_none_or(|after| *name > after)));
            if page.len() > max {
                page.pop_last();
            }
        }
        Ok(page.into_iter().collect())
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            if name != LOCK && name != LOST_AND_FOUND {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn lease(&self, patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let path = self.root.join(LOCK);
        let file = hardened()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        Ok(Box::new(FileLease::take(file, path, 0, patience)?))
    }

    fn space(&self) -> Result<Space, StoreError> {
        let space = sys::space(&self.root)?;
        Ok(Space {
            total: space.total,
            free: space.free,
        })
    }
}

impl Appendable for DirStore {
    fn alignment(&self) -> u16 {
        LOG_ALIGNMENT
    }

    fn create(&self, name: ObjectName, _expected_len: u64) -> Result<(), StoreError> {
        let file = hardened()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(name))?;
        self.keep(name, file);
        if matches!(name, ObjectName::Segment(SegmentKind::Log, _)) {
            let lanes = Arc::new([self.open_file(name)?, self.open_file(name)?]);
            let mut newest = self.lanes.lock();
            newest.push_back((name, lanes));
            if newest.len() > LANES_MAX {
                newest.pop_front();
            }
        }
        sync_directory(Some(&self.root))
    }

    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file(name)?
            .write_all_at(bytes, offset)
            .map_err(StoreError::from)
    }

    fn sync(&self, name: ObjectName) -> Result<(), StoreError> {
        self.file(name)?.sync_data().map_err(StoreError::from)
    }

    fn lanes(&self) -> usize {
        2
    }

    fn sync_by(&self, name: ObjectName, lane: usize) -> Result<(), StoreError> {
        let lanes = {
            let newest = self.lanes.lock();
            let found = newest.iter().find(|(kept, _)| *kept == name);
            found.map(|(_, lanes)| Arc::clone(lanes))
        };
        match lanes.as_ref().and_then(|lanes| lanes.get(lane)) {
            Some(file) => file.sync_data().map_err(StoreError::from),
            // The log is not in it any more, so nobody else flushes it.
            None => self.sync(name),
        }
    }
}

fn hardened() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(sys::OPEN_HARDENED);
    options
}

/// Makes durable what names a directory holds.
pub(super) fn sync_directory(path: Option<&Path>) -> Result<(), StoreError> {
    let directory = File::open(path.unwrap_or_else(|| Path::new(".")))?;
    match directory.sync_all() {
        // Some network filesystems cannot flush a directory; there the server orders it.
        Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(()),
        done => done.map_err(StoreError::from),
    }
}
