//! Core: The parsers that need no more than bytes. What one accepts, its writer writes again the same:
//! no structure has two forms.

use crate::acl::{Acl, perm_after_access};
use crate::format::{
    Body, ClearPart, Extent, FRAME_HEAD_LEN, FileKind, FrameHead, InodeRecord, Mapped, PendingOps,
    Reader, SEGMENT_LEN_MAX, SegmentBirth, SegmentHeader, parse_commit,
};
use crate::schema::{self, Key};
use crate::xattr::{self, ACCESS_ACL, DEFAULT_ACL, Owner, SetRule};

/// Bytes of a commit before its operations.
const COMMIT_HEADER_LEN: usize = 64;
const KINDS: [FileKind; 7] = [
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDevice,
    FileKind::BlockDevice,
];

pub(super) fn superblock(input: &[u8]) {
    if let Ok((parsed, clear, sealed)) = ClearPart::parse(input) {
        assert_eq!(parsed.bytes(), clear);
        assert_eq!([clear, sealed].concat(), input);
    }
}

pub(super) fn superblock_body(input: &[u8]) {
    for slot in [0, 1] {
        if let Ok(body) = Body::parse(input, slot) {
            assert_eq!(body.bytes(), input);
            assert!(Body::parse(input, 1 - slot).is_err());
        }
    }
}

pub(super) fn frame_head(input: &[u8]) {
    let Some(bytes) = input.first_chunk::<FRAME_HEAD_LEN>() else {
        return;
    };
    for alignment in [512, 4096] {
        if let Ok(head) = FrameHead::parse(bytes, alignment) {
            assert_eq!(head.bytes(), *bytes);
            let inline_end = head.inline_begin() + u64::from(head.inline_len);
            assert!(inline_end <= u64::from(head.frame_len));
            assert!(head.frame_len.is_multiple_of(u32::from(alignment)));
        }
    }
}

pub(super) fn commit(input: &[u8]) {
    let Ok((header, ops)) = parse_commit(input) else {
        return;
    };
    let pending = PendingOps::of_all(&ops);
    let encoded = pending.encode(&header, 512).unwrap();
    let end = COMMIT_HEADER_LEN + pending.len();
    assert_eq!(encoded[..end], input[..end]);
    assert_eq!(parse_commit(&encoded).unwrap(), (header, ops));
    // A flush that failed has the same operations with other places.
    let moved = pending.with_extents(|_| None).unwrap();
    assert_eq!(moved.encode(&header, 512).unwrap(), encoded);
}

pub(super) fn segment_header(input: &[u8]) {
    if let Ok((parsed, clear, sealed)) = SegmentHeader::parse(input) {
        assert!(clear.starts_with(&parsed.bytes()));
        assert_eq!([clear, sealed].concat(), input);
    }
    if let Ok(birth) = SegmentBirth::parse(input) {
        assert!(birth.bytes().iter().zip(input).all(|(a, b)| a == b));
    }
}

/// Two numbers, and an extent that is cut with them.
pub(super) fn extent(input: &[u8]) {
    let Some((numbers, value)) = input.split_first_chunk::<8>() else {
        return;
    };
    let Ok(mapped) = Mapped::parse(value) else {
        return;
    };
    let mut written = Vec::new();
    mapped.put(&mut written);
    assert_eq!(written, value);

    let (a, b) = numbers.split_at(4);
    let [a, b] = [a, b].map(|n| u64::from(u32::from_le_bytes(n.try_into().unwrap())));
    let left = mapped.skip(a);
    assert_eq!(left.is_some(), a < mapped.live());
    assert!(left.is_none_or(|left| left.live() == mapped.live() - a));
    let kept = mapped.keep(b);
    assert_eq!(kept.map_or(0, |kept| kept.live()), b.min(mapped.live()));
    if let Mapped::Data(whole) = mapped {
        cut(whole, u32::try_from(a).unwrap());
    }
}

/// An extent cut in two: both parts are sound, and they are one again.
fn cut(whole: Extent, at: u32) {
    let (chunks, skipped) = whole.chunks(0, whole.live);
    let chunks: Vec<_> = chunks.collect();
    let opened: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    assert!(u64::from(skipped) + u64::from(whole.live) <= opened);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk.offset + chunk.stored() <= SEGMENT_LEN_MAX)
    );
    if let (Some(first), Some(second)) = (whole.keep(at), whole.skip(at)) {
        for part in [first, second] {
            let mut bytes = Vec::new();
            part.put(&mut bytes);
            assert_eq!(
                Extent::parse(&mut Reader::new(&bytes, "part")).unwrap(),
                part
            );
        }
        assert_eq!(first.joined(&second), Some(whole));
    }
}

