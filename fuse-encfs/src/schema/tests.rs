//! Keys and values come back from their bytes, sort as they should, and hostile ones are refused.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::format::{Extent, INLINE_FILE_LEN_MAX, SegmentUid, Timestamp};

/// A key, as it is put together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Made {
    OfInode(u64, Part),
    Segment(u32),
    SegRef(u32, u64),
    Orphan(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Record,
    Entry(u64),
    Hash(u64, u16),
    Extent(u64),
    Xattr(Vec<u8>),
}

impl Made {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::OfInode(ino, Part::Record) => record_key(Ino(*ino)).into(),
            Self::OfInode(ino, Part::Entry(cookie)) => entry_key(Ino(*ino), *cookie).into(),
            Self::OfInode(ino, Part::Hash(hash, n)) => hash_key(Ino(*ino), *hash, *n).into(),
            Self::OfInode(ino, Part::Extent(start)) => extent_key(Ino(*ino), *start).into(),
            Self::OfInode(ino, Part::Xattr(name)) => xattr_key(Ino(*ino), name),
            Self::Segment(id) => segment_key(SegmentId(*id)).into(),
            Self::SegRef(id, map) => segref_key(SegmentId(*id), Ino(*map)).into(),
            Self::Orphan(ino) => orphan_key(Ino(*ino)).into(),
        }
    }

    fn key(&self) -> Key<'_> {
        match self {
            Self::OfInode(ino, Part::Record) => Key::Record(Ino(*ino)),
            Self::OfInode(ino, Part::Entry(cookie)) => Key::Entry(Ino(*ino), *cookie),
            Self::OfInode(ino, Part::Hash(hash, n)) => Key::Hash(Ino(*ino), *hash, *n),
            Self::OfInode(ino, Part::Extent(start)) => Key::Extent(Ino(*ino), *start),
            Self::OfInode(ino, Part::Xattr(name)) => Key::Xattr(Ino(*ino), name),
            Self::Segment(id) => Key::Segment(SegmentId(*id)),
            Self::SegRef(id, map) => Key::SegRef(SegmentId(*id), Ino(*map)),
            Self::Orphan(ino) => Key::Orphan(Ino(*ino)),
        }
    }
}

/// Few numbers, so that keys are neighbours, and any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, 254..258_u64, any::<u64>()]
}

