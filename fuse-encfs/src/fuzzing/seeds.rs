//! Core: Inputs to begin with: the vectors of the format, and what a volume really seals.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use runtime::sync::Mutex;

use crate::crypto::{Aead, AeadKey, NotAuthentic, SealError};
use crate::format::{Body, Extent, FrameHead, Ino, Mapped, SegmentId, parse_commit, parse_node};
use crate::fs::RenameRule;
use crate::store::memory::MemoryStore;
use crate::testing::{
    CACHED, DIRECTORY, FILE, ID, ROOT_USER, aead, kek, open_with, pattern, put_file,
};
use crate::volume::init_on;
use crate::xattr::SetRule;

/// Nodes have fewer levels in a small volume.
const LEVELS: u8 = 3;
/// Inputs of a kind at most: an engine tries each again and again.
const KEPT: usize = 40;

/// A provider that keeps every plaintext.
#[derive(Debug)]
struct Witness {
    inner: Arc<dyn Aead>,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

struct Key {
    inner: Box<dyn AeadKey>,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Aead for Witness {
    fn name(&self) -> &'static str {
        "witness"
    }

    fn key(&self, key: &[u8; 32]) -> Box<dyn AeadKey> {
        Box::new(Key {
            inner: self.inner.key(key),
            seen: Arc::clone(&self.seen),
        })
    }
}

impl AeadKey for Key {
    fn seal(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        plaintext: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), SealError> {
        self.seen.lock().push(plaintext.to_vec());
        self.inner.seal(nonce, aad, plaintext, sealed)
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        self.inner.open(nonce, aad, sealed, plaintext)
    }
}

/// Every plaintext of a volume that saw every kind of change.
fn plaintexts() -> &'static [Vec<u8>] {
    static SEEN: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEN.get_or_init(|| {
        let seen = Arc::default();
        let aead: Arc<dyn Aead> = Arc::new(Witness {
            inner: aead(),
            seen: Arc::clone(&seen),
        });
        live(&aead);
        let mut plaintexts = seen.lock().clone();
        plaintexts.sort();
        plaintexts.dedup();
        plaintexts
    })
}

/// The life of a volume with this provider.
fn live(aead: &Arc<dyn Aead>) {
    let store = Arc::new(MemoryStore::default());
    init_on(store.clone(), aead, &kek(), ID).unwrap();
    let volume = open_with(&store, aead).unwrap();
    let fs = volume.fs();
    let dir = fs
        .make(Ino::ROOT, b"dir", &DIRECTORY, ROOT_USER)
        .unwrap()
        .ino;
    let link = crate::fs::NewEntry {
        kind: crate::format::FileKind::Symlink,
        target: b"/where/to",
        ..FILE
    };
    fs.make(dir, b"link", &link, ROOT_USER).unwrap();
    let small = put_file(fs, "small", &pattern(1, 100));
    let large = put_file(fs, "large", &pattern(2, 200_000));
    fs.sync().unwrap();
    fs.set_xattr(small, b"user.short", &[1; 40], SetRule::Any, ROOT_USER)
        .unwrap();
    fs.set_xattr(
        small,
        b"user.long",
        &pattern(3, 5000),
        SetRule::Any,
        ROOT_USER,
    )
    .unwrap();
    fs.link(small, dir, b"other name").unwrap();
    fs.rename(
        (Ino::ROOT, b"large"),
        (dir, b"moved"),
        RenameRule::NoReplace,
    )
    .unwrap();
    fs.rename((Ino::ROOT, b"small"), (dir, b"moved"), RenameRule::Exchange)
        .unwrap();
    fs.sync().unwrap();
    fs.punch(large, 4096..20_000, false).unwrap();
    fs.write(large, 1 << 20, &pattern(4, 3000), CACHED).unwrap();
    fs.fsync(large).unwrap();
    fs.remove_xattr(small, b"user.short", ROOT_USER).unwrap();
    for i in 0..200 {
        put_file(
            fs,
            &format!("many-{i}-{}", "n".repeat(100)),
            &pattern(i, 300),
        );
    }
    fs.sync().unwrap();
    fs.checkpoint().unwrap();
    fs.unlink(dir, b"other name").unwrap();
    fs.unlink(Ino::ROOT, b"many-7").unwrap_or(());
    volume.close().unwrap();
}

/// The plaintexts for which `is` holds: the shortest, as an engine likes them.
fn sealed_that(is: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut found: Vec<_> = plaintexts().iter().filter(|p| is(p)).cloned().collect();
    found.sort_by_key(Vec::len);
    found.truncate(KEPT);
    found
}

pub(super) fn commits() -> Vec<Vec<u8>> {
    // Without its padding, which would be most of it.
    let mut commits = sealed_that(|p| p.len() >= 64 && parse_commit(p).is_ok());
    for commit in &mut commits {
        while commit.last() == Some(&0) && parse_commit(&commit[..commit.len() - 1]).is_ok() {
            commit.pop();
        }
    }
    commits
}

pub(super) fn nodes() -> Vec<Vec<u8>> {
    let level = |p: &[u8]| (0..LEVELS).find(|level| parse_node(p, *level).is_ok());
    let nodes = sealed_that(|p| level(p).is_some());
    let with_level = |p: &Vec<u8>| [&[level(p).unwrap()], &p[..]].concat();
    nodes.iter().map(with_level).collect()
}

pub(super) fn bodies() -> Vec<Vec<u8>> {
    sealed_that(|p| (0..2).any(|slot| Body::parse(p, slot).is_ok()))
}

/// One item of every kind and length.
pub(super) fn items() -> Vec<Vec<u8>> {
    let mut items = BTreeMap::new();
    for node in nodes() {
        if node[0] > 0 {
            continue;
        }
        for (key, value) in parse_node(&node[1..], 0).unwrap() {
            let len = u8::try_from(key.len()).unwrap();
            let item = [&[len], key, value].concat();
            items.insert((key[0], key.get(9).copied(), value.len()), item);
        }
    }
    items.into_values().collect()
}

pub(super) fn superblocks() -> Vec<Vec<u8>> {
    vector("superblock")
}

pub(super) fn segment_headers() -> Vec<Vec<u8>> {
    vector("segment header")
}

pub(super) fn frame_heads() -> Vec<Vec<u8>> {
    let head = |sealed, inline, alignment| FrameHead::new(sealed, inline, alignment).unwrap();
    [
        head(512, 0, 512),
        head(4096, 70_000, 4096),
        head(1 << 20, 1, 512),
    ]
    .map(|head| head.bytes().to_vec())
    .to_vec()
}

pub(super) fn extents() -> Vec<Vec<u8>> {
    let record = Extent::of_record(SegmentId(7), 8192, 20_000, [9; 8]).unwrap();
    let cut = record.skip(5000).and_then(|rest| rest.keep(7000)).unwrap();
    let mapped = [
        Mapped::Data(record),
        Mapped::Data(cut),
        Mapped::Unwritten(1 << 20),
    ];
    let seed = |mapped: Mapped| {
        let mut bytes = [4096_u32.to_le_bytes(), 9000_u32.to_le_bytes()].concat();
        mapped.put(&mut bytes);
        bytes
    };
    mapped.map(seed).to_vec()
}

/// The vectors of this name.
fn vector(name: &str) -> Vec<Vec<u8>> {
    let lines = include_str!("../../vectors/encfs.txt").lines();
    let named = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    named.map(unhex).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
