//! Edge: attaching a volume to a directory, and the threads that serve it.
//!
//! Two steps, so that two processes can take them: [`attach`] needs the privilege to mount and
//! nothing else (no thread, no key), and gives the descriptor that [`Mounted::serve`] needs.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use runtime::sync::{Condvar, Mutex};

use crate::error::CloseError;
use crate::exit::Exit;
use crate::fs::Policy;
use crate::fuse::{Edge, MountPlace, Seeker};
use crate::sys::{self, MountRestriction};
use crate::volume::{Gauge, Stats, Volume};

const DEVICE: &str = "/dev/fuse";
/// How long those who still hold files of a detached mount have to let go.
const GRACE: Duration = Duration::from_secs(2);
/// How long the threads have to end once the connection is aborted.
const ABORT_GRACE: Duration = Duration::from_secs(5);
/// Transport endpoint is not connected: what a mount says whose server has died.
const ENOTCONN: i32 = 107;
/// Dead mounts on one mount point that are detached by one start.
const DEAD_MOUNTS_MAX: usize = 64;
/// Not a mount point.
const EINVAL: i32 = 22;

/// How to mount. Permissions are always checked by the kernel, and set-user-id programs and
/// device nodes are never honoured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether other users than the owner may use the mount.
    pub allow_other: bool,
    /// User and group that own the mount; those of the calling process when `None`.
    pub owner: Option<(u32, u32)>,
    /// The source that /proc/mounts shows.
    pub source: Option<String>,
    /// Whether the mount refuses changes.
    pub read_only: bool,
    /// Whether programs on it cannot be run.
    pub no_exec: bool,
    /// Whether access times are not kept.
    pub no_atime: bool,
    /// Bytes that the volume may hold, metadata included; `None` for what its store has room for.
    pub size_limit: Option<u64>,
}

/// A mount option that is not known, or that would take protection away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount option `{0}` is not known")]
pub struct UnknownOption(pub String);