fn made() -> impl Strategy<Value = Made> {
    let part = prop_oneof![
        Just(Part::Record),
        number().prop_map(Part::Entry),
        (number(), any::<u16>()).prop_map(|(hash, n)| Part::Hash(hash, n)),
        number().prop_map(Part::Extent),
        vec(1..=255_u8, 1..=255).prop_map(Part::Xattr),
    ];
    prop_oneof![
        (number(), part).prop_map(|(ino, part)| Made::OfInode(ino, part)),
        any::<u32>().prop_map(Made::Segment),
        (0..3_u32, number()).prop_map(|(id, map)| Made::SegRef(id, map)),
        number().prop_map(Made::Orphan),
    ]
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn record() -> impl Strategy<Value = InodeRecord> {
    let kind = prop_oneof![
        Just((FileKind::Regular, 0..=INLINE_FILE_LEN_MAX)),
        Just((FileKind::Symlink, 1..=TARGET_LEN_MAX)),
        Just((FileKind::Directory, 0..=0)),
        Just((FileKind::CharDevice, 0..=0)),
    ];
    let inline = kind.prop_flat_map(|(kind, len)| (Just(kind), vec(any::<u8>(), len)));
    let numbers = any::<([u32; 5], [u64; 4])>();
    let times = prop::array::uniform3(timestamp());
    (inline, 0..=0o7777_u16, numbers, times).prop_map(
        |((kind, inline), perm, (small, large), [atime, mtime, ctime])| InodeRecord {
            kind,
            perm,
            nlink: small[0],
            uid: small[1],
            gid: small[2],
            rdev: small[3],
            size: large[0].max(inline.len() as u64),
            atime,
            mtime,
            ctime,
            parent: Ino(large[1]),
            next_cookie: large[2],
            allocated: large[3],
            xattrs: small[4],
            inline,
        },
    )
}

fn mapped() -> impl Strategy<Value = Mapped> {
    let extent = (
        any::<u32>(),
        256..1000_u64,
        1..=1_048_576_u32,
        any::<[u8; 8]>(),
    )
        .prop_map(|(segment, offset, len, salt)| {
            Mapped::Data(Extent::of_record(SegmentId(segment), offset * 16, len, salt).unwrap())
        });
    prop_oneof![extent, (1..=u64::MAX).prop_map(Mapped::Unwritten)]
}

fn dirent() -> impl Strategy<Value = Dirent> {
    let name = vec(any::<u8>(), 1..=255).prop_filter("a name", |name| is_file_name(name));
    (any::<u64>(), name).prop_map(|(ino, name)| Dirent {
        ino: Ino(ino),
        kind: FileKind::Socket,
        name,
    })
}

fn xattr() -> impl Strategy<Value = XattrEntry> {
    prop_oneof![
        vec(any::<u8>(), 0..=XATTR_INLINE_LEN_MAX).prop_map(XattrEntry::Inline),
        any::<(u64, u32)>().prop_map(|(map, len)| XattrEntry::Extents { map: Ino(map), len }),
    ]
}

fn segment() -> impl Strategy<Value = SegmentEntry> {
    let kind = prop_oneof![
        Just(SegmentKind::Data),
        Just(SegmentKind::Log),
        Just(SegmentKind::Node)
    ];
    (kind, any::<([u8; 16], u32, u64)>()).prop_map(|(kind, (uid, vmk_epoch, live))| SegmentEntry {
        kind,
        segment: SegmentRef {
            uid: SegmentUid(uid),
            vmk_epoch,
        },
        live,
    })
}

/// A value whose length is told by its fields: neither a byte less nor one more.
fn check_value<T: std::fmt::Debug + PartialEq>(
    value: &T,
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, Malformed>,
) {
    assert_eq!(parse(bytes).as_ref(), Ok(value));
    assert!(parse(&[bytes, &[0]].concat()).is_err(), "a byte more");
    assert!(parse(&bytes[..bytes.len() - 1]).is_err(), "a byte less");
}

proptest! {
    #[test]
    fn keys_come_back_and_sort_as_what_they_mean(a in made(), b in made()) {
        let (bytes, other) = (a.bytes(), b.bytes());
        prop_assert_eq!(Key::parse(&bytes), Ok(a.key()));
        prop_assert_eq!(bytes.cmp(&other), a.cmp(&b));
        prop_assert!(bytes.len() <= crate::map::KEY_LEN_MAX);
        if !matches!(a.key(), Key::Xattr(..)) {
            prop_assert!(Key::parse(&bytes[..bytes.len() - 1]).is_err());
            prop_assert!(Key::parse(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn values_come_back(
        record in record(),
        mapped in mapped(),
        dirent in dirent(),
        xattr in xattr(),
        segment in segment(),
        number: u64,
    ) {
        check_value(&record, &record_value(&record), parse_record);
        check_value(&mapped, &mapped_value(&mapped), Mapped::parse);
        check_value(&segment, &segment_value(&segment), parse_segment);
        check_value(&number, &number_value(number), parse_number);
        // What goes on to the end of the value has no byte too many.
        prop_assert_eq!(parse_entry(&entry_value(&dirent)), Ok(dirent));
        prop_assert_eq!(parse_xattr(&xattr_value(&xattr)), Ok(xattr));
        prop_assert!(record_value(&record).len() <= ITEM_LEN_MAX);
    }

    #[test]
    fn what_parses_has_no_other_bytes(
        bytes in vec(any::<u8>(), 0..300),
        good in record(),
        at: prop::sample::Index,
        byte: u8,
    ) {
        if let Ok(mapped) = Mapped::parse(&bytes) {
            prop_assert_eq!(mapped_value(&mapped), &bytes[..]);
        }
        if let Ok(entry) = parse_entry(&bytes) {
            prop_assert_eq!(entry_value(&entry), &bytes[..]);
        }
        if let Ok(xattr) = parse_xattr(&bytes) {
            prop_assert_eq!(xattr_value(&xattr), &bytes[..]);
        }
        if let Ok(segment) = parse_segment(&bytes) {
            prop_assert_eq!(segment_value(&segment), &bytes[..]);
        }
        let _ = (Key::parse(&bytes), parse_number(&bytes), parse_record(&bytes));
        let mut bent = record_value(&good);
        let at = at.index(bent.len());
        bent[at] = byte;
        if let Ok(record) = parse_record(&bent) {
            prop_assert_eq!(record_value(&record), bent);
        }
    }
}

#[test]
fn what_no_field_may_be_is_refused() {
    let of_inode = |part: u8| [&[1][..], &[0; 8], &[part]].concat();
    for key in [
        vec![],
        vec![0],
        vec![5],
        of_inode(5),
        of_inode(4),
        [&of_inode(4)[..], b"a\0b"].concat(),
        [&of_inode(4)[..], &[b'n'; 256]].concat(),
    ] {
        assert_eq!(Key::parse(&key), Err(Malformed("key")), "{key:?}");
    }
    assert!(Mapped::parse(&[0; 8]).is_err(), "nothing is promised");
    assert!(parse_segment(&[0; 29]).is_err(), "no kind");
    assert!(parse_xattr(&[2]).is_err(), "neither here nor in a map");
    assert!(
        parse_xattr(&[0; XATTR_INLINE_LEN_MAX + 2]).is_err(),
        "too long"
    );
    assert!(parse_entry(b"\x01\0\0\0\0\0\0\0\x02..").is_err(), "no name");
}
