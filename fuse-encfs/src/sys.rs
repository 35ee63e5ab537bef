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
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::fs::{OFlags, statvfs};
use rustix::mount::{MountFlags, UnmountFlags};
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
    let mut bits = MountFlags::NOSUID | MountFlags::NODEV;
    bits.set(MountFlags::RDONLY, flags.read_only);
    bits.set(MountFlags::NOEXEC, flags.no_exec);
    bits.set(MountFlags::NOATIME, flags.no_atime);
    Ok(rustix::mount::mount(
        source,
        target,
        "fuse.fuse-encfs",
        bits,
        data,
    )?)
}

/// What a mount forbids beyond what it always does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountRestriction {
    pub(crate) read_only: bool,
    pub(crate) no_exec: bool,
    pub(crate) no_atime: bool,
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
