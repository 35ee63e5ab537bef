//! Edge: attributes, kinds and times as the kernel speaks of them.

use std::time::Duration;
#[expect(
    clippy::disallowed_types,
    reason = "fuser's interface speaks of file times so"
)]
use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use super::BLOCK;
use crate::format::{FileKind, Ino, Timestamp};
use crate::fs::{Attr, SetAttr};

/// Type bits of a mode.
const S_IFMT: u32 = 0o170_000;

/// What a setattr request changes, as fuser unpacks it.
#[expect(
    clippy::disallowed_types,
    reason = "fuser's interface speaks of file times so"
)]
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
    pub(super) ctime: Option<SystemTime>,
}

impl From<Wish> for SetAttr {
    fn from(wish: Wish) -> Self {
        let moment = |time| match time {
            TimeOrNow::Now => Timestamp::now(),
            TimeOrNow::SpecificTime(time) => timestamp(time),
        };
        Self {
            perm: wish.mode.map(perm),
            uid: wish.uid,
            gid: wish.gid,
            size: wish.size,
            atime: wish.atime.map(moment),
            mtime: wish.mtime.map(moment),
            ctime: wish.ctime.map(timestamp),
        }
    }
}

/// The twelve bits of a mode that are not its type.
pub(super) fn perm(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Socket => FileType::Socket,
        FileKind::Symlink => FileType::Symlink,
    }
}

/// What mknod(2) may make, by the file type in its mode.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & S_IFMT {
        0 | 0o100_000 => Some(FileKind::Regular),
        0o010_000 => Some(FileKind::Fifo),
        0o020_000 => Some(FileKind::CharDevice),
        0o060_000 => Some(FileKind::BlockDevice),
        0o140_000 => Some(FileKind::Socket),
        _ => None,
    }
}

pub(super) fn ino_no(attr: Attr) -> INodeNo {
    INodeNo(attr.ino.0)
}

pub(super) fn file_attr(attr: Attr) -> FileAttr {
    FileAttr {
        ino: ino_no(attr),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.ctime),
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK,
        flags: 0,
    }
}

/// The attributes of nothing.
pub(super) fn negative() -> FileAttr {
    let never = Timestamp { secs: 0, nanos: 0 };
    file_attr(Attr {
        ino: Ino(0),
        kind: FileKind::Regular,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: never,
        mtime: never,
        ctime: never,
    })
}

#[expect(
    clippy::disallowed_types,
    reason = "fuser's interface speaks of file times so"
)]
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let second = if time.secs < 0 {
        epoch.checked_sub(whole)
    } else {
        epoch.checked_add(whole)
    };
    let nanos = Duration::from_nanos(time.nanos.into());
    second
        .and_then(|second| second.checked_add(nanos))
        .unwrap_or(epoch)
}

/// fuser 0.18 takes the nanoseconds of a moment before 1970 off where they are to be added; this
/// puts them back.
#[expect(
    clippy::disallowed_types,
    reason = "fuser's interface speaks of file times so"
)]
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(e) => Timestamp {
            secs: i64::try_from(e.duration().as_secs()).map_or(i64::MIN, |secs| -secs),
            nanos: e.duration().subsec_nanos(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_time(secs: i64, nanos: u32) {
        let time = Timestamp { secs, nanos };
        // As fuser 0.18 unpacks what a request says.
        let whole = Duration::new(secs.unsigned_abs(), nanos);
        let epoch = std::time::UNIX_EPOCH;
        let unpacked = if secs < 0 {
            epoch - whole
        } else {
            epoch + whole
        };
        assert_eq!(timestamp(unpacked), time);
        // What is answered is the moment itself.
        let shown = system_time(time);
        let back = match shown.duration_since(epoch) {
            Ok(after) => after.as_nanos().cast_signed(),
            Err(e) => -e.duration().as_nanos().cast_signed(),
        };
        assert_eq!(back, i128::from(secs) * 1_000_000_000 + i128::from(nanos));
    }

    #[test]
    fn moments_come_back_as_they_were_set_before_1970_too() {
        for (secs, nanos) in [
            (0, 0),
            (0, 1),
            (1, 999_999_999),
            (-1, 0),
            (-1, 999_999_999),
            (-2, 1),
            (1 << 33, 5),
            (-(1 << 33), 5),
        ] {
            check_time(secs, nanos);
        }
    }
}
