//! The worked example of docs/format.md, computed there and in `vectors/encfs.py` from the RFCs
//! alone. A change here orphans every volume.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

use ::keys::{KekEpoch, Secret, VolumeId, VolumeKek};

use super::once::derive;
use super::*;
use crate::format::{SegmentKind, SegmentRef, SegmentUid};
use crate::testing::aead;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn check(what: &str, got: &[u8], want: &str) {
    assert_eq!(hex(got), want, "{what}");
}

#[test]
fn the_worked_example() {
    let volume = VolumeId(core::array::from_fn(|i| u8::try_from(i).unwrap()));
    let kek = VolumeKek::take_from(&mut [0x11; 32]).unwrap();
    let kek = KekSealer::new(&kek, volume, KekEpoch(0));
    check("kek commitment", &kek.commitment(), VECTORS[0]);

    let vmk = Secret::take_from(&mut [0x22; 32]).unwrap();
    let keys = VolumeKeys::new(aead(), &vmk, 0, volume);
    let data: Secret<32> = derive(&vmk, &[label::DATA]);
    check("K_data", data.expose(), VECTORS[1]);

    let segment = SegmentRef {
        uid: SegmentUid([0x33; 16]),
        vmk_epoch: 0,
    };
    let mut plaintext = [0; 64];
    plaintext[..5].copy_from_slice(b"hello");
    let mut sealed = [0; 80];
    let sealer = keys.segment(SegmentKind::Data, segment);
    sealer
        .seal(4096, &[0x44; 8], &plaintext, &mut sealed)
        .unwrap();
    check("chunk", &sealed, VECTORS[2]);

    let head = keys.genesis_head(&[0x55; 32]);
    check("head 0", &head.0, VECTORS[3]);
    let link = Link {
        seq: 1,
        log_epoch: 1,
        uid: segment.uid,
        offset: 4096,
        sealed: &[0x66; 448],
    };
    check("head 1", &next_head(&head, &link).0, VECTORS[4]);

    check(
        "hash of a name",
        &keys.name_hasher().whole(b"name").to_be_bytes(),
        VECTORS[5],
    );

    let aad: Vec<u8> = (0..120).collect();
    let sealed_once = {
        let mut bytes = vec![0x77; 32];
        let key: Secret<32> = derive(&vmk, &[label::COMMIT, &[0x77; 32]]);
        let mut out = vec![0; 64 + 16];
        aead()
            .key(key.expose())
            .seal(&[0; 12], &aad, &plaintext, &mut out)
            .unwrap();
        bytes.extend(out);
        bytes
    };
    check("sealed once", &sealed_once, VECTORS[6]);
    let parent = once::Parent {
        key: &vmk,
        label: label::COMMIT,
    };
    assert_eq!(
        open_once(&*aead(), parent, &aad, &sealed_once).unwrap(),
        plaintext
    );
}

#[test]
fn a_unit_opens_at_its_own_address_alone() {
    let volume = VolumeId([1; 16]);
    let vmk = Secret::take_from(&mut [2; 32]).unwrap();
    let keys = VolumeKeys::new(aead(), &vmk, 0, volume);
    let segment = SegmentRef {
        uid: SegmentUid([3; 16]),
        vmk_epoch: 0,
    };
    let (plaintext, salt) = ([7; 128], [4; 8]);
    let mut sealed = [0; 144];
    keys.segment(SegmentKind::Data, segment)
        .seal(4096, &salt, &plaintext, &mut sealed)
        .unwrap();

    let open = |keys: &VolumeKeys, kind, segment, offset, salt, len: usize| {
        let mut out = vec![0; len];
        let unit = &sealed[..len + 16];
        keys.segment(kind, segment)
            .open(offset, &salt, unit, &mut out)
            .is_ok()
    };
    let data = SegmentKind::Data;
    assert!(open(&keys, data, segment, 4096, salt, 128));
    assert!(
        !open(&keys, data, segment, 4112, salt, 128),
        "another offset"
    );
    assert!(
        !open(&keys, data, segment, 4097, salt, 128),
        "no offset of a unit"
    );
    assert!(
        !open(&keys, data, segment, 4096 + (1 << 36), salt, 128),
        "an offset far away"
    );
    assert!(
        !open(&keys, data, segment, 4096, [5; 8], 128),
        "another salt"
    );
    assert!(
        !open(&keys, data, segment, 4096, salt, 64),
        "another length"
    );
    assert!(
        !open(&keys, SegmentKind::Node, segment, 4096, salt, 128),
        "another kind"
    );
    assert!(
        !open(&keys, SegmentKind::Log, segment, 4096, salt, 128),
        "another kind"
    );
    let other = SegmentRef {
        vmk_epoch: 1,
        ..segment
    };
    assert!(!open(&keys, data, other, 4096, salt, 128), "another epoch");
    let other = SegmentRef {
        uid: SegmentUid([9; 16]),
        ..segment
    };
    assert!(
        !open(&keys, data, other, 4096, salt, 128),
        "another segment"
    );
    let other = VolumeKeys::new(aead(), &vmk, 0, VolumeId([8; 16]));
    assert!(
        !open(&other, data, segment, 4096, salt, 128),
        "another volume"
    );
}

