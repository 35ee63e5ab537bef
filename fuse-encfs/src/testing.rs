//! Core: what the tests of several floors share.
#![allow(clippy::unwrap_used, reason = "only tests are built with it")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the cases that it means"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use keys::{VolumeId, VolumeKek};

use crate::crypto::{Aead, providers};
use crate::error::{FsError, OpenError};
use crate::format::{FileKind, Ino};
use crate::fs::{Caller, Fs, NewEntry, WriteMode};
use crate::store::memory::MemoryStore;
use crate::volume::{Volume, init_on};

/// The volume of most tests.
pub(crate) const ID: VolumeId = VolumeId([0x5a; 16]);
pub(crate) const ROOT_USER: Caller = Caller { uid: 0, gid: 0 };
pub(crate) const CACHED: WriteMode = WriteMode {
    kernel_keeps_times: true,
    kills_privileges: false,
};

/// The key of most tests.
pub(crate) fn kek() -> VolumeKek {
    VolumeKek::take_from(&mut [0x42; 32]).unwrap()
}

/// The provider of most tests.
pub(crate) fn aead() -> Arc<dyn Aead> {
    let [fast, _] = providers();
    fast
}

/// A store with a new volume.
pub(crate) fn new_store() -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::default());
    init_on(store.clone(), &aead(), &kek(), ID).unwrap();
    store
}

/// Opens the volume in `store`.
pub(crate) fn open(store: &Arc<MemoryStore>) -> Result<Volume, OpenError> {
    open_with(store, &aead())
}

/// Opens the volume in `store` with a certain provider.
pub(crate) fn open_with(
    store: &Arc<MemoryStore>,
    aead: &Arc<dyn Aead>,
) -> Result<Volume, OpenError> {
    Volume::open_on(store.clone(), aead, &kek(), ID)
}

/// What to make for a regular file.
pub(crate) const FILE: NewEntry<'static> = NewEntry {
    kind: FileKind::Regular,
    perm: 0o644,
    umask: 0,
    rdev: 0,
    target: &[],
};
/// What to make for a directory.
pub(crate) const DIRECTORY: NewEntry<'static> = NewEntry {
    kind: FileKind::Directory,
    perm: 0o755,
    umask: 0,
    rdev: 0,
    target: &[],
};

/// Makes a file with contents in the root directory.
pub(crate) fn put_file(fs: &Fs, name: &str, contents: &[u8]) -> Ino {
    let ino = fs
        .make(Ino::ROOT, name.as_bytes(), &FILE, ROOT_USER)
        .unwrap()
        .ino;
    fs.write(ino, 0, contents, CACHED).unwrap();
    ino
}

/// Makes everything durable.
pub(crate) fn sync_all(fs: &Fs) -> Result<(), FsError> {
    Ok(fs.sync()?)
}

/// Makes everything durable and writes a checkpoint.
pub(crate) fn checkpoint(fs: &Fs) -> Result<(), FsError> {
    fs.sync()?;
    Ok(fs.checkpoint()?)
}

/// Checks that what the volume keeps of each thing in several places agrees.
#[track_caller]
pub(crate) fn check_consistent(fs: &Fs) {
    fs.journal().tables().check().unwrap();
}

/// Bytes that are the same for the same seed and differ from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let byte = |i: u64| (seed.wrapping_mul(31).wrapping_add(i * 7 + i / 251) % 255) as u8 + 1;
    (0..len as u64).map(byte).collect()
}

/// What a file is and holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    pub(crate) nlink: u32,
    /// Contents of a file, or target of a link.
    pub(crate) bytes: Vec<u8>,
}

/// Everything below the root, by path. An error of any read is shown as contents.
pub(crate) fn walk(fs: &Fs) -> BTreeMap<String, Shown> {
    let mut shown = BTreeMap::new();
    let mut todo = vec![(Ino::ROOT, String::new())];
    while let Some((dir, path)) = todo.pop() {
        let mut entries = Vec::new();
        fs.list(dir, 2, |entry| {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            entries.push((format!("{path}/{name}"), entry.attr));
            true
        })
        .unwrap();
        for (path, attr) in entries {
            let bytes = match attr.kind {
                FileKind::Regular => {
                    let mut bytes = vec![0xee; usize::try_from(attr.size).unwrap()];
                    match fs.read(attr.ino, 0, &mut bytes) {
                        Ok(got) => bytes.truncate(got),
                        Err(e) => bytes = format!("error: {e}").into_bytes(),
                    }
                    bytes
                }
                FileKind::Symlink => fs.readlink(attr.ino).unwrap(),
                FileKind::Directory => {
                    todo.push((attr.ino, path.clone()));
                    Vec::new()
                }
                _ => Vec::new(),
            };
            let crate::fs::Attr {
                kind, perm, nlink, ..
            } = attr;
            shown.insert(
                path,
                Shown {
                    kind,
                    perm,
                    nlink,
                    bytes,
                },
            );
        }
    }
    shown
}
