//! Adapter: memory for keys, which is not swapped, not dumped, not inherited, and wiped.
//!
//! Pages of their own, because all that is promised here the system promises by the page. What a
//! cipher computes from a key lies outside of them, in the cipher library's own memory: where the
//! machine can swap, [`lock_process`] holds that too.
#![expect(
    unsafe_code,
    reason = "pages by system calls, which know addresses and not lifetimes"
)]

use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MlockAllFlags, ProtFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use zeroize::Zeroize;

/// Whether the deployment has said that keys may stay in memory that can be swapped.
static UNLOCKED_PERMITTED: AtomicBool = AtomicBool::new(false);

/// `COUNT` keys of 32 bytes in locked pages: never written to swap, left out of core dumps, not
/// there in a child process, wiped when dropped. Neither cloned, compared nor shown.
pub struct LockedKeys<const COUNT: usize> {
    keys: NonNull<[[u8; 32]; COUNT]>,
    is_locked: bool,
}

/// Why there is no memory for keys.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The pages cannot be locked: the process may lock no more (`RLIMIT_MEMLOCK`) and has not the
    /// privilege to raise that.
    #[error("keys cannot be locked in memory")]
    Limit(#[source] io::Error),
    /// The system gives no pages.
    #[error("the system gives no memory for keys")]
    NoMemory(#[source] io::Error),
}

/// From now on keys may be in unlocked memory where the system refuses to lock it. For the edge of
/// a program whose deployment asked for it; each holder of keys still says that it happened.
pub fn permit_unlocked() {
    UNLOCKED_PERMITTED.store(true, Ordering::Relaxed);
}

/// Forbids core dumps of this process, and other processes of its user to read its memory.
pub fn forbid_dumps() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(
        DumpableBehavior::NotDumpable,
    )?)
}

/// Whether memory of this machine may be written to swap. Unknown counts as yes.
pub fn swap_is_on() -> bool {
    // A line of headings, and one for each area.
    fs::read_to_string("/proc/swaps").map_or(true, |areas| areas.lines().nth(1).is_some())
}

/// Locks every page that this process uses or comes to use, ciphers' memory included. Needs the
/// privilege to raise the limit.
pub fn lock_process() -> Result<(), LockError> {
    if raise_limit().is_some() {
        // With a limit, locking what is still to come would turn allocations into failures.
        return Err(LockError::Limit(Errno::PERM.into()));
    }
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(|e| LockError::Limit(e.into()))
}

impl<const COUNT: usize> LockedKeys<COUNT> {
    const LEN: usize = size_of::<[[u8; 32]; COUNT]>();

    /// Fills new keys in place.
    pub fn fill_with(fill: impl FnOnce(&mut [[u8; 32]; COUNT])) -> Result<Self, LockError> {
        const { assert!(COUNT > 0, "a mapping has a length") };
        let mut keys = Self::zeroed()?;
        // SAFETY: the pages are mapped, writable, aligned to more than a byte, zero and so valid,
        // as long as the value that owns them; `keys` is borrowed for as long as the reference is.
        // JUSTIFICATION: a reference into pages that no allocator of the language gave.
        fill(unsafe { keys.keys.as_mut() });
        Ok(keys)
    }

    /// Whether the pages are locked: always, unless the deployment permits otherwise.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    fn zeroed() -> Result<Self, LockError> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the system chooses the address, so no other mapping is touched.
        // JUSTIFICATION: whole pages of their own, which no safe allocator promises.
        let pages =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), Self::LEN, access, flags) };
        let pages = pages.map_err(|e| LockError::NoMemory(e.into()))?;
        let keys =
            NonNull::new(pages.cast()).ok_or_else(|| LockError::NoMemory(Errno::NOMEM.into()))?;
        // Owned from here on: an error below unmaps them.
        let mut keys = Self {
            keys,
            is_locked: false,
        };
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: the pages are mapped and ours; neither advice changes what they hold.
            // JUSTIFICATION: as above.
            unsafe { rustix::mm::madvise(pages, Self::LEN, advice) }
                .map_err(|e| LockError::NoMemory(e.into()))?;
        }
        keys.is_locked = match lock(pages, Self::LEN) {
            Ok(()) => true,
            Err(_) if UNLOCKED_PERMITTED.load(Ordering::Relaxed) => false,
            Err(e) => return Err(LockError::Limit(e.into())),
        };
        Ok(keys)
    }
}

