//! Each wrong object has its own error, and no crash in the middle of a change of keys loses the
//! volume.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    reason = "a test that overflows fails, and says what it skips and how much it did"
)]

use std::io::Write;
use std::process::{Command, Stdio};

use super::slot::Slot;
use super::*;
use crate::crypto::{Head, vectors};
use crate::format::{SegmentKind, SegmentUid};
use crate::store::memory::MemoryStore;
use crate::testing::{ID, aead};

type Objects = [Option<Vec<u8>>; 2];

fn kek(byte: u8) -> VolumeKek {
    VolumeKek::take_from(&mut [byte; 32]).unwrap()
}

fn vmk(byte: u8) -> VolumeMasterKey {
    VolumeMasterKey::take_from(&mut [byte; 32]).unwrap()
}

fn new_superblock(volume: VolumeId, owner: Option<&OwnerKey>) -> (Superblock, VolumeKeys) {
    let new = Genesis {
        volume,
        kek_epoch: KekEpoch(7),
        genesis: [5; 32],
        log_alignment: 512,
        owner,
    };
    Superblock::make(&aead(), &kek(1), &new, &Entropy::default()).unwrap()
}

fn write(store: &MemoryStore, superblock: &mut Superblock, keys: &VolumeKeys) {
    let lease = lease(store);
    superblock.write(store, keys, &*lease).unwrap();
}

fn lease(store: &MemoryStore) -> Box<dyn Lease> {
    store.lease(std::time::Duration::ZERO).unwrap()
}

/// What the store holds in both slots.
fn objects(store: &MemoryStore) -> Objects {
    SLOTS.map(|slot| read_object(store, slot).unwrap())
}

fn store_of(objects: Objects) -> MemoryStore {
    let store = MemoryStore::default();
    for (slot, object) in SLOTS.into_iter().zip(objects) {
        if let Some(object) = object {
            store.put(ObjectName::Superblock(slot), &object).unwrap();
        }
    }
    store
}

/// Both slots of a new volume.
fn written(volume: VolumeId) -> Objects {
    let store = MemoryStore::default();
    let (mut superblock, keys) = new_superblock(volume, None);
    write(&store, &mut superblock, &keys);
    objects(&store)
}

fn outcome<'a>(objects: Objects, unlock: impl Into<Unlock<'a>>) -> String {
    match read(&store_of(objects), &aead(), unlock, ID) {
        Ok((superblock, _)) => format!("generation {}", superblock.body.generation),
        Err(e) => format!("{}: {e}", e.code()),
    }
}

#[test]
fn each_wrong_object_has_its_own_error_and_stands_not_in_the_way_of_the_other() {
    type Change = fn(Vec<u8>) -> Option<Vec<u8>>;
    fn flipped(mut object: Vec<u8>, at: usize) -> Option<Vec<u8>> {
        object[at] ^= 1;
        Some(object)
    }
    #[track_caller]
    fn check(change: Change, alone: &str) {
        let [a, b] = written(ID).map(Option::unwrap);
        assert_eq!((a[0], b.len()), (b'e', SUPERBLOCK_LEN));
        let both = [change(a.clone()), change(b.clone())];
        assert_eq!(outcome(both, &kek(1)), alone);
        let newest = outcome([change(a.clone()), Some(b.clone())], &kek(1));
        assert_eq!(newest, "generation 3");
        assert_eq!(outcome([Some(a), change(b)], &kek(1)), "generation 2");
    }
    fn damaged(how: &str) -> String {
        let what = format!("superblock slot 0 {how}, slot 1 {how}");
        format!("fs.tampered: the store does not hold what was written to it: {what}")
    }
    check(|_| None, "fs.not_a_volume: there is no volume in the store");
    check(|_| Some(Vec::new()), &damaged("is too short"));
    check(|mut o| o.pop().map(|_| o), &damaged("is too short"));
    check(
        |mut o| {
            o.push(0);
            Some(o)
        },
        &damaged("is too long"),
    );
    check(|o| flipped(o, 3), &damaged("is no superblock"));
    check(|o| flipped(o, 12), &damaged("is malformed"));
    for at in [20, 130, 160, 400, 1367, 1368, 1400, 1651] {
        let [a, b] = written(ID).map(|o| flipped(o.unwrap(), at));
        let got = outcome([a, b], &kek(1));
        let want = if at == 400 {
            "is malformed"
        } else {
            "does not open"
        };
        assert!(
            got == damaged(want) || (at == 1367 && got == damaged("is malformed")),
            "byte {at}: {got}"
        );
    }
    let newer = "fs.other_format: the volume has another format than this version knows";
    check(|o| flipped(o, 8), newer);
    check(
        |_| written(VolumeId([9; 16]))[0].clone(),
        "fs.other_volume: the store holds volume 09090909090909090909090909090909, not the expected one",
    );
}

