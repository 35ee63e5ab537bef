//! Core: the listener on real sockets in a directory of its own.

use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};

use super::*;

const OPTIONS: SocketOptions = SocketOptions {
    mode: 0o660,
    group: None,
};

fn ourselves() -> AllowedPeers {
    AllowedPeers {
        uids: vec![rustix::process::geteuid().as_raw()],
        gids: Vec::new(),
    }
}

fn bind(path: &Path) -> Result<UnixSocket, SocketError> {
    UnixSocket::bind(path, OPTIONS, ourselves())
}

/// Binds after `prepare` and compares the outcome's code; nothing temporary may remain.
#[track_caller]
fn check_bind(prepare: impl FnOnce(&Path), want: Result<(), &str>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    prepare(&path);
    let count = || {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().file_name() != LOCK_FILE)
            .count()
    };
    let before = count();
    let bound = bind(&path);
    assert_eq!(bound.as_ref().map(|_| ()).map_err(SocketError::code), want);
    assert_eq!(count(), if want.is_ok() { 1 } else { before });
}

#[tokio::test]
async fn a_free_path_and_a_stale_socket_are_taken() {
    check_bind(|_| {}, Ok(()));
    check_bind(|path| drop(StdUnixListener::bind(path).unwrap()), Ok(()));
}

#[tokio::test]
async fn what_a_crash_left_under_the_temporary_name_is_cleared() {
    check_bind(
        |path| drop(StdUnixListener::bind(path.with_extension("sock~")).unwrap()),
        Ok(()),
    );
}

#[tokio::test]
async fn a_file_a_directory_and_a_link_are_not_replaced() {
    check_bind(
        |path| std::fs::write(path, "x").unwrap(),
        Err("socket.not_a_socket"),
    );
    check_bind(
        |path| std::fs::create_dir(path).unwrap(),
        Err("socket.not_a_socket"),
    );
    let link = |path: &Path| std::os::unix::fs::symlink("/dev/null", path).unwrap();
    check_bind(link, Err("socket.not_a_socket"));
}

#[tokio::test]
async fn a_missing_directory_and_a_long_path_are_refused() {
    let missing = Path::new("/nowhere/at/all/s.sock");
    assert_eq!(bind(missing).unwrap_err().code(), "socket.directory");
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("s".repeat(108));
    assert_eq!(bind(&long).unwrap_err().code(), "socket.bind");
}

#[tokio::test]
async fn a_second_agent_is_refused_and_the_first_stays_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let first = bind(&path).unwrap();
    assert_eq!(bind(&path).unwrap_err().code(), "socket.in_use");

    // The refused attempt has knocked, hence the second connection.
    let _client = StdUnixStream::connect(&path).unwrap();
    first.accept().await.unwrap().1.unwrap();
    first.accept().await.unwrap().1.unwrap();
}

#[tokio::test]
async fn a_listener_with_a_full_queue_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = stream_socket().unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _queued = StdUnixStream::connect(&path).unwrap();
    assert_eq!(bind(&path).unwrap_err().code(), "socket.in_use");
}

#[tokio::test]
async fn a_directory_that_another_process_has_locked_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    // A lock belongs to the open file, so a second open of ours stands for another process.
    let other = std::fs::File::create(dir.path().join(LOCK_FILE)).unwrap();
    rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
    let path = dir.path().join("s.sock");
    assert_eq!(bind(&path).unwrap_err().code(), "socket.in_use");
    drop(other);
    bind(&path).unwrap();
}

#[tokio::test]
async fn mode_and_group_are_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let group = rustix::process::getegid().as_raw();
    let options = SocketOptions {
        mode: 0o620,
        group: Some(group),
    };
    let socket = UnixSocket::bind(&path, options, ourselves()).unwrap();
    let found = socket.path().metadata().unwrap();
    assert_eq!((found.mode() & 0o7777, found.gid()), (0o620, group));
}

#[tokio::test]
async fn the_file_goes_with_the_socket_unless_it_is_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    drop(bind(&path).unwrap());
    assert!(!path.exists());

    let ours = bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _anothers = StdUnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
}

#[tokio::test]
async fn accept_tells_who_connected_and_whether_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let us = Peer {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: Some(rustix::process::getpid().as_raw_pid()),
    };

    let open = bind(&path).unwrap();
    let _client = StdUnixStream::connect(&path).unwrap();
    assert_eq!(open.accept().await.unwrap().1.unwrap().peer(), us);
    drop(open);

    let closed = UnixSocket::bind(&path, OPTIONS, AllowedPeers::default()).unwrap();
    let _client = StdUnixStream::connect(&path).unwrap();
    assert_eq!(closed.accept().await.unwrap().1.unwrap_err().peer(), us);
}

#[tokio::test]
async fn who_may_open_the_directory_cannot_hold_its_lock() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let _socket = bind(&dir.path().join("s.sock")).unwrap();
    let lock = dir.path().join(LOCK_FILE).metadata().unwrap();
    assert_eq!(lock.permissions().mode() & 0o777, 0o600);
}
