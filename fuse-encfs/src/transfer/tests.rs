//! Core: what is taken out and brought in is the same, by every way.

use std::fs;
use std::io::{Cursor, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::directory::{NewTree, Tree};
use super::import::{Import, Prints, differing};
use super::tar::{Reader, Writer};
use super::{Fingerprint, Item, Target, export};
use crate::format::FileKind;
use crate::fsck::{Progress, check};
use crate::offline::Offline;
use crate::store::memory::MemoryStore;
use crate::testing::{ID, aead, check_consistent, kek, new_store, open, pattern};

fn on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn offline(store: &Arc<MemoryStore>) -> Offline {
    Offline::open_on(store.clone(), &aead(), (&kek()).into(), ID).unwrap()
}

/// A directory with everything that a file can be.
fn make_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::write(at("a/b/c/deep"), pattern(1, 300_000)).unwrap();
    fs::write(at("tiny"), b"x").unwrap();
    fs::write(at("nothing"), b"").unwrap();
    fs::set_permissions(at("tiny"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::hard_link(at("tiny"), at("a/second name")).unwrap();
    symlink("../nowhere", at("a/link")).unwrap();
    symlink("x".repeat(300), at("long link")).unwrap();
    let odd = std::ffi::OsString::from(format!("new\nline \\ {}", "ü".repeat(100)));
    fs::write(root.join(&odd), b"odd").unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe=\x01")),
        b"bytes",
    )
    .unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.write_all_at(&pattern(2, 5000), 40 << 20).unwrap();
    sparse.set_len(80 << 20).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("fifo"))
            .status()
            .unwrap()
            .success()
    );
    let old = std::time::UNIX_EPOCH - std::time::Duration::new(1000, 5);
    let times = fs::FileTimes::new().set_modified(old).set_accessed(old);
    fs::File::options()
        .write(true)
        .open(at("nothing"))
        .unwrap()
        .set_times(times)
        .unwrap();
    let value = [0, b'\n', b'=', 255];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(at("tiny"), "user.odd", &value, flags).unwrap();
    rustix::fs::lsetxattr(at("a"), "user.long", &pattern(3, 2000), flags).unwrap();
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o2750)).unwrap();
}

/// All of a directory, by path.
fn prints(root: &Path) -> Prints {
    let mut prints = Prints::new();
    let tree = Tree::open(root).unwrap();
    tree.walk(&mut |found| {
        let mut print = Fingerprint::new(&found.item);
        if let Some(file) = &found.file {
            super::directory::pieces(file, b"", found.item.size, &mut |at, bytes| {
                print.add(at, bytes);
                Ok(())
            })?;
        }
        prints.insert(found.item.path, print.end());
        Ok(())
    })
    .unwrap();
    prints
}

#[track_caller]
fn assert_same(got: &Prints, want: &Prints) {
    let differ = |(path, print): (&Vec<u8>, &[u8; 32])| {
        (got.get(path) != Some(print)).then(|| String::from_utf8_lossy(path).into_owned())
    };
    let differing: Vec<String> = want.iter().filter_map(differ).collect();
    assert!(
        differing.is_empty() && got.len() == want.len(),
        "{differing:?}"
    );
}

fn import_tree(store: &Arc<MemoryStore>, from: &Path) -> Prints {
    let volume = open(store).unwrap();
    let mut tell = on;
    let mut import = Import::new(volume.fs(), true, &mut tell);
    import.tree(&Tree::open(from).unwrap()).unwrap();
    let (done, prints) = import.end().unwrap();
    assert!(done.left_out.is_empty());
    check_consistent(volume.fs());
    volume.close().unwrap();
    prints.unwrap()
}

fn archive(store: &Arc<MemoryStore>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    let done = export(&offline(store), &mut writer, &mut on).unwrap();
    assert!(done.left_out.is_empty(), "{:?}", done.left_out);
    bytes
}

#[test]
fn a_tree_comes_back_the_same_by_directory_and_by_archive() {
    let parent = tempfile::tempdir().unwrap();
    let source = parent.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source);
    let want = prints(&source);
    let store = new_store();
    assert_same(&import_tree(&store, &source), &want);
    assert!(check(&offline(&store), &mut on).unwrap().is_clean());
    assert_eq!(
        differing(&offline(&store), want.clone(), &mut on).unwrap(),
        Vec::<Vec<u8>>::new()
    );

    let out = parent.path().join("out");
    let mut tree = NewTree::new(&out).unwrap();
    let done = export(&offline(&store), &mut tree, &mut on).unwrap();
    assert_eq!((done.left_out.len(), tree.not_kept.len()), (0, 0));
    assert_same(&prints(&out), &want);
    let sparse = fs::metadata(out.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes are not written");
    let [a, b] = ["tiny", "a/second name"].map(|name| fs::metadata(out.join(name)).unwrap().ino());
    assert_eq!(a, b);

    let bytes = archive(&store);
    let second = new_store();
    let volume = open(&second).unwrap();
    let mut tell = on;
    let mut import = Import::new(volume.fs(), true, &mut tell);
    import
        .archive(&mut Reader::new(Cursor::new(&bytes)))
        .unwrap();
    let (_, got) = import.end().unwrap();
    assert_same(&got.unwrap(), &want);
    check_consistent(volume.fs());
    let tree = walk_bytes(volume.fs());
    volume.close().unwrap();
    assert_eq!(
        differing(&offline(&second), want, &mut on).unwrap(),
        Vec::<Vec<u8>>::new()
    );
    let first = open(&store).unwrap();
    assert_eq!(walk_bytes(first.fs()), tree);
}

