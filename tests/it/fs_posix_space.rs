//! Core: what a mount's options say of space and access times, on a real mount.

use enclaveid_tests::fixture::Mount;

use crate::fs_mount::Scene;

/// Bytes of the limit.
const LIMIT: u64 = 64 << 20;

fn start(scene: &Scene, arguments: &[&str]) -> Mount {
    let mount = Mount::start(&scene.store(), &scene.mountpoint(), &scene.key(), arguments);
    mount.unwrap().unwrap_or_else(|end| panic!("{end}"))
}

/// What a script says, and whether it succeeds.
fn said(mount: &Mount, script: &str) -> (bool, String) {
    let output = mount.shell(&format!("exec 2>&1; {script}")).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success(), text)
}

fn number(mount: &Mount, script: &str) -> u64 {
    let (is_ok, text) = said(mount, script);
    assert!(is_ok, "{script}: {text}");
    text.parse()
        .unwrap_or_else(|e| panic!("{script}: {text}: {e}"))
}

#[track_caller]
fn check_full(mount: &Mount, script: &str) {
    let (is_ok, text) = said(mount, script);
    assert!(
        !is_ok && text.contains("No space left on device"),
        "{script}: {text}"
    );
}

#[test]
fn fuse_a_limit_is_what_df_shows_and_what_stops_who_writes() {
    let Some(scene) = Scene::new() else { return };
    for arguments in [["--size-limit", "64M"], ["-o", "size_limit=65536K"]] {
        let mount = start(&scene, &arguments);
        let left = || number(&mount, "df -B1 --output=avail . | tail -1");
        assert_eq!(number(&mount, "df -B1 --output=size . | tail -1"), LIMIT);
        assert!(left() > LIMIT - LIMIT / 8);

        check_full(&mount, "fallocate -l 100M promised");
        let before = left();
        number(
            &mount,
            "fallocate -l 40M promised; sync; stat -c %b promised",
        );
        assert!(before - left() >= 40 << 20);
        check_full(&mount, "dd if=/dev/zero of=big bs=1M count=80 conv=fsync");
        // What was promised is there for who has the promise, and for nobody else.
        number(
            &mount,
            "dd if=/dev/zero of=promised bs=1M count=40 conv=fsync,notrunc status=none; stat -c %s promised",
        );
        number(
            &mount,
            "rm big promised; dd if=/dev/zero of=again bs=1M count=48 conv=fsync status=none; stat -c %s again",
        );
        number(&mount, "rm again; echo 0");
        assert_eq!(mount.unmount().unwrap().code, Some(0));
    }
}

#[test]
fn fuse_a_limit_that_is_no_number_of_bytes_is_wrong_usage() {
    let Some(scene) = Scene::new() else { return };
    for arguments in [["--size-limit", "many"], ["-o", "size_limit=0"]] {
        let mount = Mount::start(
            &scene.store(),
            &scene.mountpoint(),
            &scene.key(),
            &arguments,
        );
        assert_eq!(mount.unwrap().unwrap_err().code, Some(64), "{arguments:?}");
    }
}

/// Each time on a mount that has nothing of the file in its cache.
#[test]
fn fuse_a_read_renews_the_access_time_where_the_mount_keeps_it() {
    let Some(scene) = Scene::new() else { return };
    let mount = start(&scene, &[]);
    number(
        &mount,
        "echo text > file; touch -a -d @1000 file; stat -c %X file",
    );
    assert_eq!(mount.unmount().unwrap().code, Some(0));
    for option in ["noatime", "ro"] {
        let mount = start(&scene, &["-o", option]);
        assert_eq!(
            number(&mount, "cat file > /dev/null; stat -c %X file"),
            1000,
            "{option}"
        );
        assert_eq!(mount.unmount().unwrap().code, Some(0));
    }
    let mount = start(&scene, &[]);
    let renewed = number(&mount, "cat file > /dev/null; stat -c %X file");
    assert!(renewed > 1_600_000_000, "{renewed}");
    assert_eq!(mount.unmount().unwrap().code, Some(0));
    let mount = start(&scene, &[]);
    assert_eq!(number(&mount, "stat -c %X file"), renewed, "over a remount");
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}
