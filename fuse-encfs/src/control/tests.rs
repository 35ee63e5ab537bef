//! Core: the control socket against a volume that records what it is told.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use keys::VolumeKek;
use runtime::sync::Mutex;

use super::client::{Client, ClientError};
use super::freezer::Freezer;
use super::protocol::{About, Reply, Request};
use super::{
    ControlError, ControlSocket, Controlled, Figure, Figures, Happening, NewKeys, Scrubbed, Tell,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Does what it is told and tells what that was.
struct Fake {
    did: Mutex<Sender<String>>,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A scrub goes on until nobody listens.
    Endless,
    Fails,
    Works,
}

impl Fake {
    fn new(mode: Mode) -> (Self, Receiver<String>) {
        let (tell, told) = mpsc::channel();
        let did = Mutex::new(tell);
        (Self { did, mode }, told)
    }

    fn did(&self, what: impl Into<String>) -> Result<(), ControlError> {
        self.did.lock().send(what.into()).unwrap();
        if self.mode == Mode::Fails {
            return Err(ControlError::Failed {
                code: "fs.read_only",
                exit: 45,
                message: "it is broken".into(),
            });
        }
        Ok(())
    }
}

impl Controlled for Fake {
    fn figures(&self) -> Result<Figures, ControlError> {
        self.did("figures")?;
        Ok([("read_bytes".into(), Figure::Count(7))].into())
    }

    fn freeze(&self) -> Result<(), ControlError> {
        self.did("freeze")
    }

    fn thaw(&self) -> Result<(), ControlError> {
        self.did("thaw")
    }

    fn checkpoint(&self) -> Result<(), ControlError> {
        self.did("checkpoint")
    }

    fn scrub(&self, tell: &mut Tell<'_>) -> Result<Scrubbed, ControlError> {
        self.did("scrub")?;
        let mut checked_bytes = 0;
        let mut flow = tell(Happening::Damaged { file: "/a".into() });
        while flow.is_continue() && (checked_bytes < 3 || self.mode == Mode::Endless) {
            checked_bytes += 1;
            flow = tell(progress(checked_bytes));
        }
        self.did(if flow.is_break() {
            "ended early"
        } else {
            "scrubbed"
        })?;
        Ok(Scrubbed {
            checked_bytes,
            damaged_files: 1,
            complete: flow.is_continue(),
        })
    }

    fn rekey(&self, keys: NewKeys, _: &mut Tell<'_>) -> Result<(), ControlError> {
        let kek = keys
            .kek
            .map(|(kek, epoch)| (kek.expose()[31], epoch.map(|epoch| epoch.0)));
        self.did(format!("rekey {kek:?} {}", keys.reseal))
    }
}

fn progress(done_bytes: u64) -> Happening {
    Happening::Progress {
        done_bytes,
        total_bytes: 3,
    }
}

struct Scene {
    dir: tempfile::TempDir,
    socket: ControlSocket,
    did: Receiver<String>,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (fake, did) = Fake::new(mode);
        let about = About {
            volume: "5a".repeat(16),
            mountpoint: dir.path().join("mnt").to_str().unwrap().into(),
            pid: 1,
        };
        let path = dir.path().join("a.sock");
        let socket = ControlSocket::serve(&path, about, Arc::new(fake)).unwrap();
        Self { dir, socket, did }
    }

    fn path(&self) -> PathBuf {
        self.socket.path().to_path_buf()
    }

    fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        let client = Client::connect(&self.path()).unwrap();
        client.call(request, None, &mut |_| {})
    }

    fn next(&self) -> String {
        self.did.recv_timeout(PATIENCE).unwrap()
    }
}

#[track_caller]
fn check(request: &Request, want: &Reply, did: &str) {
    let scene = Scene::new(Mode::Works);
    assert_eq!(&scene.call(request).unwrap(), want);
    assert_eq!(scene.next(), did);

    let scene = Scene::new(Mode::Fails);
    let failure = scene.call(request).unwrap_err();
    assert_eq!((failure.code(), failure.exit_code()), ("fs.read_only", 45));
    assert_eq!(failure.to_string(), "it is broken");
}

#[test]
fn a_request_reaches_the_volume_and_its_answer_the_caller() {
    let figures = Figures::from([("read_bytes".into(), Figure::Count(7))]);
    check(&Request::Stats {}, &Reply::Stats(figures), "figures");
    check(&Request::Checkpoint {}, &Reply::Done {}, "checkpoint");
    check(&Request::Freeze { seconds: 60 }, &Reply::Done {}, "freeze");
    let reseal = Request::Rekey {
        key_follows: false,
        kek_epoch: None,
        reseal: true,
    };
    check(&reseal, &Reply::Done {}, "rekey None true");
}

#[test]
fn a_key_follows_its_request_as_bytes() {
    let scene = Scene::new(Mode::Works);
    let request = Request::Rekey {
        key_follows: true,
        kek_epoch: Some(3),
        reseal: false,
    };
    // Newlines are bytes of a key like others.
    let mut bytes = [b'\n'; 32];
    bytes[31] = 0xfe;
    let key = VolumeKek::take_from(&mut bytes).unwrap();
    let client = Client::connect(&scene.path()).unwrap();
    let done = client.call(&request, Some(&key), &mut |_| {}).unwrap();
    assert_eq!(done, Reply::Done {});
    assert_eq!(scene.next(), "rekey Some((254, Some(3))) false");
}

