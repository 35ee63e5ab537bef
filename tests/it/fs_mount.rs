//! Core: a real kernel on a real mount: what was written is there, however the mount ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use enclaveid_tests::fixture::{Mount, Need, Watchdog, binary, enabled};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;

/// A key, a store, and a directory to mount on.
pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
}

impl Scene {
    /// A new volume; none where the machine cannot mount.
    pub(crate) fn new() -> Option<Self> {
        if !enabled(Need::Fuse) || !enabled(Need::Programs) {
            return None;
        }
        let scene = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::write(scene.key(), [7; 32]).unwrap();
        fs::create_dir(scene.mountpoint()).unwrap();
        let made = run("init", &[], &scene.store(), None, &scene.key());
        assert_eq!(code(&made), 0, "{made:?}");
        Some(scene)
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub(crate) fn mount(&self) -> Mount {
        let mount = Mount::start(&self.store(), &self.mountpoint(), &self.key(), &[]).unwrap();
        mount.unwrap_or_else(|end| panic!("{end}"))
    }
}

fn run(command: &str, arguments: &[&str], store: &Path, on: Option<&Path>, key: &Path) -> Output {
    let mut program = Command::new(binary("fuse-encfs"));
    program
        .arg(command)
        .args(arguments)
        .arg(store)
        .args(on)
        .arg("--key-file")
        .arg(key);
    program.output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i * 7 + i / 251 + seed * 31) % 251) as u8 + 1)
        .collect()
}

