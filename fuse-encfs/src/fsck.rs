//! Core: checking a volume that nobody has mounted, and naming the files that are hurt.
//!
//! Everything that the volume consists of is read and authenticated: superblocks, the log since the
//! checkpoint, every node, every byte of every file and of every long attribute; and what is kept
//! in several places is compared. Nothing is written.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use crate::format::Ino;
use crate::offline::{Lacking, Offline};
use crate::segment::ReadError;
use crate::superblock::SlotState;

mod audit;
pub(crate) mod names;
mod repair;
mod scan;
mod scrub;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use audit::Wrong;
use audit::{Audit, audit};
pub(crate) use repair::{Dropped, reclaim, repair};
pub(crate) use scrub::scrub;

/// Bytes that were checked, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// Is told how far a long task is. It says to end early.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// A file that is hurt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HurtFile {
    pub(crate) ino: Ino,
    /// All its names that can be read, from the root of the volume.
    pub(crate) paths: Vec<Vec<u8>>,
    pub(crate) wrongs: BTreeSet<Wrong>,
    /// Bytes of its contents that are lost.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Names of extended attributes with long values that are lost.
    pub(crate) values: BTreeSet<Vec<u8>>,
}

/// What a check has found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Superblock slots that are not good, with what is wrong with them.
    pub(crate) slots: Vec<(usize, &'static str)>,
    /// Why the newest state could not be had.
    pub(crate) lacking: Option<String>,
    pub(crate) hurt: Vec<HurtFile>,
    /// What is wrong with the volume's own accounts.
    pub(crate) accounts: Vec<&'static str>,
    pub(crate) files: u64,
    pub(crate) nodes: u64,
    pub(crate) lost_nodes: u64,
    /// First and last inode number of what was behind each of them, as far as it was inodes.
    pub(crate) lost_inodes: Vec<(Ino, Ino)>,
    /// Bytes of nodes and contents that were read.
    pub(crate) bytes: u64,
    /// Objects that the volume does not know, and their bytes. No harm: they may be of a state that
    /// was rolled back, or of a mount that died early.
    pub(crate) unknown: (u64, u64),
    pub(crate) is_cancelled: bool,
}

impl Report {
    /// Whether nothing is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.slots.is_empty()
            && self.lacking.is_none()
            && self.hurt.is_empty()
            && self.accounts.is_empty()
            && self.lost_nodes == 0
    }
}

/// Checks a volume.
pub(crate) fn check(volume: &Offline, tell: Tell<'_>) -> Result<Report, ReadError> {
    let tables = volume.tables();
    let mut progress = Progress {
        done: 0,
        total: tables.counters().live.saturating_add(nodes_len(volume)),
    };
    let mut watch = |bytes: u64| {
        progress.done = progress.done.saturating_add(bytes);
        progress.total = progress.total.max(progress.done);
        tell(progress)
    };
    // As the checkpoint wrote them: what was replayed since is in memory.
    let nodes = scan::nodes(&volume.state().written, &mut watch)?;
    let mut scratch = Vec::new();
    let mut read = |extent: &_, from, out: &mut [u8]| volume.read(extent, from, out, &mut scratch);
    let audit = audit(tables, &nodes.lost, Some(&mut read), &mut watch)?;
    let mut report = Report {
        slots: bad_slots(volume.slots()),
        lacking: volume.state().lacking.as_ref().map(why_lacking),
        accounts: audit.accounts.iter().copied().collect(),
        files: audit.files,
        nodes: nodes.count,
        lost_nodes: nodes.lost.len() as u64,
        lost_inodes: nodes.lost.iter().filter_map(scan::Lost::inodes).collect(),
        bytes: audit.bytes.saturating_add(nodes.bytes),
        is_cancelled: audit.is_cancelled,
        ..Report::default()
    };
    report.hurt = hurt_files(volume, &nodes.lost, &audit)?;
    // A tree with a hole does not say which objects it knows.
    if nodes.lost.is_empty() {
        volume.objects(&mut |object| {
            if !object.is_known {
                report.unknown.0 += 1;
                report.unknown.1 = report.unknown.1.saturating_add(object.len);
            }
        })?;
    }
    Ok(report)
}

fn hurt_files(
    volume: &Offline,
    lost: &[scan::Lost],
    audit: &Audit,
) -> Result<Vec<HurtFile>, ReadError> {
    let wanted = audit.hurt.keys().copied().collect();
    let mut paths = names::paths(volume.tables(), lost, &wanted)?;
    let file = |(ino, hurt): (&Ino, &audit::Hurt)| HurtFile {
        ino: *ino,
        paths: paths.remove(ino).unwrap_or_default(),
        wrongs: hurt.wrongs.clone(),
        ranges: hurt.ranges.clone(),
        values: hurt.values.clone(),
    };
    Ok(audit.hurt.iter().map(file).collect())
}

fn bad_slots(slots: &[SlotState; 2]) -> Vec<(usize, &'static str)> {
    let slots = slots.iter().enumerate();
    let bad = slots.filter(|(_, slot)| slot.generation.is_none());
    bad.map(|(n, slot)| (n, slot.word)).collect()
}

fn nodes_len(volume: &Offline) -> u64 {
    let nodes = &volume.state().recovered.checkpoint.nodes;
    nodes.iter().map(|node| node.live).sum()
}

fn why_lacking(lacking: &Lacking) -> String {
    match lacking {
        Lacking::Changes(lost) => {
            format!("{lost} changes since the last checkpoint cannot be applied")
        }
        Lacking::Newest(e) => format!("the newest checkpoint cannot be used: {e}"),
    }
}