/// Link counts, which fingerprints leave out.
fn walk_bytes(fs: &crate::fs::Fs) -> Vec<(u64, u32)> {
    let mut counts = Vec::new();
    fs.list(crate::format::Ino::ROOT, 2, |entry| {
        counts.push((entry.attr.size, entry.attr.nlink));
        true
    })
    .unwrap();
    counts.sort_unstable();
    counts
}

#[test]
fn tar_reads_what_is_written_and_is_read() {
    let parent = tempfile::tempdir().unwrap();
    let source = parent.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source);
    let want = prints(&source);
    let store = new_store();
    import_tree(&store, &source);

    let (out, file) = (parent.path().join("out"), parent.path().join("out.tar"));
    fs::create_dir(&out).unwrap();
    fs::write(&file, archive(&store)).unwrap();
    let tar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&file)
        .current_dir(&out)
        .status();
    assert!(tar.unwrap().success());
    assert_same(&prints(&out), &want);

    for (format, attributes) in [
        ("--format=posix", "--xattrs"),
        ("--format=gnu", "--no-xattrs"),
    ] {
        let mut tar = Command::new("tar")
            .args([attributes, format, "-cf", "-", "."])
            .current_dir(&source)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut bytes = Vec::new();
        tar.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        tar.wait().unwrap();
        let store = new_store();
        let volume = open(&store).unwrap();
        let mut tell = on;
        let mut import = Import::new(volume.fs(), false, &mut tell);
        import
            .archive(&mut Reader::new(Cursor::new(&bytes)))
            .unwrap();
        import.end().unwrap();
        volume.close().unwrap();
        let differing = differing(&offline(&store), want.clone(), &mut on).unwrap();
        match format {
            "--format=posix" => assert_eq!(differing, Vec::<Vec<u8>>::new()),
            // It has whole seconds only.
            _ => assert_eq!(
                offline(&store).tables().counters().files + 1,
                want.len() as u64
            ),
        }
    }
}

#[test]
fn a_hurt_file_is_left_out_and_named() {
    let parent = tempfile::tempdir().unwrap();
    let source = parent.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("good"), pattern(1, 100_000)).unwrap();
    fs::write(source.join("hurt"), pattern(2, 100_000)).unwrap();
    let store = new_store();
    import_tree(&store, &source);
    let mut objects = store.objects();
    let (name, at) = crate::fsck::tests::place_of(&objects, &[b"hurt"], 50_000);
    objects.get_mut(&name).unwrap()[at] ^= 1;
    let store = Arc::new(MemoryStore::of(objects));
    let out = parent.path().join("out");
    let mut tree = NewTree::new(&out).unwrap();
    let done = export(&offline(&store), &mut tree, &mut on).unwrap();
    assert_eq!(done.left_out, [(b"hurt".to_vec(), "it is hurt")]);
    assert!(!out.join("hurt").exists());
    assert_eq!(fs::read(out.join("good")).unwrap(), pattern(1, 100_000));

    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    let done = export(&offline(&store), &mut writer, &mut on).unwrap();
    assert_eq!(done.left_out.len(), 1);
    let mut reader = Reader::new(Cursor::new(&bytes));
    let mut names = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let super::tar::Entry::New(item) = entry else {
            panic!("there are no links")
        };
        names.push(item.path);
    }
    assert_eq!(names, [b"".to_vec(), b"good".to_vec()]);
}

#[test]
fn archives_that_lead_out_of_the_tree_or_end_early_are_refused() {
    let item = |path: &[u8]| Item {
        path: path.to_vec(),
        kind: FileKind::Regular,
        size: 3,
        ..Item::nothing()
    };
    let write = |item: &Item| {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.put(item, &mut |pour| pour(0, b"abc")).unwrap();
        writer.end().unwrap();
        bytes
    };
    let refused = |bytes: &[u8]| {
        let mut reader = Reader::new(Cursor::new(bytes));
        while reader.next()?.is_some() {
            let mut all = [0; 10];
            reader.read(&mut all)?;
        }
        Ok::<(), super::TransferError>(())
    };
    assert!(refused(&write(&item(b"a/b"))).is_ok());
    for path in [&b"../a"[..], b"a/../../b", b".."] {
        assert_eq!(
            refused(&write(&item(path))).unwrap_err().code(),
            "fs.archive"
        );
    }
    let whole = write(&item(b"f"));
    for len in [10, 512, 700, 1536 + 200] {
        let cut = refused(&whole[..len]);
        assert_eq!(cut.unwrap_err().code(), "fs.archive", "{len}");
    }
    let mut bent = whole;
    bent[1024] ^= 1;
    assert_eq!(refused(&bent).unwrap_err().code(), "fs.archive");
}