/// Why a volume was not attached or is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The directory cannot be used.
    #[error("the mount point cannot be used")]
    MountPoint(#[source] io::Error),
    /// There is no FUSE on this system, or no right to use it.
    #[error("/dev/fuse cannot be opened")]
    Device(#[source] io::Error),
    /// The kernel refused the mount.
    #[error("the mount was refused")]
    Mount(#[source] io::Error),
    /// The kernel and the filesystem did not agree on a protocol.
    #[error("the mount does not start")]
    Handshake(#[source] io::Error),
}

/// Why a mount did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmountError {
    /// The volume is committed, but the mount is still in the tree.
    #[error("the mount cannot be detached")]
    Detach(#[source] io::Error),
    /// What was done last may not be durable.
    #[error(transparent)]
    Close(#[from] CloseError),
}

/// A volume that is mounted and served.
///
/// Dropped without [`Mounted::unmount`] the process's end ends it, as a crash would.
pub struct Mounted {
    volume: Volume,
    mountpoint: PathBuf,
    session: Arc<SessionState>,
    /// Number of the connection in /sys/fs/fuse/connections.
    connection: Option<u32>,
}

/// Waits for the end of a mount.
#[derive(Clone)]
pub struct Watch(Arc<SessionState>);

#[derive(Default)]
struct SessionState {
    ended: Mutex<bool>,
    signal: Condvar,
}

/// Opens /dev/fuse and mounts on `mountpoint`. A dead mount that lies there is detached before.
///
/// Starts no thread, reads no key, and does not wait for the filesystem: whoever uses the mount
/// point waits until the descriptor is served.
pub fn attach(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let mountpoint = usable(mountpoint).map_err(MountError::MountPoint)?;
    let device = open_device().map_err(MountError::Device)?;
    let (uid, gid) = options.owner.unwrap_or_else(sys::effective_owner);
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions",
        device.as_raw_fd()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|e| MountError::Mount(e.into()))?;
    let source = options.source.as_deref().unwrap_or("fuse-encfs");
    sys::mount_fuse(source, &mountpoint, options.restriction(), &data)
        .map_err(MountError::Mount)?;
    Ok(device.into())
}

/// Changes what the mount on `mountpoint` refuses; all else stays as it is.
pub fn change(mountpoint: &Path, options: &MountOptions) -> Result<(), MountError> {
    sys::remount(mountpoint, options.restriction()).map_err(MountError::Mount)
}

impl MountOptions {
    /// What of it the volume goes by.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            noatime: self.no_atime || self.read_only,
            size_max: self.size_limit,
        }
    }

    fn restriction(&self) -> MountRestriction {
        MountRestriction {
            read_only: self.read_only,
            no_exec: self.no_exec,
            no_atime: self.no_atime,
        }
    }
}

impl Mounted {
    /// Serves the mount that `fd` belongs to with `threads` threads, and returns once the kernel
    /// and the filesystem have agreed.
    pub fn serve(
        volume: Volume,
        fd: OwnedFd,
        mountpoint: &Path,
        threads: usize,
    ) -> Result<Self, MountError> {
        let mut config = Config::default();
        config.n_threads = Some(threads.max(1));
        // A descriptor of its own for each thread; not for who may not open the device.
        config.clone_fd = open_device().is_ok();
        let notifier = Arc::new(OnceLock::new());
        let mountpoint = mountpoint.to_path_buf();
        let connection = tune(&mountpoint);
        let place = MountPlace {
            path: mountpoint.clone(),
            device: connection,
        };
        let seeker = Seeker::new(Arc::clone(volume.fs()), place);
        let edge = Edge::new(Arc::clone(volume.fs()), Arc::clone(&notifier), seeker);
        // The kernel keeps out whom the mount's options keep out; the library need not.
        let session = Session::from_fd(edge, fd, SessionACL::All, config);
        let session = session.map_err(MountError::Handshake)?;
        let _ = notifier.set(session.notifier());

        let state = Arc::new(SessionState::default());
        let at_end = Arc::clone(&state);
        let serve = move || {
            if let Err(e) = session.run() {
                tracing::debug!(error = %e, "the session ended with an error");
            }
            *at_end.ended.lock() = true;
            at_end.signal.notify_all();
        };
        let thread = thread::Builder::new()
            .name("encfs-session".into())
            .spawn(serve);
        thread.map_err(MountError::Handshake)?;
        Ok(Self {
            volume,
            mountpoint,
            session: state,
            connection,
        })
    }

    /// Blocks until the mount has ended, by umount(8) or by an abort.
    pub fn wait(&self) {
        self.watch().wait();
    }

    /// A handle to wait with from elsewhere.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.session))
    }

    /// Whether the mount is served.
    pub fn is_alive(&self) -> bool {
        !*self.session.ended.lock()
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.volume.stats()
    }

    /// Where to ask for [`Stats`] from elsewhere.
    pub fn gauge(&self) -> Gauge {
        self.volume.gauge()
    }

    /// Detaches the mount if it still is there, waits shortly for those who use it, commits
    /// everything, writes a checkpoint, and forgets the keys. Blocking.
    ///
    /// Also when it cannot be detached, the volume is committed and closed; whoever still uses the
    /// mount then gets errors.
    pub fn unmount(self) -> Result<(), UnmountError> {
        let Self {
            volume,
            mountpoint,
            session,
            connection,
        } = self;
        let mut detached = Ok(());
        if !*session.ended.lock() {
            detached = match sys::write_back_and_detach(&mountpoint) {
                // Somebody else was faster.
                Err(e) if e.raw_os_error() == Some(EINVAL) => Ok(()),
                done => done,
            };
            let ended = session.ends_within(GRACE)
                || (abort(connection) && session.ends_within(ABORT_GRACE));
            if !ended {
                tracing::warn!("files of the mount are still in use; they get errors now");
            }
        }
        volume.close()?;
        detached.map_err(UnmountError::Detach)
    }
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted")
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Blocks until the mount has ended.
    pub fn wait(&self) {
        let mut ended = self.0.ended.lock();
        self.0.signal.wait_while(&mut ended, |ended| !*ended);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch(..)")
    }
}

impl SessionState {
    fn ends_within(&self, limit: Duration) -> bool {
        let mut ended = self.ended.lock();
        self.signal
            .wait_while_for(&mut ended, |ended| !*ended, limit);
        *ended
    }
}

impl MountError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Device(_) => "fs.no_fuse",
            Self::Handshake(_) => "fs.handshake_failed",
            Self::Mount(_) => "fs.mount_refused",
            Self::MountPoint(_) => "fs.mount_point",
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        Exit::MountFailed.code()
    }
}

impl UnmountError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Close(e) => e.code(),
            Self::Detach(_) => "fs.detach_failed",
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Close(e) => e.exit_code(),
            Self::Detach(_) => Exit::MountFailed.code(),
        }
    }
}

impl FromStr for MountOptions {
    type Err = UnknownOption;

    /// Parses the list behind `-o`.
    fn from_str(list: &str) -> Result<Self, UnknownOption> {
        let mut options = Self::default();
        for option in list.split(',').filter(|option| !option.is_empty()) {
            match option {
                "allow_other" => options.allow_other = true,
                // Always so; the owner is how the kernel shows it, and how mount(8) gives it back.
                "default_permissions" | "nodev" | "nosuid" | "relatime" => {}
                owner if owner.starts_with("user_id=") || owner.starts_with("group_id=") => {}
                "rw" => options.read_only = false,
                "ro" => options.read_only = true,
                "exec" => options.no_exec = false,
                "noexec" => options.no_exec = true,
                "atime" => options.no_atime = false,
                "noatime" => options.no_atime = true,
                _ => {
                    let (name, value) = option.split_once('=').unwrap_or((option, ""));
                    let unknown = || UnknownOption(option.to_owned());
                    match name {
                        "fsname" => options.source = Some(value.to_owned()),
                        "size_limit" => {
                            options.size_limit = Some(parse_size(value).ok_or_else(unknown)?);
                        }
                        _ => return Err(unknown()),
                    }
                }
            }
        }
        Ok(options)
    }
}

