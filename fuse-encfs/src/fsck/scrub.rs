//! Core: reading all of a volume while it is in use, to find damage before somebody needs the data.
//!
//! It goes through the volume in slices, each as the volume is then, and nothing that a slice needs
//! is deleted meanwhile. What cannot be read is looked up again before it is called lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::thread;
use std::time::{Duration, Instant};

use super::audit::audit;
use super::scan::{self, Lost, unread};
use super::{Wrong, names};
use crate::control::{Happening, Scrubbed, Tell};
use crate::error::FsError;
use crate::format::{Extent, Ino, Mapped};
use crate::journal::Journal;
use crate::schema::{self, Key};
use crate::segment::ReadError;
use crate::tables::{Tables, XattrEntry};

/// Bytes a second that are read at most, so that others find the store free.
const RATE: u64 = 256 << 20;
/// Bytes of contents that are read before deletions have their turn.
const SLICE: u64 = 64 << 20;
/// Bytes after which somebody is told.
const TELL_EVERY: u64 = 8 << 20;
/// How often something that cannot be read is looked up anew.
const TRIES: u32 = 3;

/// Reads every node and every byte of every file, and names the files that are hurt.
pub(crate) fn scrub(journal: &Journal, tell: &mut Tell<'_>) -> Result<Scrubbed, FsError> {
    let mut pace = Pace::new(journal.tables().counters().live, tell);
    let lost = lost_nodes(journal, &mut pace)?;
    let mut hurt = contents(journal, &lost, &mut pace)?;
    let _kept = journal.keep();
    let tables = journal.tables();
    if !lost.is_empty() && !pace.is_ended {
        let found = audit(&tables, &lost, None, &mut |_| pace.pass(0))?;
        let is_lost = |wrongs: &BTreeSet<Wrong>| wrongs.iter().any(|wrong| *wrong != Wrong::Links);
        let found = found
            .hurt
            .into_iter()
            .filter(|(_, hurt)| is_lost(&hurt.wrongs));
        hurt.extend(found.map(|(ino, _)| ino));
    }
    let paths = names::paths(&tables, &lost, &hurt)?;
    for ino in &hurt {
        let path = paths.get(ino).and_then(|paths| paths.first());
        let file = path.map_or_else(|| names::number(*ino), |path| names::shown(path));
        if (pace.tell)(Happening::Damaged { file }).is_break() {
            pace.is_ended = true;
            break;
        }
    }
    Ok(Scrubbed {
        checked_bytes: pace.done,
        damaged_files: hurt.len() as u64,
        complete: !pace.is_ended,
    })
}

/// Nodes that cannot be read, twice: the tree may have been written anew after the first time.
fn lost_nodes(journal: &Journal, pace: &mut Pace<'_, '_>) -> Result<Vec<Lost>, FsError> {
    let _kept = journal.keep();
    let first = scan::nodes(&journal.tables(), &mut |bytes| pace.pass(bytes))?.lost;
    if first.is_empty() || pace.is_ended {
        return Ok(Vec::new());
    }
    let mut again = scan::nodes(&journal.tables(), &mut |_| pace.pass(0))?.lost;
    again.retain(|lost| first.iter().any(|before| before.pointer == lost.pointer));
    Ok(again)
}

/// Inodes with contents or attributes that cannot be read.
fn contents(
    journal: &Journal,
    lost: &[Lost],
    pace: &mut Pace<'_, '_>,
) -> Result<BTreeSet<Ino>, FsError> {
    let (mut hurt, mut owners, mut scratch) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    let mut next = Some(Vec::new());
    while let Some(from) = next.take() {
        let _kept = journal.keep();
        let tables = journal.tables();
        let end = pace.done.saturating_add(SLICE);
        scan::items_from(&tables, lost, from, &mut |key, value| {
            let bytes = match Key::parse(key) {
                Ok(Key::Xattr(ino, _)) => {
                    if let Ok(XattrEntry::Extents { map, .. }) = schema::parse_xattr(value) {
                        owners.insert(map, ino);
                    }
                    0
                }
                Ok(Key::Extent(map, start)) => {
                    let Ok(Mapped::Data(extent)) = Mapped::parse(value) else {
                        return pace.pass(0);
                    };
                    let mut read = |extent: &Extent, from, out: &mut [u8]| {
                        read(journal, &tables, extent, from, out, &mut scratch)
                    };
                    let is_bad = !unread(&extent, start, &mut read).ranges.is_empty();
                    let range = start..start.saturating_add(u64::from(extent.live));
                    if is_bad && is_still_hurt(journal, map, &range) {
                        hurt.insert(owners.get(&map).copied().unwrap_or(map));
                    }
                    extent.live.into()
                }
                Ok(Key::Segment(_) | Key::SegRef(..) | Key::Orphan(_)) => {
                    return ControlFlow::Break(());
                }
                Ok(Key::Record(_) | Key::Entry(..) | Key::Hash(..)) | Err(_) => 0,
            };
            pace.pass(bytes)?;
            if pace.done < end {
                return ControlFlow::Continue(());
            }
            next = Some([key, &[0]].concat());
            ControlFlow::Break(())
        })?;
    }
    Ok(hurt)
}

/// Whether a range of a map cannot be read as it is now.
fn is_still_hurt(journal: &Journal, map: Ino, range: &Range<u64>) -> bool {
    let mut scratch = Vec::new();
    let mut before = None;
    for _ in 0..TRIES {
        let tables = journal.tables();
        let mut extents = Vec::new();
        let seen = tables.mapped(map, range, |_, mapped| {
            if let Mapped::Data(extent) = mapped {
                extents.push(extent);
            }
            ControlFlow::Continue(())
        });
        let whole = |extent: &Extent| {
            let mut out = vec![0; extent.live as usize];
            read(journal, &tables, extent, 0, &mut out, &mut scratch).is_ok()
        };
        if seen.is_ok() && extents.iter().all(whole) {
            return false;
        }
        if before.replace(extents.clone()) == Some(extents) {
            return true;
        }
    }
    // It changes all the time: whoever reads it finds out.
    false
}

fn read(
    journal: &Journal,
    tables: &Tables,
    extent: &Extent,
    from: u32,
    out: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let entry = tables.segment(extent.segment)?.ok_or(ReadError::Tampered)?;
    let segment = journal.segment(extent.segment, entry);
    journal.read_extent(&segment, extent, from, out, scratch)
}

/// How fast it goes, and who is told.
struct Pace<'a, 'b> {
    tell: &'a mut Tell<'b>,
    done: u64,
    total: u64,
    untold: u64,
    since: Instant,
    is_ended: bool,
}

impl<'a, 'b> Pace<'a, 'b> {
    fn new(total: u64, tell: &'a mut Tell<'b>) -> Self {
        Self {
            tell,
            done: 0,
            total,
            untold: 0,
            since: Instant::now(),
            is_ended: false,
        }
    }

    /// So many bytes were read. Says whether to go on.
    fn pass(&mut self, bytes: u64) -> ControlFlow<()> {
        self.done = self.done.saturating_add(bytes);
        self.total = self.total.max(self.done);
        self.untold = self.untold.saturating_add(bytes);
        if self.untold >= TELL_EVERY {
            let due = Duration::from_millis(self.untold.saturating_mul(1000) / RATE);
            thread::park_timeout(due.saturating_sub(self.since.elapsed()));
            (self.untold, self.since) = (0, Instant::now());
            let progress = Happening::Progress {
                done_bytes: self.done,
                total_bytes: self.total,
            };
            self.is_ended |= (self.tell)(progress).is_break();
        }
        if self.is_ended {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