fn lock(pages: *mut c_void, len: usize) -> Result<(), Errno> {
    // SAFETY: the pages are mapped and the caller's own; locking changes nothing that they hold.
    // JUSTIFICATION: the system call takes an address.
    let locked = unsafe { rustix::mm::mlock(pages, len) };
    if locked.is_ok() {
        return locked;
    }
    raise_limit();
    // SAFETY: as above.
    // JUSTIFICATION: as above.
    unsafe { rustix::mm::mlock(pages, len) }
}

/// Raises the limit of locked bytes as far as this process may, and gives what it is then.
fn raise_limit() -> Option<u64> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let highest = Rlimit {
        current: limit.maximum,
        ..limit
    };
    for wanted in [unlimited, highest] {
        if rustix::process::setrlimit(Resource::Memlock, wanted).is_ok() {
            break;
        }
    }
    rustix::process::getrlimit(Resource::Memlock).current
}

impl<const COUNT: usize> Deref for LockedKeys<COUNT> {
    type Target = [[u8; 32]; COUNT];

    fn deref(&self) -> &Self::Target {
        // SAFETY: as in `fill_with`; nobody changes them behind a shared reference.
        // JUSTIFICATION: as in `fill_with`.
        unsafe { self.keys.as_ref() }
    }
}

impl<const COUNT: usize> Drop for LockedKeys<COUNT> {
    fn drop(&mut self) {
        // SAFETY: as in `fill_with`; nobody else has a reference any more.
        // JUSTIFICATION: as in `fill_with`.
        unsafe { self.keys.as_mut() }.zeroize();
        // SAFETY: the mapping is ours, of this length, and not used again. Unmapping unlocks.
        // JUSTIFICATION: the system call takes an address.
        let unmapped = unsafe { rustix::mm::munmap(self.keys.as_ptr().cast(), Self::LEN) };
        debug_assert!(unmapped.is_ok(), "pages that were mapped can be unmapped");
    }
}

// SAFETY: the pages belong to the value alone, and are changed through `&mut` alone.
// JUSTIFICATION: a raw pointer is neither, by default.
unsafe impl<const COUNT: usize> Send for LockedKeys<COUNT> {}
// SAFETY: as above.
// JUSTIFICATION: as above.
unsafe impl<const COUNT: usize> Sync for LockedKeys<COUNT> {}

impl<const COUNT: usize> fmt::Debug for LockedKeys<COUNT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockedKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of the mapping that `address` lies in.
    fn flags_of(address: usize) -> String {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            let bounds = range.map(|(from, to)| [from, to].map(|x| usize::from_str_radix(x, 16)));
            if let Some([Ok(from), Ok(to)]) = bounds {
                inside = (from..to).contains(&address);
            } else if inside && line.starts_with("VmFlags:") {
                return line.to_owned();
            }
        }
        panic!("no mapping")
    }

    #[test]
    fn keys_are_locked_left_out_of_dumps_and_of_children() {
        let keys = LockedKeys::<3>::fill_with(|keys| keys[1] = [7; 32]).unwrap();
        assert_eq!(*keys, [[0; 32], [7; 32], [0; 32]]);
        assert!(keys.is_locked());
        let flags = flags_of(keys.keys.as_ptr() as usize);
        for flag in ["lo", "dd", "dc"] {
            assert!(flags.split(' ').any(|f| f == flag), "{flag} not in {flags}");
        }
        assert_eq!(format!("{keys:?}"), "LockedKeys(..)");
    }
}