/// A length, the key of an item and its value.
pub(super) fn item(input: &[u8]) {
    let Some((len, rest)) = input.split_first() else {
        return;
    };
    let (key, value) = rest.split_at(usize::from(*len).min(rest.len()));
    let Ok(parsed) = Key::parse(key) else {
        return;
    };
    let written = match parsed {
        Key::Record(ino) => schema::record_key(ino).to_vec(),
        Key::Entry(dir, cookie) => schema::entry_key(dir, cookie).to_vec(),
        Key::Hash(dir, hash, n) => schema::hash_key(dir, hash, n).to_vec(),
        Key::Extent(map, start) => schema::extent_key(map, start).to_vec(),
        Key::Xattr(ino, name) => schema::xattr_key(ino, name),
        Key::Segment(id) => schema::segment_key(id).to_vec(),
        Key::SegRef(id, map) => schema::segref_key(id, map).to_vec(),
        Key::Orphan(ino) => schema::orphan_key(ino).to_vec(),
    };
    assert_eq!(written, key);
    let written = match parsed {
        Key::Record(_) => schema::parse_record(value).map(|v| record(&v)),
        Key::Entry(..) => schema::parse_entry(value).map(|v| schema::entry_value(&v)),
        Key::Hash(..) | Key::SegRef(..) => {
            schema::parse_number(value).map(|v| schema::number_value(v).to_vec())
        }
        Key::Extent(..) => Mapped::parse(value).map(|v| schema::mapped_value(&v)),
        Key::Xattr(..) => schema::parse_xattr(value).map(|v| schema::xattr_value(&v)),
        Key::Segment(_) => schema::parse_segment(value).map(|v| schema::segment_value(&v)),
        Key::Orphan(_) => return,
    };
    if let Ok(written) = written {
        assert_eq!(written, value);
    }
}

fn record(record: &InodeRecord) -> Vec<u8> {
    schema::record_value(record)
}

pub(super) fn acl(input: &[u8]) {
    let Ok(Some(acl)) = Acl::parse(input) else {
        return;
    };
    // But for the ids of entries that are nobody's, which say nothing.
    assert_eq!(acl.to_bytes().len(), input.len());
    assert_eq!(Acl::parse(&acl.to_bytes()).unwrap().as_ref(), Some(&acl));
    assert!(acl.mode() <= 0o777);
    for mode in [0, 0o640, 0o777] {
        let changed = acl.clone().with_mode(mode);
        assert_eq!(changed.mode(), mode);
        assert_eq!(Acl::parse(&changed.to_bytes()).unwrap(), Some(changed));
    }
    for kind in KINDS {
        let made = Acl::inherit(Some(&acl), kind, 0o2666, 0o022);
        // Nobody gets more than was asked for.
        assert_eq!(made.perm & !0o2666, 0);
        assert_eq!(made.default.is_some(), kind == FileKind::Directory);
        for list in [made.access, made.default].into_iter().flatten() {
            assert_eq!(Acl::parse(&list.to_bytes()).unwrap(), Some(list));
        }
    }
    assert_eq!(
        perm_after_access(0o2000, Some(&acl), true),
        0o2000 | acl.mode()
    );
    assert_eq!(perm_after_access(0o2000, Some(&acl), false), acl.mode());
}

pub(super) fn acl_seeds() -> Vec<Vec<u8>> {
    let list = |entries: &[(u16, u16, u32)]| {
        let mut out = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    };
    let none = u32::MAX;
    let minimal = [(1, 7, none), (4, 5, none), (0x20, 0, none)];
    let named = [
        (1, 6, none),
        (2, 7, 1000),
        (4, 4, none),
        (8, 1, 50),
        (0x10, 6, none),
        (0x20, 4, none),
    ];
    vec![list(&[]), list(&minimal), list(&named)]
}

/// A kind, a rule, the length of a name, the name and the value.
pub(super) fn xattr(input: &[u8]) {
    let Some(([kind, rule, len], rest)) = input.split_first_chunk::<3>() else {
        return;
    };
    let (name, value) = rest.split_at(usize::from(*len).min(rest.len()));
    let rules = [SetRule::Any, SetRule::Create, SetRule::Replace];
    let rule = rules[usize::from(*rule) % rules.len()];
    let owner = Owner {
        kind: KINDS[usize::from(*kind) % KINDS.len()],
        perm: 0o2664,
        keeps_setgid: kind % 2 == 0,
    };
    for is_there in [false, true] {
        let removed = xattr::remove(owner, name, is_there);
        let Ok(effect) = xattr::set(owner, name, value, rule, is_there) else {
            continue;
        };
        assert!(is_there || rule != SetRule::Replace);
        assert!(!is_there || rule != SetRule::Create);
        // What can be set can be taken away again.
        assert!(removed.is_ok() || !is_there);
        // What is stored would be set to the same once more.
        if let Some(stored) = &effect.value {
            let again = xattr::set(owner, name, stored, SetRule::Any, true).unwrap();
            assert_eq!(again.value.as_ref(), Some(stored));
        }
        let is_list = name == ACCESS_ACL || name == DEFAULT_ACL;
        assert!(is_list || effect.value.as_deref() == Some(value));
        assert!(name == ACCESS_ACL || effect.perm.is_none());
    }
    let names: Vec<Vec<u8>> = rest.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let listed = xattr::listing(&names, true);
    assert!(xattr::listing(&names, false).len() <= listed.len());
}

pub(super) fn xattr_seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, rule: u8, name: &[u8], value: &[u8]| {
        let len = u8::try_from(name.len()).unwrap();
        [&[kind, rule, len], name, value].concat()
    };
    let acl = acl_seeds().pop().unwrap();
    vec![
        seed(0, 0, b"user.a", b"value"),
        seed(0, 1, b"trusted.overlay.opaque", b"y"),
        seed(1, 2, b"security.capability", &[1; 20]),
        seed(1, 0, DEFAULT_ACL, &acl),
        seed(0, 0, ACCESS_ACL, &acl),
        seed(2, 0, b"user.\0", b""),
    ]
}
