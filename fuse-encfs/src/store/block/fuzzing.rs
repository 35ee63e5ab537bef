//! Core: What a block store finds its objects by, from any bytes.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a target that cannot go on must stop"
)]

use std::collections::BTreeSet;

use super::layout::{
    AREA_LEN, CHECK_LEN, ENTRY_HEAD_LEN, ENTRY_LEN, Entry, HEADER_HEAD_LEN, Layout, check,
    copy_bytes, parse_copy,
};
use super::table::Table;

/// Bytes of a copy before its check.
const COPY_HEAD: usize = 20;
/// Entries of a table at most.
const SLOTS: usize = 64;

/// A header, as it is and with its check made right, as the storage can make it.
pub(crate) fn header(input: &[u8]) {
    let (len, input) = input.split_first_chunk::<8>().unwrap_or((&[0; 8], input));
    let len = u64::from_le_bytes(*len);
    let mut area = input.to_vec();
    area.resize(AREA_LEN, 0);
    for resealed in [false, true] {
        if resealed {
            let right = check(&[&area[..HEADER_HEAD_LEN]]);
            area[HEADER_HEAD_LEN..HEADER_HEAD_LEN + CHECK_LEN].copy_from_slice(&right);
        }
        if let Ok(layout) = Layout::parse(&area, len) {
            let written = HEADER_HEAD_LEN + CHECK_LEN;
            assert_eq!(layout.bytes()[..written], area[..written]);
            let last = u32::try_from(layout.slots - 1).unwrap();
            assert!(layout.slot_at(last) + layout.slot_len <= len);
            assert!(Layout::entry_at(last) + ENTRY_LEN as u64 <= layout.slot_at(0));
        }
    }
}

/// A table of entries whose checks are right unless the first byte of each says otherwise.
pub(crate) fn table(input: &[u8]) {
    let mut found = Vec::new();
    for (slot, piece) in (0..).zip(input.chunks_exact(1 + ENTRY_HEAD_LEN).take(SLOTS)) {
        let (broken, head) = piece.split_first().unwrap();
        let mut sector = head.to_vec();
        sector.extend(check(&[&u32::to_le_bytes(slot), head]));
        sector[0] ^= broken & 0x80;
        sector.resize(ENTRY_LEN, 0);
        let entry = Entry::parse(&sector, slot);
        if let Ok(Some(entry)) = &entry {
            assert_eq!(entry.bytes(slot), sector);
            assert!(Entry::parse(&sector, slot + 1).is_err());
        }
        found.push((slot, entry.map_err(|_| ())));
    }
    let slots = found.len();
    let Ok(table) = Table::of(found.into_iter()) else {
        return;
    };
    // Each slot is of one object, free or hurt.
    let names: Vec<_> = table.names(None).collect();
    let objects = names.iter().map(|name| table.object(*name).unwrap());
    let held: Vec<u32> = objects.flat_map(|object| object.slots.clone()).collect();
    let distinct: BTreeSet<u32> = held.iter().copied().collect();
    assert_eq!(distinct.len(), held.len());
    assert!(held.iter().all(|slot| (*slot as usize) < slots));
    let free = usize::try_from(table.free()).unwrap();
    assert_eq!(held.len() + free + table.hurt(), slots);
}

/// A copy of a superblock, as it is and with its check made right.
pub(crate) fn copy(input: &[u8]) {
    let mut area = input.to_vec();
    area.resize(AREA_LEN, 0);
    for resealed in [false, true] {
        if resealed {
            let len: [u8; 4] = area[16..COPY_HEAD].try_into().unwrap();
            let begin = COPY_HEAD + CHECK_LEN;
            let end = (begin + u32::from_le_bytes(len) as usize).min(AREA_LEN);
            let right = check(&[&area[..COPY_HEAD], &area[begin..end]]);
            area[COPY_HEAD..begin].copy_from_slice(&right);
        }
        if let Some((sequence, object)) = parse_copy(&area) {
            let written = copy_bytes(sequence, object).unwrap();
            let end = COPY_HEAD + CHECK_LEN + object.len();
            assert_eq!(written[..end], area[..end]);
        }
    }
}

/// What each target begins with.
pub(crate) fn seeds() -> [Vec<Vec<u8>>; 3] {
    use crate::format::{SegmentKind, SegmentUid};
    use crate::store::ObjectName;

    let len = 1_u64 << 30;
    let layout = Layout::of_device(len).unwrap();
    let header = [&len.to_le_bytes()[..], &layout.bytes()[..64]].concat();
    let entry = |slot, generation, index, whole| {
        let name = ObjectName::Segment(SegmentKind::Data, SegmentUid([7; 16]));
        let entry = Entry {
            name,
            generation,
            index,
            whole,
        };
        [&[0], &entry.bytes(slot)[..ENTRY_HEAD_LEN]].concat()
    };
    let grown = [entry(0, 1, 0, None), entry(1, 1, 1, None), vec![0; 38]].concat();
    let replaced = [entry(0, 1, 0, Some(5)), entry(1, 2, 0, Some(6))].concat();
    let mut copy = copy_bytes(3, &[0x5a; 100]).unwrap();
    copy.truncate(COPY_HEAD + CHECK_LEN + 100);
    [vec![header], vec![grown, replaced], vec![copy]]
}
