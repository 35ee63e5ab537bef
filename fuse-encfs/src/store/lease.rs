//! Core: being the only writer by a lock on an open file.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use runtime::sync::{Condvar, Mutex};

use super::{Lease, StoreError};

const CLOSING: &[u8] = b"closing";
/// How long to wait for a writer that has said that it is finishing.
const CLOSING_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A lock on a file, for as long as that is the one at its path.
#[derive(Debug)]
pub(super) struct FileLease {
    file: File,
    path: PathBuf,
    /// Where in the file a writer says that it is finishing.
    mark_at: u64,
}

impl FileLease {
    /// Locks `file`, which was opened at `path`, or waits for who holds it.
    pub(super) fn take(
        file: File,
        path: PathBuf,
        mark_at: u64,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        let lease = Self {
            file,
            path,
            mark_at,
        };
        lease.wait(patience)?;
        // Fails on a full store, and then only makes the next one wait longer than he would.
        let _ = lease.file.write_all_at(&[0; CLOSING.len()], mark_at);
        Ok(lease)
    }

    fn wait(&self, patience: Duration) -> Result<(), StoreError> {
        let began = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(e)) => return Err(e.into()),
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
            pause();
        }
    }

    fn holder_is_closing(&self) -> bool {
        let mut mark = [0; CLOSING.len()];
        self.file.read_exact_at(&mut mark, self.mark_at).is_ok() && mark == CLOSING
    }
}

impl Lease for FileLease {
    fn revalidate(&self) -> Result<(), StoreError> {
        let ours = self.file.metadata()?;
        let there = fs::symlink_metadata(&self.path).map_err(|_| StoreError::LeaseLost)?;
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
            Ok(())
        } else {
            Err(StoreError::LeaseLost)
        }
    }

    fn announce_end(&self) {
        // Only a courtesy to who waits: without the mark he waits shorter.
        let _ = self.file.write_all_at(CLOSING, self.mark_at);
    }
}

/// Waits a little: nobody notifies, and a lock on a file has no wait with a limit.
fn pause() {
    let (never, nobody) = (Condvar::new(), Mutex::new(()));
    never.wait_for(&mut nobody.lock(), POLL);
}
