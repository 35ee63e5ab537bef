//! Every structure comes back from its bytes, and hostile bytes are refused without a panic.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

use keys::VolumeId;
use proptest::prelude::*;

use super::*;

fn segment_ref() -> impl Strategy<Value = SegmentRef> {
    (any::<[u8; 16]>(), any::<u32>()).prop_map(|(uid, vmk_epoch)| SegmentRef {
        uid: SegmentUid(uid),
        vmk_epoch,
    })
}

fn place() -> impl Strategy<Value = Place> {
    (segment_ref(), 0..=SEGMENT_LEN_MAX).prop_map(|(segment, offset)| Place { segment, offset })
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=255).prop_filter("a name", |name| is_file_name(name))
}

fn entry() -> impl Strategy<Value = (Ino, Vec<u8>)> {
    (any::<u64>().prop_map(Ino), name())
}

/// An extent of a whole record, cut at both ends.
fn extent() -> impl Strategy<Value = Extent> {
    let record = (
        any::<u32>(),
        0..1000_u64,
        1..=1_048_576_u32,
        any::<[u8; 8]>(),
    );
    (record, any::<u32>(), any::<u32>()).prop_map(|((segment, at, len, salt), skip, keep)| {
        let offset = SEGMENT_BEGIN + at * 16;
        let whole = Extent::of_record(SegmentId(segment), offset, len, salt).unwrap();
        let cut = whole.skip(skip % len).unwrap();
        cut.keep(keep % cut.live + 1).unwrap()
    })
}

fn pointer() -> impl Strategy<Value = NodePointer> {
    (any::<u32>(), 256..1000_u64, 1..=256_u32, any::<[u8; 8]>()).prop_map(
        |(segment, offset, len, salt)| NodePointer {
            segment: SegmentId(segment),
            offset: offset * 16,
            len: len * 64,
            salt,
        },
    )
}

fn new_node() -> impl Strategy<Value = NewNode> {
    let kind = prop_oneof![
        Just(FileKind::Regular),
        Just(FileKind::Directory),
        Just(FileKind::Symlink),
        Just(FileKind::Fifo),
        Just(FileKind::Socket),
        Just(FileKind::CharDevice),
        Just(FileKind::BlockDevice)
    ];
    let numbers = (any::<u64>(), 0..=0o7777_u16, any::<[u32; 3]>());
    let target = prop::collection::vec(1..=255_u8, 1..300);
    (entry(), kind, numbers, timestamp(), target).prop_map(
        |((parent, name), kind, (ino, perm, [uid, gid, rdev]), time, target)| NewNode {
            parent,
            name,
            ino: Ino(ino),
            kind,
            perm,
            uid,
            gid,
            rdev,
            time,
            target: if kind == FileKind::Symlink {
                target
            } else {
                Vec::new()
            },
        },
    )
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let node =
        (any::<u32>(), segment_ref(), any::<u64>()).prop_map(|(id, segment, live)| NodeSegment {
            id: SegmentId(id),
            segment,
            live,
        });
    let nodes = prop::collection::vec(node, 0..4);
    let anchored = prop::collection::vec(any::<(u64, [u8; 32])>(), 0..3);
    let numbers = any::<(u64, [u8; 32], u8, u64, u32)>();
    (numbers, place(), pointer(), nodes, anchored).prop_map(
        |((as_of, head, root_level, ino, segment), next, root, nodes, anchored)| Checkpoint {
            as_of,
            head,
            next,
            root,
            root_level,
            nodes,
            counters: Counters {
                next_ino: Ino(ino),
                next_segment: SegmentId(segment),
                files: ino ^ 5,
                live: as_of,
                unwritten: ino,
            },
            anchored,
        },
    )
}

