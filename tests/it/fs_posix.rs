//! Core: POSIX semantics by the system's own calls on a real mount, where a shell does not reach.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use enclaveid_tests::fixture::{Mount, target_dir};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, RenameFlags, SeekFrom as At, Timespec,
    Timestamps, XattrFlags, copy_file_range, fallocate, flock, renameat_with, utimensat,
};
use rustix::io::Errno;

use crate::fs_mount::Scene;

/// What a list says by itself: owner `rwx`, user 7 `rwx`, group `r-x`, mask `rwx`, others nothing.
const NAMED: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\x07\0\0\0\
                       \x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\
                       \x20\0\0\0\xff\xff\xff\xff";

/// A mount that all the small tests of one function share, each in a directory of its own.
struct Place {
    mount: Mount,
    scene: Scene,
}

impl Place {
    fn new() -> Option<Self> {
        let scene = Scene::new()?;
        let mount = scene.mount();
        Some(Self { mount, scene })
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.mount.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn remount(self) -> Self {
        let end = self.mount.unmount().unwrap();
        assert_eq!(end.code, Some(0), "{end}");
        let mount = self.scene.mount();
        Self { mount, ..self }
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

#[track_caller]
fn check_rename(dir: &Path, flags: RenameFlags, want: Result<(&str, Option<&str>), Errno>) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&from, "from").unwrap();
    let renamed = renameat_with(CWD, &from, CWD, &to, flags);
    let read = |path: &Path| fs::read_to_string(path).ok();
    let got = renamed.map(|()| (read(&to).unwrap(), read(&from)));
    let want = want.map(|(to, from)| (to.to_owned(), from.map(str::to_owned)));
    assert_eq!(got, want, "{flags:?}");
}

#[test]
fn fuse_rename_flags_do_what_they_say() {
    let Some(place) = Place::new() else { return };
    let dir = place.dir("rename");
    let (plain, exchange) = (RenameFlags::empty(), RenameFlags::EXCHANGE);
    check_rename(&dir, exchange, Err(Errno::NOENT));
    check_rename(&dir, plain, Ok(("from", None)));
    fs::write(dir.join("to"), "to").unwrap();
    check_rename(&dir, RenameFlags::NOREPLACE, Err(Errno::EXIST));
    check_rename(&dir, exchange, Ok(("from", Some("to"))));
    let both = exchange | RenameFlags::NOREPLACE;
    check_rename(&dir, both, Err(Errno::INVAL));
    let from = dir.join("from");
    let renamed = renameat_with(CWD, &from, CWD, dir.join("w"), RenameFlags::WHITEOUT);
    renamed.unwrap();
    let whiteout = fs::symlink_metadata(from).unwrap();
    assert_eq!(
        (whiteout.mode() & 0o170_000, whiteout.rdev()),
        (0o020_000, 0)
    );
    // Directories of different sizes and depths change places with all that is in them.
    fs::create_dir_all(dir.join("a/b/c")).unwrap();
    fs::create_dir_all(dir.join("x/y")).unwrap();
    renameat_with(CWD, dir.join("a/b"), CWD, dir.join("x"), exchange).unwrap();
    assert!(dir.join("x/c").is_dir() && dir.join("a/b/y").is_dir());
    let parent = fs::metadata(dir.join("a/b/..")).unwrap();
    assert_eq!(parent.ino(), fs::metadata(dir.join("a")).unwrap().ino());
    let below = renameat_with(CWD, dir.join("a"), CWD, dir.join("a/b/z"), plain);
    assert_eq!(below, Err(Errno::INVAL));
}

#[test]
fn fuse_names_are_any_bytes_and_inode_numbers_stay() {
    use std::os::unix::ffi::OsStrExt;
    let Some(place) = Place::new() else { return };
    let dir = place.dir("names");
    let name = |bytes: &[u8]| dir.join(std::ffi::OsStr::from_bytes(bytes));
    let longest = [b'n'; 255];
    let odd: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let names = [
        &longest[..],
        &odd,
        b" ",
        b"...",
        b"-rf",
        "\u{fc}\u{308}".as_bytes(),
    ];
    for bytes in names {
        fs::write(name(bytes), bytes).unwrap();
    }
    let too_long = fs::write(name(&[b'n'; 256]), "").unwrap_err();
    assert_eq!(Errno::from_io_error(&too_long), Some(Errno::NAMETOOLONG));
    let listed = |dir: &Path| {
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().ino()))
            .collect();
        all.sort();
        all
    };
    let before = listed(&dir);
    assert_eq!(before.len(), names.len());
    let place = place.remount();
    let dir = place.mount.path().join("names");
    assert_eq!(listed(&dir), before);
    for bytes in names {
        assert_eq!(
            fs::read(dir.join(std::ffi::OsStr::from_bytes(bytes))).unwrap(),
            bytes
        );
    }
    // A number is not used again.
    fs::remove_file(dir.join("...")).unwrap();
    fs::write(dir.join("new"), "").unwrap();
    let new = fs::metadata(dir.join("new")).unwrap().ino();
    assert!(before.iter().all(|(_, ino)| *ino != new));
}

