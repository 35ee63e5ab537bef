//! Core: operations to bytes.

use super::{
    AttrChange, Checkpoint, NewNode, Op, Open, Place, RenameMode, SegmentRef, Shared, Written,
    XattrValue,
};
use crate::format::codec::{put_bytes8, put_bytes16};
use crate::format::{Extent, Ino, Timestamp};

impl SegmentRef {
    /// Appends the encoded reference.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.uid.0);
        out.extend(self.vmk_epoch.to_le_bytes());
    }
}

impl Place {
    fn put(&self, out: &mut Vec<u8>) {
        self.segment.put(out);
        out.extend(self.offset.to_le_bytes());
    }
}

impl Op {
    /// Appends the encoded operation: its code, then its fields.
    #[expect(clippy::too_many_lines, reason = "a table of the operations")]
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.code());
        match self {
            Self::Open(open) => open.put(out),
            Self::Roll(next) => next.put(out),
            Self::Checkpoint(checkpoint) => checkpoint.put(out),
            Self::SegNew(new) => {
                out.extend(new.id.0.to_le_bytes());
                out.push(new.kind.code());
                new.segment.put(out);
            }
            Self::SegDrop(id) => out.extend(id.0.to_le_bytes()),
            Self::Create(node) => node.put(out),
            Self::Link {
                ino,
                parent,
                name,
                time,
            } => {
                put_ino(out, *ino);
                put_entry(out, *parent, name);
                time.put(out);
            }
            Self::Unlink { parent, name, time } => {
                put_entry(out, *parent, name);
                time.put(out);
            }
            Self::Rename {
                from,
                to,
                mode,
                time,
            } => {
                put_entry(out, from.0, &from.1);
                put_entry(out, to.0, &to.1);
                mode.put(out);
                time.put(out);
            }
            Self::SetAttr { ino, change } => {
                put_ino(out, *ino);
                change.put(out);
            }
            Self::Write(written) => written.put(out),
            Self::Truncate { ino, size, time } => {
                put_ino(out, *ino);
                out.extend(size.to_le_bytes());
                put_optional_time(out, *time);
            }
            Self::Punch {
                ino,
                start,
                end,
                time,
            } => {
                put_ino(out, *ino);
                out.extend(start.to_le_bytes());
                out.extend(end.to_le_bytes());
                time.put(out);
            }
            Self::Move {
                map,
                start,
                from,
                to,
            } => {
                put_ino(out, *map);
                out.extend(start.to_le_bytes());
                from.put(out);
                to.put(out);
            }
            Self::Trim { map, from, limit } => {
                put_ino(out, *map);
                out.extend(from.to_le_bytes());
                out.extend(limit.to_le_bytes());
            }
            Self::Reap { ino, limit } => {
                put_ino(out, *ino);
                out.extend(limit.to_le_bytes());
            }
            Self::SetXattr {
                ino,
                name,
                value,
                time,
            } => {
                put_entry(out, *ino, name);
                value.put(out);
                time.put(out);
            }
            Self::RemoveXattr { ino, name, time } => {
                put_entry(out, *ino, name);
                time.put(out);
            }
            Self::Inline {
                ino,
                bytes,
                size,
                time,
                kill_privileges,
            } => {
                put_ino(out, *ino);
                put_bytes16(out, bytes);
                out.extend(size.to_le_bytes());
                put_optional_time(out, *time);
                out.push(u8::from(*kill_privileges));
            }
            Self::Allocate { ino, start, end } => {
                put_ino(out, *ino);
                out.extend(start.to_le_bytes());
                out.extend(end.to_le_bytes());
            }
            Self::Share(shared) => shared.put(out),
        }
    }

    const fn code(&self) -> u8 {
        match self {
            Self::Open(_) => 1,
            Self::Roll(_) => 2,
            Self::Checkpoint(_) => 3,
            Self::SegNew(_) => 4,
            Self::SegDrop(_) => 5,
            Self::Create(_) => 16,
            Self::Link { .. } => 17,
            Self::Unlink { .. } => 18,
            Self::Rename { .. } => 19,
            Self::SetAttr { .. } => 20,
            Self::Write(_) => 21,
            Self::Truncate { .. } => 22,
            Self::Punch { .. } => 23,
            Self::Move { .. } => 24,
            Self::Trim { .. } => 25,
            Self::Reap { .. } => 26,
            Self::SetXattr { .. } => 27,
            Self::RemoveXattr { .. } => 28,
            Self::Inline { .. } => 29,
            Self::Allocate { .. } => 30,
            Self::Share(_) => 31,
        }
    }
}