#[track_caller]
fn check_shell(mount: &Mount, script: &str) -> String {
    let output = mount.shell(script).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn fuse_all_kinds_of_files_are_there_after_a_remount() {
    let Some(scene) = Scene::new() else { return };
    let mount = scene.mount();
    let root = mount.path();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/file"), pattern(1, 3_000_000)).unwrap();
    fs::write(root.join("a/empty"), b"").unwrap();
    fs::hard_link(root.join("a/file"), root.join("a/b/same")).unwrap();
    symlink("../file", root.join("a/b/link")).unwrap();
    fs::write(root.join("old"), b"moved").unwrap();
    fs::rename(root.join("old"), root.join("a/b/c/new")).unwrap();
    fs::set_permissions(root.join("a/empty"), fs::Permissions::from_mode(0o640)).unwrap();
    check_shell(
        &mount,
        "mkfifo fifo; touch -d '1960-01-02 03:04:05.25' a/empty; rm -rf gone",
    );
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");

    let mount = scene.mount();
    let root = mount.path();
    assert_eq!(
        fs::read(root.join("a/file")).unwrap(),
        pattern(1, 3_000_000)
    );
    assert_eq!(fs::read(root.join("a/b/link")).unwrap().len(), 3_000_000);
    assert_eq!(fs::read(root.join("a/b/c/new")).unwrap(), b"moved");
    assert_eq!(fs::metadata(root.join("a/b/same")).unwrap().nlink(), 2);
    let empty = fs::metadata(root.join("a/empty")).unwrap();
    assert_eq!((empty.len(), empty.mode() & 0o7777), (0, 0o640));
    let modified = check_shell(&mount, "TZ=UTC stat -c %y a/empty");
    assert_eq!(modified.trim(), "1960-01-02 03:04:05.250000000 +0000");
    check_shell(&mount, "test -p fifo; test ! -e old");
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}

#[test]
fn fuse_what_was_synced_survives_a_kill() {
    let Some(scene) = Scene::new() else { return };
    for round in 0..3 {
        let mount = scene.mount();
        for earlier in 0..round {
            let name = format!("synced-{earlier}");
            assert_eq!(
                fs::read(mount.path().join(name)).unwrap(),
                pattern(earlier, 100_000)
            );
        }
        let mut file = File::create(mount.path().join(format!("synced-{round}"))).unwrap();
        file.write_all(&pattern(round, 100_000)).unwrap();
        file.sync_all().unwrap();
        fs::write(mount.path().join("not-synced"), pattern(9, 50_000)).unwrap();
        let end = mount.end_by(Signal::KILL).unwrap();
        assert_eq!(end.code, None);
    }
}

#[test]
fn fuse_a_signal_ends_the_mount_cleanly_even_when_a_file_is_open() {
    let Some(scene) = Scene::new() else { return };
    for signal in [Signal::TERM, Signal::INT] {
        let mount = scene.mount();
        let path = mount.path().join("file");
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(b"not synced;").unwrap();
        let end = mount.end_by(signal).unwrap();
        assert_eq!(end.code, Some(0), "{end}");
        drop(file);
    }
    let mount = scene.mount();
    assert_eq!(
        fs::read(mount.path().join("file")).unwrap(),
        b"not synced;not synced;"
    );
}

#[test]
fn fuse_the_watchdog_ends_a_request_that_nobody_answers() {
    let Some(scene) = Scene::new() else { return };
    let mount = scene.mount();
    rustix::process::kill_process(mount.daemon(), Signal::STOP).unwrap();
    let deadline = std::time::Duration::from_millis(200);
    let _watchdog = Watchdog::after(deadline, mount.daemon(), &scene.mountpoint());
    // The daemon sleeps: without the watchdog this waits for ever.
    fs::write(mount.path().join("file"), "x").unwrap_err();
}

#[test]
fn fuse_an_open_file_without_a_name_can_be_used() {
    let Some(scene) = Scene::new() else { return };
    let mount = scene.mount();
    let path = mount.path().join("file");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&pattern(1, 10_000), 0).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all_at(b"still here", 10_000).unwrap();
    file.sync_all().unwrap();
    let mut bytes = vec![0; 10_010];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[10_000..], *b"still here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}

/// Random reads, writes, cuts, holes and reopenings of one file, against plain memory; with a sync
/// and a kill now and then.
#[test]
fn fuse_random_operations_on_a_file_match_memory() {
    let Some(scene) = Scene::new() else { return };
    let mut dice = Dice(0x1234_5678);
    let mut model: Vec<u8> = Vec::new();
    for _ in 0..3 {
        let mount = scene.mount();
        let path = mount.path().join("file");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).unwrap();
        for i in 0..400 {
            let (at, len) = (dice.roll(200_000), dice.roll(40_000));
            match dice.roll(10) {
                0..=3 => {
                    let data = pattern(i, len);
                    file.write_all_at(&data, at as u64).unwrap();
                    if len > 0 {
                        model.resize(model.len().max(at + len), 0);
                        model[at..at + len].copy_from_slice(&data);
                    }
                }
                4..=6 => {
                    let mut got = vec![0; len];
                    let n = file.read_at(&mut got, at as u64).unwrap();
                    let want = model
                        .get(at.min(model.len())..model.len().min(at + len))
                        .unwrap();
                    assert_eq!(&got[..n], want, "operation {i}");
                }
                7 => {
                    file.set_len(at as u64).unwrap();
                    model.resize(at, 0);
                }
                8 if len > 0 => {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&file, hole, at as u64, len as u64).unwrap();
                    let end = model.len();
                    model[at.min(end)..end.min(at + len)].fill(0);
                }
                _ => {
                    if dice.roll(3) == 0 {
                        file.sync_all().unwrap();
                    }
                    drop(file);
                    file = options.open(&path).unwrap();
                }
            }
        }
        file.sync_all().unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), model);
        if dice.roll(2) == 0 {
            assert_eq!(mount.unmount().unwrap().code, Some(0));
        } else {
            mount.end_by(Signal::KILL).unwrap();
        }
    }
    let mount = scene.mount();
    assert_eq!(fs::read(mount.path().join("file")).unwrap(), model);
}

