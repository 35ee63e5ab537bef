//! Core: keys are nowhere in this process's memory once their owners are dropped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use ::keys::{VolumeId, VolumeMasterKey};
use zeroize::Zeroizing;

use super::super::once::derive;
use super::super::*;
use crate::format::{NameKey, SegmentKind};

const WINDOW: usize = 1 << 20;

/// Bytes to look for, kept so that what looks for them does not hold them.
struct Needle([u8; 16]);

impl Needle {
    fn of(bytes: &[u8]) -> Self {
        Self(core::array::from_fn(|i| !bytes[i]))
    }

    fn is_at(&self, bytes: &[u8]) -> bool {
        bytes
            .iter()
            .zip(self.0)
            .all(|(byte, hidden)| *byte == !hidden)
    }
}

/// How often each needle is in the writable memory of this process, this function's own excepted.
fn count(needles: &[Needle]) -> Vec<usize> {
    let memory = File::open("/proc/self/mem").unwrap();
    let mut window = vec![0; WINDOW];
    let own = window.as_ptr() as u64..window.as_ptr() as u64 + WINDOW as u64;
    let mut found = vec![0; needles.len()];
    // Most bytes begin no needle: an unoptimised build is slow.
    let begins: [bool; 256] = core::array::from_fn(|byte| {
        needles
            .iter()
            .any(|needle| usize::from(!needle.0[0]) == byte)
    });
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let [range, access, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        if !access.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [mut at, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        while at < to {
            let len = usize::try_from(to - at).unwrap().min(WINDOW);
            // A mapping that another test has given back meanwhile cannot be read.
            let got = memory.read_at(&mut window[..len], at).unwrap_or(0);
            for (offset, bytes) in window[..got].windows(16).enumerate() {
                if !begins[usize::from(bytes[0])] || own.contains(&(at + offset as u64)) {
                    continue;
                }
                for (found, needle) in found.iter_mut().zip(needles) {
                    *found += usize::from(needle.is_at(bytes));
                }
            }
            if got < 16 {
                break;
            }
            // Overlap, for what lies across two windows.
            at += if got < len { to } else { (got - 15) as u64 };
        }
    }
    found
}

/// Round key `round` of AES-256: FIPS 197, section 5.2. Leaves nothing of the schedule behind.
fn round_key(key: &[u8; 32], round: usize) -> Zeroizing<[u8; 16]> {
    let mut words = Zeroizing::new([[0_u8; 4]; 60]);
    for (word, bytes) in words.iter_mut().zip(key.chunks(4)) {
        word.copy_from_slice(bytes);
    }
    let mut constant = 1_u8;
    for i in 8..(round + 1) * 4 {
        let mut word = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
            word = word.map(substitute);
            word[0] ^= constant;
            constant <<= 1;
        } else if i % 8 == 4 {
            word = word.map(substitute);
        }
        for (j, byte) in word.iter().enumerate() {
            words[i][j] = byte ^ words[i - 8][j];
        }
    }
    let mut round_key = Zeroizing::new([0; 16]);
    for (bytes, word) in round_key.chunks_mut(4).zip(&words[round * 4..]) {
        bytes.copy_from_slice(word);
    }
    round_key
}

/// The S-box of AES: FIPS 197, section 5.1.1.
fn substitute(byte: u8) -> u8 {
    let times = |mut a: u8, mut b: u8| {
        let mut product = 0;
        while b != 0 {
            product ^= if b & 1 == 1 { a } else { 0 };
            a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1b };
            b >>= 1;
        }
        product
    };
    let inverse = (0..=255)
        .find(|other| times(byte, *other) == 1)
        .unwrap_or(0);
    let turned = (1..5).map(|by| inverse.rotate_left(by));
    turned.fold(inverse ^ 0x63, |sum, bits| sum ^ bits)
}

#[test]
fn the_schedule_of_fips_197_comes_out() {
    // Appendix A.3: the key is w0 to w7.
    let key = *b"\x60\x3d\xeb\x10\x15\xca\x71\xbe\x2b\x73\xae\xf0\x85\x7d\x77\x81\
                 \x1f\x35\x2c\x07\x3b\x61\x08\xd7\x2d\x98\x10\xa3\x09\x14\xdf\xf4";
    let w8 = *b"\x9b\xa3\x54\x11\x8e\x69\x25\xaf\xa5\x1a\x8b\x5f\x20\x67\xfc\xde";
    let w12 = *b"\xa8\xb0\x9c\x1a\x93\xd1\x94\xcd\xbe\x49\x84\x6e\xb7\x5d\x5b\x9a";
    assert_eq!([*round_key(&key, 2), *round_key(&key, 3)], [w8, w12]);
}

#[test]
fn no_key_and_no_schedule_outlives_its_owner() {
    for provider in providers() {
        let name = provider.name();
        let entropy = Entropy::default();
        let vmk = VolumeMasterKey::fill_with(|bytes| entropy.fill(bytes)).unwrap();
        let volume = VolumeId([1; 16]);
        let epoch = EpochKeys::new(&vmk, 0, volume).unwrap();
        let keys = VolumeKeys::new(provider, epoch, None, NameKey([0; 16]));
        let segment = keys.new_segment(&Head([0; 32])).unwrap();
        let sealer = keys.segment(SegmentKind::Data, segment);
        let mut sealed = [0; 80];
        sealer.seal(4096, &[0; 8], &[7; 64], &mut sealed).unwrap();

        let needles = {
            let data = derive(vmk.expose(), &[label::DATA]);
            let epoch = 0_u32.to_le_bytes();
            let key = derive(data.expose(), &[label::SEGMENT, &segment.uid.0, &epoch]);
            let schedule = round_key(key.expose(), 4);
            [vmk.expose(), data.expose(), key.expose()]
                .map(|key| Needle::of(key))
                .into_iter()
                .chain([Needle::of(&*schedule)])
                .collect::<Vec<_>>()
        };
        let alive = count(&needles);
        // The third, the segment's key itself, is but the first of its round keys.
        assert!(alive.iter().all(|times| *times > 0), "{name}: {alive:?}");
        drop((vmk, keys, sealer));
        let dead = count(&needles);
        assert_eq!(
            dead, [0; 4],
            "{name}: VMK, K_data, segment key, round key; were {alive:?}"
        );
    }
}
