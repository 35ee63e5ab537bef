//! Edge: requests of the kernel to calls of [`Fs`] and back, and nothing else.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
#[expect(
    clippy::disallowed_types,
    reason = "fuser's interface speaks of file times so"
)]
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::error::FsError;
use crate::format::{FileKind, Ino, NAME_LEN_MAX, Timestamp};
use crate::fs::{Attr, Caller, Fs, NewEntry, RenameRule, SetAttr, WriteMode};

/// Nobody else changes the volume, so the kernel may keep what it knows.
const TTL: Duration = Duration::from_secs(12 * 3600);
/// Inode numbers are never used again, so there is one generation.
const GENERATION: Generation = Generation(0);
/// One request carries a megabyte at most: the default of `fs.fuse.max_pages_limit`.
const PAYLOAD_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in flight of its own accord; its default of 16 throttles.
const BACKGROUND_MAX: u16 = 128;
const BLOCK: u32 = 4096;
const NAME_MAX: u32 = 255;
const _: () = assert!(NAME_MAX as usize == NAME_LEN_MAX);

const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;
const KEEP_SIZE: i32 = 0x01;

/// What is asked of the kernel, where it has it. Not among them: what fuser 0.18 does not carry
/// through, and opens that truncate (their kill flag does not arrive).
const CAPABILITIES: [InitFlags; 12] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_WRITEBACK_CACHE,
    InitFlags::FUSE_MAX_PAGES,
];

