//! Core: dropping what is lost, so that a volume is whole again without it.
//!
//! Done by the same operations that any user of the volume has, on a volume that is open as for a
//! mount: a crash in the middle leaves a volume with less of it done. Lost contents become holes,
//! and lost attributes go. What is lost with nodes of the tree is left as it is.

use std::ops::Range;

use super::{HurtFile, Wrong};
use crate::error::FsError;
use crate::format::Ino;
use crate::fs::{Caller, Fs};
use crate::offline::Offline;
use crate::segment::ReadError;
use crate::store::{ObjectName, StoreError};

const OWNER: Caller = Caller { uid: 0, gid: 0 };

/// What was dropped of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) ino: Ino,
    pub(crate) paths: Vec<Vec<u8>>,
    /// Bytes that are holes now, and read as zeros.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Names of extended attributes that are gone.
    pub(crate) values: Vec<Vec<u8>>,
}

/// Drops what is lost of `files`. What the store only does not answer for is not lost.
pub(crate) fn repair(fs: &Fs, files: &[HurtFile]) -> Result<Vec<Dropped>, FsError> {
    let mut dropped = Vec::new();
    for file in files {
        let is_known = file
            .wrongs
            .iter()
            .all(|wrong| matches!(wrong, Wrong::Contents | Wrong::Attributes));
        let is_some = !file.ranges.is_empty() || !file.values.is_empty();
        if !is_known || !is_some {
            continue;
        }
        for range in &file.ranges {
            fs.punch(file.ino, range.clone(), false)?;
        }
        for name in &file.values {
            fs.remove_xattr(file.ino, name, OWNER)?;
        }
        dropped.push(Dropped {
            ino: file.ino,
            paths: file.paths.clone(),
            ranges: file.ranges.clone(),
            values: file.values.iter().cloned().collect(),
        });
    }
    Ok(dropped)
}

/// Deletes the objects that a volume does not know, and gives their number and bytes. Only to be
/// called when a check found nothing wrong.
pub(crate) fn reclaim(volume: &Offline) -> Result<(u64, u64), ReadError> {
    let mut unknown: Vec<(ObjectName, u64)> = Vec::new();
    volume.objects(&mut |object| {
        if !object.is_known {
            unknown.push((object.name, object.len));
        }
    })?;
    let mut bytes: u64 = 0;
    for (name, len) in &unknown {
        match volume.store().delete(*name) {
            Ok(()) | Err(StoreError::Absent) => bytes = bytes.saturating_add(*len),
            Err(e) => return Err(ReadError::Store(e)),
        }
    }
    Ok((unknown.len() as u64, bytes))
}
