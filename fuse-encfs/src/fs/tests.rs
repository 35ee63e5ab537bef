//! The filesystem against a plain model of one, and what the model leaves out.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the cases that it means"
)]

mod any_op;
mod races;
mod space;
mod times;

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use self::any_op::any_op;
use super::model::{self, Model, Op};
use super::{Caller, Fs, RenameRule, SetAttr, WriteMode};
use crate::error::FsError;
use crate::format::{FileKind, Ino, SegmentKind};
use crate::store::ObjectName;
use crate::testing::{
    CACHED, DIRECTORY, FILE, ROOT_USER, new_store, open, pattern, put_file, walk,
};

fn with_fs(test: impl FnOnce(&Fs)) {
    let volume = open(&new_store()).unwrap();
    test(volume.fs());
    volume.fs().journal().tables().check().unwrap();
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(fs.getattr(ino).unwrap().size).unwrap()];
    let got = fs.read(ino, 0, &mut bytes).unwrap();
    bytes.truncate(got);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Any sequence of operations has the effect that it has on the model, also over remounts.
    #[test]
    fn behaves_like_the_model(ops in prop::collection::vec(any_op(), 1..60)) {
        let store = new_store();
        let mut volume = Some(open(&store).unwrap());
        let (mut model, mut held) = (Model::default(), Vec::new());
        for op in &ops {
            let open_volume = volume.take().unwrap();
            let fs = open_volume.fs();
            let (got, want) = (model::run(fs, &mut held, op), model.run(op));
            prop_assert_eq!(got.is_ok(), want, "{:?}: {:?}", op, got);
            fs.journal().tables().check().map_err(|e| TestCaseError::fail(e.to_string()))?;
            if let Op::Crash | Op::Remount = op {
                model.end();
                held.clear();
            }
            let next = match op {
                Op::Remount => {
                    open_volume.close().unwrap();
                    open(&store).unwrap()
                }
                Op::Crash => {
                    fs.sync().unwrap();
                    drop(open_volume);
                    open(&store).unwrap()
                }
                _ => open_volume,
            };
            let fs = next.fs();
            let shown = walk(fs);
            prop_assert_eq!(&shown, &model.walk(), "after {:?}", op);
            for (path, shown) in &shown {
                let details = model::details(fs, find(fs, path), &shown.bytes);
                prop_assert_eq!(details, model.details(path), "{} after {:?}", path, op);
            }
            let contents: Vec<_> = held.iter().map(|ino| read_all(fs, *ino)).collect();
            prop_assert_eq!(contents, model.held(), "after {:?}", op);
            volume = Some(next);
        }
    }
}

fn find(fs: &Fs, path: &str) -> Ino {
    path.split('/').skip(1).fold(Ino::ROOT, |dir, name| {
        let found = fs.lookup(dir, name.as_bytes()).unwrap().ino;
        fs.forget(found, 1);
        found
    })
}

#[test]
fn an_unlinked_file_lives_while_it_is_looked_up() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", b"contents");
        fs.unlink(Ino::ROOT, b"a").unwrap();
        assert_eq!(read_all(fs, ino), b"contents");
        fs.write(ino, 8, b" and more", CACHED).unwrap();
        assert_eq!(fs.getattr(ino).unwrap().nlink, 0);
        fs.forget(ino, 1);
        assert!(matches!(fs.getattr(ino), Err(FsError::NoEntry)));
    });
}

#[test]
fn an_unlinked_file_is_reaped_by_the_next_mount() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let ino = put_file(volume.fs(), "a", &pattern(1, 10_000));
    volume.fs().unlink(Ino::ROOT, b"a").unwrap();
    volume.fs().sync().unwrap();
    drop(volume);
    let volume = open(&store).unwrap();
    assert!(matches!(volume.fs().getattr(ino), Err(FsError::NoEntry)));
    assert_eq!(volume.fs().journal().tables().counters().live, 0);
}

#[test]
fn a_directory_does_not_move_below_itself() {
    with_fs(|fs| {
        let a = fs.make(Ino::ROOT, b"a", &DIRECTORY, ROOT_USER).unwrap().ino;
        let b = fs.make(a, b"b", &DIRECTORY, ROOT_USER).unwrap().ino;
        let moved = fs.rename((Ino::ROOT, b"a"), (b, b"c"), RenameRule::Replace);
        assert!(matches!(moved, Err(FsError::Invalid)));
        let moved = fs.rename((Ino::ROOT, b"a"), (a, b"b"), RenameRule::Exchange);
        assert!(matches!(moved, Err(FsError::Invalid)));
    });
}

#[test]
fn names_have_at_most_255_bytes() {
    with_fs(|fs| {
        fs.make(Ino::ROOT, &[b'n'; 255], &FILE, ROOT_USER).unwrap();
        let long = fs.make(Ino::ROOT, &[b'n'; 256], &FILE, ROOT_USER);
        assert!(matches!(long, Err(FsError::NameTooLong)));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            let made = fs.make(Ino::ROOT, bad, &FILE, ROOT_USER);
            assert!(matches!(made, Err(FsError::Invalid)), "{bad:?}");
        }
    });
}