impl Open {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.log_epoch.to_le_bytes());
        out.extend(self.mount);
        out.extend(self.id.0.to_le_bytes());
        self.segment.put(out);
        self.cut.put(out);
        out.extend(self.cut_head);
    }
}

impl Checkpoint {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.as_of.to_le_bytes());
        out.extend(self.head);
        self.next.put(out);
        self.root.put(out);
        out.push(self.root_level);
        put_count(out, self.nodes.len());
        for node in &self.nodes {
            out.extend(node.id.0.to_le_bytes());
            node.segment.put(out);
            out.extend(node.live.to_le_bytes());
        }
        put_ino(out, self.counters.next_ino);
        out.extend(self.counters.next_segment.0.to_le_bytes());
        out.extend(self.counters.files.to_le_bytes());
        out.extend(self.counters.live.to_le_bytes());
        out.extend(self.counters.unwritten.to_le_bytes());
        put_count(out, self.anchored.len());
        for (seq, head) in &self.anchored {
            out.extend(seq.to_le_bytes());
            out.extend(head);
        }
    }
}

impl NewNode {
    fn put(&self, out: &mut Vec<u8>) {
        put_entry(out, self.parent, &self.name);
        put_ino(out, self.ino);
        out.push(self.kind.code());
        out.extend(self.perm.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.gid.to_le_bytes());
        out.extend(self.rdev.to_le_bytes());
        self.time.put(out);
        put_bytes16(out, &self.target);
    }
}

impl RenameMode {
    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Replace => out.push(0),
            Self::Exchange => out.push(1),
            Self::Whiteout(ino) => {
                out.push(2);
                put_ino(out, ino);
            }
        }
    }
}

impl AttrChange {
    fn put(&self, out: &mut Vec<u8>) {
        let present = [
            self.perm.is_some(),
            self.uid.is_some(),
            self.gid.is_some(),
            self.atime.is_some(),
            self.mtime.is_some(),
            self.ctime.is_some(),
        ];
        let bits = present.iter().enumerate().map(|(i, on)| u8::from(*on) << i);
        out.push(bits.fold(0, |all, bit| all | bit));
        out.extend(self.perm.into_iter().flat_map(u16::to_le_bytes));
        out.extend(self.uid.into_iter().flat_map(u32::to_le_bytes));
        out.extend(self.gid.into_iter().flat_map(u32::to_le_bytes));
        for time in [self.atime, self.mtime, self.ctime].into_iter().flatten() {
            time.put(out);
        }
    }
}

impl Written {
    fn put(&self, out: &mut Vec<u8>) {
        put_ino(out, self.ino);
        out.extend(self.start.to_le_bytes());
        put_optional_time(out, self.time);
        out.push(u8::from(self.kill_privileges));
        put_extents(out, &self.extents);
    }
}

impl XattrValue {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Inline(bytes) => {
                out.push(0);
                put_bytes16(out, bytes);
            }
            Self::Extents { map, extents } => {
                out.push(1);
                put_ino(out, *map);
                put_extents(out, extents);
            }
        }
    }
}

impl Shared {
    fn put(&self, out: &mut Vec<u8>) {
        put_ino(out, self.from);
        out.extend(self.from_start.to_le_bytes());
        put_ino(out, self.to);
        out.extend(self.to_start.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        self.time.put(out);
    }
}

fn put_ino(out: &mut Vec<u8>, ino: Ino) {
    out.extend(ino.0.to_le_bytes());
}

fn put_entry(out: &mut Vec<u8>, parent: Ino, name: &[u8]) {
    put_ino(out, parent);
    put_bytes8(out, name);
}

fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    put_count(out, extents.len());
    for extent in extents {
        extent.put(out);
    }
}

fn put_optional_time(out: &mut Vec<u8>, time: Option<Timestamp>) {
    out.push(u8::from(time.is_some()));
    if let Some(time) = time {
        time.put(out);
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}
