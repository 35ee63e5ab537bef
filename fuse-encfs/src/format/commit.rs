//! Core: a commit, the sealed unit of the log.

use super::codec::{Malformed, Reader};
use super::frame::padded_commit_len;
use super::op::Op;
use super::{COMMIT_LEN_MAX, Extent, LOG_ALIGNMENT, XattrValue};

/// Bytes of the header.
const HEADER_LEN: usize = 64;
/// Encoded operations at which a commit counts as full: further ones wait for the next.
pub(crate) const COMMIT_LEN_FULL: usize = 1 << 20;
const _: () = assert!(COMMIT_LEN_FULL < COMMIT_LEN_MAX as usize);

/// What a commit says of its place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommitHeader {
    /// Number of the commit, from 1, across all segments.
    pub(crate) seq: u64,
    /// Epoch of the log segment, as its OPEN says.
    pub(crate) log_epoch: u64,
    /// Head of the chain before this commit.
    pub(crate) prev_head: [u8; 32],
    /// The newest commit that was known to be flushed when this one was sealed.
    pub(crate) durable_seq: u64,
}

/// Encoded operations of one commit to come.
#[derive(Debug, Default)]
pub(crate) struct PendingOps {
    bytes: Vec<u8>,
    count: u32,
}

impl PendingOps {
    /// The operations of a commit that holds this one alone.
    pub(crate) fn of(op: &Op) -> Self {
        let mut ops = Self::default();
        ops.push(op);
        ops
    }

    /// The operations of a commit that is to be sealed once more.
    pub(crate) fn of_all<'a>(all: impl IntoIterator<Item = &'a Op>) -> Self {
        let mut ops = Self::default();
        all.into_iter().for_each(|op| ops.push(op));
        ops
    }

    /// Adds an operation.
    pub(crate) fn push(&mut self, op: &Op) {
        op.put(&mut self.bytes);
        self.count = self.count.saturating_add(1);
    }

    /// Whether the next operation should go into another commit.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= COMMIT_LEN_FULL
    }

    /// Encoded bytes. An extent has a fixed length, so one whose place is not known yet may stand
    /// for any other.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The same operations with each extent replaced by what `replace` gives for it, if anything.
    pub(crate) fn with_extents(
        &self,
        replace: impl Fn(&Extent) -> Option<Extent>,
    ) -> Result<Self, Malformed> {
        let mut r = Reader::new(&self.bytes, "pending operation");
        let mut ops = Self::default();
        for _ in 0..self.count {
            let mut op = Op::parse(&mut r)?;
            for extent in extents_mut(&mut op) {
                *extent = replace(extent).unwrap_or(*extent);
            }
            ops.push(&op);
        }
        r.end()?;
        Ok(ops)
    }

    /// The commit's plaintext, padded; `None` when it is too long.
    pub(crate) fn encode(&self, header: &CommitHeader, alignment: u16) -> Option<Vec<u8>> {
        let padded = commit_len(self.bytes.len(), alignment)?;
        let mut out = Vec::with_capacity(padded as usize);
        out.extend(header.seq.to_le_bytes());
        out.extend(header.log_epoch.to_le_bytes());
        out.extend(header.prev_head);
        out.extend(header.durable_seq.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(&self.bytes);
        out.resize(padded as usize, 0);
        Some(out)
    }
}

/// Plaintext bytes of a commit whose operations have `ops_len` encoded bytes; `None` when a bound
/// is exceeded.
pub(crate) fn commit_len(ops_len: usize, alignment: u16) -> Option<u32> {
    let len = u32::try_from(ops_len.checked_add(HEADER_LEN)?).ok()?;
    padded_commit_len(len, alignment).filter(|len| *len <= COMMIT_LEN_MAX)
}

/// Every extent that an operation names.
pub(crate) fn extents_mut(op: &mut Op) -> Vec<&mut Extent> {
    match op {
        Op::Write(written) => written.extents.iter_mut().collect(),
        Op::Move { from, to, .. } => vec![from, to],
        Op::SetXattr {
            value: XattrValue::Extents { extents, .. },
            ..
        } => extents.iter_mut().collect(),
        Op::Open(_)
        | Op::Roll(_)
        | Op::Checkpoint(_)
        | Op::SegNew(_)
        | Op::SegDrop(_)
        | Op::Create(_)
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rename { .. }
        | Op::SetAttr { .. }
        | Op::Truncate { .. }
        | Op::Punch { .. }
        | Op::Trim { .. }
        | Op::Reap { .. }
        | Op::SetXattr { .. }
        | Op::RemoveXattr { .. }
        | Op::Inline { .. }
        | Op::Allocate { .. }
        | Op::Share(_) => Vec::new(),
    }
}

/// Parses a commit's plaintext.
pub(crate) fn parse_commit(bytes: &[u8]) -> Result<(CommitHeader, Vec<Op>), Malformed> {
    let mut r = Reader::new(bytes, "commit");
    let header = CommitHeader {
        seq: r.u64()?,
        log_epoch: r.u64()?,
        prev_head: r.array()?,
        durable_seq: r.u64()?,
    };
    if r.u32()? != 0 {
        return Err(r.malformed());
    }
    let count = r.count32(1)?;
    let mut ops = Vec::new();
    for _ in 0..count {
        ops.push(Op::parse(&mut r)?);
    }
    r.end_padded()?;
    Ok((header, ops))
}

const _: () = assert!(LOG_ALIGNMENT.is_power_of_two());
