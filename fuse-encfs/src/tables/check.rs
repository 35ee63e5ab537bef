//! Core: what must hold between the tables, for tests.

use std::collections::BTreeMap;

use super::{Content, Inconsistent, Tables};
use crate::format::{FileKind, Ino, SegmentId};

impl Tables {
    /// Checks what must hold between the tables. Linear in their size.
    pub(crate) fn check(&self) -> Result<(), Inconsistent> {
        let mut segrefs: BTreeMap<(SegmentId, Ino), u64> = BTreeMap::new();
        let mut names: BTreeMap<Ino, u32> = BTreeMap::from([(Ino::ROOT, 1)]);
        for (ino, inode) in &self.inodes {
            match &inode.content {
                Content::Regular(extents) => {
                    let mut end = 0;
                    for (start, extent) in extents {
                        if *start < end || *start + u64::from(extent.live) > inode.record.size {
                            return Err(Inconsistent("an extent overlaps or is past the end"));
                        }
                        end = *start + u64::from(extent.live);
                        *segrefs.entry((extent.segment, *ino)).or_default() +=
                            u64::from(extent.live);
                    }
                }
                Content::Directory(directory) => {
                    directory.check()?;
                    for (_, entry) in directory.entries() {
                        *names.entry(entry.ino).or_default() += 1;
                        if self
                            .inode(entry.ino)
                            .is_none_or(|i| i.record.kind != entry.kind)
                        {
                            return Err(Inconsistent("an entry points to no inode of its kind"));
                        }
                    }
                }
                Content::Nothing => {}
            }
        }
        for (ino, inode) in &self.inodes {
            let names = names.get(ino).copied().unwrap_or(0);
            if (names == 0) != self.orphans.contains(ino) {
                return Err(Inconsistent(
                    "an inode without a name is no orphan, or the reverse",
                ));
            }
            if inode.record.kind != FileKind::Directory && inode.record.nlink != names {
                return Err(Inconsistent("a link count is wrong"));
            }
        }
        if segrefs == self.segrefs && segrefs.keys().all(|(id, _)| self.segments.contains_key(id)) {
            Ok(())
        } else {
            Err(Inconsistent("live bytes of segments do not add up"))
        }
    }
}