#[test]
fn fuse_a_listing_shows_what_stays_exactly_once() {
    let Some(place) = Place::new() else { return };
    let dir = place.dir("listing");
    for i in 0..2000 {
        fs::write(dir.join(format!("stays-{i}")), "").unwrap();
        fs::write(dir.join(format!("goes-{i}")), "").unwrap();
    }
    let mut seen = Vec::new();
    for (turn, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if turn < 2000 {
            fs::write(dir.join(format!("comes-{turn}")), "").unwrap();
            fs::remove_file(dir.join(format!("goes-{turn}"))).unwrap();
        }
        seen.extend(name.starts_with("stays").then_some(name));
    }
    seen.sort();
    let mut want: Vec<String> = (0..2000).map(|i| format!("stays-{i}")).collect();
    want.sort();
    assert_eq!(seen, want);
}

#[track_caller]
fn check_time(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: secs,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let shown = fs::symlink_metadata(path).unwrap();
    assert_eq!((shown.mtime(), shown.mtime_nsec()), (secs, nanos));
    assert_eq!((shown.atime(), shown.atime_nsec()), (secs, nanos));
}

#[test]
fn fuse_times_keep_their_nanoseconds_over_a_remount_before_1970_too() {
    let Some(place) = Place::new() else { return };
    let dir = place.dir("times");
    fs::write(dir.join("file"), "").unwrap();
    symlink("file", dir.join("link")).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    let times = [
        (0, 0),
        (-1, 999_999_999),
        (-86_400, 1),
        (1 << 33, 123_456_789),
    ];
    for (secs, nanos) in times {
        for name in ["file", "link", "sub"] {
            check_time(&dir.join(name), secs, nanos);
        }
    }
    let place = place.remount();
    let file = fs::metadata(place.mount.path().join("times/file")).unwrap();
    assert_eq!((file.mtime(), file.mtime_nsec()), (1 << 33, 123_456_789));
}

