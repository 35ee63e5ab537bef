//! Core: a PostgreSQL server whose filesystem dies under pgbench: it recovers, with each
//! transaction that was acknowledged, and its books balance.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use enclaveid_tests::fixture::{Load, Mount, Need, Rounds, enabled, postgres_program};
use rustix::process::Signal;

use crate::fs_mount::Scene;

const PATIENCE: Duration = Duration::from_secs(60);
/// Rows that the client which counts adds in one round, at most.
const ROWS_MAX: usize = 150;
/// More than one round can use up.
const STATEMENTS: usize = 20_000;

/// A server in a process namespace of its own, so that none of its processes outlives it.
struct Server {
    init: Load,
}

#[test]
fn fuse_load_postgres_keeps_what_it_acknowledged() {
    if !enabled(Need::Postgres) || !enabled(Need::Root) {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let mut acknowledged = 0;
    for mut round in Rounds::of("postgres") {
        let mount = open_mount(&scene);
        if round.number == 0 {
            make_cluster(&scene, &mount);
        }
        let server = Server::start(&scene, &mount);
        if round.number == 0 {
            sql(&scene, "CREATE EXTENSION amcheck");
            sql(&scene, "CREATE TABLE counted (n bigint PRIMARY KEY)");
            run(client(&scene, "pgbench").args(["-q", "-i", "-s", "1", "postgres"]));
        } else {
            acknowledged = check(&scene, acknowledged);
        }
        let mut bench = client(&scene, "pgbench");
        bench.args(["-n", "-c", "3", "-j", "1", "-T", "600", "postgres"]);
        let bench = Load::start(bench).unwrap();
        let counting = count(&scene, acknowledged);
        let rows = 1 + round.dice.roll(ROWS_MAX);
        assert!(counting.out.wait_for_count(rows, PATIENCE), "too few rows");
        mount.end_by(Signal::KILL).unwrap();
        server.kill();
        counting.out.wait_for_end(PATIENCE);
        acknowledged = counting.out.last().unwrap().parse().unwrap();
        drop(bench);
    }
    let mount = open_mount(&scene);
    let server = Server::start(&scene, &mount);
    check(&scene, acknowledged);
    server.stop();
    let mut checksums = mount.command("setpriv");
    checksums.args(AS_POSTGRES).arg(program("pg_checksums"));
    run(checksums.args(["--check", "-D", "cluster"]));
    assert_eq!(mount.unmount().unwrap().code, Some(0));
}

const AS_POSTGRES: [&str; 7] = [
    "--reuid",
    "postgres",
    "--regid",
    "postgres",
    "--init-groups",
    "--reset-env",
    "--",
];

/// A mount that others than its owner can use.
fn open_mount(scene: &Scene) -> Mount {
    let open = |path: PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    open(scene.dir.path().to_owned()).unwrap();
    let (store, mountpoint, key) = (scene.store(), scene.mountpoint(), scene.key());
    let mount = Mount::start(&store, &mountpoint, &key, &["-o", "allow_other"]).unwrap();
    let mount = mount.unwrap_or_else(|end| panic!("{end}"));
    open(mount.path()).unwrap();
    mount
}

/// Where the server listens: outside of the mount.
fn socket_dir(scene: &Scene) -> PathBuf {
    scene.dir.path().join("socket")
}

fn program(name: &str) -> PathBuf {
    postgres_program(name).unwrap()
}

fn make_cluster(scene: &Scene, mount: &Mount) {
    let owner = Command::new("id")
        .args(["-u", "postgres"])
        .output()
        .unwrap();
    let owner = String::from_utf8(owner.stdout).unwrap();
    let owner = Some(owner.trim().parse().unwrap());
    fs::create_dir(socket_dir(scene)).unwrap();
    chown(socket_dir(scene), owner, None).unwrap();
    fs::create_dir(mount.path().join("cluster")).unwrap();
    chown(mount.path().join("cluster"), owner, None).unwrap();
    let mut initdb = mount.command("setpriv");
    initdb.args(AS_POSTGRES).arg(program("initdb"));
    run(initdb.args([
        "--auth=trust",
        "--data-checksums",
        "--locale=C",
        "-D",
        "cluster",
    ]));
}

impl Server {
    fn start(scene: &Scene, mount: &Mount) -> Self {
        // The shell is the namespace's first process; the end of its input stops the server.
        let script = "setpriv \"$@\" & server=$!
                      read -r _ || kill -INT $server
                      wait $server";
        let mut command = mount.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--", "sh", "-c", script, "sh"])
            .args(AS_POSTGRES)
            .arg(program("postgres"))
            .args(["-D", "cluster", "-c", "listen_addresses=", "-c"])
            .arg(format!("unix_socket_directories={}", socket_dir(scene).display()))
            // So that checkpoints, and what they sync, fall into rounds of seconds.
            .args(["-c", "checkpoint_timeout=30s", "-c", "max_wal_size=32MB"])
            .args(["-c", "min_wal_size=32MB", "-c", "shared_buffers=16MB"])
            .stdin(Stdio::piped());
        let init = Load::start(command).unwrap();
        let ready = "database system is ready to accept connections";
        assert!(init.err.wait_for(ready, PATIENCE), "{}", init.err.text());
        Self { init }
    }

    fn stop(mut self) {
        drop(self.init.stdin());
        assert!(self.init.wait().unwrap().success());
    }

    fn kill(self) {
        self.init.kill().unwrap();
    }
}

fn client(scene: &Scene, name: &str) -> Command {
    let mut client = Command::new(program(name));
    client
        .arg("-h")
        .arg(socket_dir(scene))
        .args(["-U", "postgres"]);
    client.stdin(Stdio::null());
    client
}

fn sql(scene: &Scene, statement: &str) -> String {
    let mut psql = client(scene, "psql");
    psql.args([
        "-XqAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        "postgres",
        "-c",
        statement,
    ]);
    run(&mut psql)
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Adds numbered rows one by one; prints each when it is committed.
fn count(scene: &Scene, from: u64) -> Load {
    let mut psql = client(scene, "psql");
    psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
    psql.stdin(Stdio::piped());
    let mut psql = Load::start(psql).unwrap();
    let statements: String = (from + 1..)
        .take(STATEMENTS)
        .map(|n| format!("INSERT INTO counted VALUES ({n}) RETURNING n;\n"))
        .collect();
    let mut stdin = psql.stdin().unwrap();
    // It ends when its reader does.
    std::thread::spawn(move || stdin.write_all(statements.as_bytes()));
    psql
}

/// Checks everything; gives the number of rows that are there.
#[track_caller]
fn check(scene: &Scene, acknowledged: u64) -> u64 {
    let there = sql(scene, "SELECT count(*), coalesce(max(n), 0) FROM counted");
    let (count, last) = there.split_once('|').unwrap();
    assert_eq!(count, last, "rows are missing in between");
    let last: u64 = last.parse().unwrap();
    // One more may have been committed, and not said.
    let may_be = acknowledged..=acknowledged + 1;
    assert!(may_be.contains(&last), "{last} rows of {acknowledged}");
    let balances = sql(
        scene,
        "SELECT (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
              = ALL (SELECT sum(abalance) FROM pgbench_accounts
                     UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
                     UNION ALL SELECT sum(bbalance) FROM pgbench_branches)",
    );
    assert_eq!(balances, "t", "the books do not balance");
    run(client(scene, "pg_amcheck").args(["--heapallindexed", "postgres"]));
    last
}
