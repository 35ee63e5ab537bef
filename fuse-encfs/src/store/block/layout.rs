//! Core: the bytes by which a block store finds its objects, docs/format.md, "Block store".
//!
//! Nothing here is authenticated, nor needs to be: it says where an object lies, and the keys say
//! what it is. The checks are against accidents.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use sha2::{Digest, Sha256};

use crate::format::{Malformed, Reader, SUPERBLOCK_LEN, SegmentKind, SegmentUid};
use crate::store::{ObjectName, StoreError};

/// What the kernel caches in and every device writes in multiples of.
pub(super) const BLOCK: u64 = 4096;
/// The same, for lengths in memory.
pub(super) const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK);
/// Where the two copies of the header are.
pub(super) const HEADERS_AT: [u64; 2] = [0, 7 * BLOCK];
/// Where a writer says that it is finishing.
pub(super) const LEASE_AT: u64 = BLOCK;
/// Bytes of an entry of the table: a sector, so that a torn write hurts no other entry.
pub(super) const ENTRY_LEN: usize = 512;
/// Bytes of a header, and of a copy of a superblock.
pub(super) const AREA_LEN: usize = 4096;
/// Slots at most: the table is read whole by each open.
pub(super) const SLOTS_MAX: u64 = 1 << 18;
/// Slots at least. Log, data and two trees need one each, and a reserve is kept.
pub(super) const SLOTS_MIN: u64 = 32;
/// Slots that a device is cut into when it is not so large that they would be too long.
const SLOTS_WANTED: u64 = 4096;
const SLOT_LEN_MIN: u64 = 64 << 10;
const SLOT_LEN_MAX: u64 = 64 << 20;

const VERSION: u32 = 1;
const HEADER_MAGIC: &[u8; 8] = b"encfsblk";
const COPY_MAGIC: &[u8; 8] = b"encfscpy";
const COPIES_AT: u64 = 2 * BLOCK;
const TABLE_AT: u64 = 8 * BLOCK;
/// Slots begin on a multiple of this, so that a device can discard them.
const SLOTS_ALIGN: u64 = 1 << 20;
/// Bytes of a check.
pub(super) const CHECK_LEN: usize = 8;
/// Bytes that are checked of a header, and of an entry.
pub(super) const HEADER_HEAD_LEN: usize = 8 + 4 + 8 + 8;
pub(super) const ENTRY_HEAD_LEN: usize = 1 + 16 + 8 + 4 + 8;
const COPY_HEAD_LEN: usize = 8 + 8 + 4 + CHECK_LEN;
const _: () = assert!(COPY_HEAD_LEN + SUPERBLOCK_LEN <= AREA_LEN);

/// How a device is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) slot_len: u64,
    pub(super) slots: u64,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) name: ObjectName,
    /// Rises with each object that is made: the higher one of two of a name is the newer.
    pub(super) generation: u64,
    /// Which piece of the object.
    pub(super) index: u32,
    /// Bytes of an object that was put whole; one that grows has no length of its own.
    pub(super) whole: Option<u64>,
}

impl Layout {
    /// How a device of `len` bytes is cut up; `None` when it is too small.
    pub(super) fn of_device(len: u64) -> Option<Self> {
        let wanted = len.checked_div(SLOTS_WANTED)?.checked_next_power_of_two()?;
        let slot_len = wanted.clamp(SLOT_LEN_MIN, SLOT_LEN_MAX);
        let most = Self {
            slot_len,
            slots: len.checked_div(slot_len)?.min(SLOTS_MAX),
        };
        let room = len.checked_sub(most.slots_at())?;
        let layout = Self {
            slot_len,
            slots: room.checked_div(slot_len)?.min(most.slots),
        };
        (layout.slots >= SLOTS_MIN).then_some(layout)
    }