#[test]
fn fuse_ordinary_programs_work() {
    let Some(scene) = Scene::new() else { return };
    let mount = scene.mount();
    check_shell(
        &mount,
        "mkdir -p src/deep/er; for i in $(seq 300); do echo file $i > src/deep/er/$i; done
         cp -a src copy; diff -r src copy; tar cf all.tar src; mkdir out; tar xf all.tar -C out
         diff -r src out/src; mv out/src moved; rm -rf out copy; diff -r src moved
         dd if=/dev/zero of=zeros bs=64k count=50 conv=fsync 2>/dev/null
         truncate -s 10M sparse; cmp -n 3276800 zeros sparse
         printf tail >> zeros; test $(stat -c %s zeros) = 3276804
         cp --sparse=always sparse sparse2; cmp sparse sparse2
         printf lost > fresh; cp fresh fresh2; test \"$(cat fresh2)\" = lost
         ln src/deep/er/1 hard; test $(stat -c %h hard) = 2; rm -rf src; test -s hard
         find . -type f | wc -l | grep -qx 307",
    );
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}

#[test]
fn fuse_the_kernel_checks_permissions_and_set_user_id_goes_with_a_write() {
    let Some(scene) = Scene::new() else { return };
    let options = ["-o", "allow_other"];
    let mount = Mount::start(&scene.store(), &scene.mountpoint(), &scene.key(), &options);
    let mount = mount.unwrap().unwrap_or_else(|end| panic!("{end}"));
    check_shell(
        &mount,
        "chmod 711 ..; chmod 711 .; echo secret > mine; chmod 600 mine",
    );
    let as_user = "setpriv --reuid 1000 --regid 1000 --clear-groups";
    let read = mount.shell(&format!("{as_user} cat mine")).unwrap();
    assert!(!read.status.success(), "{read:?}");
    let modes = check_shell(
        &mount,
        &format!(
            "echo program > suid; chmod 6777 suid; stat -c %a suid
             {as_user} sh -c 'printf x >> suid'; stat -c %a suid
             chmod 6777 suid; {as_user} truncate -s 3 suid; stat -c %a suid
             chmod 6777 suid; chown 5 suid; stat -c %a suid"
        ),
    );
    assert_eq!(
        modes.split_whitespace().collect::<Vec<_>>(),
        ["6777", "777", "777", "777"]
    );
}

#[test]
fn fuse_a_full_store_is_an_error_and_removals_make_room() {
    let Some(scene) = Scene::new() else { return };
    let small = Small::mount(&scene.dir.path().join("small"));
    let store = small.0.join("store");
    let made = run("init", &[], &store, None, &scene.key());
    assert_eq!(code(&made), 0, "{made:?}");
    let mount = Mount::start(&store, &scene.mountpoint(), &scene.key(), &[]).unwrap();
    let mount = mount.unwrap_or_else(|end| panic!("{end}"));
    let filled = mount
        .shell("for i in $(seq 40); do dd if=/dev/urandom of=f$i bs=1M count=1 conv=fsync; done")
        .unwrap();
    assert!(!filled.status.success());
    let said = String::from_utf8_lossy(&filled.stderr).into_owned();
    assert!(said.contains("No space left"), "{said}");
    check_shell(
        &mount,
        "rm -f f*; sync; dd if=/dev/zero of=again bs=1M count=5 conv=fsync",
    );
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");
}