fn change() -> impl Strategy<Value = AttrChange> {
    let times = prop::array::uniform3(prop::option::of(timestamp()));
    let perm = prop::option::of(0..=0o7777_u16);
    (perm, any::<[Option<u32>; 2]>(), times).prop_map(
        |(perm, [uid, gid], [atime, mtime, ctime])| AttrChange {
            perm,
            uid,
            gid,
            atime,
            mtime,
            ctime,
        },
    )
}

fn mode() -> impl Strategy<Value = RenameMode> {
    prop_oneof![
        Just(RenameMode::Exchange),
        Just(RenameMode::Replace),
        any::<u64>().prop_map(|ino| RenameMode::Whiteout(Ino(ino)))
    ]
}

fn written() -> impl Strategy<Value = Written> {
    let extents = prop::collection::vec(extent(), 0..5);
    (
        any::<(u64, u64, bool)>(),
        extents,
        prop::option::of(timestamp()),
    )
        .prop_map(|((ino, start, kill_privileges), extents, time)| Written {
            ino: Ino(ino),
            start,
            extents,
            time,
            kill_privileges,
        })
}

fn of_files() -> impl Strategy<Value = Op> {
    let ino = || any::<u64>().prop_map(Ino);
    let optional_time = prop::option::of(timestamp());
    prop_oneof![
        new_node().prop_map(Op::Create),
        (ino(), entry(), timestamp()).prop_map(|(ino, (parent, name), time)| Op::Link {
            ino,
            parent,
            name,
            time
        }),
        (entry(), timestamp()).prop_map(|((parent, name), time)| Op::Unlink { parent, name, time }),
        (entry(), entry(), mode(), timestamp()).prop_map(|(from, to, mode, time)| Op::Rename {
            from,
            to,
            mode,
            time
        }),
        (ino(), change()).prop_map(|(ino, change)| Op::SetAttr { ino, change }),
        written().prop_map(Op::Write),
        (ino(), any::<u64>(), optional_time).prop_map(|(ino, size, time)| Op::Truncate {
            ino,
            size,
            time
        }),
        (ino(), any::<[u64; 2]>(), timestamp()).prop_map(|(ino, [start, end], time)| Op::Punch {
            ino,
            start,
            end,
            time
        }),
        (ino(), any::<u64>(), extent(), extent()).prop_map(|(map, start, from, to)| Op::Move {
            map,
            start,
            from,
            to
        }),
        (ino(), any::<(u64, u32)>()).prop_map(|(map, (from, limit))| Op::Trim { map, from, limit }),
        (ino(), any::<u32>()).prop_map(|(ino, limit)| Op::Reap { ino, limit }),
        of_attributes(),
        (ino(), any::<[u64; 2]>()).prop_map(|(ino, [start, end])| Op::Allocate { ino, start, end }),
        (any::<[u64; 5]>(), timestamp()).prop_map(|([a, b, c, d, len], time)| {
            Op::Share(Shared {
                from: Ino(a),
                from_start: b,
                to: Ino(c),
                to_start: d,
                len,
                time,
            })
        }),
        (
            ino(),
            prop::collection::vec(any::<u8>(), 0..INLINE_FILE_LEN_MAX),
            any::<(u64, bool)>(),
            prop::option::of(timestamp())
        )
            .prop_map(|(ino, bytes, (size, kill_privileges), time)| Op::Inline {
                ino,
                bytes,
                size,
                time,
                kill_privileges
            }),
    ]
}

fn of_attributes() -> impl Strategy<Value = Op> {
    let name = || prop::collection::vec(1..=255_u8, 1..=255);
    let short = prop::collection::vec(any::<u8>(), 0..=XATTR_INLINE_LEN_MAX);
    let extents = prop::collection::vec(extent(), 0..4);
    let value = prop_oneof![
        short.prop_map(XattrValue::Inline),
        (any::<u64>(), extents).prop_map(|(map, extents)| XattrValue::Extents {
            map: Ino(map),
            extents
        }),
    ];
    prop_oneof![
        (any::<u64>(), name(), value, timestamp()).prop_map(|(ino, name, value, time)| {
            Op::SetXattr {
                ino: Ino(ino),
                name,
                value,
                time,
            }
        }),
        (any::<u64>(), name(), timestamp()).prop_map(|(ino, name, time)| Op::RemoveXattr {
            ino: Ino(ino),
            name,
            time
        }),
    ]
}

