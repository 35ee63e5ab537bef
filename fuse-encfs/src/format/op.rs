//! Core: the operations that commits consist of.
//!
//! They are logical: "cut this file to 4 bytes", not "remove these keys", so the operation on a
//! huge file is as small as that on a small one, and replay is the same code as the first time.

mod encode;
mod parse;

use super::{Extent, FileKind, Ino, NodePointer, SegmentId, SegmentKind, SegmentUid, Timestamp};

/// A segment and the epoch of the master key that its key comes from: all that is needed to open
/// its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentRef {
    pub(crate) uid: SegmentUid,
    pub(crate) vmk_epoch: u32,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: SegmentRef,
    /// Where the next frame begins.
    pub(crate) offset: u64,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// First of a log segment.
    Open(Open),
    /// Last of a log segment: the log goes on in that one.
    Roll(SegmentRef),
    /// The tree was written as it stood at some earlier commit.
    Checkpoint(Box<Checkpoint>),
    /// A segment is about to be made.
    SegNew(SegNew),
    /// A segment was deleted.
    SegDrop(SegmentId),
    /// A new file, directory, link or device, with its name.
    Create(NewNode),
    /// One more name of an inode.
    Link {
        ino: Ino,
        parent: Ino,
        name: Vec<u8>,
        time: Timestamp,
    },
    /// A name is removed; the inode too when it was the last and nobody has it open.
    Unlink {
        parent: Ino,
        name: Vec<u8>,
        time: Timestamp,
    },
    /// A name moves.
    Rename {
        from: (Ino, Vec<u8>),
        to: (Ino, Vec<u8>),
        mode: RenameMode,
        time: Timestamp,
    },
    /// Attributes change.
    SetAttr { ino: Ino, change: AttrChange },
    /// Bytes of a file lie elsewhere now.
    Write(Written),
    /// A file gets another size.
    Truncate {
        ino: Ino,
        size: u64,
        time: Option<Timestamp>,
    },
    /// A range of a file becomes a hole.
    Punch {
        ino: Ino,
        start: u64,
        end: u64,
        time: Timestamp,
    },
    /// The cleaner copied a run of chunks: where the map still points to `from`, it now points
    /// to `to`.
    Move {
        map: Ino,
        start: u64,
        from: Extent,
        to: Extent,
    },
    /// At most `limit` extents from the end of a map go, of those that begin at `from` or later.
    Trim { map: Ino, from: u64, limit: u32 },
    /// At most `limit` extents of an inode without names go, and the inode after its last.
    Reap { ino: Ino, limit: u32 },
    /// An extended attribute gets a value.
    SetXattr {
        ino: Ino,
        name: Vec<u8>,
        value: XattrValue,
        time: Timestamp,
    },
    /// An extended attribute goes.
    RemoveXattr {
        ino: Ino,
        name: Vec<u8>,
        time: Timestamp,
    },
    /// These are a small file's contents from its beginning on, all of them but zeros at its end.
    Inline {
        ino: Ino,
        bytes: Vec<u8>,
        size: u64,
        time: Option<Timestamp>,
        kill_privileges: bool,
    },
    /// Holes of a range of a file get space promised.
    Allocate { ino: Ino, start: u64, end: u64 },
    /// A range of a file is what a range of a file is, without a copy.
    Share(Shared),
}

/// The value of an extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum XattrValue {
    /// A short one.
    Inline(Vec<u8>),
    /// A long one: extents from 0 on, in a map of its own with a fresh number.
    Extents { map: Ino, extents: Vec<Extent> },
}

/// Ranges that are to share what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) from: Ino,
    pub(crate) from_start: u64,
    pub(crate) to: Ino,
    pub(crate) to_start: u64,
    pub(crate) len: u64,
    pub(crate) time: Timestamp,
}

/// How a log segment continues the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    /// Strictly greater than that of every log segment before.
    pub(crate) log_epoch: u64,
    /// Random name of the mount that wrote it.
    pub(crate) mount: [u8; 16],
    /// This segment's short name.
    pub(crate) id: SegmentId,
    /// This segment.
    pub(crate) segment: SegmentRef,
    /// Where the segment before is cut off; all that lies behind in it is void. Of the first
    /// segment of a volume: itself, at 0.
    pub(crate) cut: Place,
    /// The chain's head there.
    pub(crate) cut_head: [u8; 32],
}

/// A segment's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegNew {
    pub(crate) id: SegmentId,
    pub(crate) kind: SegmentKind,
    pub(crate) segment: SegmentRef,
}

/// What a checkpoint seals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The commit whose state the tree holds: replay begins behind it.
    pub(crate) as_of: u64,
    /// The chain's head there.
    pub(crate) head: [u8; 32],
    /// Where the next commit begins.
    pub(crate) next: Place,
    /// The root of the tree.
    pub(crate) root: NodePointer,
    /// Its level; 0 when it is a leaf.
    pub(crate) root_level: u8,
    /// The node segments that the tree lies in.
    pub(crate) nodes: Vec<NodeSegment>,
    /// The volume's counters.
    pub(crate) counters: Counters,
    /// Heads that an anchor has acknowledged, or was asked to, with their numbers.
    pub(crate) anchored: Vec<(u64, [u8; 32])>,
}

/// A node segment with its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeSegment {
    pub(crate) id: SegmentId,
    pub(crate) segment: SegmentRef,
    /// Bytes of nodes that the tree uses.
    pub(crate) live: u64,
}

/// Numbers that are given out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counters {
    /// The next inode's.
    pub(crate) next_ino: Ino,
    /// The next segment's.
    pub(crate) next_segment: SegmentId,
    /// Inodes that there are.
    pub(crate) files: u64,
    /// Bytes of records that extents point to.
    pub(crate) live: u64,
    /// Bytes that were promised and not written.
    pub(crate) unwritten: u64,
}

/// A new inode under its first name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewNode {
    pub(crate) parent: Ino,
    pub(crate) name: Vec<u8>,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) time: Timestamp,
    /// Target, of a symbolic link alone.
    pub(crate) target: Vec<u8>,
}

/// How a rename treats what has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenameMode {
    /// The two names change places.
    Exchange,
    /// What has the new name loses it.
    Replace,
    /// As `Replace`, and the old name becomes a character device 0:0 with this number.
    Whiteout(Ino),
}

/// Attributes to change; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AttrChange {
    pub(crate) perm: Option<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) atime: Option<Timestamp>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) ctime: Option<Timestamp>,
}

/// A write: the extents of its bytes, contiguous from `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) ino: Ino,
    pub(crate) start: u64,
    pub(crate) extents: Vec<Extent>,
    /// New modification and change time, unless the kernel keeps it.
    pub(crate) time: Option<Timestamp>,
    /// Whether set-user-id and set-group-id go.
    pub(crate) kill_privileges: bool,
}

impl SegmentRef {
    /// Encoded bytes.
    pub(crate) const LEN: usize = 20;
}