#[test]
fn a_listing_goes_on_behind_its_cookie_whatever_is_removed_meanwhile() {
    with_fs(|fs| {
        for i in 0..50 {
            put_file(fs, &format!("f{i}"), b"");
        }
        let (mut seen, mut cookie) = (Vec::new(), 0);
        loop {
            let mut here = Vec::new();
            fs.list(Ino::ROOT, cookie, |entry| {
                cookie = entry.cookie;
                here.push(String::from_utf8(entry.name.to_vec()).unwrap());
                here.len() < 7
            })
            .unwrap();
            if here.is_empty() {
                break;
            }
            for name in here.iter().filter(|name| name.starts_with('f')) {
                fs.unlink(Ino::ROOT, name.as_bytes()).unwrap();
            }
            seen.extend(here);
        }
        let want: Vec<String> = (0..50).map(|i| format!("f{i}")).collect();
        assert_eq!(seen[..2], [".", ".."]);
        assert_eq!(seen[2..], want);
    });
}

#[test]
fn set_user_id_goes_with_a_write_and_a_chown() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", b"program");
        let user = Caller {
            uid: 1000,
            gid: 1000,
        };
        let set = |perm| {
            let set = SetAttr {
                perm: Some(perm),
                ..SetAttr::default()
            };
            fs.setattr(ino, set, ROOT_USER).unwrap();
        };
        let perm = || fs.getattr(ino).unwrap().perm;

        set(0o6755);
        fs.write(ino, 0, b"P", CACHED).unwrap();
        assert_eq!(perm(), 0o6755, "the kernel says when");
        let kills = WriteMode {
            kills_privileges: true,
            ..CACHED
        };
        assert!(fs.write(ino, 0, b"P", kills).unwrap());
        assert_eq!(perm(), 0o755);
        assert!(!fs.write(ino, 0, b"P", kills).unwrap());

        set(0o6745);
        let size = SetAttr {
            size: Some(3),
            ..SetAttr::default()
        };
        fs.setattr(ino, size, ROOT_USER).unwrap();
        assert_eq!(perm(), 0o6745);
        fs.setattr(ino, size, user).unwrap();
        assert_eq!(perm(), 0o745, "he is not in the group");
        set(0o6745);
        fs.setattr(ino, size, Caller { gid: 0, ..user }).unwrap();
        assert_eq!(
            perm(),
            0o2745,
            "without execution by the group the bit means something else"
        );

        set(0o6755);
        let owner = SetAttr {
            uid: Some(1),
            ..SetAttr::default()
        };
        fs.setattr(ino, owner, ROOT_USER).unwrap();
        assert_eq!(perm(), 0o755);
    });
}

#[test]
fn what_is_made_in_a_set_group_id_directory_gets_its_group() {
    with_fs(|fs| {
        let dir = fs.make(Ino::ROOT, b"d", &DIRECTORY, ROOT_USER).unwrap().ino;
        let set = SetAttr {
            perm: Some(0o2775),
            gid: Some(7),
            ..SetAttr::default()
        };
        fs.setattr(dir, set, ROOT_USER).unwrap();
        let user = Caller {
            uid: 1000,
            gid: 1000,
        };
        let file = fs.make(dir, b"f", &FILE, user).unwrap();
        assert_eq!((file.uid, file.gid, file.perm), (1000, 7, 0o644));
        let below = fs.make(dir, b"b", &DIRECTORY, user).unwrap();
        assert_eq!((below.gid, below.perm), (7, 0o2755));
    });
}

#[test]
fn a_whiteout_takes_the_place_of_what_moved() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", b"x");
        fs.rename((Ino::ROOT, b"a"), (Ino::ROOT, b"b"), RenameRule::Whiteout)
            .unwrap();
        assert_eq!(fs.lookup(Ino::ROOT, b"b").unwrap().ino, ino);
        let whiteout = fs.lookup(Ino::ROOT, b"a").unwrap();
        assert_eq!((whiteout.kind, whiteout.rdev), (FileKind::CharDevice, 0));
    });
}

#[test]
fn large_files_and_far_offsets_read_back() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", &pattern(1, 3 << 20));
        let far = 1 << 40;
        fs.write(ino, far, &pattern(2, 5000), CACHED).unwrap();
        let mut bytes = vec![0xee; 3 << 20];
        assert_eq!(fs.read(ino, 0, &mut bytes).unwrap(), 3 << 20);
        assert_eq!(bytes, pattern(1, 3 << 20));
        let mut bytes = vec![0xee; 6000];
        assert_eq!(fs.read(ino, far - 1000, &mut bytes).unwrap(), 6000);
        assert_eq!(bytes[..1000], [0; 1000]);
        assert_eq!(bytes[1000..], pattern(2, 5000));
        let over = fs.write(ino, i64::MAX as u64, b"x", CACHED);
        assert!(matches!(over, Err(FsError::TooLarge)));
    });
}

