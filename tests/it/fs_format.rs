//! Core: volumes against a second implementation, `tests/reader`, which was written from the
//! documents of the format alone; and the volume of format version 1 that is kept for ever.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use enclaveid_tests::fixture::{Mount, Need, enabled, python_path};
use rustix::fs::{lgetxattr, llistxattr, major, minor};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fs_mount::Scene;

/// Everything in a volume by its path, as the reader shows it.
type Tree = BTreeMap<String, Value>;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn reader(store: &Path, key: &Path, arguments: &[&str]) -> Output {
    let mut python = Command::new("python3");
    python
        .arg("-B")
        .arg(here("reader/encfs_read.py"))
        .arg(store)
        .arg("--key-file")
        .arg(key)
        .args(arguments)
        .env("PYTHONPATH", python_path());
    python.output().unwrap()
}

/// What the reader shows of the whole volume, and what is in it.
#[track_caller]
fn read(store: &Path, key: &Path) -> (Value, Tree) {
    let output = reader(store, key, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    parse(&output.stdout)
}

fn parse(shown: &[u8]) -> (Value, Tree) {
    let mut shown: Value = serde_json::from_slice(shown).unwrap();
    let tree = serde_json::from_value(shown["tree"].take()).unwrap();
    (shown, tree)
}

/// What a mount shows, in the reader's words.
fn shown(mount: &Mount) -> Tree {
    let root = mount.path();
    let mut tree = Tree::new();
    let mut todo = vec![root.clone()];
    while let Some(path) = todo.pop() {
        // Before it is read, which may change its time of access.
        let item = item(&path);
        if item["kind"] == "directory" {
            let entries = fs::read_dir(&path).unwrap();
            todo.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let below = path.strip_prefix(&root).unwrap().as_os_str().as_bytes();
        tree.insert(format!("/{}", quoted(below)), item);
    }
    tree
}

fn item(path: &Path) -> Value {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = kind(&metadata);
    let time = |secs: i64, nanos: i64| format!("{secs}.{nanos:09}");
    let mut item = json!({
        "kind": kind,
        "ino": metadata.ino(),
        "mode": format!("{:04o}", metadata.mode() & 0o7777),
        "nlink": metadata.nlink(),
        "uid": metadata.uid(),
        "gid": metadata.gid(),
        "access": time(metadata.atime(), metadata.atime_nsec()),
        "modified": time(metadata.mtime(), metadata.mtime_nsec()),
        "changed": time(metadata.ctime(), metadata.ctime_nsec()),
        "xattrs": attributes(path),
    });
    match kind {
        "file" => {
            item["size"] = metadata.len().into();
            match hashed(path) {
                Ok(hash) => item["sha256"] = hash.into(),
                Err(e) => item["damaged"] = e.to_string().into(),
            }
        }
        "link" => {
            item["size"] = metadata.len().into();
            let target = fs::read_link(path).unwrap();
            item["target"] = quoted(target.as_os_str().as_bytes()).into();
        }
        "char" | "block" => {
            item["device"] = json!([major(metadata.rdev()), minor(metadata.rdev())]);
        }
        _ => {}
    }
    item
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "char",
        () => "block",
    }
}

fn attributes(path: &Path) -> BTreeMap<String, String> {
    let mut names = vec![0; 65536];
    let len = llistxattr(path, &mut names).unwrap();
    let names = names[..len].split(|byte| *byte == 0);
    let hashed = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let len = lgetxattr(path, name, &mut value).unwrap();
        (quoted(name), hex(&Sha256::digest(&value[..len])))
    };
    names.filter(|name| !name.is_empty()).map(hashed).collect()
}

fn hashed(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let got = file.read(&mut piece)?;
        if got == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&piece[..got]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Plain text as it is, any other byte as %XX.
fn quoted(name: &[u8]) -> String {
    let show = |byte: &u8| match byte {
        b'%' | 0..=0x1f | 0x7f.. => format!("%{byte:02X}"),
        _ => char::from(*byte).to_string(),
    };
    name.iter().map(show).collect()
}

/// Without what a mount says otherwise: what a directory's size and a file's blocks are is its own
/// affair, and how it says that a file is hurt. Without times of access too, when others have read
/// what was synced.
fn comparable(mut tree: Tree, with_access: bool) -> Tree {
    for item in tree.values_mut() {
        let item = item.as_object_mut().unwrap();
        item.remove("allocated");
        item.entry("damaged").and_modify(|how| *how = true.into());
        if !matches!(item["kind"].as_str(), Some("file" | "link")) {
            item.remove("size");
        }
        if !with_access {
            item.remove("access");
        }
    }
    tree
}

#[track_caller]
fn check_same(got: Tree, want: Tree, with_access: bool) {
    let (got, want) = (comparable(got, with_access), comparable(want, with_access));
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&got), names(&want));
    for (path, item) in got {
        assert_eq!(item, want[&path], "{path}");
    }
}

