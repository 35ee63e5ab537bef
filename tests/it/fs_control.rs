//! Core: what is asked of a volume while it is mounted: a backup, new keys, figures; and what an
//! anchor says when it is mounted again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use enclaveid_tests::fixture::{Mount, binary};

use crate::fs_mount::Scene;

/// A volume that is mounted with a control socket.
struct Controlled {
    scene: Scene,
    mount: Mount,
}

impl Scene {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn mount_with(&self, arguments: &[&str]) -> Result<Mount, (Option<i32>, String)> {
        let socket = self.socket();
        let mut all = vec!["--control", socket.to_str().unwrap()];
        all.extend(arguments);
        let mount = Mount::start(&self.store(), &self.mountpoint(), &self.key(), &all).unwrap();
        mount.map_err(|end| (end.code, end.log))
    }
}

impl Controlled {
    fn new() -> Option<Self> {
        let scene = Scene::new()?;
        let mount = scene.mount_with(&[]).unwrap();
        Some(Self { scene, mount })
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let mut program = Command::new(binary("fuse-encfs"));
        let (command, rest) = arguments.split_first().unwrap();
        program.arg(command).args(rest);
        program.arg("--control").arg(self.scene.socket());
        program.output().unwrap()
    }

    #[track_caller]
    fn check(&self, arguments: &[&str], code: i32) -> String {
        let output = self.ask(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i * 7 + seed * 31) % 251) as u8 + 1)
        .collect()
}

fn fill(root: &Path, files: std::ops::Range<usize>) {
    for i in files {
        fs::write(root.join(format!("f{i}")), pattern(i, i * 7001)).unwrap();
    }
}

#[track_caller]
fn check_files(root: &Path, files: std::ops::Range<usize>) {
    let count = files.len();
    for i in files {
        assert_eq!(
            fs::read(root.join(format!("f{i}"))).unwrap(),
            pattern(i, i * 7001),
            "f{i}"
        );
    }
    assert_eq!(fs::read_dir(root).unwrap().count(), count);
}

fn copy_store(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "lock" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn objects(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| !path.ends_with("lock"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn fuse_a_backup_of_a_frozen_volume_is_what_was_there_when_it_was_frozen() {
    let Some(volume) = Controlled::new() else {
        return;
    };
    let root = volume.mount.path();
    fill(&root, 0..8);
    volume.check(&["freeze", "--for", "120"], 0);
    let copy = volume.scene.dir.path().join("copy");
    let before = objects(&volume.scene.store());
    std::thread::scope(|scope| {
        // Waits for the thaw, at the latest when the kernel writes its cache back.
        let writer = scope.spawn(|| {
            fs::write(root.join("f8"), pattern(8, 8 * 7001)).unwrap();
            fs::File::open(root.join("f8")).unwrap().sync_all().unwrap();
        });
        copy_store(&volume.scene.store(), &copy);
        assert_eq!(
            objects(&volume.scene.store()),
            before,
            "nothing changes the store"
        );
        volume.check(&["freeze"], 49);
        volume.check(&["thaw"], 0);
        writer.join().unwrap();
    });
    volume.check(&["thaw"], 45);
    check_files(&root, 0..9);
    let end = volume.mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");

    let mount = Mount::start(&copy, &volume.scene.mountpoint(), &volume.scene.key(), &[]);
    let mount = mount.unwrap().unwrap_or_else(|end| panic!("{end}"));
    check_files(&mount.path(), 0..8);
}

#[test]
fn fuse_a_mounted_volume_is_sealed_anew_under_new_keys() {
    let Some(volume) = Controlled::new() else {
        return;
    };
    let root = volume.mount.path();
    fill(&root, 0..20);
    let new_key = volume.scene.dir.path().join("new-key");
    fs::write(&new_key, [9; 32]).unwrap();
    let new = new_key.to_str().unwrap();
    let before = objects(&volume.scene.store());
    volume.check(&["rekey", "--reseal", "--new-key-file", new], 0);
    fill(&root, 20..22);
    check_files(&root, 0..22);
    let figures = volume.check(&["stats", "--json"], 0);
    assert!(!figures.contains("reseal_left_bytes"), "{figures}");
    let after = objects(&volume.scene.store());
    let kept: Vec<_> = before
        .keys()
        .filter(|path| after.contains_key(*path) && !path.to_string_lossy().contains("/s"))
        .collect();
    assert!(
        kept.is_empty(),
        "objects under the old key are left: {kept:?}"
    );
    let end = volume.mount.unmount().unwrap();
    assert_eq!(end.code, Some(0), "{end}");

    let (code, log) = volume.scene.mount_with(&[]).unwrap_err();
    assert_eq!(code, Some(48), "the old key: {log}");
    fs::rename(&new_key, volume.scene.key()).unwrap();
    let mount = volume.scene.mount_with(&[]).unwrap();
    check_files(&mount.path(), 0..22);
}

#[test]
fn fuse_a_store_that_was_set_back_is_refused_by_the_anchor() {
    let Some(scene) = Scene::new() else { return };
    let anchor = format!("file:{}", scene.dir.path().join("anchor").display());
    let arguments = ["--anchor", &anchor, "--anchor-vouched"];
    let mount = scene.mount_with(&arguments).unwrap();
    fill(&mount.path(), 0..3);
    assert_eq!(mount.unmount().unwrap().code, Some(0));
    let old = objects(&scene.store());
    let mount = scene.mount_with(&arguments).unwrap();
    fill(&mount.path(), 3..5);
    assert_eq!(mount.unmount().unwrap().code, Some(0));
    let newest = objects(&scene.store());

    let restore = |objects: &BTreeMap<PathBuf, Vec<u8>>| {
        fs::remove_dir_all(scene.store()).unwrap();
        fs::create_dir(scene.store()).unwrap();
        objects
            .iter()
            .for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    };
    restore(&old);
    let (code, log) = scene.mount_with(&arguments).unwrap_err();
    assert_eq!(code, Some(46), "{log}");
    assert!(log.contains("error_code=\"fs.rolled_back\""), "{log}");
    restore(&newest);
    let mount = scene.mount_with(&arguments).unwrap();
    check_files(&mount.path(), 0..5);
}

#[test]
fn fuse_the_figures_of_a_mount_are_names_with_units() {
    let Some(volume) = Controlled::new() else {
        return;
    };
    fill(&volume.mount.path(), 0..4);
    let figures = volume.check(&["stats", "--json"], 0);
    let figures: BTreeMap<String, serde_json::Value> = serde_json::from_str(&figures).unwrap();
    for name in [
        "files",
        "free_bytes",
        "live_bytes",
        "read_only",
        "written_bytes",
        "anchor",
    ] {
        assert!(figures.contains_key(name), "{name} in {figures:?}");
    }
    assert_eq!(figures["files"], 5);
    assert!(volume.check(&["stats"], 0).contains("files"));
}
