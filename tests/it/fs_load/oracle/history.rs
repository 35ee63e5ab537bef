//! Core: what a file may hold after a crash.

use std::collections::{BTreeMap, BTreeSet};

use super::{PAGE, Step};

/// What a file may hold.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) inode: Option<u64>,
    /// The newest that was synced, and all after it.
    pub(super) versions: Vec<(Step, Vec<u8>)>,
    /// Pages that were synced without the rest of the file, and when.
    pub(super) synced_pages: BTreeMap<usize, Step>,
    /// How far such a sync has reached, and when.
    pub(super) synced_end: (Step, usize),
}

impl History {
    /// Says why the file cannot hold `bytes`, if it is no older than `since`.
    pub(super) fn explain(&self, since: Step, bytes: &[u8]) -> Result<(), String> {
        let no_older_than = |floor: Step| {
            let versions = self.versions.iter();
            versions.filter(move |(step, _)| *step >= floor)
        };
        let sizes = |floor| no_older_than(floor).map(|(_, bytes)| bytes.len());
        let (step, end) = self.synced_end;
        let least = sizes(step.max(since)).min().unwrap_or(0).min(end);
        let all: BTreeSet<usize> = sizes(since).collect();
        let (first, last) = (all.first().copied(), all.last().copied());
        let size = bytes.len();
        // The kernel writes back by pages: a file may have grown by some of them.
        let by_pages = size.is_multiple_of(PAGE) && first <= Some(size) && Some(size) <= last;
        if size < least || !(by_pages || all.contains(&size)) {
            return Err(format!(
                "its size is {size}, was one of {all:?}, {least} or more"
            ));
        }
        for (page, bytes) in bytes.chunks(PAGE).enumerate() {
            let synced = self.synced_pages.get(&page).copied().unwrap_or(0);
            let holds = |(_, version): &(Step, Vec<u8>)| page_is(version, page, bytes);
            if !no_older_than(since.max(synced)).any(holds) {
                let any_age = self.versions.iter().find(|version| holds(version));
                return Err(format!(
                    "page {page} of {size} bytes is as no step from {} to {:?} left it; as step {:?}",
                    since.max(synced),
                    self.versions.last().map(|(step, _)| step),
                    any_age.map(|(step, _)| step),
                ));
            }
        }
        Ok(())
    }
}

/// Whether a page of `version`, with zeros after its end, begins with `bytes`.
fn page_is(version: &[u8], page: usize, bytes: &[u8]) -> bool {
    let start = (page * PAGE).min(version.len());
    let end = (start + bytes.len()).min(version.len());
    let (held, zeros) = bytes.split_at(end - start);
    held == &version[start..end] && zeros.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_explained_by_what_it_held_since_the_sync_and_by_nothing_else() {
        let versions = [(1, vec![1; 5000]), (3, vec![3; 9000]), (5, vec![5; 100])];
        let history = |versions: &[(Step, Vec<u8>)]| History {
            versions: versions.to_vec(),
            ..History::default()
        };
        let mixed = [vec![3; 4096], vec![1; 904]].concat();
        let torn = [vec![3; 2000], vec![1; 3000]].concat();
        let grown = [vec![1; 5000], vec![0; 3192]].concat();
        let rows: [(&[_], Step, &[u8], bool); 9] = [
            (&versions[..1], 0, &[1; 5000], true),
            (&versions[..1], 0, &[1; 4096], false),
            (&versions[..1], 2, &[1; 5000], false),
            (&versions[..2], 0, &mixed, true),
            (&versions[..2], 0, &torn, false),
            (&versions[..2], 0, &grown, true),
            (&versions[..2], 3, &grown, false),
            (&versions, 5, &[5; 100], true),
            (&versions, 0, &[7; 100], false),
        ];
        for (i, (versions, since, bytes, want)) in rows.into_iter().enumerate() {
            let explained = history(versions).explain(since, bytes);
            assert_eq!(explained.is_ok(), want, "row {i}: {explained:?}");
        }
    }
}