/// A filesystem of 24 MiB, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(on: &Path) -> Self {
        fs::create_dir(on).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount
            .args(["-t", "tmpfs", "-o", "size=24m", "small"])
            .arg(on)
            .status();
        assert!(mounted.unwrap().success());
        Self(on.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: somebody else's new namespace may hold a copy for a moment.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The contract of the command line: each refusal by its own exit code.
#[test]
fn fuse_refusals_have_their_exit_codes() {
    let Some(scene) = Scene::new() else { return };
    let dir = scene.dir.path();
    let (store, on, key) = (scene.store(), scene.mountpoint(), scene.key());
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.join(name), bytes).unwrap();
        dir.join(name)
    };
    let other_id = "00112233445566778899aabbccddeeff";
    let is_code = |output: &Output, want: i32| {
        assert_eq!(
            code(output),
            want,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let mount = |arguments: &[&str], store: &Path, key: &Path| {
        run("mount", arguments, store, Some(&on), key)
    };
    is_code(&run("init", &[], &store, None, &key), 50);
    is_code(&mount(&[], &dir.join("absent"), &key), 50);
    fs::create_dir(dir.join("empty")).unwrap();
    is_code(&mount(&[], &dir.join("empty"), &key), 50);
    assert!(
        fs::read_dir(dir.join("empty")).unwrap().next().is_none(),
        "nothing was left there"
    );
    is_code(&mount(&["--volume-id", other_id], &store, &key), 50);
    is_code(&mount(&[], &store, &file("wrong", &[8; 32])), 48);
    is_code(&mount(&[], &store, &file("short", &[7; 31])), 65);
    is_code(&mount(&[], &store, &dir.join("absent")), 65);
    is_code(&mount(&["--volume-id", "xyz"], &store, &key), 64);
    is_code(&mount(&["-o", "suid"], &store, &key), 64);
    is_code(
        &run("mount", &[], &store, Some(&dir.join("absent")), &key),
        45,
    );
    let no_key = Command::new(binary("fuse-encfs"))
        .args(["init", "x"])
        .output()
        .unwrap();
    is_code(&no_key, 64);
    let help = Command::new(binary("fuse-encfs"))
        .arg("--help")
        .output()
        .unwrap();
    is_code(&help, 0);

    let mounted = scene.mount();
    is_code(&mount(&[], &store, &key), 49);
    assert_eq!(mounted.unmount().unwrap().code, Some(0));
}

#[test]
fn fuse_init_prints_the_id_that_it_drew_and_hexadecimal_keys_work() {
    let Some(scene) = Scene::new() else { return };
    let store = scene.dir.path().join("other");
    fs::write(scene.key(), "07".repeat(32) + "\n").unwrap();
    let made = run("init", &[], &store, None, &scene.key());
    assert_eq!(code(&made), 0);
    let id = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert_eq!(id.len(), 32);
    // The same key, as bytes.
    fs::write(scene.key(), [7; 32]).unwrap();
    let arguments = ["--volume-id", id.as_str()];
    let mount = Mount::start(&store, &scene.mountpoint(), &scene.key(), &arguments).unwrap();
    assert_eq!(
        mount
            .unwrap_or_else(|end| panic!("{end}"))
            .unmount()
            .unwrap()
            .code,
        Some(0)
    );
}

/// Without --foreground the program returns once the volume is mounted, and its pipes are closed.
#[test]
fn fuse_the_background_process_lets_go_of_its_caller() {
    let Some(scene) = Scene::new() else { return };
    // All in one namespace, which ends with the shell. `output` would wait for pipes left open.
    let script = "
        \"$1\" mount \"$2\" \"$3\" --key-fd 9 9<\"$4\" --log-file \"$5\"
        echo hello > \"$3/file\"
        umount \"$3\"
        \"$1\" mount \"$2\" \"$3\" --key-file \"$4\" --log-file \"$5\"
        cat \"$3/file\"
        kill -INT $(cat /proc/[0-9]*/stat | sed -n 's/^\\([0-9]*\\) (fuse-encfs).*/\\1/p')
    ";
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
            "--",
        ])
        .args(["sh", "-euc", script, "sh"])
        .arg(binary("fuse-encfs"))
        .args([
            scene.store(),
            scene.mountpoint(),
            scene.key(),
            scene.dir.path().join("log"),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    let log = fs::read_to_string(scene.dir.path().join("log")).unwrap();
    assert!(log.contains("unmounting by=\"umount\""), "{log}");
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from((self.0 >> 33) % sides).unwrap()
    }
}
