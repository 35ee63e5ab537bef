//! Core: times, blocks and the order of listings.

use super::with_fs;
use crate::format::{FileKind, Ino, Timestamp};
use crate::fs::{Fs, RenameRule, SetAttr, WriteMode};
use crate::testing::{CACHED, DIRECTORY, FILE, ROOT_USER, new_store, open, pattern, put_file};

/// A write that the kernel does not keep the times of.
const DIRECT: WriteMode = WriteMode {
    kernel_keeps_times: false,
    kills_privileges: false,
};

fn names(fs: &Fs, cookie: u64) -> Vec<(u64, String)> {
    let mut names = Vec::new();
    fs.list(Ino::ROOT, cookie, |entry| {
        names.push((
            entry.cookie,
            String::from_utf8(entry.name.to_vec()).unwrap(),
        ));
        true
    })
    .unwrap();
    names
}

#[test]
fn a_change_of_the_mode_is_newer_than_the_write_before_it() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", b"");
        fs.write(ino, 0, &pattern(1, 5000), DIRECT).unwrap();
        let written = fs.getattr(ino).unwrap();
        let mode = SetAttr {
            perm: Some(0o600),
            ..SetAttr::default()
        };
        let changed = fs.setattr(ino, mode, ROOT_USER).unwrap();
        assert!(changed.ctime > written.ctime);
        assert_eq!(changed.mtime, written.mtime);
        fs.fsync(ino).unwrap();
        assert_eq!(fs.getattr(ino).unwrap(), changed, "and stays so");
    });
}

#[test]
fn times_that_were_set_stay_over_what_was_written_before() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", b"");
        fs.write(ino, 0, &pattern(1, 5000), DIRECT).unwrap();
        let old = Timestamp {
            secs: -5,
            nanos: 999_999_999,
        };
        let set = SetAttr {
            mtime: Some(old),
            ..SetAttr::default()
        };
        assert_eq!(fs.setattr(ino, set, ROOT_USER).unwrap().mtime, old);
        fs.fsync(ino).unwrap();
        assert_eq!(fs.getattr(ino).unwrap().mtime, old);
    });
}

#[test]
fn a_new_file_is_no_newer_than_the_kernels_clock_and_its_directory_no_older_than_the_call() {
    with_fs(|fs| {
        for i in 0..200 {
            let before = Timestamp::now();
            let name = format!("f{i}");
            let made = fs
                .make(Ino::ROOT, name.as_bytes(), &FILE, ROOT_USER)
                .unwrap();
            assert!(made.mtime <= Timestamp::of_tick());
            assert_eq!((made.atime, made.ctime), (made.mtime, made.mtime));
            let root = fs.getattr(Ino::ROOT).unwrap();
            assert!(root.mtime >= before && root.ctime >= before);
            let name = format!("d{i}");
            let made = fs
                .make(Ino::ROOT, name.as_bytes(), &DIRECTORY, ROOT_USER)
                .unwrap();
            assert!(
                made.mtime >= before,
                "the kernel does not stamp directories"
            );
        }
    });
}

#[test]
fn an_access_time_follows_a_change_and_outlives_the_mount() {
    let store = new_store();
    let volume = open(&store).unwrap();
    let fs = volume.fs();
    let ino = put_file(fs, "a", b"text");
    fs.sync().unwrap();
    let before = fs.getattr(ino).unwrap();
    fs.read(ino, 0, &mut [0; 4]).unwrap();
    let read = fs.getattr(ino).unwrap();
    assert!(read.atime > before.atime);
    fs.read(ino, 0, &mut [0; 4]).unwrap();
    assert_eq!(fs.getattr(ino).unwrap(), read, "nothing was changed since");
    volume.close().unwrap();
    assert_eq!(
        open(&store).unwrap().fs().getattr(ino).unwrap().atime,
        read.atime
    );
}

#[test]
fn a_promise_takes_blocks_and_what_is_written_to_it_takes_no_more() {
    with_fs(|fs| {
        let ino = put_file(fs, "a", b"");
        fs.allocate(ino, 4095..4097, true).unwrap();
        let promised = fs.getattr(ino).unwrap();
        assert_eq!((promised.size, promised.blocks), (4097, 16));
        let check = |what| assert_eq!(fs.getattr(ino).unwrap().blocks, 16, "{what}");
        // As the kernel writes back a page and what is of the next.
        fs.write(ino, 0, &pattern(1, 4097), CACHED).unwrap();
        check("while it is in memory");
        fs.fsync(ino).unwrap();
        check("once it is in the map");
        fs.write(ino, 0, &pattern(2, 4097), CACHED).unwrap();
        check("over what is there");
        fs.fsync(ino).unwrap();
        fs.punch(ino, 0..4096, false).unwrap();
        assert_eq!(fs.getattr(ino).unwrap().blocks, 8);
    });
}

#[test]
fn a_file_that_is_renamed_while_its_directory_is_listed_is_seen_once() {
    with_fs(|fs| {
        for i in 0..20 {
            put_file(fs, &format!("f{i}"), b"");
        }
        put_file(fs, "taken", b"");
        let (mut cookie, mut seen) = (2, Vec::new());
        while let Some((at, name)) = names(fs, cookie).into_iter().next() {
            let to = format!("{name}-seen");
            fs.rename(
                (Ino::ROOT, name.as_bytes()),
                (Ino::ROOT, to.as_bytes()),
                RenameRule::Replace,
            )
            .unwrap();
            cookie = at;
            seen.push(name);
            assert!(seen.len() <= 21, "the listing comes to an end");
        }
        assert_eq!(seen.len(), 21);
        fs.rename(
            (Ino::ROOT, b"f0-seen"),
            (Ino::ROOT, b"taken-seen"),
            RenameRule::Replace,
        )
        .unwrap();
        let left = names(fs, 2);
        assert_eq!(left.len(), 20);
        assert_eq!(left[0].1, "taken-seen", "in the place of what was moved");
    });
}

#[test]
fn what_moves_to_another_directory_comes_last_there() {
    with_fs(|fs| {
        let dir = fs.make(Ino::ROOT, b"d", &DIRECTORY, ROOT_USER).unwrap().ino;
        put_file(fs, "a", b"");
        fs.make(dir, b"b", &FILE, ROOT_USER).unwrap();
        fs.rename((Ino::ROOT, b"a"), (dir, b"a"), RenameRule::Replace)
            .unwrap();
        let mut seen = Vec::new();
        fs.list(dir, 2, |entry| {
            assert_eq!(entry.attr.kind, FileKind::Regular);
            seen.push(entry.name.to_vec());
            true
        })
        .unwrap();
        assert_eq!(seen, [b"b".to_vec(), b"a".to_vec()]);
    });
}