fn of_segments() -> impl Strategy<Value = Op> {
    let id = || any::<u32>().prop_map(SegmentId);
    let kind = prop_oneof![
        Just(SegmentKind::Data),
        Just(SegmentKind::Log),
        Just(SegmentKind::Node)
    ];
    let open = (
        any::<(u64, [u8; 16])>(),
        id(),
        segment_ref(),
        place(),
        any::<[u8; 32]>(),
    );
    prop_oneof![
        open.prop_map(
            |((log_epoch, mount), id, segment, cut, cut_head)| Op::Open(Open {
                log_epoch,
                mount,
                id,
                segment,
                cut,
                cut_head
            })
        ),
        segment_ref().prop_map(Op::Roll),
        checkpoint().prop_map(|checkpoint| Op::Checkpoint(Box::new(checkpoint))),
        (id(), kind, segment_ref()).prop_map(|(id, kind, segment)| Op::SegNew(SegNew {
            id,
            kind,
            segment
        })),
        id().prop_map(Op::SegDrop),
    ]
}

fn header() -> impl Strategy<Value = CommitHeader> {
    any::<(u64, u64, [u8; 32], u64)>().prop_map(|(seq, log_epoch, prev_head, durable_seq)| {
        CommitHeader {
            seq,
            log_epoch,
            prev_head,
            durable_seq,
        }
    })
}