thread_local! {
    /// The reply to a read, kept from one to the next.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The filesystem as the kernel sees it.
#[derive(Debug)]
pub(crate) struct Edge {
    fs: Arc<Fs>,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Edge {
    /// An edge; the notifier follows when the session that it is for exists.
    pub(crate) fn new(fs: Arc<Fs>, notifier: Arc<OnceLock<Notifier>>) -> Self {
        Self { fs, notifier }
    }

    /// Lets the kernel ask for the attributes of an inode anew. Touches no page, so it waits for
    /// nobody.
    fn invalidate_attributes(&self, ino: INodeNo) {
        let told = self
            .notifier
            .get()
            .map(|notifier| notifier.inval_inode(ino, -1, 0));
        if let Some(Err(e)) = told {
            tracing::debug!(inode = ino.0, error = %e, "the kernel was not told of a new mode");
        }
    }

    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: &NewEntry<'_>,
    ) -> Result<FileAttr, FsError> {
        self.fs
            .make(Ino(parent.0), name.as_bytes(), new, caller(req))
            .map(file_attr)
    }

    fn make_entry(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: &NewEntry<'_>,
        reply: ReplyEntry,
    ) {
        reply_entry(self.make(req, parent, name, new), reply);
    }
}

impl Filesystem for Edge {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not have a capability");
            }
        }
        // Each gives the nearest value that is allowed when the asked one is not.
        let _ = config.set_max_write(PAYLOAD_MAX);
        let _ = config
            .set_max_readahead(PAYLOAD_MAX)
            .map_err(|max| config.set_max_readahead(max));
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup(Ino(parent.0), name.as_bytes()) {
            // Inode 0 is a name that is known not to exist: the kernel keeps that too.
            Err(FsError::NoEntry) => reply.entry(&TTL, &negative(), GENERATION),
            found => reply_entry(found.map(file_attr), reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(self.fs.getattr(Ino(ino.0)), reply);
    }

    #[expect(
        clippy::disallowed_types,
        reason = "fuser's interface speaks of file times so"
    )]
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let moment = |time| match time {
            TimeOrNow::Now => Timestamp::now(),
            TimeOrNow::SpecificTime(time) => timestamp(time),
        };
        let set = SetAttr {
            perm: mode.map(perm),
            uid,
            gid,
            size,
            atime: atime.map(moment),
            mtime: mtime.map(moment),
            ctime: ctime.map(timestamp),
        };
        reply_attr(self.fs.setattr(Ino(ino.0), set, caller(req)), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else {
            reply.error(Errno::EINVAL);
            return;
        };
        let new = NewEntry {
            kind,
            perm: perm(mode),
            rdev,
            target: &[],
        };
        self.make_entry(req, parent, name, &new, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let new = NewEntry {
            kind: FileKind::Directory,
            perm: perm(mode),
            rdev: 0,
            target: &[],
        };
        self.make_entry(req, parent, name, &new, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.fs.unlink(Ino(parent.0), name.as_bytes()), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.fs.rmdir(Ino(parent.0), name.as_bytes()), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let new = NewEntry {
            kind: FileKind::Symlink,
            perm: 0o777,
            rdev: 0,
            target,
        };
        self.make_entry(req, parent, link_name, &new, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(rule) = rename_rule(flags) else {
            reply.error(Errno::EINVAL);
            return;
        };
        let from = (Ino(parent.0), name.as_bytes());
        let to = (Ino(newparent.0), newname.as_bytes());
        reply_empty(self.fs.rename(from, to, rule), reply);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self
            .fs
            .link(Ino(ino.0), Ino(newparent.0), newname.as_bytes());
        reply_entry(linked.map(file_attr), reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Nothing is kept per open file: from now on the kernel neither asks nor tells.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        REPLY.with_borrow_mut(|buffer| {
            let len = size.min(PAYLOAD_MAX) as usize;
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let read = buffer
                .get_mut(..len)
                .ok_or(FsError::Invalid)
                .and_then(|out| {
                    let got = self.fs.read(Ino(ino.0), offset, out)?;
                    out.get(..got).ok_or(FsError::Invalid)
                });
            match read {
                Ok(data) => reply.data(data),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mode = WriteMode {
            kernel_keeps_times: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kills_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        match self.fs.write(Ino(ino.0), offset, data, mode) {
            Ok(took_privileges) => {
                if took_privileges {
                    self.invalidate_attributes(ino);
                }
                reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The kernel writes its cache back before it asks; with that all is done.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.fs.fsync(Ino(ino.0)), reply);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.fs.fsync(Ino(ino.0)), reply);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.fs.list(Ino(ino.0), offset, |entry| {
            let name = OsStr::from_bytes(entry.name);
            let is_full = reply.add(
                ino_no(entry.attr),
                entry.cookie,
                kind(entry.attr.kind),
                name,
            );
            !is_full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.fs.list(Ino(ino.0), offset, |entry| {
            let (name, attr) = (OsStr::from_bytes(entry.name), file_attr(entry.attr));
            let is_full = reply.add(attr.ino, entry.cookie, name, &TTL, &attr, GENERATION);
            // The kernel counts a lookup for each entry but the dots.
            if !is_full && !matches!(entry.name, b"." | b"..") {
                self.fs.count_lookup(entry.attr.ino);
            }
            !is_full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.fs.statistics() {
            Ok(s) => {
                let (total, free) = (s.total / u64::from(BLOCK), s.free / u64::from(BLOCK));
                reply.statfs(
                    total,
                    free,
                    free,
                    s.files + free,
                    free,
                    BLOCK,
                    NAME_MAX,
                    BLOCK,
                );
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        // Not yet: the kernel then answers EOPNOTSUPP itself, without asking again.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _n: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let new = NewEntry {
            kind: FileKind::Regular,
            perm: perm(mode),
            rdev: 0,
            target: &[],
        };
        match self.make(req, parent, name, &new) {
            Ok(attr) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&TTL, &attr, GENERATION, FileHandle(0), flags);
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let grow = match mode {
            m if m == PUNCH_HOLE | KEEP_SIZE || m == ZERO_RANGE | KEEP_SIZE => false,
            ZERO_RANGE => true,
            // Space cannot be reserved yet. The C library then writes zeros.
            _ => {
                reply.error(Errno::EOPNOTSUPP);
                return;
            }
        };
        let range = offset..offset.saturating_add(length);
        reply_empty(self.fs.punch(Ino(ino.0), range, grow), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel asks without having written its cache back, so the truth here would hide data
        // that is still there (seen on 6.18). Now it answers itself: all of a file is data.
        reply.error(Errno::ENOSYS);
    }
}

fn reply_entry(made: Result<FileAttr, FsError>, reply: ReplyEntry) {
    match made {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_attr(attr: Result<Attr, FsError>, reply: ReplyAttr) {
    match attr {
        Ok(attr) => reply.attr(&TTL, &file_attr(attr)),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_empty(done: Result<(), FsError>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// The one translation of errors. EBADMSG is for what is not authentic and for nothing else, so
/// that tampering can be told from a broken disk.
fn errno(e: &FsError) -> Errno {
    match e {
        FsError::Exists => Errno::EEXIST,
        FsError::Failed(_) | FsError::Store(_) => Errno::EIO,
        FsError::Full => Errno::ENOSPC,
        FsError::Invalid => Errno::EINVAL,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::LinkLimit => Errno::EMLINK,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::NoEntry => Errno::ENOENT,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NotPermitted => Errno::EPERM,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Tampered => Errno::EBADMSG,
        FsError::TooLarge => Errno::EFBIG,
    }
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

fn perm(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

fn kind(kind: FileKind) -> FileType {
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
fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & 0o170_000 {
        0 | 0o100_000 => Some(FileKind::Regular),
        0o010_000 => Some(FileKind::Fifo),
        0o020_000 => Some(FileKind::CharDevice),
        0o060_000 => Some(FileKind::BlockDevice),
        0o140_000 => Some(FileKind::Socket),
        _ => None,
    }
}

fn rename_rule(flags: RenameFlags) -> Option<RenameRule> {
    match flags {
        f if f.is_empty() => Some(RenameRule::Replace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameRule::Exchange),
        RenameFlags::RENAME_NOREPLACE => Some(RenameRule::NoReplace),
        RenameFlags::RENAME_WHITEOUT => Some(RenameRule::Whiteout),
        _ => None,
    }
}

fn ino_no(attr: Attr) -> INodeNo {
    INodeNo(attr.ino.0)
}

fn file_attr(attr: Attr) -> FileAttr {
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
fn negative() -> FileAttr {
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