#[test]
fn a_body_in_the_other_slot_is_refused_and_an_old_one_is_passed_over() {
    let [a, b] = written(ID);
    let swapped = outcome([b.clone(), a.clone()], &kek(1));
    let how = "holds what belongs into the other one";
    assert!(
        swapped.ends_with(&format!("superblock slot 0 {how}, slot 1 {how}")),
        "{swapped}"
    );
    assert_eq!(outcome([b.clone(), b.clone()], &kek(1)), "generation 3");

    let store = store_of([a.clone(), b.clone()]);
    let (mut superblock, keys) = read(&store, &aead(), &kek(1), ID).unwrap();
    write(&store, &mut superblock, &keys);
    let [newer_a, newer_b] = objects(&store);
    assert_eq!(outcome([newer_a, b], &kek(1)), "generation 4");
    assert_eq!(outcome([a, newer_b], &kek(1)), "generation 5");
}

#[test]
fn two_newest_superblocks_are_refused() {
    let good = || {
        let (superblock, keys) = new_superblock(ID, None);
        Slot::Good(Box::new((superblock, keys)))
    };
    let refused = slot::choose(good(), good());
    assert!(matches!(refused, Err(OpenError::Tampered { .. })));
}

#[test]
fn features_are_ignored_read_around_or_refused_by_their_kind() {
    const UNKNOWN: &str = "fs.other_format: the volume has another format than this version knows";
    #[track_caller]
    fn check(change: fn(&mut ClearPart), want: [&str; 2]) {
        let (mut superblock, keys) = new_superblock(ID, None);
        let store = MemoryStore::default();
        write(&store, &mut superblock, &keys);
        let before = objects(&store);
        change(&mut superblock.clear);
        write(&store, &mut superblock, &keys);
        let both = objects(&store);
        let kek = kek(1);
        let read_only = Unlock {
            read_only: true,
            ..(&kek).into()
        };
        assert_eq!(outcome(both.clone(), &kek), want[0]);
        assert_eq!(outcome(both.clone(), read_only), want[1]);
        // The one before is whole, but what was written since is not to be guessed at.
        let one = [before[0].clone(), both[1].clone()];
        assert_eq!(outcome(one, &kek), want[0]);
    }
    let open = "generation 5";
    check(|clear| clear.compat = 1, [open, open]);
    check(|clear| clear.ro_compat = 1, [UNKNOWN, open]);
    check(|clear| clear.incompat = 1, [UNKNOWN, UNKNOWN]);
}

#[test]
fn a_key_that_is_not_the_volumes_is_told_from_damage() {
    let [a, b] = written(ID);
    let check = |with: UnlockWith<'_>, want: &str| {
        assert_eq!(outcome([a.clone(), b.clone()], with), want);
    };
    let wrong = "fs.wrong_key: the key is not the volume's";
    let check_kek = |byte, epoch: Option<u32>, want| {
        let with = UnlockWith::Kek {
            kek: &kek(byte),
            epoch: epoch.map(KekEpoch),
        };
        check(with, want);
    };
    check_kek(1, None, "generation 3");
    check_kek(1, Some(7), "generation 3");
    check_kek(
        1,
        Some(8),
        "fs.other_kek_epoch: the volume's master key is wrapped with the key of epoch 7",
    );
    check_kek(2, None, wrong);
    check_kek(2, Some(7), wrong);
    check(UnlockWith::Vmk(&vmk(1)), wrong);
}

#[test]
fn a_volume_under_a_replaced_master_key_is_refused() {
    let kek = kek(1);
    let unlock = |vmk_epoch_min| Unlock {
        vmk_epoch_min,
        ..(&kek).into()
    };
    let old = written(ID);
    assert_eq!(outcome(old.clone(), unlock(0)), "generation 3");
    let stale =
        "fs.stale_keys: the volume's master key is of epoch 0, below the lowest that is accepted";
    assert_eq!(outcome(old.clone(), unlock(1)), stale);

    let store = store_of(old);
    let (mut superblock, keys) = read(&store, &aead(), &kek, ID).unwrap();
    let (with, new) = same_kek(&kek);
    let keys = superblock.begin_rekey(&keys, with, new).unwrap();
    write(&store, &mut superblock, &keys);
    assert_eq!(outcome(objects(&store), unlock(1)), "generation 5");
}

fn same_kek(kek: &VolumeKek) -> (UnlockWith<'_>, NewKek<'_>) {
    let epoch = KekEpoch(7);
    (UnlockWith::Kek { kek, epoch: None }, NewKek { kek, epoch })
}

/// A segment with one unit in it.
type Sample = (SegmentRef, [u8; 80]);