#[test]
fn a_wrapped_key_opens_under_its_own_name_alone() {
    let kek = || VolumeKek::take_from(&mut [1; 32]).unwrap();
    let sealer =
        |volume: u8, epoch| KekSealer::new(&kek(), VolumeId([volume; 16]), KekEpoch(epoch));
    let vmk = Secret::take_from(&mut [2; 32]).unwrap();
    let wrap = sealer(1, 0)
        .wrap(&*aead(), &Entropy::default(), &vmk, 0)
        .unwrap();
    assert_eq!(
        sealer(1, 0).unwrap(&*aead(), &wrap).unwrap().expose(),
        &[2; 32]
    );
    assert!(
        sealer(2, 0).unwrap(&*aead(), &wrap).is_err(),
        "another volume"
    );
    assert!(
        sealer(1, 1).unwrap(&*aead(), &wrap).is_err(),
        "another KEK epoch"
    );
    let renamed = crate::format::VmkWrap { epoch: 1, ..wrap };
    assert!(
        sealer(1, 0).unwrap(&*aead(), &renamed).is_err(),
        "another VMK epoch"
    );
}

#[test]
fn uids_and_salts_do_not_repeat() {
    let entropy = Entropy::default();
    let mut uids: Vec<_> = (0..1000)
        .map(|_| entropy.uid(&[0; 32], &Head([0; 32])).unwrap())
        .collect();
    uids.sort_unstable();
    uids.dedup();
    let mut salts: Vec<[u8; 8]> = (0..1000).map(|_| entropy.draw().unwrap()).collect();
    salts.sort_unstable();
    salts.dedup();
    assert_eq!((uids.len(), salts.len()), (1000, 1000));
}

const VECTORS: [&str; 7] = [
    "9dd9d80621f4fcd973fabac1f37a9a9dea7ab1c5add58ee8895be318fc08add1",
    "016ce50ed9d86b37b6eeb29d53e8da4bb95baa4050ab4406966d3f706af25a67",
    "84ffc9ac23665f8158cfcd586b45a450d1b17e008b25f79f15bdfa61f1b17cca6dcdda62a3f5f2e0b35b868e746aeff43099e20cf0c4b52c12db5875e060472957e990c1b051db8241a38573ae9bfe18",
    "7bb14ce99f25d43322d70d0e6546c5b20cda47ed390bf723d4251997d56339b8",
    "86a19039dc7fbedf2d33dc253b28c42431547d24d765f7daaa7ae1afc3ae5ce9",
    "d34f3d5f86ad714d",
    "777777777777777777777777777777777777777777777777777777777777777706d5f6fdcf3b77f04fcb1bc200a8d8d2840d79387d1577985a5c4ccfd16be1fe6cf39ef08ea2a1be83196d6f1c37f2fe0f8bfb553ae1aeebb4144937f2d9419833c107d71d2557d8d588bac9561bff72",
];