#[test]
fn fuse_every_change_of_an_inode_moves_its_change_time() {
    let Some(place) = Place::new() else { return };
    let dir = place.dir("ctime");
    let file = dir.join("file");
    fs::write(&file, "text").unwrap();
    let handle = open(&file);
    let ctime = |path: &Path| {
        let shown = fs::symlink_metadata(path).unwrap();
        (shown.ctime(), shown.ctime_nsec())
    };
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let changes: [Change<'_>; 7] = [
        ("write", Box::new(|| handle.write_all_at(b"x", 0).unwrap())),
        ("truncate", Box::new(|| handle.set_len(2).unwrap())),
        ("chmod", Box::new(|| chmod(&file, 0o640))),
        (
            "link",
            Box::new(|| fs::hard_link(&file, dir.join("other")).unwrap()),
        ),
        (
            "unlink",
            Box::new(|| fs::remove_file(dir.join("other")).unwrap()),
        ),
        (
            "attribute",
            Box::new(|| set(&file, "user.a", b"v").unwrap()),
        ),
        (
            "rename",
            Box::new(|| {
                fs::rename(&file, dir.join("tmp")).unwrap();
                fs::rename(dir.join("tmp"), &file).unwrap();
            }),
        ),
    ];
    for (what, change) in changes {
        let before = ctime(&file);
        // The kernel's own stamps advance with its tick: wait for the next one.
        let marker = dir.join("marker");
        while {
            fs::write(&marker, "").unwrap();
            fs::write(&marker, "x").unwrap();
            ctime(&marker) <= before
        } {}
        change();
        assert!(ctime(&file) > before, "{what}");
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 1 << 16];
    let len = rustix::fs::lgetxattr(path, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let mut names: Vec<String> = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn fuse_extended_attributes_have_the_limits_and_errors_of_the_manual() {
    let Some(place) = Place::new() else { return };
    let dir = place.dir("xattr");
    let (file, link) = (dir.join("file"), dir.join("link"));
    fs::write(&file, "").unwrap();
    symlink("file", &link).unwrap();
    assert_eq!(get(&file, "user.a"), Err(Errno::NODATA));
    let with = |flags| rustix::fs::setxattr(&file, "user.a", b"1", flags);
    assert_eq!(with(XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(with(XattrFlags::CREATE), Ok(()));
    assert_eq!(with(XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(with(XattrFlags::REPLACE), Ok(()));
    let long = format!("user.{}", "n".repeat(250));
    let big = vec![7; 1 << 16];
    for (path, name, value, want) in [
        (&file, long.as_str(), &big[..], Ok(())),
        (&file, &format!("{long}n"), b"", Err(Errno::RANGE)),
        (
            &file,
            "user.big",
            &vec![7; (1 << 16) + 1],
            Err(Errno::TOOBIG),
        ),
        (&file, "user.empty", b"", Ok(())),
        (&file, "trusted.a", b"t", Ok(())),
        (&file, "system.nothing", b"", Err(Errno::OPNOTSUPP)),
        (&file, "nothing.a", b"", Err(Errno::OPNOTSUPP)),
        (&link, "user.a", b"", Err(Errno::PERM)),
        (&link, "trusted.a", b"l", Ok(())),
        (&dir, "user.a", b"d", Ok(())),
    ] {
        assert_eq!(set(path, name, value), want, "{name}");
        if want.is_ok() {
            assert_eq!(get(path, name).as_deref(), Ok(value), "{name}");
        }
    }
    assert_eq!(names(&file), ["trusted.a", "user.a", "user.empty", &long]);
    assert_eq!(names(&link), ["trusted.a"]);
    let mut short = [0; 10];
    let got = rustix::fs::getxattr(&file, long.as_str(), &mut short);
    assert_eq!(got, Err(Errno::RANGE));
    let probe = "import ctypes, os
libc = ctypes.CDLL(None)
name = b'user.' + b'n' * 250
print(libc.getxattr(b'xattr/file', name, None, 0), libc.listxattr(b'xattr/file', None, 0))";
    let listed = "trusted.a+user.a+user.empty+".len() + long.len() + 1;
    assert_eq!(python(&place.mount, probe), format!("65536 {listed}\n"));
    assert_eq!(rustix::fs::removexattr(&file, "user.a"), Ok(()));
    assert_eq!(rustix::fs::removexattr(&file, "user.a"), Err(Errno::NODATA));
}

#[test]
fn fuse_lists_are_inherited_and_follow_the_mode() {
    const ACCESS: &str = "system.posix_acl_access";
    const DEFAULT: &str = "system.posix_acl_default";
    let Some(place) = Place::new() else { return };
    let dir = place.dir("acl");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(set(&dir, DEFAULT, NAMED), Ok(()));
    // The umask of this process does not apply; the mode that is asked for does.
    fs::create_dir(dir.join("sub")).unwrap();
    assert_eq!(get(&dir.join("sub"), DEFAULT).as_deref(), Ok(NAMED));
    assert_eq!(get(&dir.join("sub"), ACCESS).as_deref(), Ok(NAMED));
    assert_eq!(mode(&dir.join("sub")), 0o770);
    let file = dir.join("file");
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o640);
    options.open(&file).unwrap();
    assert_eq!(mode(&file), 0o640);
    let mask = |path: &Path| get(path, ACCESS).unwrap()[4 + 3 * 8 + 2];
    assert_eq!(mask(&file), 4);
    chmod(&file, 0o600);
    assert_eq!(mask(&file), 0);
    // What the mode says by itself is no list.
    let minimal = [&NAMED[..12], &NAMED[20..28], &NAMED[36..]].concat();
    assert_eq!(set(&file, ACCESS, &minimal), Ok(()));
    assert_eq!(get(&file, ACCESS), Err(Errno::NODATA));
    assert_eq!(mode(&file), 0o750);
    assert_eq!(set(&file, DEFAULT, NAMED), Err(Errno::ACCESS));
    assert_eq!(set(&file, ACCESS, &NAMED[..20]), Err(Errno::INVAL));
    assert_eq!(names(&file), [""; 0]);
}

fn find(file: &File, at: At) -> Result<u64, Errno> {
    rustix::fs::seek(file, at)
}

#[test]
fn fuse_holes_are_told_from_data_that_only_the_kernel_has() {
    let Some(place) = Place::new() else { return };
    let file = open(&place.dir("holes").join("file"));
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[1; 4096], 1 << 16).unwrap();
    // Not a byte of this has reached the server, unless the answers have made it.
    assert_eq!(find(&file, At::Data(0)), Ok(1 << 16));
    assert_eq!(find(&file, At::Hole(1 << 16)), Ok((1 << 16) + 4096));
    assert_eq!(find(&file, At::Hole(0)), Ok(0));
    assert_eq!(find(&file, At::Data(1 << 17)), Err(Errno::NXIO));
    file.write_all_at(&[2; 4096], 1 << 19).unwrap();
    assert_eq!(find(&file, At::Data(1 << 17)), Ok(1 << 19));
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        1 << 16,
        4096,
    )
    .unwrap();
    assert_eq!(find(&file, At::Data(0)), Ok(1 << 19));
    assert_eq!(find(&file, At::Hole(1 << 20)), Err(Errno::NXIO));
    assert_eq!(find(&file, At::Hole((1 << 20) - 1)), Ok((1 << 20) - 1));
}

/// Two threads serve the mount, and more than that seek in files with dirty pages at once.
#[test]
fn fuse_seeks_of_many_do_not_wait_for_one_another() {
    let Some(scene) = Scene::new() else { return };
    let threads = ["--threads", "2"];
    let mount = Mount::start(&scene.store(), &scene.mountpoint(), &scene.key(), &threads);
    let mount = mount.unwrap().unwrap_or_else(|end| panic!("{end}"));
    let dir = mount.path();
    thread::scope(|scope| {
        for seeker in 0..6_u64 {
            let file = open(&dir.join(format!("file-{seeker}")));
            scope.spawn(move || {
                for turn in 1..60_u64 {
                    let at = (seeker + turn * 7) * 8192;
                    file.set_len(0).unwrap();
                    file.set_len(1 << 24).unwrap();
                    file.write_all_at(&[7; 4096], at).unwrap();
                    assert_eq!(find(&file, At::Data(0)), Ok(at));
                    assert_eq!(find(&file, At::Hole(at)), Ok(at + 4096));
                }
            });
        }
    });
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");
}

#[test]
fn fuse_ranges_are_copied_and_what_is_copied_is_apart() {
    let Some(place) = Place::new() else { return };
    let dir = place.dir("copy");
    let (from, to) = (open(&dir.join("from")), open(&dir.join("to")));
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    from.write_all_at(&bytes, 0).unwrap();
    let (mut off_in, mut off_out) = (4096, 8192);
    let mut left = 200_000;
    while left > 0 {
        let copied = copy_file_range(&from, Some(&mut off_in), &to, Some(&mut off_out), left);
        left -= copied.unwrap();
    }
    from.write_all_at(&[0xff; 50_000], 4096).unwrap();
    let mut got = Vec::new();
    let mut reader = &to;
    reader.seek(SeekFrom::Start(8192)).unwrap();
    reader.read_to_end(&mut got).unwrap();
    assert!(
        got == bytes[4096..204_096],
        "the copy holds what the source held"
    );
    let mut past = 300_000;
    let copied = copy_file_range(&from, Some(&mut past), &to, Some(&mut 0), 10);
    assert_eq!(copied, Ok(0), "nothing lies behind the end");
}

/// What a file says that is mapped, read and written, as `offset:byte`.
const MAPPINGS: &str = r#"
import mmap, os
file = os.open("file", os.O_RDWR | os.O_CREAT)
os.write(file, b"1" * 65536)
shared = mmap.mmap(file, 65536, flags=mmap.MAP_SHARED)
private = mmap.mmap(file, 65536, flags=mmap.MAP_PRIVATE)
shared[5000], private[6000] = ord("2"), ord("3")
os.pwrite(file, b"4", 7000)
print(os.pread(file, 1, 5000), os.pread(file, 1, 6000), shared[7000], private[6000])
shared[8000] = ord("5")
os.close(file)
shared.flush()
"#;

#[test]
fn fuse_mapped_files_are_one_with_read_and_write() {
    let Some(place) = Place::new() else { return };
    let said = python(&place.mount, MAPPINGS);
    assert_eq!(said, "b'2' b'1' 52 51\n");
    let place = place.remount();
    let got = fs::read(place.mount.path().join("file")).unwrap();
    assert_eq!(got.len(), 65536);
    let changed: Vec<_> = got
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte != b'1')
        .collect();
    assert_eq!(changed, [(5000, &b'2'), (7000, &b'4'), (8000, &b'5')]);
}

#[track_caller]
fn python(mount: &Mount, script: &str) -> String {
    let output = mount
        .shell(&format!("python3 - <<'END'\n{script}\nEND"))
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn fuse_appends_of_many_writers_are_all_there() {
    let Some(place) = Place::new() else { return };
    let path = place.dir("append").join("file");
    thread::scope(|scope| {
        for writer in 0..4_u8 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .unwrap();
                for _ in 0..200 {
                    file.write_all(&[b'a' + writer; 100]).unwrap();
                }
            });
        }
    });
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 4 * 200 * 100);
    assert!(
        bytes
            .chunks(100)
            .all(|line| line.iter().all(|byte| *byte == line[0]))
    );
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "O_TRUNC");
}