/// Long logs, trees of several levels and segments, and checkpoints that come by themselves.
#[test]
fn a_thousand_files_survive_rolled_logs_and_checkpoints() {
    let store = new_store();
    let volume = open(&store).unwrap();
    for i in 0..1000 {
        let ino = put_file(
            volume.fs(),
            &format!("file-{i}-{}", "n".repeat(100)),
            &pattern(i, 300),
        );
        if i % 10 == 0 {
            volume.fs().fsync(ino).unwrap();
            volume.fs().tick().unwrap();
        }
    }
    let before = walk(volume.fs());
    assert_eq!(before.len(), 1000);
    volume.fs().sync().unwrap();
    drop(volume);
    let volume = open(&store).unwrap();
    assert_eq!(walk(volume.fs()), before, "after a crash");
    volume.close().unwrap();
    let kinds = |kind: SegmentKind| {
        let is_kind = |name: &&ObjectName| matches!(name, ObjectName::Segment(k, _) if *k == kind);
        store.objects().keys().filter(is_kind).count()
    };
    assert!(kinds(SegmentKind::Node) > 4, "several node segments");
    let volume = open(&store).unwrap();
    assert_eq!(walk(volume.fs()), before, "after a clean unmount");
    for name in before.keys() {
        volume
            .fs()
            .unlink(Ino::ROOT, &name.as_bytes()[1..])
            .unwrap();
    }
    volume.close().unwrap();
    open(&store).unwrap().close().unwrap();
    assert_eq!(kinds(SegmentKind::Data), 0, "dead data goes");
    assert!(kinds(SegmentKind::Log) < 5 && kinds(SegmentKind::Node) < 5);
}

/// Writers, readers, removals, commits and checkpoints at once: what each thread wrote is there.
#[test]
fn threads_do_not_get_into_each_others_way() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|thread| {
                scope.spawn(move || {
                    let dir = fs.make(
                        Ino::ROOT,
                        format!("d{thread}").as_bytes(),
                        &DIRECTORY,
                        ROOT_USER,
                    );
                    let dir = dir.unwrap().ino;
                    for i in 0..60 {
                        let name = format!("f{}", i % 7);
                        let _ = fs.unlink(dir, name.as_bytes());
                        let ino = fs.make(dir, name.as_bytes(), &FILE, ROOT_USER).unwrap().ino;
                        let contents = pattern(thread * 100 + i, 200_000);
                        for (n, part) in contents.chunks(30_000).enumerate() {
                            fs.write(ino, n as u64 * 30_000, part, CACHED).unwrap();
                        }
                        if i % 5 == 0 {
                            fs.fsync(ino).unwrap();
                        }
                        assert_eq!(read_all(fs, ino), contents, "thread {thread}, file {i}");
                        fs.forget(ino, 1);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs.checkpoint().unwrap();
            }
        });
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    fs.journal().tables().check().unwrap();
    let before = walk(fs);
    assert_eq!(before.len(), 4 + 4 * 7);
    volume.close().unwrap();
    assert_eq!(walk(open(&store).unwrap().fs()), before);
}

/// The place of what rides follows from the length of its operations, also where a length more
/// would take another block of the log.
#[test]
fn a_file_grows_by_fsyncs_of_any_length() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let mut contents = pattern(0, 3000);
    let ino = put_file(fs, "a", &contents);
    for len in (1..1400).step_by(7) {
        let more = pattern(len, usize::try_from(len).unwrap());
        fs.write(ino, contents.len() as u64, &more, CACHED).unwrap();
        contents.extend(more);
        fs.fsync(ino).unwrap();
    }
    drop(volume);
    let volume = open(&store).unwrap();
    assert!(read_all(volume.fs(), ino) == contents);
}

/// Somebody else who pays it at the moment does not make it paid.
#[test]
fn nothing_is_committed_while_contents_are_owed() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    put_file(fs, "a", &pattern(1, 5000));
    fs.sync().unwrap();
    let b = put_file(fs, "b", &pattern(2, 5000));
    fs.rename((Ino::ROOT, b"b"), (Ino::ROOT, b"a"), RenameRule::Replace)
        .unwrap();
    let journal = fs.journal();
    for _ in 0..2 {
        assert!(journal.owed().contains_key(&b));
        assert!(!journal.commit(journal.submitted()).unwrap());
    }
    fs.sync().unwrap();
    assert!(journal.owed().is_empty());
    drop(volume);
    let shown = walk(open(&store).unwrap().fs());
    assert_eq!(shown.len(), 1);
    assert!(shown["/a"].bytes == pattern(2, 5000));
}
