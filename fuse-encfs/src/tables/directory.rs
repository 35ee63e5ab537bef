//! Core: the entries of one directory, in the order of their making and by the hash of their name.

use std::collections::BTreeMap;
use std::ops::Bound;

#[cfg(test)]
use super::Inconsistent;
use crate::format::{FileKind, Ino};

/// A name and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) name: Vec<u8>,
}

/// Entries by cookie, which is the order of a listing and never reused, and by hash.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    entries: BTreeMap<u64, Dirent>,
    /// Keyed by the name's hash and a number that tells names of one hash apart.
    index: BTreeMap<(u64, u16), u64>,
}

impl Directory {
    /// Whether it has no entry.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries with their cookies, in the order of a listing.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, &Dirent)> {
        self.entries.iter().map(|(cookie, entry)| (*cookie, entry))
    }

    /// Entries behind a cookie.
    pub(crate) fn entries_after(&self, cookie: u64) -> impl Iterator<Item = (u64, &Dirent)> {
        let behind = (Bound::Excluded(cookie), Bound::Unbounded);
        self.entries
            .range(behind)
            .map(|(cookie, entry)| (*cookie, entry))
    }

    /// The hash index, in its order.
    pub(crate) fn index(&self) -> impl Iterator<Item = ((u64, u16), u64)> {
        self.index.iter().map(|(hash, cookie)| (*hash, *cookie))
    }

    /// The entry of a cookie.
    pub(crate) fn entry(&self, cookie: u64) -> Option<&Dirent> {
        self.entries.get(&cookie)
    }

    pub(super) fn entry_mut(&mut self, cookie: u64) -> Option<&mut Dirent> {
        self.entries.get_mut(&cookie)
    }

    /// The cookie of a name, whose hash is given. The name itself is always compared.
    pub(super) fn find(&self, hash: u64, name: &[u8]) -> Option<u64> {
        let same = self.index.range((hash, 0)..=(hash, u16::MAX));
        let mut cookies = same.map(|(_, cookie)| *cookie);
        cookies.find(|cookie| self.entry(*cookie).is_some_and(|entry| entry.name == name))
    }

    /// Adds an entry, whose name is not there yet.
    pub(super) fn insert(&mut self, hash: u64, cookie: u64, entry: Dirent) -> Option<()> {
        let taken = self
            .index
            .range((hash, 0)..=(hash, u16::MAX))
            .map(|((_, n), _)| *n);
        let free = taken.zip(0..).find(|(taken, n)| taken != n).map(|(_, n)| n);
        let count = || self.index.range((hash, 0)..=(hash, u16::MAX)).count();
        let n = free.or_else(|| u16::try_from(count()).ok())?;
        self.index.insert((hash, n), cookie);
        self.entries.insert(cookie, entry);
        Some(())
    }

    /// Removes the entry of a cookie, whose name has the given hash.
    pub(super) fn remove(&mut self, hash: u64, cookie: u64) -> Option<Dirent> {
        let mut same = self.index.range((hash, 0)..=(hash, u16::MAX));
        let key = *same.find(|(_, other)| **other == cookie)?.0;
        self.index.remove(&key);
        self.entries.remove(&cookie)
    }

    pub(super) fn load_entry(&mut self, cookie: u64, entry: Dirent) -> Option<()> {
        self.entries.insert(cookie, entry).is_none().then_some(())
    }

    pub(super) fn load_hash(
        &mut self,
        hash: (u64, u16),
        cookie: u64,
        hash_of: impl Fn(&[u8]) -> u64,
    ) -> Option<()> {
        let entry = self.entries.get(&cookie)?;
        if hash_of(&entry.name) != hash.0 {
            return None;
        }
        self.index.insert(hash, cookie);
        Some(())
    }

    #[cfg(test)]
    pub(super) fn check(&self) -> Result<(), Inconsistent> {
        let indexed = self
            .index
            .values()
            .all(|cookie| self.entries.contains_key(cookie));
        if indexed && self.index.len() == self.entries.len() {
            Ok(())
        } else {
            Err(Inconsistent("a directory's two indices differ"))
        }
    }
}