fn seal(keys: &VolumeKeys) -> Sample {
    let segment = keys.new_segment(&Head([0; 32])).unwrap();
    let mut sealed = [0; 80];
    let sealer = keys.segment(SegmentKind::Data, segment);
    sealer.seal(4096, &[1; 8], &[2; 64], &mut sealed).unwrap();
    (segment, sealed)
}

fn opens(keys: &VolumeKeys, (segment, sealed): &Sample) -> bool {
    let sealer = keys.segment(SegmentKind::Data, *segment);
    let mut plaintext = [0; 64];
    sealer.open(4096, &[1; 8], sealed, &mut plaintext).is_ok() && plaintext == [2; 64]
}

/// A volume whose keys are changed, which checks at every step that no crash loses it.
struct Rotation {
    store: MemoryStore,
    superblock: Superblock,
    keys: VolumeKeys,
    /// What the volume needs to be able to open.
    live: Vec<Sample>,
    names: u64,
    states: usize,
}

impl Rotation {
    /// Writes both slots, and looks at the store as a crash before, between and after leaves it,
    /// with both slots and with each of them alone. One of the keys `of` must open it every time.
    fn write(&mut self, keys: &VolumeKeys, of: &[u8]) {
        let before = self.superblock.body.generation;
        self.check(of);
        for _ in SLOTS {
            let lease = lease(&self.store);
            self.superblock
                .write_next(&self.store, keys, &*lease)
                .unwrap();
            drop(lease);
            self.check(of);
        }
        assert_eq!(self.superblock.body.generation, before + 2);
    }

    fn check(&mut self, of: &[u8]) {
        let [a, b] = objects(&self.store);
        for crashed in [[a.clone(), b.clone()], [None, b], [a, None]] {
            let store = store_of(crashed);
            let opened = of
                .iter()
                .find_map(|byte| read(&store, &aead(), &kek(*byte), ID).ok());
            let (superblock, keys) = opened.expect("one of the keys opens it");
            for sample in &self.live {
                assert!(opens(&keys, sample), "of epoch {}", sample.0.vmk_epoch);
            }
            let name = keys.name_hasher().whole(b"name");
            assert_eq!(name, self.names, "the map is sorted by these");
            assert_eq!(superblock.body.genesis, [5; 32]);
            self.states += 1;
        }
    }
}

#[test]
fn a_crash_between_any_two_writes_of_a_change_of_keys_leaves_a_volume_that_opens() {
    let (mut superblock, keys) = new_superblock(ID, None);
    let store = MemoryStore::default();
    write(&store, &mut superblock, &keys);
    let mut r = Rotation {
        live: vec![seal(&keys)],
        names: keys.name_hasher().whole(b"name"),
        store,
        superblock,
        keys,
        states: 0,
    };
    let [first, second, third] = [kek(1), kek(2), kek(3)];
    let with = |kek| UnlockWith::Kek { kek, epoch: None };
    let new = |kek, epoch| NewKek {
        kek,
        epoch: KekEpoch(epoch),
    };

    r.superblock
        .rewrap(&r.keys, with(&first), new(&second, 8))
        .unwrap();
    let keys = r.keys.with_newer(EpochKeys::new(&vmk(9), 1, ID).unwrap());
    let lease = lease(&r.store);
    let refused = r.superblock.write(&r.store, &keys, &*lease);
    drop(lease);
    assert!(
        refused.is_err(),
        "with keys that the superblock does not name"
    );
    let keys = std::mem::replace(&mut r.keys, keys);
    r.write(&keys, &[1, 2]);

    for round in 1..=3 {
        let of = if round == 1 { [2, 3] } else { [3, 3] };
        let unlock = if round == 1 { &second } else { &third };
        let wrong = r
            .superblock
            .begin_rekey(&keys, with(&first), new(&third, 9));
        assert!(matches!(wrong, Err(OpenError::WrongKey)));
        let next = r
            .superblock
            .begin_rekey(&keys, with(unlock), new(&third, 9))
            .unwrap();
        let twice = r
            .superblock
            .begin_rekey(&next, with(&third), new(&third, 9));
        assert!(matches!(twice, Err(OpenError::NotNow(_))));
        r.write(&next, &of);
        assert!(r.superblock.is_rekeying());
        keys.adopt(&next);
        r.live.push(seal(&keys));
        r.check(&[3]);

        // All that was sealed before is written anew.
        r.live.retain(|(segment, _)| segment.vmk_epoch == round);
        r.superblock.finish_rekey();
        r.write(&keys, &[3]);
        keys.forget_older();
        r.live.push(seal(&keys));
        r.check(&[3]);
        assert!(!r.superblock.is_rekeying());
        let body = r.superblock.body();
        assert_eq!((body.vmk_epoch_min, keys.vmk_epoch()), (round, round));
    }
    assert_eq!(
        outcome(objects(&r.store), &first),
        "fs.wrong_key: the key is not the volume's"
    );
    println!("{} states", r.states);
    assert!(r.states >= 70, "{}", r.states);
}