/// Parses a number of bytes, with K, M, G or T behind it for powers of 1024.
pub(crate) fn parse_size(size: &str) -> Option<u64> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = units
        .into_iter()
        .find_map(|(unit, bits)| Some((size.strip_suffix(unit)?, bits)));
    let (digits, bits) = unit.unwrap_or((size, 0));
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    number.checked_mul(1 << bits).filter(|bytes| *bytes > 0)
}

/// The mount point's own path, once a dead mount on it is out of the way.
fn usable(mountpoint: &Path) -> io::Result<PathBuf> {
    // Each crash may have left a mount on the one before.
    for _ in 0..DEAD_MOUNTS_MAX {
        // Not metadata(): the kernel answers that from its cache, hours after the server has died.
        match rustix::fs::statfs(mountpoint) {
            Err(e) if e.raw_os_error() == ENOTCONN => {
                tracing::warn!("a dead mount is detached from the mount point");
                sys::detach(mountpoint)?;
            }
            _ => break,
        }
    }
    let mountpoint = mountpoint.canonicalize()?;
    if fs::metadata(&mountpoint)?.is_dir() {
        Ok(mountpoint)
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}

fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// Cuts off who still uses the mount; false where the kernel does not let us.
fn abort(connection: Option<u32>) -> bool {
    let Some(number) = connection else {
        return false;
    };
    let aborted = fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1");
    if let Err(e) = &aborted {
        tracing::debug!(error = %e, "the connection cannot be aborted");
    }
    aborted.is_ok()
}

/// Lets the kernel keep more of this mount in its cache than it lets a server that it does not
/// trust, where it allows us to: by default 1 % of memory may be dirty, which throttles writers.
/// Gives the connection's number.
fn tune(mountpoint: &Path) -> Option<u32> {
    let number = connection_number(
        &fs::read_to_string("/proc/self/mountinfo").ok()?,
        mountpoint,
    )?;
    let settings = [
        ("strict_limit", "0"),
        ("max_ratio", "100"),
        ("read_ahead_kb", "1024"),
    ];
    for (name, value) in settings {
        if let Err(e) = fs::write(format!("/sys/class/bdi/0:{number}/{name}"), value) {
            tracing::debug!(name, error = %e, "a cache setting stays as it is");
        }
    }
    Some(number)
}

/// The minor number of the device that is mounted on `mountpoint`, by the kernel's table: asking
/// the mount itself would make this process wait for its own answer.
fn connection_number(mountinfo: &str, mountpoint: &Path) -> Option<u32> {
    let is_it = |line: &&str| line.split(' ').nth(4).map(Path::new) == Some(mountpoint);
    let device = mountinfo.lines().rfind(is_it)?.split(' ').nth(2)?;
    // Anonymous devices have major number 0.
    device.strip_prefix("0:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_size(size: &str, want: Option<u64>) {
        assert_eq!(parse_size(size), want, "{size}");
        let options = format!("size_limit={size}").parse();
        let limit = options.map(|options: MountOptions| options.size_limit);
        assert_eq!(limit.ok().flatten(), want, "{size}");
    }

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        check_size("1", Some(1));
        check_size("4096", Some(4096));
        check_size("3K", Some(3 << 10));
        check_size("10G", Some(10 << 30));
        check_size("16777215T", Some(16_777_215 << 40));
        for bad in [
            "",
            "K",
            "0",
            "0G",
            "-1",
            "+1",
            "1.5G",
            "10g",
            "10GB",
            " 1",
            "16777216T",
        ] {
            check_size(bad, None);
        }
    }

    #[test]
    fn options_are_those_that_take_no_protection_away() {
        let list = "allow_other,default_permissions,,ro,noexec,fsname=x";
        let want = MountOptions {
            allow_other: true,
            read_only: true,
            no_exec: true,
            source: Some("x".into()),
            ..MountOptions::default()
        };
        assert_eq!(list.parse(), Ok(want));
        for bad in [
            "suid",
            "dev",
            "allow_root",
            "FSNAME=x",
            "ro ",
            "size_limit",
            "ro=1",
        ] {
            assert_eq!(bad.parse::<MountOptions>(), Err(UnknownOption(bad.into())));
        }
    }

    #[test]
    fn the_connection_is_found_in_the_table_of_mounts() {
        let table = "36 35 8:1 / / rw - ext4 /dev/a rw\n\
                     85 63 0:40 / /mnt/a rw,nosuid - fuse.fuse-encfs x rw\n\
                     86 63 0:41 / /mnt/a rw,nosuid - fuse.fuse-encfs x rw";
        assert_eq!(connection_number(table, Path::new("/mnt/a")), Some(41));
        assert_eq!(connection_number(table, Path::new("/")), None);
        assert_eq!(connection_number(table, Path::new("/mnt")), None);
    }
}