proptest! {
    #[test]
    fn commits_come_back(
        header in header(),
        ops in prop::collection::vec(prop_oneof![of_files(), of_segments()], 0..12),
    ) {
        for alignment in [512, 4096_u16] {
            let mut pending = PendingOps::default();
            ops.iter().for_each(|op| pending.push(op));
            let bytes = pending.encode(&header, alignment).unwrap();
            prop_assert_eq!((bytes.len() + 48 + FRAME_HEAD_LEN) % usize::from(alignment), 0);
            prop_assert_eq!(&parse_commit(&bytes).unwrap(), &(header, ops.clone()));
            // Neither a byte less nor a byte that is not padding.
            let mut more = bytes.clone();
            more.push(1);
            prop_assert!(parse_commit(&more).is_err());
        }
    }

    #[test]
    fn a_commit_that_is_cut_or_changed_never_panics(
        ops in prop::collection::vec(prop_oneof![of_files(), of_segments()], 0..4),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let header = CommitHeader { seq: 1, log_epoch: 1, prev_head: [0; 32], durable_seq: 0 };
        let mut pending = PendingOps::default();
        ops.iter().for_each(|op| pending.push(op));
        let mut bytes = pending.encode(&header, 512).unwrap();
        let _ = parse_commit(&bytes[..cut.index(bytes.len())]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = parse_commit(&bytes);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let _ = parse_commit(&bytes);
        let _ = parse_node(&bytes, 0);
        let _ = ClearPart::parse(&bytes);
        let _ = SegmentHeader::parse(&bytes);
        let _ = Body::parse(&bytes, 0);
        let _ = Extent::parse(&mut Reader::new(&bytes, "extent"));
        let _ = NodePointer::parse(&mut Reader::new(&bytes, "pointer"));
        let _ = InodeRecord::parse(&mut Reader::new(&bytes, "inode"));
        if let Some(head) = bytes.first_chunk() {
            let _ = FrameHead::parse(head, 512);
        }
    }

    #[test]
    fn cutting_an_extent_keeps_to_its_chunks(whole in extent(), n in any::<u32>()) {
        let mut bytes = Vec::new();
        whole.put(&mut bytes);
        prop_assert_eq!(bytes.len(), Extent::LEN);
        prop_assert_eq!(Extent::parse(&mut Reader::new(&bytes, "")).unwrap(), whole);

        let n = n % whole.live;
        let Some(rest) = whole.skip(n) else { return Ok(()) };
        prop_assert_eq!(whole.keep(n).map_or(0, |kept| kept.live) + rest.live, whole.live);
        // Each byte of the rest lies in the same chunk, at the same place, as it did before.
        for at in [0, rest.live / 2, rest.live - 1] {
            let (mut before, skip) = whole.chunks(n + at, n + at + 1);
            let (mut after, skip_after) = rest.chunks(at, at + 1);
            prop_assert_eq!((before.next(), skip), (after.next(), skip_after));
        }
        prop_assert_eq!(rest.end(), whole.end());
    }

    #[test]
    fn nodes_come_back(entries in prop::collection::btree_map(
        prop::collection::vec(any::<u8>(), 0..30),
        prop::collection::vec(any::<u8>(), 0..200),
        1..60,
    )) {
        let mut builder = NodeBuilder::new(3);
        let put: Vec<_> = entries.iter().take_while(|(k, v)| builder.push(k, v)).collect();
        let (first, bytes) = builder.finish();
        prop_assert_eq!(bytes.len() % 64, 0);
        prop_assert_eq!(&first, put[0].0);
        let parsed = parse_node(&bytes, 3).unwrap();
        prop_assert_eq!(parsed.len(), put.len());
        for ((k, v), (key, value)) in parsed.into_iter().zip(put) {
            prop_assert_eq!((k, v), (key.as_slice(), value.as_slice()));
        }
        prop_assert!(parse_node(&bytes, 2).is_err(), "another level");
    }
}

#[test]
fn a_node_with_keys_out_of_order_is_refused() {
    for (a, b) in [(&b"b"[..], &b"a"[..]), (b"a", b"a")] {
        let mut builder = NodeBuilder::new(0);
        assert!(builder.push(a, b"") && builder.push(b, b""));
        assert_eq!(parse_node(&builder.finish().1, 0), Err(Malformed("node")));
    }
}

#[test]
fn a_full_node_takes_no_more() {
    let mut builder = NodeBuilder::new(0);
    let value = vec![7; 5000];
    let fitted = (0..10_u8)
        .take_while(|i| builder.push(&[*i], &value))
        .count();
    assert_eq!(fitted, 3);
    assert!(builder.finish().1.len() <= NODE_LEN_MAX);
}

#[test]
fn sizes_of_records() {
    #[track_caller]
    fn check(data: u32, stored: u32) {
        assert_eq!(stored_len(data), Some(stored), "{data}");
    }
    // The examples of docs/format.md.
    check(1, 64 + 16);
    check(4096, 4096 + 16);
    check(5000, 4096 + 16 + 960 + 16);
    check(1 << 20, 256 * 4112);
}

#[test]
fn a_superblock_comes_back_and_each_field_is_checked() {
    let wrap = |epoch, byte| VmkWrap {
        epoch,
        sealed: [byte; WRAPPED_VMK_LEN],
    };
    let recovery = RecoveryWrap {
        owner: vec![3; 422],
        encrypted: vec![4; 384],
    };
    for (older, recovery) in [
        (None, None),
        (Some(wrap(3, 9)), None),
        (None, Some(recovery.clone())),
        (Some(wrap(0, 9)), Some(recovery)),
    ] {
        let clear = ClearPart {
            compat: 1,
            ro_compat: 2,
            incompat: 3,
            volume: VolumeId([7; 16]),
            kek_epoch: 5,
            kek_commitment: [6; 32],
            vmk: wrap(4, 8),
            vmk_commitment: [5; 32],
            older,
            recovery,
        };
        let mut body = Body::first([8; 32], 3, 512, NameKey([9; 16]));
        body.durable_seq = 77;
        let mut object = clear.bytes();
        object.extend(vec![0xaa; SUPERBLOCK_LEN - object.len()]);
        let (parsed, aad, sealed) = ClearPart::parse(&object).unwrap();
        assert_eq!((&parsed, aad, sealed.len()), (&clear, &object[..1368], 284));
        assert_eq!(Body::parse(&body.bytes(), 1), Ok(body.clone()));
        assert!(
            Body::parse(&body.bytes(), 0).is_err(),
            "it belongs into the other slot"
        );

        let malformed = ClearPartError::Malformed(Malformed("superblock"));
        let mut check = |at: usize, bits: u8, want: ClearPartError| {
            object[at] ^= bits;
            assert_eq!(ClearPart::parse(&object).unwrap_err(), want, "byte {at}");
            object[at] ^= bits;
        };
        check(0, 1, ClearPartError::NotAVolume);
        check(8, 1, ClearPartError::OtherVersion);
        check(12, 1, malformed);
        check(208, 4, malformed);
        if clear.older.is_some() {
            check(208, 1, malformed);
            check(212, 0xff, malformed);
        } else {
            check(212, 1, malformed);
            check(295, 1, malformed);
        }
        if clear.recovery.is_some() {
            let field = ClearPartError::Malformed(Malformed("recovery wrap"));
            check(300, 1, malformed);
            check(297, 0xf0, field);
            check(296, 0xff, field);
            check(855, 1, field);
            check(1367, 1, field);
        } else {
            check(296, 1, malformed);
            check(1367, 1, malformed);
        }
        let mut longer = object.clone();
        longer.push(0);
        assert!(ClearPart::parse(&longer).is_err());
        assert!(ClearPart::parse(&object[..SUPERBLOCK_LEN - 1]).is_err());
    }
}

#[test]
fn a_segment_header_comes_back_and_each_field_is_checked() {
    let header = SegmentHeader {
        volume: VolumeId([7; 16]),
        kind: SegmentKind::Node,
        segment: SegmentRef {
            uid: SegmentUid([8; 16]),
            vmk_epoch: 9,
        },
        id: SegmentId(10),
    };
    let birth = SegmentBirth { created: -1 };
    assert_eq!(SegmentBirth::parse(&birth.bytes()), Ok(birth));
    let mut bytes = header.bytes();
    bytes.extend(vec![0xaa; 4096 - bytes.len()]);
    let (parsed, clear, sealed) = SegmentHeader::parse(&bytes).unwrap();
    assert_eq!((parsed, clear, sealed.len()), (header, &bytes[..64], 4032));
    for at in [0, 8, 12, 13, 56, 63] {
        let mut bent = bytes.clone();
        bent[at] ^= 0xf0;
        assert!(SegmentHeader::parse(&bent).is_err(), "byte {at}");
    }
    assert!(SegmentHeader::parse(&bytes[..4095]).is_err());
}

#[test]
fn a_frame_head_tells_one_length_only() {
    let head = FrameHead::new(48 + 400, 1040, 512).unwrap();
    assert_eq!(head.frame_len, 2048);
    let bytes = head.bytes();
    assert_eq!(FrameHead::parse(&bytes, 512), Ok(head));
    for at in 0..FRAME_HEAD_LEN {
        let mut bent = bytes;
        bent[at] ^= 1;
        let parsed = FrameHead::parse(&bent, 512);
        // Lengths that fit each other again are no concern here: the head is AAD.
        assert!(
            parsed.is_err() || (8..20).contains(&at),
            "byte {at}: {parsed:?}"
        );
    }
    assert_eq!(
        FrameHead::new(47, 0, 512),
        None,
        "shorter than a salt and a tag"
    );
    assert_eq!(FrameHead::new(48 + COMMIT_LEN_MAX + 1, 0, 512), None);
    assert_eq!(FrameHead::new(48, INLINE_LEN_MAX + 1, 512), None);
}
