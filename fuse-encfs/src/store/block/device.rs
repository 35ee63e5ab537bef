//! Adapter: a block device, or a file that is used like one.
//!
//! Whole blocks are written past the page cache: a flush of a device writes whatever the cache
//! holds of it, so that without this an fsync of one file would wait for the contents of all
//! others. The ragged ends of a write go through the cache, which knows how to put two of them
//! into one block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::sync::Mutex;

use super::layout::{BLOCK, BLOCK_LEN, LEASE_AT};
use crate::store::lease::FileLease;
use crate::store::{Lease, StoreError, read_fully};
use crate::sys;

/// Bytes that are copied for one write past the cache.
const BOUNCE_LEN: usize = 1 << 20;
/// Buffers that are kept for the next write.
const BOUNCES_MAX: usize = 4;

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    is_block: bool,
    /// For reads, and for writes whose failure is of no account.
    file: File,
    /// Past the page cache, where the system can.
    direct: Option<File>,
    bounces: Mutex<Vec<Bounce>>,
    len: u64,
}

/// The right to be the only writer. Given back in this order, as who waits waits for the lock.
#[derive(Debug)]
struct DeviceLease {
    _claim: Option<File>,
    lock: FileLease,
}

/// Memory that begins on a block.
#[derive(Debug)]
struct Bounce {
    bytes: Vec<u8>,
    begin: usize,
}

impl Device {
    /// Opens the device at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.canonicalize()?;
        let kind = fs::metadata(&path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(StoreError::NotAnObject);
        }
        let mut file = open(&path, 0)?;
        // The size in the metadata of a device is 0.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            direct: open(&path, sys::OPEN_DIRECT).ok(),
            is_block: kind.is_block_device(),
            bounces: Mutex::default(),
            path,
            file,
            len,
        })
    }

    /// Bytes that it has.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Opens it once more. A failure to write back is told once to each open file, to whoever
    /// flushes by it next: what has a flush of its own needs a file of its own.
    pub(super) fn handle(&self) -> Result<File, StoreError> {
        Ok(open(&self.path, 0)?)
    }

    /// The file for writes whose failure is of no account.
    pub(super) fn shared(&self) -> &File {
        &self.file
    }

    /// Reads at `at` until `buffer` is full or the device ends.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        read_fully(buffer, |done, rest| {
            self.file.read_at(rest, at.saturating_add(done))
        })
    }

    /// Writes `bytes` at `at`, to be flushed by `file`.
    pub(super) fn write(&self, file: &File, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let (head, middle, tail) = whole_blocks(at, bytes);
        file.write_all_at(head, at)?;
        let at = at.saturating_add(head.len() as u64);
        self.write_blocks(file, at, middle)?;
        let at = at.saturating_add(middle.len() as u64);
        Ok(file.write_all_at(tail, at)?)
    }

    /// Whether all of a range are zeros.
    pub(super) fn is_zero(&self, range: Range<u64>) -> Result<bool, StoreError> {
        let mut at = range.start;
        let mut buffer = vec![0; 64 << 10];
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let len = buffer.len().min(len);
            let part = buffer.get_mut(..len).unwrap_or_default();
            let got = self.read(at, part)?;
            if part.iter().take(got).any(|byte| *byte != 0) {
                return Ok(false);
            }
            if got < len {
                break;
            }
            at += len as u64;
        }
        Ok(true)
    }

    /// Gives a range free: it reads as zeros where the device can do that without writing them,
    /// and as it did where it cannot.
    pub(super) fn discard(&self, range: &Range<u64>) {
        if let Err(e) = sys::punch_hole(&self.file, range.start, range.end - range.start) {
            tracing::debug!(error = %e, "the device does not discard");
        }
    }

    /// Becomes the only writer.
    pub(super) fn lease(&self, patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let lock = FileLease::take(self.handle()?, self.path.clone(), LEASE_AT, patience)?;
        // A lock is of a name of the device; this claim is of the device, and also keeps mount(2)
        // and other programs away that ask for one.
        let claim = self.is_block.then(|| open(&self.path, sys::OPEN_EXCLUSIVE));
        let claim = claim.transpose().map_err(|e| {
            if e.kind() == ErrorKind::ResourceBusy {
                StoreError::Busy
            } else {
                e.into()
            }
        })?;
        Ok(Box::new(DeviceLease {
            _claim: claim,
            lock,
        }))
    }

    fn write_blocks(&self, file: &File, at: u64, blocks: &[u8]) -> io::Result<()> {
        let Some(direct) = self.direct.as_ref().filter(|_| !blocks.is_empty()) else {
            return file.write_all_at(blocks, at);
        };
        let bounce = self.bounces.lock().pop();
        let mut bounce = bounce.unwrap_or_else(Bounce::new);
        let mut at = at;
        for piece in blocks.chunks(BOUNCE_LEN) {
            match direct.write_all_at(bounce.fill(piece), at) {
                // Some filesystems open a file so, and then want more of an alignment than this.
                Err(e) if e.kind() == ErrorKind::InvalidInput => file.write_all_at(piece, at)?,
                done => done?,
            }
            at += piece.len() as u64;
        }
        let mut bounces = self.bounces.lock();
        if bounces.len() < BOUNCES_MAX {
            bounces.push(bounce);
        }
        Ok(())
    }
}