    /// The header that says so.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = HEADER_MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.slot_len.to_le_bytes());
        bytes.extend(self.slots.to_le_bytes());
        bytes.extend(check(&[&bytes]));
        bytes.resize(AREA_LEN, 0);
        bytes
    }

    /// The layout of a device of `len` bytes that begins with this header.
    pub(super) fn parse(bytes: &[u8], len: u64) -> Result<Self, HeaderError> {
        let mut reader = Reader::new(bytes, "header");
        if reader.array()? != *HEADER_MAGIC {
            return Err(HeaderError::Malformed);
        }
        let version = reader.array().map(u32::from_le_bytes)?;
        let slot_len = reader.array().map(u64::from_le_bytes)?;
        let slots = reader.array().map(u64::from_le_bytes)?;
        let checked = bytes.get(..HEADER_HEAD_LEN).unwrap_or_default();
        if reader.array()? != check(&[checked]) {
            return Err(HeaderError::Malformed);
        }
        if version != VERSION {
            return Err(HeaderError::OtherVersion);
        }
        let fits = slot_len.is_power_of_two()
            && (SLOT_LEN_MIN..=SLOT_LEN_MAX).contains(&slot_len)
            && (SLOTS_MIN..=SLOTS_MAX).contains(&slots);
        let layout = Self { slot_len, slots };
        if !fits {
            return Err(HeaderError::Malformed);
        }
        match layout.end() {
            Some(end) if end <= len => Ok(layout),
            _ => Err(HeaderError::TooShort),
        }
    }

    /// Where the entry of a slot is.
    pub(super) fn entry_at(slot: u32) -> u64 {
        let at = u64::from(slot).saturating_mul(ENTRY_LEN as u64);
        TABLE_AT.saturating_add(at)
    }

    /// Bytes of the table.
    pub(super) fn table_len(&self) -> u64 {
        self.slots.saturating_mul(ENTRY_LEN as u64)
    }

    /// Where a slot begins.
    pub(super) fn slot_at(&self, slot: u32) -> u64 {
        let at = u64::from(slot).saturating_mul(self.slot_len);
        self.slots_at().saturating_add(at)
    }

    fn slots_at(&self) -> u64 {
        TABLE_AT
            .saturating_add(self.table_len())
            .next_multiple_of(SLOTS_ALIGN)
    }

    fn end(&self) -> Option<u64> {
        self.slots_at()
            .checked_add(self.slots.checked_mul(self.slot_len)?)
    }
}

/// Why a header does not say how a device is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    Malformed,
    OtherVersion,
    TooShort,
}

impl From<Malformed> for HeaderError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<HeaderError> for StoreError {
    fn from(e: HeaderError) -> Self {
        match e {
            HeaderError::Malformed => Self::NotAnObject,
            HeaderError::OtherVersion => Self::Malformed("the version of the layout is not known"),
            HeaderError::TooShort => Self::Malformed("the device is shorter than it was"),
        }
    }
}

impl Entry {
    /// The sector that says so of `slot`.
    pub(super) fn bytes(&self, slot: u32) -> Vec<u8> {
        let (kind, uid) = match self.name {
            ObjectName::Segment(kind, uid) => (kind.code(), uid),
            // Superblocks have areas of their own.
            ObjectName::Superblock(_) => (0, SegmentUid([0; 16])),
        };
        let mut bytes = vec![kind];
        bytes.extend(uid.0);
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.index.to_le_bytes());
        let len_and_one = self.whole.map_or(0, |len| len.saturating_add(1));
        bytes.extend(len_and_one.to_le_bytes());
        bytes.extend(check(&[&slot.to_le_bytes(), &bytes]));
        bytes.resize(ENTRY_LEN, 0);
        bytes
    }

    /// What a sector of the table says of `slot`: nothing, when it is free.
    pub(super) fn parse(bytes: &[u8], slot: u32) -> Result<Option<Self>, Malformed> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut reader = Reader::new(bytes, "table entry");
        let kind = SegmentKind::from_code(reader.u8()?).ok_or_else(|| reader.malformed())?;
        let uid = SegmentUid(reader.array()?);
        let generation = reader.array().map(u64::from_le_bytes)?;
        let index = reader.array().map(u32::from_le_bytes)?;
        let len_and_one = reader.array().map(u64::from_le_bytes)?;
        let checked = bytes.get(..ENTRY_HEAD_LEN).unwrap_or_default();
        if reader.array()? != check(&[&slot.to_le_bytes(), checked]) {
            return Err(reader.malformed());
        }
        Ok(Some(Self {
            name: ObjectName::Segment(kind, uid),
            generation,
            index,
            whole: len_and_one.checked_sub(1),
        }))
    }
}

/// Where a copy of a superblock is.
pub(super) fn copy_at(superblock: u8, copy: usize) -> u64 {
    let area = u64::from(superblock % 2).saturating_mul(2);
    let area = area.saturating_add(copy as u64 % 2);
    COPIES_AT.saturating_add(area.saturating_mul(BLOCK))
}

/// A copy of a superblock, the `sequence`th that was written.
pub(super) fn copy_bytes(sequence: u64, object: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(object.len()).ok()?;
    let mut bytes = COPY_MAGIC.to_vec();
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(check(&[&bytes, object]));
    bytes.extend(object);
    if bytes.len() > AREA_LEN {
        return None;
    }
    bytes.resize(AREA_LEN, 0);
    Some(bytes)
}

