//! The vectors of the format, computed by `vectors/encfs.py` from the RFCs alone. A change here
//! orphans every volume.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

use std::collections::BTreeMap;

use ::keys::{KekEpoch, VolumeId, VolumeKek, VolumeMasterKey};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};

use super::once::derive;
use super::*;
use crate::format::{
    NameKey, SegmentBirth, SegmentHeader, SegmentId, SegmentKind, SegmentRef, SegmentUid, VmkWrap,
};
use crate::testing::aead;

mod memory;

/// The vectors by name.
pub(crate) fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = include_str!("../../vectors/encfs.txt").lines();
    let unhex = |text: &str| -> Vec<u8> {
        let digits = |pair: &[u8]| std::str::from_utf8(pair).unwrap().to_owned();
        let byte = |pair| u8::from_str_radix(&digits(pair), 16).unwrap();
        text.as_bytes().chunks(2).map(byte).collect()
    };
    lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name, unhex(value)))
        .collect()
}

const VOLUME: VolumeId = VolumeId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
const SEGMENT: SegmentRef = SegmentRef {
    uid: SegmentUid([0x33; 16]),
    vmk_epoch: 5,
};

fn vmk(byte: u8) -> VolumeMasterKey {
    VolumeMasterKey::take_from(&mut [byte; 32]).unwrap()
}

fn keys(byte: u8, epoch: u32, volume: VolumeId) -> VolumeKeys {
    let name_key = NameKey(core::array::from_fn(|i| u8::try_from(i).unwrap()));
    let newest = EpochKeys::new(&vmk(byte), epoch, volume).unwrap();
    VolumeKeys::new(aead(), newest, None, name_key)
}

#[test]
fn keys_and_their_wraps_are_those_of_the_vectors() {
    let want = vectors();
    let kek = VolumeKek::take_from(&mut [0x11; 32]).unwrap();
    let kek = KekSealer::new(&kek, VOLUME, KekEpoch(7));
    assert_eq!(kek.commitment(), *want["kek commitment"]);
    let wrap = |epoch, name| VmkWrap {
        epoch,
        sealed: want[name].clone().try_into().unwrap(),
    };
    let newest = kek.unwrap(&*aead(), &wrap(5, "wrapped vmk")).unwrap();
    assert_eq!(newest.expose(), &[0x22; 32]);
    let older = wrap(4, "wrapped older vmk");
    let older = unwrap_older(&*aead(), VOLUME, (&newest, 5), &older).unwrap();
    assert_eq!(older.expose(), &[0x21; 32]);
    let epoch = EpochKeys::new(&newest, 5, VOLUME).unwrap();
    assert_eq!(*epoch.commitment(), *want["vmk commitment"]);
    assert_eq!(
        *derive(newest.expose(), &[label::DATA]).expose(),
        *want["K_data"]
    );
}

#[test]
fn what_is_sealed_is_that_of_the_vectors() {
    let want = vectors();
    let keys = keys(0x22, 5, VOLUME);
    let mut plaintext = [0; 64];
    plaintext[..5].copy_from_slice(b"hello");
    let mut sealed = [0; 80];
    keys.segment(SegmentKind::Data, SEGMENT)
        .seal(4096, &[0x44; 8], &plaintext, &mut sealed)
        .unwrap();
    assert_eq!(sealed, *want["chunk"]);

    let head = keys.genesis_head(&[0x55; 32]);
    assert_eq!(head.0, *want["head 0"]);
    let link = Link {
        seq: 1,
        log_epoch: 1,
        uid: SEGMENT.uid,
        offset: 4096,
        sealed: &[0x66; 448],
    };
    assert_eq!(next_head(&head, &link).0, *want["head 1"]);

    let frame_head: Vec<u8> = (0..64).collect();
    let commit = keys.open_commit((SEGMENT, 4096), &frame_head, &want["commit"]);
    assert_eq!(commit.unwrap(), plaintext);
    let hash = keys.name_hasher().whole(b"name");
    assert_eq!(hash.to_be_bytes(), *want["hash of a name"]);

    let (header, birth) = keys.open_header(&want["segment header"]).unwrap();
    let expected = SegmentHeader {
        volume: VOLUME,
        kind: SegmentKind::Data,
        segment: SEGMENT,
        id: SegmentId(9),
    };
    let made = SegmentBirth {
        created: 1_700_000_000,
    };
    assert_eq!((header, birth), (expected, made));
    let record: Vec<u8> = (0..80).collect();
    let tag = keys.anchor_tag(5, &record).unwrap();
    assert_eq!(tag[..], want["anchor tag"]);
}