#[test]
fn fuse_locks_are_between_open_files() {
    let Some(place) = Place::new() else { return };
    let path = place.dir("locks").join("file");
    let (one, other) = (open(&path), open(&path));
    flock(&one, FlockOperation::LockExclusive).unwrap();
    let busy = flock(&other, FlockOperation::NonBlockingLockShared);
    assert_eq!(busy, Err(Errno::WOULDBLOCK));
    flock(&one, FlockOperation::Unlock).unwrap();
    flock(&other, FlockOperation::NonBlockingLockShared).unwrap();
    flock(&one, FlockOperation::NonBlockingLockShared).unwrap();
    let locked = rustix::fs::fcntl_lock(&one, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(locked, Ok(()));
}

#[test]
fn fuse_access_is_by_the_sticky_bit_and_by_lists() {
    let Some(scene) = Scene::new() else { return };
    let options = ["-o", "allow_other"];
    let mount = Mount::start(&scene.store(), &scene.mountpoint(), &scene.key(), &options);
    let mount = mount.unwrap().unwrap_or_else(|end| panic!("{end}"));
    let dir = mount.path();
    chmod(scene.dir.path(), 0o711);
    chmod(&dir, 0o711);
    fs::create_dir(dir.join("sticky")).unwrap();
    chmod(&dir.join("sticky"), 0o1777);
    fs::write(dir.join("sticky/mine"), "mine").unwrap();
    fs::write(dir.join("listed"), "listed").unwrap();
    set(&dir.join("listed"), "system.posix_acl_access", NAMED).unwrap();
    for (uid, command, want) in [
        (7, "rm -f sticky/mine", false),
        (7, "touch sticky/his && rm sticky/his", true),
        (7, "cat listed", true),
        (8, "cat listed", false),
    ] {
        let user = format!("setpriv --reuid {uid} --regid {uid} --clear-groups sh -c '{command}'");
        let output = mount.shell(&user).unwrap();
        assert_eq!(output.status.success(), want, "{command}: {output:?}");
    }
}

/// Installs into a private /sbin, mounts as fstab(5) would, and says what /proc/mounts shows.
const HELPER: &str = r#"
mount -t tmpfs sbin "$(readlink -f /sbin)"
make -s -C "$1" install BINDIR="$2/bin"
cd "$2"
options=key_file=$2/key,threads=2,_netdev,x-systemd.requires=network.target
mount -t fuse.fuse-encfs "$2/store" "$2/mnt" -o "$options" 2> log
echo text > mnt/file
mount -o remount,ro "$2/mnt"
if touch mnt/other 2> /dev/null; then echo writable; fi
sed -n "s|^$2/store $2/mnt \([^ ]* r[wo]\),.*|\1|p" /proc/mounts
cat mnt/file
umount mnt
code=0
mount -t fuse.fuse-encfs "$2/store" "$2/mnt" -o "$options,volume=$3" 2> log || code=$?
# The volume may not be quite closed yet, which would be 49.
case $code in 49 | 50) ;; *) cat log; exit 1 ;; esac
"#;

