//! Core: what the map holds of a file, besides where its bytes lie.

use super::codec::{Malformed, Reader, put_bytes16};
use super::{INLINE_FILE_LEN_MAX, NAME_LEN_MAX, TARGET_LEN_MAX};

/// Number of an inode, never reused in a volume. The root directory is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ino(pub(crate) u64);

impl Ino {
    /// The root directory, as FUSE wants it.
    pub(crate) const ROOT: Self = Self(1);
}

/// A moment: seconds since 1970 and nanoseconds below one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp {
    /// Seconds, negative before 1970.
    pub(crate) secs: i64,
    /// Nanoseconds after that second.
    pub(crate) nanos: u32,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    Regular,
    Socket,
    Symlink,
}

/// The value of an inode's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InodeRecord {
    pub(crate) kind: FileKind,
    /// Permission bits with set-user-id, set-group-id and sticky: `mode & 0o7777`.
    pub(crate) perm: u16,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Device number, of devices alone.
    pub(crate) rdev: u32,
    /// Bytes of a regular file or of a symbolic link's target.
    pub(crate) size: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// The directory above, of directories alone.
    pub(crate) parent: Ino,
    /// Cookie of the next new entry, of directories alone.
    pub(crate) next_cookie: u64,
    /// Bytes that the extents of a regular file cover, or promise to.
    pub(crate) allocated: u64,
    /// Extended attributes that it has.
    pub(crate) xattrs: u32,
    /// Target of a symbolic link; of a small regular file, which then has no records, the bytes
    /// that it begins with.
    pub(crate) inline: Vec<u8>,
}

impl Timestamp {
    pub(crate) fn put(self, out: &mut Vec<u8>) {
        out.extend(self.secs.to_le_bytes());
        out.extend(self.nanos.to_le_bytes());
    }

    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let secs = r.array().map(i64::from_le_bytes)?;
        let nanos = r.u32()?;
        if nanos < 1_000_000_000 {
            Ok(Self { secs, nanos })
        } else {
            Err(r.malformed())
        }
    }
}

impl FileKind {
    /// Its code in the format.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::Symlink => 3,
            Self::Fifo => 4,
            Self::Socket => 5,
            Self::CharDevice => 6,
            Self::BlockDevice => 7,
        }
    }

    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match r.u8()? {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return Err(r.malformed()),
        })
    }
}

impl InodeRecord {
    /// Appends the encoded record.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind.code());
        out.push(0);
        out.extend(self.perm.to_le_bytes());
        out.extend(self.nlink.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.gid.to_le_bytes());
        out.extend(self.rdev.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        self.atime.put(out);
        self.mtime.put(out);
        self.ctime.put(out);
        out.extend(self.parent.0.to_le_bytes());
        out.extend(self.next_cookie.to_le_bytes());
        out.extend(self.allocated.to_le_bytes());
        out.extend(self.xattrs.to_le_bytes());
        put_bytes16(out, &self.inline);
    }

    /// Parses an encoded record.
    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kind = FileKind::parse(r)?;
        if r.u8()? != 0 {
            return Err(r.malformed());
        }
        let record = Self {
            kind,
            perm: r.u16()?,
            nlink: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            rdev: r.u32()?,
            size: r.u64()?,
            atime: Timestamp::parse(r)?,
            mtime: Timestamp::parse(r)?,
            ctime: Timestamp::parse(r)?,
            parent: Ino(r.u64()?),
            next_cookie: r.u64()?,
            allocated: r.u64()?,
            xattrs: r.u32()?,
            inline: r.bytes16(TARGET_LEN_MAX)?.to_vec(),
        };
        if record.perm <= 0o7777 && record.inline_is_sound() {
            Ok(record)
        } else {
            Err(r.malformed())
        }
    }
}

impl InodeRecord {
    /// Whether what is inline fits what the inode is.
    fn inline_is_sound(&self) -> bool {
        match self.kind {
            FileKind::Symlink => !self.inline.is_empty(),
            FileKind::Regular => {
                self.inline.is_empty()
                    || (self.inline.len() <= INLINE_FILE_LEN_MAX
                        && self.inline.len() as u64 <= self.size)
            }
            FileKind::BlockDevice
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket => self.inline.is_empty(),
        }
    }
}

/// Whether `name` can be that of a directory entry.
pub(crate) fn is_file_name(name: &[u8]) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}
