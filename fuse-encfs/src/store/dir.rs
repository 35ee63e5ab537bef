//! Adapter: a store that is a directory, one file an object.
//!
//! For development, benchmarks and clusters that are not confidential: on a filesystem that the
//! host made or serves, the adversary's metadata is parsed by the guest's kernel.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::sync::{Condvar, Mutex, RwLock};

use super::{Appendable, Lease, ObjectName, Space, Store, StoreError};
use crate::sys;

/// Open files kept at most. Bounded, because growing a process's table of descriptors stops all
/// of its threads for milliseconds at each doubling.
const FILES_MAX: usize = 192;
const LOCK: &str = "lock";
/// What ext4 puts into every new filesystem.
const LOST_AND_FOUND: &str = "lost+found";
const CLOSING: &[u8] = b"closing";
/// How long to wait for a writer that has said that it is finishing.
const CLOSING_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A directory as a store.
#[derive(Debug)]
pub(crate) struct DirStore {
    root: PathBuf,
    files: RwLock<BTreeMap<ObjectName, Arc<File>>>,
}

#[derive(Debug)]
struct DirLease {
    file: File,
    path: PathBuf,
}

impl DirStore {
    /// Opens the directory `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        let root = root.canonicalize().map_err(failed)?;
        if !root.is_dir() {
            return Err(StoreError::NotAnObject);
        }
        Ok(Self {
            root,
            files: RwLock::new(BTreeMap::new()),
        })
    }

    /// Opens the directory `root`, making it when it is absent.
    pub(crate) fn open_or_make(root: &Path) -> Result<Self, StoreError> {
        match DirBuilder::new().mode(0o700).create(root) {
            Ok(()) => sync_directory(root.parent().filter(|p| !p.as_os_str().is_empty()))?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
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
        let file = hardened()
            .read(true)
            .write(true)
            .open(self.path(name))
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(StoreError::NotAnObject);
        }
        Ok(self.keep(name, file))
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
        let fresh = self.root.join(format!("{name}.new"));
        let mut file = hardened()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&fresh)
            .map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&fresh, self.path(name)).map_err(failed)?;
        self.files.write().remove(&name);
        sync_directory(Some(&self.root))
    }

    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let file = self.file(name)?;
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(done)
    }

    fn len(&self, name: ObjectName) -> Result<u64, StoreError> {
        Ok(self.file(name)?.metadata().map_err(failed)?.len())
    }

    fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        self.files.write().remove(&name);
        fs::remove_file(self.path(name)).map_err(failed)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
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
            .open(&path)
            .map_err(failed)?;
        let lease = DirLease { file, path };
        lease.wait(patience)?;
        lease.file.set_len(0).map_err(failed)?;
        Ok(Box::new(lease))
    }

    fn space(&self) -> Result<Space, StoreError> {
        let space = sys::space(&self.root).map_err(failed)?;
        Ok(Space {
            total: space.total,
            free: space.free,
        })
    }
}

impl Appendable for DirStore {
    fn create(&self, name: ObjectName, _expected_len: u64) -> Result<(), StoreError> {
        let file = hardened()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(name))
            .map_err(failed)?;
        self.keep(name, file);
        sync_directory(Some(&self.root))
    }

    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file(name)?.write_all_at(bytes, offset).map_err(failed)
    }

    fn sync(&self, name: ObjectName) -> Result<(), StoreError> {
        self.file(name)?.sync_data().map_err(failed)
    }
}

impl DirLease {
    fn wait(&self, patience: Duration) -> Result<(), StoreError> {
        let began = Instant::now();
        let (never, nobody) = (Condvar::new(), Mutex::new(()));
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
                Err(TryLockError::WouldBlock) => {}
            }
            let limit = if self.holder_is_closing() {
                CLOSING_PATIENCE
            } else {
                patience
            };
            if began.elapsed() >= limit {
                return Err(StoreError::Busy);
            }
            // Nobody notifies: flock has no wait with a limit.
            never.wait_for(&mut nobody.lock(), POLL);
        }
    }

    fn holder_is_closing(&self) -> bool {
        let mut mark = [0; CLOSING.len()];
        self.file.read_exact_at(&mut mark, 0).is_ok() && mark == CLOSING
    }
}

impl Lease for DirLease {
    fn revalidate(&self) -> Result<(), StoreError> {
        let ours = self.file.metadata().map_err(failed)?;
        let there = fs::symlink_metadata(&self.path).map_err(|_| StoreError::LeaseLost)?;
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
            Ok(())
        } else {
            Err(StoreError::LeaseLost)
        }
    }

    fn announce_end(&self) {
        // Only a courtesy to who waits: without the mark he waits shorter.
        let _ = self.file.write_all_at(CLOSING, 0);
    }
}

fn hardened() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(sys::OPEN_HARDENED);
    options
}

fn sync_directory(path: Option<&Path>) -> Result<(), StoreError> {
    let directory = File::open(path.unwrap_or_else(|| Path::new("."))).map_err(failed)?;
    match directory.sync_all() {
        // Some network filesystems cannot flush a directory; there the server orders it.
        Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(()),
        done => done.map_err(failed),
    }
}

fn failed(e: io::Error) -> StoreError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kinds of std are open-ended"
    )]
    match e.kind() {
        ErrorKind::NotFound => StoreError::Absent,
        ErrorKind::AlreadyExists => StoreError::Exists,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Io(e),
    }
}