#[test]
fn the_superblock_of_the_vectors_opens_with_either_key() {
    let volume = VolumeId(core::array::from_fn(|i| u8::try_from(i).unwrap()));
    let object = vectors()["superblock"].clone();
    let (kek, vmk) = (kek(0x11), vmk(0x22));
    let kek = UnlockWith::Kek {
        kek: &kek,
        epoch: Some(KekEpoch(7)),
    };
    for with in [kek, UnlockWith::Vmk(&vmk)] {
        let store = store_of([None, Some(object.clone())]);
        let (superblock, keys) = read(&store, &aead(), with, volume).unwrap();
        let segment = SegmentRef {
            uid: SegmentUid([0x33; 16]),
            vmk_epoch: 5,
        };
        let address = |offset, seq| CheckpointAddress {
            segment,
            offset,
            seq,
        };
        let mut label = [0; 64];
        label[..5].copy_from_slice(b"label");
        let body = Body {
            generation: 41,
            genesis: [0x55; 32],
            newest: address(8192, 20),
            previous: address(4608, 10),
            log: segment,
            log_epoch: 3,
            durable_seq: 22,
            vmk_epoch_min: 4,
            anchored_once: true,
            log_alignment: 4096,
            label,
            name_key: NameKey(volume.0),
        };
        assert_eq!(superblock.body(), &body);
        assert_eq!(superblock.clear.bytes(), object[..1368]);
        assert!(superblock.is_rekeying());
        assert_eq!(keys.vmk_epoch(), 5);
    }
}

/// Runs openssl(1) with `input`; `None` when the machine has none.
fn openssl(arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let started = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut program = match started {
        Ok(program) => program,
        Err(e) => {
            println!("skipped: openssl cannot be run: {e}");
            return None;
        }
    };
    program.stdin.take().unwrap().write_all(input).unwrap();
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    Some(output.stdout)
}

#[test]
fn an_owner_opens_the_volume_with_nothing_but_openssl_and_gives_it_a_new_kek() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owner.key");
    let key = path.to_str().unwrap();
    let bits = "rsa_keygen_bits:3072";
    let made = openssl(
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            bits,
            "-out",
            key,
        ],
        b"",
    );
    if made.is_none() {
        return;
    }
    let pem = openssl(&["pkey", "-in", key, "-pubout"], b"").unwrap();
    let der = openssl(&["pkey", "-in", key, "-pubout", "-outform", "DER"], b"").unwrap();
    let owner = OwnerKey::from_pem(&pem).unwrap();

    let (mut superblock, keys) = new_superblock(ID, Some(&owner));
    let store = MemoryStore::default();
    write(&store, &mut superblock, &keys);
    let sample = seal(&keys);
    let (kek, new_kek) = (kek(1), kek(2));
    let (with, same) = same_kek(&kek);
    let mut lives = vec![sample];
    for rekeyed in [false, true] {
        if rekeyed {
            let keys = superblock.begin_rekey(&keys, with, same).unwrap();
            write(&store, &mut superblock, &keys);
            lives.push(seal(&keys));
        }
        let claim = claim(&store).unwrap();
        assert_eq!((claim.volume, claim.vmk_epoch), (ID, u32::from(rekeyed)));
        let wrap = claim.recovery.unwrap();
        assert_eq!(wrap.owner, der);
        let sha256 = openssl(&["dgst", "-sha256", "-binary"], &der).unwrap();
        assert_eq!(wrap.owner_sha256(), *sha256);

        let oaep = [
            "-pkeyopt",
            "rsa_padding_mode:oaep",
            "-pkeyopt",
            "rsa_oaep_md:sha256",
        ];
        let decrypt = [&["pkeyutl", "-decrypt", "-inkey", key], &oaep[..]].concat();
        let mut opened = openssl(&decrypt, &wrap.encrypted).unwrap();
        let vmk = VolumeMasterKey::take_from(&mut opened).unwrap();
        let (_, found) = read(&store, &aead(), UnlockWith::Vmk(&vmk), ID).unwrap();
        assert!(lives.iter().all(|sample| opens(&found, sample)));

        let copy = store_of(objects(&store));
        let (mut superblock, keys) = read(&copy, &aead(), UnlockWith::Vmk(&vmk), ID).unwrap();
        let new = NewKek {
            kek: &new_kek,
            epoch: KekEpoch(0),
        };
        superblock
            .rewrap(&keys, UnlockWith::Vmk(&vmk), new)
            .unwrap();
        write(&copy, &mut superblock, &keys);
        let (_, found) = read(&copy, &aead(), &new_kek, ID).unwrap();
        assert!(lives.iter().all(|sample| opens(&found, sample)));
    }
}