impl Lease for DeviceLease {
    fn revalidate(&self) -> Result<(), StoreError> {
        self.lock.revalidate()
    }

    fn announce_end(&self) {
        self.lock.announce_end();
    }
}

impl Bounce {
    fn new() -> Self {
        let bytes = vec![0; BOUNCE_LEN + BLOCK_LEN];
        let begin = bytes.as_ptr().align_offset(BLOCK_LEN);
        Self { bytes, begin }
    }

    /// A copy of `piece` that begins on a block.
    fn fill(&mut self, piece: &[u8]) -> &[u8] {
        let end = self.begin.saturating_add(piece.len());
        match self.bytes.get_mut(self.begin..end) {
            Some(copy) => {
                copy.copy_from_slice(piece);
                copy
            }
            None => &[],
        }
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(sys::OPEN_HARDENED | flags)
        .open(path)
}

/// Parts of a write at `at`: what is before the first whole block, whole blocks, and the rest.
fn whole_blocks(at: u64, bytes: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let head = usize::try_from(at.next_multiple_of(BLOCK) - at).unwrap_or(0);
    match bytes.split_at_checked(head) {
        Some((head, rest)) => {
            let (middle, tail) = rest.split_at(rest.len() / BLOCK_LEN * BLOCK_LEN);
            (head, middle, tail)
        }
        None => (bytes, &[], &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_parts(at: u64, len: usize, want: (usize, usize, usize)) {
        let bytes = vec![1; len];
        let (head, middle, tail) = whole_blocks(at, &bytes);
        assert_eq!(
            (head.len(), middle.len(), tail.len()),
            want,
            "{len} at {at}"
        );
    }

    #[test]
    fn only_whole_blocks_go_past_the_cache() {
        check_parts(0, 0, (0, 0, 0));
        check_parts(0, 4095, (0, 0, 4095));
        check_parts(0, 4096, (0, 4096, 0));
        check_parts(16, 4000, (4000, 0, 0));
        check_parts(16, 4096, (4080, 0, 16));
        check_parts(16, 12_288, (4080, 8192, 16));
        check_parts(8192, 9000, (0, 8192, 808));
    }

    #[test]
    fn a_copy_for_the_device_begins_on_a_block() {
        let mut bounce = Bounce::new();
        let copy = bounce.fill(&[7; 4096]);
        assert_eq!(copy, [7; 4096]);
        assert_eq!(copy.as_ptr().align_offset(4096), 0);
    }
}
