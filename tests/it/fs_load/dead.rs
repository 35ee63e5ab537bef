//! Core: a start over the mount of a daemon that has died.

use std::process::Command;

use enclaveid_tests::fixture::binary;

use crate::fs_mount::Scene;

/// All in one mount namespace, which the dead mount stays in while the next daemon starts.
#[test]
fn fuse_load_a_start_over_dead_mounts_detaches_them_and_recovers() {
    let Some(scene) = Scene::new() else { return };
    let script = r#"
        program="$1" store="$2" on="$3" key="$4" log="$5"
        daemon() { sed -n 's/^\([0-9]*\) (fuse-encfs).*/\1/p' /proc/[0-9]*/stat; }
        mounts() { grep -c " $on fuse.fuse-encfs " /proc/self/mounts || true; }
        for round in 1 2 3; do
            "$program" mount "$store" "$on" --key-file "$key" --log-file "$log"
            cat "$on"/file-* 2>/dev/null || test $round = 1
            # A program that keeps the dead mount busy.
            sh -c 'cd "$1"; exec 3<.; exec sleep 100' sh "$on" &
            printf '%s;' "$round" > "$on/file-$round"
            sync -d "$on/file-$round"
            kill -KILL "$(daemon)"
            while test -n "$(daemon)"; do :; done
            ls "$on" 2>&1 | grep -q 'not connected'
            echo "mounts: $(mounts)"
        done
        "$program" mount "$store" "$on" --key-file "$key" --log-file "$log"
        echo "mounts: $(mounts)"
        umount "$on"
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--", "sh", "-euc", script, "sh"])
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
    let said = String::from_utf8_lossy(&output.stdout);
    let want = "mounts: 1\n1;mounts: 1\n1;2;mounts: 1\nmounts: 1\n";
    assert_eq!(said, want);
}
