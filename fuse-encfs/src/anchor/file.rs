//! Adapter: an anchor in a file, on a tmpfs or where the operator vouches for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{Coder, FILE_LEN, Record, RecordKind};
use super::{AdvanceError, Anchor, AnchorError, Anchored};
use crate::crypto::VolumeKeys;
use crate::sys;

/// Only the owner reads and writes it.
const MODE: u32 = 0o600;
/// Ending of the name under which a new file is made.
const NEW: &str = ".new";

/// Remembers in a file with two slots; a lock on the file makes compare and swap one step.
///
/// The record is authentic, but a file can be set back as a whole: it is an anchor only where the
/// host cannot write.
#[derive(Debug)]
pub(super) struct FileAnchor {
    path: PathBuf,
    coder: Coder,
    /// Whether the operator says that the host cannot set the file back.
    vouched: bool,
    lasting: bool,
}

impl FileAnchor {
    /// An anchor at `path`, whose directory must exist.
    pub(super) fn open(
        path: &Path,
        keys: Arc<VolumeKeys>,
        vouched: bool,
    ) -> Result<Self, AnchorError> {
        // The process may change its directory later.
        let path = std::path::absolute(path).map_err(AnchorError::unavailable)?;
        let directory = File::open(directory_of(&path)).map_err(AnchorError::unavailable)?;
        let volatile = sys::is_volatile(&directory).map_err(AnchorError::unavailable)?;
        let anchor = Self {
            path,
            coder: Coder::new(keys, RecordKind::File),
            vouched,
            lasting: !volatile,
        };
        anchor.check_place(&directory)?;
        Ok(anchor)
    }

    fn check_place(&self, file: &File) -> Result<(), AnchorError> {
        let volatile = sys::is_volatile(file).map_err(AnchorError::unavailable)?;
        if volatile || self.vouched {
            Ok(())
        } else {
            Err(AnchorError::NotVolatile {
                path: self.path.clone(),
            })
        }
    }

    /// The file with its lock, which is let go when it is closed; `None` when there is none.
    fn locked(&self) -> Result<Option<File>, AnchorError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match options.custom_flags(sys::OPEN_HARDENED).open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(AnchorError::unavailable(e)),
        };
        self.check_place(&file)?;
        file.lock().map_err(AnchorError::unavailable)?;
        Ok(Some(file))
    }

    /// The record in `file`. A file that exists has one: it is made with its first record in it.
    fn record(&self, file: &File) -> Result<Record, AnchorError> {
        let mut bytes = Vec::with_capacity(FILE_LEN + 1);
        file.take(FILE_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(AnchorError::unavailable)?;
        self.coder.newest(&bytes)?.ok_or(AnchorError::Damaged)
    }

    fn replace(&self, file: &File, old: &Record, next: &Anchored) -> io::Result<()> {
        let record = Record {
            counter: old.counter.wrapping_add(1),
            anchored: *next,
        };
        let bytes = self.coder.bytes(&record).ok_or_else(no_key)?;
        file.write_all_at(&bytes, record.offset())?;
        file.sync_data()
    }

    /// Makes the file with its first record, in one step. False when there is one already.
    fn make(&self, next: &Anchored) -> io::Result<bool> {
        let record = Record {
            counter: 0,
            anchored: *next,
        };
        let bytes = self.coder.file(&record).ok_or_else(no_key)?;
        let mut new = self.path.clone().into_os_string();
        new.push(NEW);
        match fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            // A start that was cut short left it.
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        let mut file = options.open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        // Unlike a rename it does not replace.
        let linked = fs::hard_link(&new, &self.path);
        fs::remove_file(&new)?;
        match linked {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
            linked => linked?,
        }
        File::open(directory_of(&self.path))?.sync_all()?;
        Ok(true)
    }
}

impl Anchor for FileAnchor {
    fn load(&self) -> Result<Option<Anchored>, AnchorError> {
        let Some(file) = self.locked()? else {
            return Ok(None);
        };
        Ok(Some(self.record(&file)?.anchored))
    }

    fn advance(&self, prev: Option<&Anchored>, next: &Anchored) -> Result<(), AdvanceError> {
        let old = match self.locked() {
            Ok(None) => None,
            // Damage is no state that anybody expects: loading tells what it is.
            Ok(Some(file)) => match self.record(&file) {
                Ok(record) => Some((file, record)),
                Err(e) if e.is_final() => return Err(AdvanceError::Conflict),
                Err(e) => return Err(AdvanceError::unknown(e)),
            },
            Err(e) if e.is_final() => return Err(AdvanceError::Conflict),
            Err(e) => return Err(AdvanceError::unknown(e)),
        };
        let taken = match (old, prev) {
            (None, None) => self.make(next),
            (Some((file, old)), Some(prev)) if old.anchored == *prev => {
                self.replace(&file, &old, next).map(|()| true)
            }
            _ => Ok(false),
        };
        match taken {
            Ok(true) => Ok(()),
            Ok(false) => Err(AdvanceError::Conflict),
            Err(e) => Err(AdvanceError::unknown(e)),
        }
    }

    fn is_lasting(&self) -> bool {
        self.lasting
    }

    fn kind(&self) -> &'static str {
        "file"
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn no_key() -> io::Error {
    io::Error::other("there is no key of the record's epoch")
}
