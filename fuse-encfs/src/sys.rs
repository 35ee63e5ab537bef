//! Adapter: what the kernel and the CPU give, each call in one place.
//!
//! The only file of this crate with `unsafe`, and the only one that names the system's own calls
//! beyond the standard library.
#![expect(
    unsafe_code,
    reason = "a CPU instruction, and a thread with descriptors of its own"
)]

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{CWD, FallocateFlags, OFlags, statvfs};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};
use rustix::rand::GetRandomFlags;
use rustix::thread::UnshareFlags;
use rustix::time::ClockId;

/// Intel's guide asks for ten tries before the generator counts as broken; AMD's says the same.
const RDRAND_TRIES: u32 = 10;

/// Flags for [`std::os::unix::fs::OpenOptionsExt::custom_flags`] under which a hostile directory
/// entry can neither redirect nor block an open: no symbolic link, no waiting for a FIFO's peer.
pub(crate) const OPEN_HARDENED: i32 = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .bits()
    .cast_signed();

/// Flag for the same under which reads and writes go past the page cache.
pub(crate) const OPEN_DIRECT: i32 = OFlags::DIRECT.bits().cast_signed();
/// Flag for the same that claims a block device for this process alone.
pub(crate) const OPEN_EXCLUSIVE: i32 = OFlags::EXCL.bits().cast_signed();

/// Bytes of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FsSpace {
    /// All that it can hold.
    pub(crate) total: u64,
    /// What is still to be had without privilege.
    pub(crate) free: u64,
}

/// One word of the CPU's hardware generator; `None` when the CPU has none or it keeps failing.
pub(crate) fn rdrand64() -> Option<u64> {
    if !std::arch::is_x86_feature_detected!("rdrand") {
        return None;
    }
    // SAFETY: the CPU has RDRAND, as just detected.
    // JUSTIFICATION: a function compiled for a CPU feature is unsafe to call from one that is not.
    unsafe { rdrand64_unchecked() }
}

#[target_feature(enable = "rdrand")]
fn rdrand64_unchecked() -> Option<u64> {
    let mut word = 0;
    (0..RDRAND_TRIES)
        .find_map(|_| (std::arch::x86_64::_rdrand64_step(&mut word) == 1).then_some(word))
}

/// Fills `bytes` from the kernel's generator.
pub(crate) fn getrandom(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let got = match rustix::rand::getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        bytes = bytes.get_mut(got..).unwrap_or_default();
    }
    Ok(())
}

/// The time of day as the kernel stamps files with it: its coarse clock, which is up to one tick
/// behind. A finer one would make stamps that the kernel sets later look earlier.
pub(crate) fn file_time() -> (i64, u32) {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The time of day: seconds since 1970 and nanoseconds below one second.
pub(crate) fn time_of_day() -> (i64, u32) {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Space of the filesystem that `path` lies on.
pub(crate) fn space(path: &Path) -> io::Result<FsSpace> {
    let s = statvfs(path)?;
    Ok(FsSpace {
        total: s.f_blocks.saturating_mul(s.f_frsize),
        free: s.f_bavail.saturating_mul(s.f_frsize),
    })
}

/// Gives a range of a file or a block device free, so that it reads as zeros.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

/// Magic numbers of the filesystems that live in memory: TMPFS_MAGIC and RAMFS_MAGIC of
/// linux/magic.h.
const MEMORY_FILESYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether what `file` holds is gone with this guest.
pub(crate) fn is_volatile(file: &File) -> io::Result<bool> {
    let magic = rustix::fs::fstatfs(file)?.f_type;
    Ok(u64::try_from(magic).is_ok_and(|magic| MEMORY_FILESYSTEMS.contains(&magic)))
}

/// User and group that this process acts as.
pub(crate) fn effective_owner() -> (u32, u32) {
    (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

/// mount(2) of a FUSE filesystem: never set-user-id, never device nodes of its own.
pub(crate) fn mount_fuse(
    source: &str,
    target: &Path,
    flags: MountRestriction,
    data: &CStr,
) -> io::Result<()> {
    Ok(rustix::mount::mount(
        source,
        target,
        "fuse.fuse-encfs",
        flags.bits(),
        data,
    )?)
}

/// Changes the flags of the mount at `target`.
pub(crate) fn remount(target: &Path, flags: MountRestriction) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(target, flags.bits(), c"")?)
}

/// What a mount forbids beyond what it always does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountRestriction {
    pub(crate) read_only: bool,
    pub(crate) no_exec: bool,
    pub(crate) no_atime: bool,
}

impl MountRestriction {
    fn bits(self) -> MountFlags {
        let mut bits = MountFlags::NOSUID | MountFlags::NODEV;
        bits.set(MountFlags::RDONLY, self.read_only);
        bits.set(MountFlags::NOEXEC, self.no_exec);
        bits.set(MountFlags::NOATIME, self.no_atime);
        bits
    }
}

/// Takes the mount at `target` out of the tree; those who hold files of it keep them.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(
        target,
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    )?)
}

