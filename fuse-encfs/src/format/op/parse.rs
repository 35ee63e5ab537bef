//! Core: bytes to operations.

use super::{
    AttrChange, Checkpoint, Counters, NewNode, NodeSegment, Op, Open, Place, RenameMode, SegNew,
    SegmentRef, Shared, Written, XattrValue,
};
use crate::format::codec::{Malformed, Reader};
use crate::format::{
    Extent, FileKind, INLINE_FILE_LEN_MAX, Ino, NAME_LEN_MAX, NodePointer, SEGMENT_LEN_MAX,
    SegmentId, SegmentKind, SegmentUid, TARGET_LEN_MAX, Timestamp, XATTR_INLINE_LEN_MAX,
    is_file_name,
};

type Parsed<T> = Result<T, Malformed>;

impl SegmentRef {
    pub(crate) fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        Ok(Self {
            uid: SegmentUid(r.array()?),
            vmk_epoch: r.u32()?,
        })
    }
}

impl Place {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        let place = Self {
            segment: SegmentRef::parse(r)?,
            offset: r.u64()?,
        };
        if place.offset <= SEGMENT_LEN_MAX {
            Ok(place)
        } else {
            Err(r.malformed())
        }
    }
}

impl Op {
    /// Parses one operation from the front of `r`.
    #[expect(clippy::too_many_lines, reason = "a table of the operations")]
    pub(crate) fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        Ok(match r.u8()? {
            1 => Self::Open(Open::parse(r)?),
            2 => Self::Roll(SegmentRef::parse(r)?),
            3 => Self::Checkpoint(Box::new(Checkpoint::parse(r)?)),
            4 => Self::SegNew(SegNew::parse(r)?),
            5 => Self::SegDrop(segment_id(r)?),
            16 => Self::Create(NewNode::parse(r)?),
            17 => {
                let ino = ino(r)?;
                let (parent, name) = entry(r)?;
                Self::Link {
                    ino,
                    parent,
                    name,
                    time: Timestamp::parse(r)?,
                }
            }
            18 => {
                let (parent, name) = entry(r)?;
                Self::Unlink {
                    parent,
                    name,
                    time: Timestamp::parse(r)?,
                }
            }
            19 => Self::Rename {
                from: entry(r)?,
                to: entry(r)?,
                mode: RenameMode::parse(r)?,
                time: Timestamp::parse(r)?,
            },
            20 => Self::SetAttr {
                ino: ino(r)?,
                change: AttrChange::parse(r)?,
            },
            21 => Self::Write(Written::parse(r)?),
            22 => Self::Truncate {
                ino: ino(r)?,
                size: r.u64()?,
                time: optional_time(r)?,
            },
            23 => Self::Punch {
                ino: ino(r)?,
                start: r.u64()?,
                end: r.u64()?,
                time: Timestamp::parse(r)?,
            },
            24 => Self::Move {
                map: ino(r)?,
                start: r.u64()?,
                from: Extent::parse(r)?,
                to: Extent::parse(r)?,
            },
            25 => Self::Trim {
                map: ino(r)?,
                from: r.u64()?,
                limit: r.u32()?,
            },
            26 => Self::Reap {
                ino: ino(r)?,
                limit: r.u32()?,
            },
            27 => Self::SetXattr {
                ino: ino(r)?,
                name: xattr_name(r)?,
                value: XattrValue::parse(r)?,
                time: Timestamp::parse(r)?,
            },
            28 => Self::RemoveXattr {
                ino: ino(r)?,
                name: xattr_name(r)?,
                time: Timestamp::parse(r)?,
            },
            29 => Self::Inline {
                ino: ino(r)?,
                bytes: r.bytes16(INLINE_FILE_LEN_MAX)?.to_vec(),
                size: r.u64()?,
                time: optional_time(r)?,
                kill_privileges: r.bool()?,
            },
            30 => Self::Allocate {
                ino: ino(r)?,
                start: r.u64()?,
                end: r.u64()?,
            },
            31 => Self::Share(Shared::parse(r)?),
            _ => return Err(Malformed("operation code")),
        })
    }
}

impl Open {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        Ok(Self {
            log_epoch: r.u64()?,
            mount: r.array()?,
            id: segment_id(r)?,
            segment: SegmentRef::parse(r)?,
            cut: Place::parse(r)?,
            cut_head: r.array()?,
        })
    }
}