#[test]
fn a_segment_header_opens_unaltered_and_in_its_volume_alone() {
    let header = SegmentHeader {
        volume: VOLUME,
        kind: SegmentKind::Log,
        segment: SEGMENT,
        id: SegmentId(3),
    };
    let birth = SegmentBirth { created: 5 };
    let sealed = keys(2, 5, VOLUME).seal_header(&header, birth).unwrap();
    assert_eq!(sealed.len(), 4096);
    let opened = keys(2, 5, VOLUME).open_header(&sealed);
    assert_eq!(opened, Ok((header, birth)));
    for at in (0..4096).step_by(61) {
        let mut bent = sealed.clone();
        bent[at] ^= 1;
        let opened = keys(2, 5, VOLUME).open_header(&bent);
        assert_eq!(opened, Err(NotAuthentic), "byte {at}");
    }
    for (byte, epoch, volume) in [(3, 5, VOLUME), (2, 6, VOLUME), (2, 5, VolumeId([9; 16]))] {
        let opened = keys(byte, epoch, volume).open_header(&sealed);
        assert_eq!(opened, Err(NotAuthentic), "{byte} {epoch} {volume}");
    }
}

#[test]
fn two_epochs_live_side_by_side_until_the_older_is_forgotten() {
    let before = keys(1, 5, VOLUME);
    let (plaintext, salt) = ([7; 64], [4; 8]);
    let seal = |keys: &VolumeKeys| {
        let segment = keys.new_segment(&Head([0; 32])).unwrap();
        let mut sealed = [0; 80];
        keys.segment(SegmentKind::Data, segment)
            .seal(4096, &salt, &plaintext, &mut sealed)
            .unwrap();
        (segment, sealed)
    };
    let opens = |keys: &VolumeKeys, (segment, sealed): &(SegmentRef, [u8; 80])| {
        let mut out = [0; 64];
        keys.segment(SegmentKind::Data, *segment)
            .open(4096, &salt, sealed, &mut out)
            .is_ok()
    };
    let old = seal(&before);
    let both = before.with_newer(EpochKeys::new(&vmk(2), 6, VOLUME).unwrap());
    let new = seal(&both);
    assert_eq!((old.0.vmk_epoch, new.0.vmk_epoch), (5, 6));
    assert!(opens(&both, &old) && opens(&both, &new));
    assert!(opens(&before, &old) && !opens(&before, &new), "not yet");
    let tag = before.anchor_tag(5, b"record");
    assert!(tag.is_some() && both.anchor_tag(5, b"record") == tag);

    before.adopt(&both);
    assert!(opens(&before, &old) && opens(&before, &new));
    before.forget_older();
    assert!(!opens(&before, &old) && opens(&before, &new));
    assert_eq!(before.anchor_tag(5, b"record"), None);
    let mut sealed = [0; 80];
    let sealer = before.segment(SegmentKind::Data, old.0);
    assert!(sealer.seal(4096, &salt, &plaintext, &mut sealed).is_err());
}

#[test]
fn a_unit_opens_at_its_own_address_alone() {
    let keys = keys(2, 0, VOLUME);
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
    let other = self::keys(2, 0, VolumeId([8; 16]));
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
    let wrap = sealer(1, 0)
        .wrap(&*aead(), &Entropy::default(), &vmk(2), 0)
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
    let renamed = VmkWrap { epoch: 1, ..wrap };
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

#[test]
fn a_recovery_key_is_a_public_rsa_key_of_3072_to_4096_bits() {
    let pem = |label: &str, body: &str| {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    };
    #[track_caller]
    fn check(text: &str, want: OwnerKeyError) {
        assert_eq!(OwnerKey::from_pem(text.as_bytes()).err(), Some(want));
    }
    check("", OwnerKeyError::NotAPublicKey);
    check("ssh-rsa AAAA", OwnerKeyError::NotAPublicKey);
    check(&pem("PRIVATE KEY", "AAAA"), OwnerKeyError::NotAPublicKey);
    check(&pem("PUBLIC KEY", "AAAA"), OwnerKeyError::NotSuitable);
    // A point of P-256 (RFC 5480).
    let curve = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n\
                 6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==";
    check(&pem("PUBLIC KEY", curve), OwnerKeyError::NotSuitable);

    for (bits, want) in [(KeySize::Rsa2048, false), (KeySize::Rsa3072, true)] {
        let private = PrivateDecryptingKey::generate(bits).unwrap();
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let owner = OwnerKey::from_spki(spki.as_ref());
        assert_eq!(owner.is_ok(), want, "{bits:?}");
        let mut longer = spki.as_ref().to_vec();
        longer.push(0);
        assert!(OwnerKey::from_spki(&longer).is_err(), "bytes behind it");
        let Ok(owner) = owner else { continue };
        let wrap = owner.wrap(&vmk(9)).unwrap();
        assert_eq!(wrap.owner, spki.as_ref());
        let renewed = wrap.renew(&vmk(8)).unwrap();
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        for (wrap, want) in [(wrap, 9), (renewed, 8)] {
            let mut room = vec![0; 384];
            let opened = private.decrypt(&OAEP_SHA256_MGF1SHA256, &wrap.encrypted, &mut room, None);
            assert_eq!(opened.unwrap(), [want; 32]);
        }
    }
}
