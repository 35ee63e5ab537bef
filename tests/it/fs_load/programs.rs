//! Core: programs that check what they do themselves: a file system exerciser, fio, stress-ng, git,
//! cargo.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use enclaveid_tests::fixture::{Mount, Need, Rounds, enabled};

use crate::fs_mount::Scene;

/// Operations of one run of the exerciser.
const FSX_OPERATIONS: u64 = 4_000;

/// Relative frequencies: all that the exerciser can do. It takes an allocation of no bytes, which
/// POSIX wants refused, for one that is not supported.
const FSX_CONFIG: &str = "
flen = 400_000
[opsize]
min = 1
max = 65536
[weights]
close_open = 3
copy_file_range = 4
fdatasync = 1
fsync = 1
invalidate = 4
mapread = 10
mapwrite = 10
posix_fadvise = 3
posix_fallocate = 4
punch_hole = 5
read = 10
sendfile = 4
truncate = 5
write = 10
";

/// Those of stress-ng that know what they should find, or whose failure would be ours.
const STRESSORS: &str = "dentry dir fallocate filename flock fpunch hdd iomix link lockf rename \
                         seek symlink touch utime xattr";

/// The exerciser, at work on a file in the mount; what it needs besides goes to `outside`.
pub(super) fn fsx(
    mount: &Mount,
    outside: &Path,
    file: &str,
    seed: u64,
    operations: Option<u64>,
) -> Command {
    let config = outside.join("fsx.toml");
    fs::write(&config, FSX_CONFIG).unwrap();
    let mut command = mount.command("fsx");
    command.arg("-P").arg(outside).arg("-f").arg(config);
    command.args(["-S", &seed.to_string()]);
    if let Some(operations) = operations {
        command.args(["-N", &operations.to_string()]);
    }
    command.arg(file);
    command
}

#[track_caller]
fn check(mut command: Command) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&stdout), said(&stderr));
    assert!(
        status.success(),
        "{command:?}: {status}\n{stdout}\n{stderr}"
    );
}

/// Does something in a fresh mount each round, and unmounts cleanly.
fn in_mounts(suite: &'static str, mut act: impl FnMut(&Mount, &Scene, u64)) {
    let Some(scene) = Scene::new() else { return };
    for mut round in Rounds::of(suite) {
        let mount = scene.mount();
        // Of a size that every program takes.
        act(&mount, &scene, round.dice.draw() % 1_000_000);
        let end = mount.unmount().unwrap();
        assert_eq!(end.code, Some(0), "{end}");
    }
}

#[test]
fn fuse_load_the_exerciser_finds_nothing() {
    if !enabled(Need::Fsx) {
        return;
    }
    in_mounts("fsx", |mount, scene, seed| {
        let outside = scene.dir.path();
        check(fsx(mount, outside, "file", seed, Some(FSX_OPERATIONS)));
    });
}

#[test]
fn fuse_load_fio_reads_what_it_wrote() {
    if !enabled(Need::Fio) {
        return;
    }
    in_mounts("fio", |mount, _, seed| {
        let engines = [
            "--ioengine=psync --rw=randwrite --bsrange=512-128k --fsync=32",
            "--ioengine=mmap --rw=randrw --bs=4k",
            "--ioengine=libaio --iodepth=8 --direct=1 --rw=randwrite --bs=4k",
            "--ioengine=psync --rw=randrw --bs=4k --numjobs=2 --fdatasync=8 --size=2m",
        ];
        for (i, engine) in engines.into_iter().enumerate() {
            let mut fio = mount.command("fio");
            fio.args([&format!("--name=job-{i}"), &format!("--randseed={seed}")])
                .args(["--size=8m", "--verify=crc32c", "--verify_fatal=1"])
                .args(["--verify_state_save=0", "--minimal"])
                .args(engine.split(' '));
            check(fio);
        }
    });
}

#[test]
fn fuse_load_stress_finds_nothing() {
    if !enabled(Need::Stress) {
        return;
    }
    in_mounts("programs", |mount, _, seed| {
        let mut stress = mount.command("stress-ng");
        stress
            .args(["--temp-path", ".", "--verify", "--timeout", "1"])
            .args(["--seed", &seed.to_string(), "--hdd-bytes", "4m"])
            .args(["--fallocate-bytes", "8m"]);
        for kind in STRESSORS.split(' ') {
            stress.args([&format!("--{kind}"), "1"]);
        }
        check(stress);
    });
}

#[test]
fn fuse_load_many_clients_of_a_file_server_get_their_answers() {
    if !enabled(Need::Dbench) {
        return;
    }
    in_mounts("programs", |mount, _, _| {
        let mut dbench = mount.command("dbench");
        dbench.args(["--timelimit", "1", "--directory", ".", "4"]);
        check(dbench);
    });
}

#[test]
fn fuse_load_a_repository_is_cloned_and_whole() {
    if !enabled(Need::Git) {
        return;
    }
    in_mounts("programs", |mount, scene, _| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut git = mount.command("sh");
        git.args([
            "-euc",
            "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_CONFIG_GLOBAL=/dev/null
             export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b HOME=\"$2\"
             rm -rf one two; git init -q one; cp -a \"$1\"/src one/src
             cd one; git add -A; git commit -qm first
             cp -a \"$1\"/it it; git add -A; git commit -qm second; git gc -q
             git mv src moved; git commit -qam third; git fsck --strict --full
             git clone -q --no-local . ../two; cd ../two; git fsck --strict --full
             git repack -qad; git fsck --full; git checkout -q HEAD~2; diff -r src \"$1\"/src
             test -z \"$(git status --porcelain)\"",
            "sh",
        ]);
        check({
            git.arg(sources).arg(scene.dir.path());
            git
        });
    });
}

#[test]
fn fuse_load_a_crate_is_built_and_built_again() {
    in_mounts("programs", |mount, _, _| {
        let mut build = mount.command("sh");
        build.args([
            "-euc",
            "unset CARGO_TARGET_DIR RUSTFLAGS; export CARGO_INCREMENTAL=1 CARGO_NET_OFFLINE=true
             rm -rf crate; mkdir -p crate/src; cd crate
             printf '[package]\\nname=\"small\"\\nversion=\"0.1.0\"\\nedition=\"2024\"\\n' > Cargo.toml
             printf 'pub fn one() -> u32 { 1 }\\n' > src/lib.rs
             printf 'fn main() { println!(\"{}\", small::one()) }\\n' > src/main.rs
             cargo build -q; test \"$(cargo run -q)\" = 1
             printf 'pub fn one() -> u32 { 2 }\\n' > src/lib.rs
             cargo build -q --release; test \"$(cargo run -q)\" = 2; test -s target/debug/small",
            "sh",
        ]);
        check(build);
    });
}
