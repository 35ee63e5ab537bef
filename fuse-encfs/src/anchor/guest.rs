//! Adapter: what the guest itself remembers of a volume, on its tmpfs.
//!
//! Written after every flush and before anybody is told of it, so that a daemon that is made to
//! crash comes back to the state that it left. One write of a small record, no flush: a tmpfs
//! outlives the process, and is gone with the guest.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use runtime::sync::Mutex;

use super::record::{Coder, FILE_LEN, Record, RecordKind};
use super::{AnchorError, Anchored};
use crate::crypto::VolumeKeys;
use crate::sys;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The guest's memory of one volume.
#[derive(Debug)]
pub(crate) struct GuestAnchor {
    file: File,
    coder: Coder,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the file holds.
    last: Option<Record>,
    /// Whether it was written since it was opened: only then does it follow this mount.
    written: bool,
    /// Whether the last write failed.
    failed: bool,
}

impl GuestAnchor {
    /// Opens or makes the file at `path`, and its directory.
    pub(super) fn open(path: &Path, keys: Arc<VolumeKeys>) -> Result<Self, AnchorError> {
        let file = open_or_make(path).map_err(AnchorError::unavailable)?;
        if !sys::is_volatile(&file).map_err(AnchorError::unavailable)? {
            return Err(AnchorError::NotVolatile {
                path: path.to_path_buf(),
            });
        }
        let mut bytes = Vec::with_capacity(FILE_LEN + 1);
        (&file)
            .take(FILE_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(AnchorError::unavailable)?;
        // Made by a start that was cut short: its pages are had before anything is written to them.
        if bytes.len() < FILE_LEN && bytes.iter().all(|byte| *byte == 0) {
            bytes = vec![0; FILE_LEN];
            file.write_all_at(&bytes, 0)
                .map_err(AnchorError::unavailable)?;
        }
        let coder = Coder::new(keys, RecordKind::Guest);
        let last = coder.newest(&bytes)?;
        Ok(Self {
            file,
            coder,
            state: Mutex::new(State {
                last,
                written: false,
                failed: false,
            }),
        })
    }

    /// What is remembered.
    pub(super) fn last(&self) -> Option<Anchored> {
        Some(self.state.lock().last?.anchored)
    }

    /// Remembers a durable head, unless a newer one of this mount is remembered already.
    pub(super) fn record(&self, anchored: Anchored) {
        let mut state = self.state.lock();
        let newer = |last: Record| {
            anchored.seq > last.anchored.seq || anchored.vmk_epoch > last.anchored.vmk_epoch
        };
        if state.written && !state.last.is_none_or(newer) {
            return;
        }
        let record = Record {
            counter: state.last.map_or(0, |last| last.counter.wrapping_add(1)),
            anchored,
        };
        let written = match self.coder.bytes(&record) {
            Some(bytes) => self.file.write_all_at(&bytes, record.offset()),
            None => Err(io::Error::other("there is no key of the record's epoch")),
        };
        match written {
            Ok(()) => {
                state.last = Some(record);
                state.written = true;
                state.failed = false;
            }
            Err(e) if !state.failed => {
                state.failed = true;
                tracing::warn!(
                    error_code = "fs.guest_anchor_failed",
                    error = %e,
                    "the guest does not remember the newest state: until it does, a restart of the \
                     daemon can be used to bring back an older one"
                );
            }
            Err(_) => {}
        }
    }
}

/// Makes the directory if need be, for its owner alone.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE).create(path)
}

fn open_or_make(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        make_directory(directory)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options
        .mode(FILE_MODE)
        .custom_flags(sys::OPEN_HARDENED)
        .open(path)
}