impl Checkpoint {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        let as_of = r.u64()?;
        let head = r.array()?;
        let next = Place::parse(r)?;
        let root = NodePointer::parse(r)?;
        let root_level = r.u8()?;
        let count = r.count32(4 + SegmentRef::LEN + 8)?;
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            let (id, segment) = (segment_id(r)?, SegmentRef::parse(r)?);
            nodes.push(NodeSegment {
                id,
                segment,
                live: r.u64()?,
            });
        }
        let counters = Counters {
            next_ino: ino(r)?,
            next_segment: segment_id(r)?,
            files: r.u64()?,
            live: r.u64()?,
            unwritten: r.u64()?,
        };
        let count = r.count32(40)?;
        let mut anchored = Vec::with_capacity(count);
        for _ in 0..count {
            anchored.push((r.u64()?, r.array()?));
        }
        Ok(Self {
            as_of,
            head,
            next,
            root,
            root_level,
            nodes,
            counters,
            anchored,
        })
    }
}

impl SegNew {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        let id = segment_id(r)?;
        let kind = SegmentKind::from_code(r.u8()?).ok_or_else(|| r.malformed())?;
        Ok(Self {
            id,
            kind,
            segment: SegmentRef::parse(r)?,
        })
    }
}

impl NewNode {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        let (parent, name) = entry(r)?;
        let node = Self {
            parent,
            name,
            ino: ino(r)?,
            kind: FileKind::parse(r)?,
            perm: r.u16()?,
            uid: r.u32()?,
            gid: r.u32()?,
            rdev: r.u32()?,
            time: Timestamp::parse(r)?,
            target: r.bytes16(TARGET_LEN_MAX)?.to_vec(),
        };
        let targeted = node.target.is_empty() != (node.kind == FileKind::Symlink);
        if node.perm <= 0o7777 && targeted {
            Ok(node)
        } else {
            Err(r.malformed())
        }
    }
}

impl RenameMode {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        Ok(match r.u8()? {
            0 => Self::Replace,
            1 => Self::Exchange,
            2 => Self::Whiteout(ino(r)?),
            _ => return Err(r.malformed()),
        })
    }
}

impl AttrChange {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        let bits = r.u8()?;
        let has = |bit: u8| bits & (1 << bit) != 0;
        if bits >= 1 << 6 {
            return Err(r.malformed());
        }
        let perm = has(0).then(|| r.u16()).transpose()?;
        if perm.is_some_and(|perm| perm > 0o7777) {
            return Err(r.malformed());
        }
        Ok(Self {
            perm,
            uid: has(1).then(|| r.u32()).transpose()?,
            gid: has(2).then(|| r.u32()).transpose()?,
            atime: has(3).then(|| Timestamp::parse(r)).transpose()?,
            mtime: has(4).then(|| Timestamp::parse(r)).transpose()?,
            ctime: has(5).then(|| Timestamp::parse(r)).transpose()?,
        })
    }
}

impl Written {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        let (ino, start) = (ino(r)?, r.u64()?);
        let time = optional_time(r)?;
        let kill_privileges = r.bool()?;
        let extents = extents(r)?;
        Ok(Self {
            ino,
            start,
            extents,
            time,
            kill_privileges,
        })
    }
}

impl XattrValue {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        match r.u8()? {
            0 => Ok(Self::Inline(r.bytes16(XATTR_INLINE_LEN_MAX)?.to_vec())),
            1 => Ok(Self::Extents {
                map: ino(r)?,
                extents: extents(r)?,
            }),
            _ => Err(r.malformed()),
        }
    }
}

impl Shared {
    fn parse(r: &mut Reader<'_>) -> Parsed<Self> {
        Ok(Self {
            from: ino(r)?,
            from_start: r.u64()?,
            to: ino(r)?,
            to_start: r.u64()?,
            len: r.u64()?,
            time: Timestamp::parse(r)?,
        })
    }
}

fn extents(r: &mut Reader<'_>) -> Parsed<Vec<Extent>> {
    let count = r.count32(Extent::LEN)?;
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        extents.push(Extent::parse(r)?);
    }
    Ok(extents)
}

fn xattr_name(r: &mut Reader<'_>) -> Parsed<Vec<u8>> {
    let name = r.bytes8(1)?;
    if name.len() <= NAME_LEN_MAX && !name.contains(&0) {
        Ok(name.to_vec())
    } else {
        Err(r.malformed())
    }
}

fn ino(r: &mut Reader<'_>) -> Parsed<Ino> {
    r.u64().map(Ino)
}

fn segment_id(r: &mut Reader<'_>) -> Parsed<SegmentId> {
    r.u32().map(SegmentId)
}

fn entry(r: &mut Reader<'_>) -> Parsed<(Ino, Vec<u8>)> {
    let parent = ino(r)?;
    let name = r.bytes8(1)?;
    if is_file_name(name) {
        Ok((parent, name.to_vec()))
    } else {
        Err(r.malformed())
    }
}

fn optional_time(r: &mut Reader<'_>) -> Parsed<Option<Timestamp>> {
    let present = r.bool()?;
    present.then(|| Timestamp::parse(r)).transpose()
}