/// Lets the kernel write back what it holds of the filesystem at `path`, and takes the mount there
/// out of the tree; those who hold files of it keep them. For the process that serves the mount.
///
/// On a thread that holds no descriptor: whoever waits for an answer that this process itself has
/// to give cannot be killed, and if he held the FUSE device open, a killed process would wait for
/// itself for ever. Without it the kernel gives up the connection with the last other thread.
pub(crate) fn write_back_and_detach(path: &Path) -> io::Result<()> {
    let run = || {
        drop_descriptors_of_thread()?;
        if let Err(e) = File::open(path).and_then(|root| Ok(rustix::fs::syncfs(root)?)) {
            tracing::warn!(error = %e, "what the kernel holds could not all be written back");
        }
        detach(path)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("encfs-detach".into());
        let ended = thread.spawn_scoped(scope, run)?.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Gives the calling thread a table of descriptors of its own, with but the standard three in it.
fn drop_descriptors_of_thread() -> io::Result<()> {
    // SAFETY: the thread was started for one function that uses no descriptor from outside and
    // gives none away.
    // JUSTIFICATION: the standard library knows no table of descriptors for a thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    // All of them before any is closed: the listing has one too.
    let listed: Vec<i32> = fs::read_dir("/proc/thread-self/fd")?
        .flatten()
        .filter_map(number)
        .collect();
    // The listing's own is among them and closed by now: its number is nobody's.
    let open = |fd: &i32| {
        Path::new(&format!("/proc/thread-self/fd/{fd}"))
            .symlink_metadata()
            .is_ok()
    };
    for descriptor in listed.into_iter().filter(|fd| *fd > 2 && open(fd)) {
        // SAFETY: the number is of this thread's own table, in which nothing else refers to it.
        // JUSTIFICATION: as above.
        unsafe { rustix::io::close(descriptor) }
    }
    Ok(())
}

/// As for [`write_back_and_detach`], and not even the standard three are left: what writes to them
/// writes to nothing. For a thread that lives long.
pub(crate) fn drop_all_descriptors_of_thread() -> io::Result<()> {
    drop_descriptors_of_thread()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// A file that was written back, and the mount that it was reached by.
#[derive(Debug)]
pub(crate) struct WrittenBack {
    _file: OwnedFd,
    _mount: OwnedFd,
}

/// Lets the kernel write back what it holds of inode `node` of the FUSE filesystem that is mounted
/// at `path` and has device number 0:`device`, and waits until that is done. Needs
/// CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH.
///
/// For a thread that does not hold the FUSE device. To close the file, which is to drop what comes
/// back, can wait for whoever has it locked.
pub(crate) fn write_file_back(path: &Path, device: u32, node: u64) -> io::Result<WrittenBack> {
    // A mount of its own, which keeps nobody from taking the one at `path` out of the tree.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, path, flags)?;
    let found = rustix::fs::fstat(&mount)?.st_dev;
    if (rustix::fs::major(found), rustix::fs::minor(found)) != (0, device) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // What is found by path alone cannot be used with a handle.
    let root = rustix::fs::openat(
        &mount,
        c".",
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let file = open_by_node(&root, node)?;
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    // JUSTIFICATION: neither the standard library nor rustix has sync_file_range(2); fsync(2)
    // would wait for the lock that who seeks is holding.
    let done = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            0,
            0,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(WrittenBack {
        _file: file,
        _mount: mount,
    })
}

/// Opens inode `node` of the FUSE filesystem that `root` is of, without asking its server for it.
fn open_by_node(root: &OwnedFd, node: u64) -> io::Result<OwnedFd> {
    /// A `struct file_handle` with the bytes of a FUSE handle.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        node_high: u32,
        node_low: u32,
        generation: u32,
    }
    /// FILEID_INO64_GEN of the kernel's include/linux/exportfs.h.
    const INODE_AND_GENERATION: i32 = 0x81;
    let [a, b, c, d, low @ ..] = node.to_be_bytes();
    let mut handle = Handle {
        bytes: 12,
        kind: INODE_AND_GENERATION,
        node_high: u32::from_be_bytes([a, b, c, d]),
        node_low: u32::from_be_bytes(low),
        generation: 0,
    };
    // SAFETY: the handle has the layout of `struct file_handle` with `bytes` bytes behind its
    // head, and lives over the call; the descriptor is open.
    // JUSTIFICATION: neither the standard library nor rustix has open_by_handle_at(2), and the
    // kernel tells the server an inode's number, never its path.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made the descriptor, for nobody else.
    // JUSTIFICATION: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes this process leader of a session of its own, so that no terminal signals it.
pub(crate) fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Points standard output at `file`.
pub(crate) fn redirect_stdout(file: &File) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stdout(file.as_fd())?)
}

/// Points standard error at `file`.
pub(crate) fn redirect_stderr(file: &File) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(file.as_fd())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generators_give_fresh_words() {
        let words: Vec<u64> = (0..4).map(|_| rdrand64().unwrap()).collect();
        assert!(
            words.windows(2).all(|pair| pair[0] != pair[1]),
            "{words:x?}"
        );
        let mut bytes = [0; 64];
        getrandom(&mut bytes).unwrap();
        assert_ne!(bytes[..32], bytes[32..]);
    }
}
