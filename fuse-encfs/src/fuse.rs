//! Edge: requests of the kernel to calls of [`Fs`] and back, and nothing else.
//!
//! The requests by family: [`names`], [`attributes`], [`contents`], [`seek`], [`xattrs`]. Locks of
//! files are not among them: the kernel keeps those of one mount itself when the filesystem does
//! not ask for them, and a volume has one mount.

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
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::error::FsError;
use crate::format::{FileKind, Ino, NAME_LEN_MAX};
use crate::fs::{Attr, Caller, Fs};

mod attributes;
mod contents;
mod names;
mod seek;
mod xattrs;

use attributes::{Wish, file_attr, kind_of_mode, negative};
use names::Plan;
pub(crate) use seek::{MountPlace, Seeker};
use xattrs::reply_sized;

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

/// What is asked of the kernel, where it has it. Not among them:
///
/// - what fuser 0.18 does not carry through: FUSE_SETXATTR_EXT, FUSE_SECURITY_CTX,
///   FUSE_ALLOW_IDMAP, FUSE_OVER_IO_URING, FUSE_REQUEST_TIMEOUT, FUSE_HAS_RESEND;
/// - FUSE_ATOMIC_O_TRUNC: its kill flag does not arrive;
/// - FUSE_ASYNC_DIO: after a direct write that goes on asynchronously the kernel leaves what it
///   has cached of the range as it was, and readers see old data (seen on 6.18).
const CAPABILITIES: [InitFlags; 16] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_WRITEBACK_CACHE,
];

/// The filesystem as the kernel sees it.
#[derive(Debug)]
pub(crate) struct Edge {
    fs: Arc<Fs>,
    notifier: Arc<OnceLock<Notifier>>,
    seeker: Seeker,
}

impl Edge {
    /// An edge; the notifier follows when the session that it is for exists.
    pub(crate) fn new(fs: Arc<Fs>, notifier: Arc<OnceLock<Notifier>>, seeker: Seeker) -> Self {
        Self {
            fs,
            notifier,
            seeker,
        }
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
        match self.found(parent, name) {
            // Inode 0 is a name that is known not to exist: the kernel keeps that too.
            Err(FsError::NoEntry) if !matches!(name.as_bytes(), b"." | b"..") => {
                reply.entry(&TTL, &negative(), GENERATION);
            }
            found => reply_entry(found, reply),
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
        let wish = Wish {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
        };
        reply_attr(self.fs.setattr(Ino(ino.0), wish.into(), caller(req)), reply);
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
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else {
            reply.error(Errno::EINVAL);
            return;
        };
        let plan = Plan {
            kind,
            mode,
            umask,
            rdev,
            target: &[],
        };
        reply_entry(self.make(req, parent, name, plan), reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let plan = Plan {
            kind: FileKind::Directory,
            mode,
            umask,
            rdev: 0,
            target: &[],
        };
        reply_entry(self.make(req, parent, name, plan), reply);
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
        let plan = Plan {
            kind: FileKind::Symlink,
            mode: 0o777,
            umask: 0,
            rdev: 0,
            target: target.as_os_str().as_bytes(),
        };
        reply_entry(self.make(req, parent, link_name, plan), reply);
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
        let renamed = self.rename_entry((parent, name), (newparent, newname), flags);
        reply_empty(renamed, reply);
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
        self.read_and_reply(ino, offset, size, reply);
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
        match self.write_all(ino, offset, data, write_flags) {
            Ok(written) => reply.written(written),
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
        match self.list(ino, offset, &mut reply) {
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
        match self.list_with_attributes(ino, offset, &mut reply) {
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
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.set_attribute(req, ino, name, value, flags), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.fs.get_xattr(Ino(ino.0), name.as_bytes());
        reply_sized(value, size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_sized(self.names_of_attributes(req, ino), size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.remove_attribute(req, ino, name), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let plan = Plan {
            kind: FileKind::Regular,
            mode,
            umask,
            rdev: 0,
            target: &[],
        };
        match self.make(req, parent, name, plan) {
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
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.reserve_or_clear(req, ino, offset, length, mode);
        reply_empty(done, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.seeker.answer(ino, offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        match self.copy(req, (ino_in, offset_in), (ino_out, offset_out), len) {
            Ok(copied) => reply.written(copied),
            Err(e) => reply.error(errno(&e)),
        }
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
        FsError::AccessDenied => Errno::EACCES,
        FsError::Exists => Errno::EEXIST,
        FsError::Failed(_) | FsError::Store(_) => Errno::EIO,
        FsError::Full => Errno::ENOSPC,
        FsError::Invalid => Errno::EINVAL,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::LinkLimit => Errno::EMLINK,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::NoData => Errno::ENXIO,
        FsError::NoEntry => Errno::ENOENT,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::OutOfRange => Errno::ERANGE,
        FsError::TooLong => Errno::E2BIG,
        FsError::NotPermitted => Errno::EPERM,
        FsError::NotSupported => Errno::EOPNOTSUPP,
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