#[track_caller]
fn fill(mount: &Mount, arguments: &[&str]) {
    let mut python = mount.command("python3");
    python.arg(here("reader/fill.py")).args(arguments);
    let output = python.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn fuse_a_second_reader_sees_what_the_mount_shows() {
    let Some(scene) = Scene::new().filter(|_| enabled(Need::Reader)) else {
        return;
    };
    let size = ["--large", "--names", "1000"];
    let mount = scene.mount();
    fill(&mount, &[&["base"][..], &size].concat());
    let before = shown(&mount);
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");
    let (volume, tree) = read(&scene.store(), &scene.key());
    assert!(tree.len() > 1000 && volume["levels"].as_u64() > Some(1));
    check_same(tree, before, false);

    // What was synced, and no more, is in the log of a daemon that was killed.
    let mount = scene.mount();
    fill(&mount, &[&["more"][..], &size].concat());
    let before = shown(&mount);
    mount.end_by(Signal::KILL).unwrap();
    let (volume, tree) = read(&scene.store(), &scene.key());
    assert!(volume["replayed"].as_u64() > Some(150), "{volume}");
    check_same(tree.clone(), before, false);
    let mount = scene.mount();
    check_same(shown(&mount), tree, true);
    let end = mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");
}

/// Both readers of a store: what each sees, or nothing where it refuses.
#[track_caller]
fn check_judged_alike(scene: &Scene, what: &str) -> Option<Tree> {
    let output = reader(&scene.store(), &scene.key(), &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let seen = match output.status.code() {
        Some(0) => Some(parse(&output.stdout).1),
        Some(1) if said.starts_with("refused: ") => None,
        _ => panic!("{what}: {said}"),
    };
    let mount = Mount::start(&scene.store(), &scene.mountpoint(), &scene.key(), &[]).unwrap();
    match (mount, &seen) {
        (Ok(mount), Some(seen)) => {
            // A file with two names is read twice: its time of access changes in between.
            check_same(shown(&mount), seen.clone(), false);
            mount.end_by(Signal::KILL).unwrap();
        }
        (Err(end), None) => assert_eq!(end.code, Some(46), "{what}: {end}"),
        (Ok(_), None) => panic!("{what}: mounted, and the reader says {said}"),
        (Err(end), Some(_)) => panic!("{what}: the reader reads what does not mount: {end}"),
    }
    seen
}

#[test]
fn fuse_two_readers_judge_a_torn_log_alike() {
    if !enabled(Need::Reader) {
        return;
    }
    let (mut seen, mut refused) = (Vec::new(), 0);
    for part in 0..8 {
        for cut in [true, false] {
            let Some(scene) = kept_scene("killed") else {
                return;
            };
            let objects = fs::read_dir(scene.store()).unwrap();
            let objects = objects.map(|object| object.unwrap().path());
            let is_log = |path: &PathBuf| {
                let name = path.file_name().unwrap().as_bytes();
                name[0] == b'l'
            };
            // The one that the daemon wrote when it was killed.
            let log = objects.filter(is_log);
            let log = log.max_by_key(|path| fs::metadata(path).unwrap().len());
            let log = log.unwrap();
            let mut bytes = fs::read(&log).unwrap();
            let at = 5000 + part * (bytes.len() - 5001) / 7;
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1;
            }
            fs::write(&log, bytes).unwrap();
            let what = format!("{at}, {}", if cut { "cut" } else { "flipped" });
            match check_judged_alike(&scene, &what) {
                Some(tree) if seen.contains(&tree) => {}
                Some(tree) => seen.push(tree),
                None => refused += 1,
            }
        }
    }
    // What an early commit is torn off of is an older state; where later ones say that it was
    // durable, the volume is refused.
    assert!(seen.len() >= 3 && refused >= 3, "{} {refused}", seen.len());
}

fn kept(name: &str) -> PathBuf {
    here("vectors/encfs-v1").join(name)
}

/// A copy of a kept volume, in place of the one of a scene.
fn kept_scene(name: &str) -> Option<Scene> {
    let scene = Scene::new()?;
    fs::remove_dir_all(scene.store()).unwrap();
    fs::create_dir(scene.store()).unwrap();
    for object in fs::read_dir(kept(name)).unwrap() {
        let object = object.unwrap();
        fs::copy(object.path(), scene.store().join(object.file_name())).unwrap();
    }
    fs::copy(kept("key"), scene.key()).unwrap();
    Some(scene)
}

#[track_caller]
fn expected(name: &str) -> (Value, Tree) {
    parse(&fs::read(kept(&format!("{name}.json"))).unwrap())
}

#[test]
fn fuse_the_volumes_of_version_1_mount_for_ever() {
    for name in ["closed", "killed"] {
        let Some(scene) = kept_scene(name) else {
            return;
        };
        let id = "00112233445566778899aabbccddeeff";
        let mount = Mount::start(
            &scene.store(),
            &scene.mountpoint(),
            &scene.key(),
            &["--volume-id", id],
        );
        let mount = mount.unwrap().unwrap_or_else(|end| panic!("{name}: {end}"));
        check_same(shown(&mount), expected(name).1, true);
        // And go on: it can be written to, and is whole afterwards.
        fs::write(mount.path().join("since"), "written by a later version").unwrap();
        assert_eq!(mount.unmount().unwrap().code, Some(0));
        let mount = scene.mount();
        let mut tree = shown(&mount);
        assert!(tree.remove("/since").is_some());
        tree.remove("/");
        let mut want = expected(name).1;
        want.remove("/");
        check_same(tree, want, false);
        assert_eq!(mount.unmount().unwrap().code, Some(0));
    }
}

#[test]
fn a_second_reader_reads_the_volumes_of_version_1() {
    if !enabled(Need::Reader) {
        return;
    }
    for name in ["closed", "killed"] {
        assert_eq!(read(&kept(name), &kept("key")), expected(name), "{name}");
    }
    let parts = reader(&kept("closed"), &kept("key"), &["--parts"]);
    let parts = String::from_utf8(parts.stdout).unwrap();
    let document = fs::read_to_string(here("../docs/format-map.md")).unwrap();
    let examples = document.split_once("<!-- parts -->\n").unwrap().1;
    let examples = examples.split_once("<!-- end of parts -->").unwrap().0;
    assert!(parts.lines().count() > 30);
    assert_eq!(parts, examples, "docs/format-map.md, worked examples");
}

#[test]
fn the_numbers_of_the_documents_are_computed_from_the_rfcs() {
    if !enabled(Need::Reader) {
        return;
    }
    let run = |script: &str| {
        let mut python = Command::new("python3");
        let python = python.arg("-B").arg(here(script));
        let output = python.env("PYTHONPATH", python_path()).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let volume = run("../fuse-encfs/vectors/encfs.py");
    let kept = fs::read_to_string(here("../fuse-encfs/vectors/encfs.txt")).unwrap();
    assert_eq!(volume, kept, "what the unit tests compare with");
    let computed = volume + &run("vectors/keys.py");
    let document = fs::read_to_string(here("../docs/format.md")).unwrap();
    let is_number =
        |text: &&str| text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let numbers: Vec<&str> = document.split('`').filter(is_number).collect();
    assert!(numbers.len() >= 14, "{numbers:?}");
    for number in numbers {
        assert!(computed.contains(number), "docs/format.md: {number}");
    }
}

#[test]
fn a_second_reader_refuses_what_is_altered() {
    if !enabled(Need::Reader) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, want) = expected("closed");
    let (mut refused, mut hurt) = (0, 0);
    for object in fs::read_dir(kept("closed")).unwrap() {
        let object = object.unwrap();
        let bytes = fs::read(object.path()).unwrap();
        // Units begin at 4096; what is before is for tools. A superblock has no such part.
        let begin = if bytes.len() > 4096 { 4096 } else { 0 };
        for at in [begin, begin + (bytes.len() - begin) / 2, bytes.len() - 1] {
            let store = dir.path().join("store");
            fs::create_dir(&store).unwrap();
            for other in fs::read_dir(kept("closed")).unwrap() {
                let other = other.unwrap();
                fs::copy(other.path(), store.join(other.file_name())).unwrap();
            }
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            fs::write(store.join(object.file_name()), &bent).unwrap();
            let output = reader(&store, &kept("key"), &[]);
            if output.status.code() == Some(1) && output.stderr.starts_with(b"refused: ") {
                refused += 1;
            } else {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{:?} {at}: {said}", object.path());
                for (path, item) in parse(&output.stdout).1 {
                    if item["damaged"].is_null() {
                        assert_eq!(item, want[&path], "{path}");
                    } else {
                        hurt += 1;
                    }
                }
            }
            fs::remove_dir_all(&store).unwrap();
        }
    }
    assert!(refused >= 4 && hurt >= 4, "{refused} refused, {hurt} hurt");
    let other_key = dir.path().join("key");
    fs::write(&other_key, [8; 32]).unwrap();
    let output = reader(&kept("closed"), &other_key, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another key"));
}