#[test]
fn fuse_mount_8_finds_the_helper_where_make_install_puts_it() {
    let Some(scene) = Scene::new() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-euc"])
        .args([HELPER, "sh"])
        .arg(root)
        .arg(scene.dir.path())
        .arg("00112233445566778899aabbccddeeff")
        .env("CARGO_TARGET_DIR", target_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "fuse.fuse-encfs ro\ntext\n", "{output:?}");
}

/// Opens files by their handles once the kernel has forgotten them.
const HANDLES: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
os.makedirs("a/b")
handles = []
for name in ["file", "a/b/deep", "a/b/gone"]:
    with open(name, "w") as file:
        file.write(name)
    handle, mount = Handle(bytes=128), ctypes.c_int()
    assert libc.name_to_handle_at(-100, name.encode(), ctypes.byref(handle), ctypes.byref(mount), 0) == 0
    handles.append(handle)
os.remove("a/b/gone")
with open("/proc/sys/vm/drop_caches", "w") as drop:
    drop.write("2")
root = os.open(".", os.O_RDONLY)
for handle in handles:
    file = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
    print(os.read(file, 100).decode() if file >= 0 else os.strerror(ctypes.get_errno()))
"#;

#[test]
fn fuse_a_file_handle_opens_its_inode_after_the_kernel_has_forgotten_it() {
    let Some(place) = Place::new() else { return };
    let said = python(&place.mount, HANDLES);
    assert_eq!(said, "file\na/b/deep\nStale file handle\n");
}
