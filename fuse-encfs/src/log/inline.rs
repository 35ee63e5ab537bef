//! Core: contents of files that ride in the log, behind the commit that names them.
//!
//! The operations that a commit seals name the addresses of its inline chunks, and those follow
//! from the length of the operations: so a plan is made first, from that length and the contents,
//! and gives the extents to name. Appending consumes the plan and seals the chunks there.

use zeroize::Zeroizing;

use super::{Log, LogError};
use crate::crypto::{ONCE_OVERHEAD, SegmentSealer};
use crate::format::{Extent, FRAME_HEAD_LEN, FrameHead, Place, commit_len, stored_len};
use crate::segment::seal_chunks;

/// Bytes of contents that ride in one frame at most. The format allows more.
pub(crate) const INLINE_MAX: usize = 64 << 10;

/// Addresses in the log that nothing was sealed at yet, with the contents for them. Only
/// appending at that very place consumes it; dropped, the addresses go to another commit, and the
/// salts to nobody.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(super) at: Place,
    pub(super) head: FrameHead,
    records: Vec<Record>,
}

/// A record to come.
struct Record {
    extent: Extent,
    contents: Zeroizing<Vec<u8>>,
}

impl Planned {
    /// The extents of the records, in their order.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> {
        self.records.iter().map(|record| record.extent)
    }

    /// Seals the records behind one another.
    pub(super) fn seal(
        self,
        sealer: &SegmentSealer,
        out: &mut Vec<u8>,
    ) -> Result<Vec<Extent>, LogError> {
        let mut extents = Vec::with_capacity(self.records.len());
        for Record { extent, contents } in self.records {
            let begin = out.len();
            let stored = stored_len(extent.live).ok_or(LogError::TooLarge)?;
            out.resize(begin + stored as usize, 0);
            let unit = out.get_mut(begin..).ok_or(LogError::TooLarge)?;
            seal_chunks(sealer, &extent, &contents, unit)?;
            extents.push(extent);
        }
        Ok(extents)
    }
}

impl Log {
    /// Plans to append a commit whose operations have `ops_len` encoded bytes, those that name the
    /// records included, with stand-ins for their extents, and with these records inline. `None` when they are not for the log: too long, empty, or there is
    /// no room in the segment. The lock of the log is held from here until the commit is appended.
    pub(crate) fn plan_inline(
        &self,
        ops_len: usize,
        records: &[&[u8]],
    ) -> Result<Option<Planned>, LogError> {
        let Some((head, lens)) = self.inline_layout(ops_len, records) else {
            return Ok(None);
        };
        let mut offset = self.position.next.offset + head.inline_begin();
        let mut planned = Vec::with_capacity(records.len());
        for (record, len) in records.iter().zip(lens) {
            let contents = Zeroizing::new(record.to_vec());
            // Drawn after the contents are complete in memory that nobody else writes to.
            let salt = self.keys.entropy().draw()?;
            let extent = Extent::of_record(self.id, offset, len, salt);
            let extent = extent.ok_or(LogError::TooLarge)?;
            offset += u64::from(stored_len(len).ok_or(LogError::TooLarge)?);
            planned.push(Record { extent, contents });
        }
        Ok(Some(Planned {
            at: self.position.next,
            head,
            records: planned,
        }))
    }

    /// The frame that such a commit would have, and the records' lengths.
    fn inline_layout(&self, ops_len: usize, records: &[&[u8]]) -> Option<(FrameHead, Vec<u32>)> {
        let total: usize = records.iter().map(|record| record.len()).sum();
        if records.is_empty() || records.iter().any(|r| r.is_empty()) || total > INLINE_MAX {
            return None;
        }
        let lens: Option<Vec<u32>> = records
            .iter()
            .map(|r| u32::try_from(r.len()).ok())
            .collect();
        let lens = lens?;
        let stored = lens.iter().map(|len| stored_len(*len));
        let inline_len: u32 = stored.sum::<Option<u32>>()?;
        let commit = commit_len(ops_len, self.alignment)?;
        let sealed = commit.checked_add(u32::try_from(ONCE_OVERHEAD).ok()?)?;
        let head = FrameHead::new(sealed, inline_len, self.alignment)?;
        self.has_room(head.frame_len).then_some((head, lens))
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.extent)
    }
}

// Inline chunks begin where the sealed commit ends: on a multiple of the alignment, hence of 16.
const _: () = assert!(FRAME_HEAD_LEN.is_multiple_of(16));
