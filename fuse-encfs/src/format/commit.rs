//! Core: a commit, the sealed unit of the log.

use super::codec::{Malformed, Reader};
use super::frame::padded_commit_len;
use super::op::Op;
use super::{COMMIT_LEN_MAX, LOG_ALIGNMENT};

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

    /// Adds an operation.
    pub(crate) fn push(&mut self, op: &Op) {
        op.put(&mut self.bytes);
        self.count = self.count.saturating_add(1);
    }

    /// Whether the next operation should go into another commit.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= COMMIT_LEN_FULL
    }

    /// The commit's plaintext, padded; `None` when it is too long.
    pub(crate) fn encode(&self, header: &CommitHeader, alignment: u16) -> Option<Vec<u8>> {
        let len = u32::try_from(self.bytes.len().checked_add(HEADER_LEN)?).ok()?;
        let padded = padded_commit_len(len, alignment).filter(|len| *len <= COMMIT_LEN_MAX)?;
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