/// The object that an area holds a copy of, and how manieth it was; `None` when none was written
/// there, or not to its end.
pub(super) fn parse_copy(area: &[u8]) -> Option<(u64, &[u8])> {
    let mut reader = Reader::new(area, "copy of a superblock");
    let head = area.get(..20)?;
    let magic: [u8; 8] = reader.array().ok()?;
    let sequence = reader.array().map(u64::from_le_bytes).ok()?;
    let len = reader.array().map(u32::from_le_bytes).ok()?;
    let found: [u8; CHECK_LEN] = reader.array().ok()?;
    let object = reader.bytes(len as usize).ok()?;
    (magic == *COPY_MAGIC && found == check(&[head, object])).then_some((sequence, object))
}

/// The check of what these parts are together.
pub(super) fn check(parts: &[&[u8]]) -> [u8; CHECK_LEN] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let hash = hash.finalize();
    let mut check = [0; CHECK_LEN];
    check.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    check
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "tests")]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[track_caller]
    fn check_cut(len: u64, want: Option<(u64, u64)>) {
        let layout = Layout::of_device(len);
        assert_eq!(layout.map(|l| (l.slot_len, l.slots)), want, "{len}");
        if let Some(layout) = layout {
            assert!(layout.end().unwrap() <= len);
            assert_eq!(Layout::parse(&layout.bytes(), len), Ok(layout));
            let shorter = layout.end().unwrap() - 1;
            assert_eq!(
                Layout::parse(&layout.bytes(), shorter),
                Err(HeaderError::TooShort)
            );
        }
    }

    #[test]
    fn a_device_is_cut_into_some_thousand_slots() {
        check_cut(0, None);
        check_cut(2 * MIB, None);
        check_cut(3 * MIB, Some((64 << 10, 32)));
        check_cut(1024 * MIB, Some((256 << 10, 4084)));
        check_cut(64 << 30, Some((16 * MIB, 4095)));
        check_cut(1 << 40, Some((64 * MIB, 16383)));
        check_cut(1 << 60, Some((64 * MIB, SLOTS_MAX)));
        check_cut(u64::MAX, Some((64 * MIB, SLOTS_MAX)));
    }

    #[test]
    fn every_altered_bit_is_noticed() {
        let name = ObjectName::Segment(SegmentKind::Node, SegmentUid([7; 16]));
        let entry = Entry {
            name,
            generation: 3,
            index: 5,
            whole: None,
        };
        let sector = entry.bytes(9);
        assert_eq!(Entry::parse(&sector, 9), Ok(Some(entry)));
        assert!(Entry::parse(&sector, 8).is_err(), "of another slot");
        assert_eq!(Entry::parse(&[0; ENTRY_LEN], 9), Ok(None));
        let copy = copy_bytes(4, b"superblock").unwrap();
        assert_eq!(parse_copy(&copy), Some((4, &b"superblock"[..])));
        let header = Layout::of_device(1 << 30).unwrap().bytes();
        for bit in 0..8 * 38 {
            let flip = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            assert!(Entry::parse(&flip(&sector), 9).is_err(), "entry, bit {bit}");
            assert_eq!(parse_copy(&flip(&copy)), None, "copy, bit {bit}");
            if bit < 8 * (HEADER_HEAD_LEN + CHECK_LEN) {
                let parsed = Layout::parse(&flip(&header), 1 << 30);
                assert_eq!(parsed, Err(HeaderError::Malformed), "header, bit {bit}");
            }
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut header = Layout::of_device(1 << 30).unwrap().bytes();
        header[8] = 2;
        let checked = check(&[&header[..HEADER_HEAD_LEN]]);
        header[HEADER_HEAD_LEN..][..CHECK_LEN].copy_from_slice(&checked);
        let parsed = Layout::parse(&header, 1 << 30);
        assert_eq!(parsed, Err(HeaderError::OtherVersion));
    }

    #[test]
    fn what_does_not_fit_an_area_is_no_superblock() {
        let fits = AREA_LEN - COPY_HEAD_LEN;
        assert!(copy_bytes(1, &vec![1; fits]).is_some());
        assert!(copy_bytes(1, &vec![1; fits + 1]).is_none());
        assert_eq!(parse_copy(&[0; AREA_LEN]), None);
        assert_eq!(parse_copy(&[]), None);
    }
}