#[test]
fn progress_and_damage_come_before_the_result() {
    let scene = Scene::new(Mode::Works);
    let mut told = Vec::new();
    let client = Client::connect(&scene.path()).unwrap();
    let done = client.call(&Request::Scrub {}, None, &mut |what| told.push(what));
    let want = Scrubbed {
        checked_bytes: 3,
        damaged_files: 1,
        complete: true,
    };
    assert_eq!(done.unwrap(), Reply::Scrubbed(want));
    let damaged = Happening::Damaged { file: "/a".into() };
    assert_eq!(told, [damaged, progress(1), progress(2), progress(3)]);
}

#[test]
fn a_freeze_ends_by_thawing_and_with_the_mount() {
    let scene = Scene::new(Mode::Works);
    let not_frozen = |scene: &Scene| {
        let failure = scene.call(&Request::Thaw {}).unwrap_err();
        assert_eq!(failure.code(), "fs.not_frozen");
    };
    not_frozen(&scene);
    let freeze = Request::Freeze { seconds: 3_600 };
    scene.call(&freeze).unwrap();
    let again = scene.call(&freeze).unwrap_err();
    assert_eq!(again.code(), "fs.already_frozen");
    scene.call(&Request::Thaw {}).unwrap();
    not_frozen(&scene);
    assert_eq!([scene.next(), scene.next()], ["freeze", "thaw"]);

    scene.call(&freeze).unwrap();
    let Scene { dir, socket, did } = scene;
    drop(socket);
    assert_eq!(did.iter().collect::<Vec<_>>(), ["freeze", "thaw"]);
    assert!(!dir.path().join("a.sock").exists());
}

#[test]
fn a_freeze_ends_when_its_time_is_over_and_ends_no_other() {
    let (fake, did) = Fake::new(Mode::Works);
    let freezer = Freezer::new(Arc::new(fake));
    let [short, long] = [Duration::from_millis(20), Duration::from_secs(3_600)];
    freezer.freeze(short).unwrap();
    let next = || did.recv_timeout(PATIENCE).unwrap();
    assert_eq!([next(), next()], ["freeze", "thaw"]);
    assert_eq!(freezer.thaw().unwrap_err().code(), "fs.not_frozen");

    freezer.freeze(short).unwrap();
    freezer.thaw().unwrap();
    freezer.freeze(long).unwrap();
    assert_eq!([next(), next(), next()], ["freeze", "thaw", "freeze"]);
    let late = did.recv_timeout(short * 5);
    assert!(late.is_err(), "{late:?}");
    freezer.thaw().unwrap();
}

#[test]
fn a_scrub_ends_when_nobody_listens_any_more() {
    // The client hangs up.
    let scene = Scene::new(Mode::Endless);
    let mut stream = UnixStream::connect(scene.path()).unwrap();
    stream.write_all(b"{\"request\":\"scrub\"}\n").unwrap();
    assert_eq!(scene.next(), "scrub");
    drop(stream);
    assert_eq!(scene.next(), "ended early");

    // The mount ends, while the client listens.
    let scene = Scene::new(Mode::Endless);
    let client = Client::connect(&scene.path()).unwrap();
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| client.call(&Request::Scrub {}, None, &mut |_| {}));
        assert_eq!(scene.next(), "scrub");
        let Scene { socket, did, .. } = scene;
        drop(socket);
        assert_eq!(did.recv_timeout(PATIENCE).unwrap(), "ended early");
        let unanswered = listening.join().unwrap().unwrap_err();
        assert_eq!(unanswered.code(), "fs.control_failed");
    });
}

#[track_caller]
fn check_bytes(bytes: &[u8], code: &str) {
    let scene = Scene::new(Mode::Works);
    let mut stream = UnixStream::connect(scene.path()).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.contains(&format!(r#""code":"{code}""#)), "{reply}");
    assert!(
        scene.did.try_recv().is_err(),
        "the volume was told something"
    );
}

#[test]
fn what_is_no_request_is_refused_and_does_nothing() {
    check_bytes(b"", "fs.control_request");
    check_bytes(b"{\"request\":\"stats\"}", "fs.control_request");
    check_bytes(b"{\"request\":\"format\"}\n", "fs.control_request");
    check_bytes(b"\xff\n", "fs.control_request");
    check_bytes(&[b' '; 1025], "fs.control_request");
    let rekey = b"{\"request\":\"rekey\",\"key_follows\":true,\"reseal\":false}\nshort key";
    check_bytes(rekey, "fs.control_request");
}

#[test]
fn only_so_many_are_served_at_once_and_all_end_with_the_mount() {
    let scene = Scene::new(Mode::Works);
    let path = scene.path();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let idle: Vec<UnixStream> = (0..super::REQUESTS_MAX)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    let busy = scene.call(&Request::Stats {}).unwrap_err();
    assert_eq!(busy.code(), "fs.control_busy");
    drop(scene);
    for mut stream in idle {
        let mut rest = Vec::new();
        // It ends, whether something was said or not.
        let _ = stream.read_to_end(&mut rest);
    }
    let gone = Client::connect(&path).unwrap_err();
    assert_eq!(gone.code(), "fs.not_mounted");
}

#[test]
fn a_volume_is_found_by_its_mount_point_without_touching_it() {
    let scene = Scene::new(Mode::Works);
    let found = Client::find(scene.dir.path(), &scene.dir.path().join("mnt/")).unwrap();
    let done = found.call(&Request::Stats {}, None, &mut |_| {});
    assert!(
        matches!(done, Ok(Reply::Stats(_))),
        "there is no such directory at all"
    );
    let other = Client::find(scene.dir.path(), &scene.dir.path().join("other"));
    assert_eq!(other.unwrap_err().code(), "fs.not_mounted");
}
