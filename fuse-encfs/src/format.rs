//! Core: the bytes of a volume, format version 1.
//!
//! Pure: bytes to types and back, no IO, no keys. docs/format.md, section "The encrypted volume",
//! and docs/format-map.md are the normative text; each file here writes and parses one table of it.
//!
//! **Invariants.** Every length is bounded before anything is allocated for it. What is parsed
//! has no trailing bytes. Integers are little endian, except in the keys of the map, which are big
//! endian so that their bytes sort as they do. Nothing here recurses.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

mod codec;
mod commit;
mod extent;
mod frame;
mod inode;
mod node;
mod op;
mod segment_header;
mod superblock;
#[cfg(test)]
mod tests;

pub(crate) use codec::{Malformed, Reader};
pub(crate) use commit::{CommitHeader, PendingOps, commit_len, extents_mut, parse_commit};
pub(crate) use extent::{Extent, Mapped, record_chunks, stored_len};
pub(crate) use frame::{FRAME_HEAD_LEN, FrameHead};
pub(crate) use inode::{FileKind, Ino, InodeRecord, Timestamp, is_file_name};
#[cfg(test)]
pub(crate) use node::NodeBuilder;
#[cfg(any(test, fuzzing))]
pub(crate) use node::parse_node;
pub(crate) use node::{NODE_ENTRY_LEN, NODE_HEADER_LEN, NodePointer, encode_node, parse_node_body};
pub(crate) use op::{
    AttrChange, Checkpoint, Counters, NewNode, NodeSegment, Op, Open, Place, RenameMode, SegNew,
    SegmentRef, Shared, Written, XattrValue,
};
pub(crate) use segment_header::{SegmentBirth, SegmentHeader};
pub(crate) use superblock::{
    Body, CheckpointAddress, ClearPart, ClearPartError, NameKey, OWNER_KEY_LEN_MAX,
    RECOVERY_LEN_MAX, RecoveryWrap, SUPERBLOCK_LEN, VmkWrap, WRAPPED_VMK_LEN,
};

/// Version of the format.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Bytes of an authentication tag.
pub(crate) const TAG_LEN: usize = 16;
/// The same, for lengths in the format.
pub(crate) const TAG_LEN_U32: u32 = 16;
const _: () = assert!(TAG_LEN_U32 as usize == TAG_LEN);
/// Bytes of the random salt of a record or node.
pub(crate) const SALT_LEN: usize = 8;
/// A segment has at most this many bytes, so that `offset / 16` fits the nonce's 32 bits.
pub(crate) const SEGMENT_LEN_MAX: u64 = 256 << 20;
/// Where the first unit of a segment begins. What is before is for tools, never read by a mount.
pub(crate) const SEGMENT_BEGIN: u64 = 4096;
/// Chunks that this version writes have `1 << CHUNK_SHIFT` bytes.
pub(crate) const CHUNK_SHIFT: u8 = 12;
/// The last chunk of a record is padded with zeros to a multiple of this many bytes.
pub(crate) const CHUNK_PAD: u32 = 64;
/// Plaintext bytes of the largest record: what one request of the kernel can carry.
pub(crate) const RECORD_LEN_MAX: usize = 1 << 20;
/// Plaintext bytes of the largest node.
pub(crate) const NODE_LEN_MAX: usize = 16 << 10;
/// Plaintext bytes of the largest commit.
pub(crate) const COMMIT_LEN_MAX: u32 = 16 << 20;
/// Bytes of inline chunks in one frame at most.
pub(crate) const INLINE_LEN_MAX: u32 = 16 << 20;
/// Bytes of a file name.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Bytes of a symbolic link's target.
pub(crate) const TARGET_LEN_MAX: usize = 4095;
/// Bytes of a file that lives in its inode record.
pub(crate) const INLINE_FILE_LEN_MAX: usize = 2048;
/// Bytes of an extended attribute's value that lies in the map; a longer one has extents of its
/// own.
pub(crate) const XATTR_INLINE_LEN_MAX: usize = 1024;
/// Frames begin on a multiple of this many bytes in a volume that this version makes in a directory.
pub(crate) const LOG_ALIGNMENT: u16 = 512;

/// Random name of a segment: with an offset it names one ciphertext for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentUid(pub(crate) [u8; 16]);

/// Short name of a segment within the map, never reused in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentId(pub(crate) u32);

/// What the units of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SegmentKind {
    /// Chunks of file contents.
    Data,
    /// Frames: commits with their inline chunks.
    Log,
    /// Nodes of the tree.
    Node,
}

impl SegmentKind {
    /// Its code in the format.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Node => 2,
            Self::Log => 3,
        }
    }

    /// The kind of a code.
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Node),
            3 => Some(Self::Log),
            _ => None,
        }
    }
}

impl fmt::Display for SegmentUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SegmentUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentUid({self})")
    }
}
