//! Core: the file that an anchor keeps, byte by byte.
//!
//! Two slots, each in a page of its own, written in turn: a write that is cut short leaves the slot
//! before it whole. The one with the higher counter counts; slot = counter mod 2. Little endian.
//!
//! ```text
//!  0  magic `encfs1an`
//!  8  counter
//! 16  volume id
//! 32  number of the commit
//! 40  head after it
//! 72  epoch of the master key, u32
//! 76  kind: 1 file, 2 guest; three zeros
//! 80  tag of all before
//! 112 zeros, to 4,096
//! ```

use std::sync::Arc;

use keys::VolumeId;

use super::{AnchorError, Anchored};
use crate::crypto::{ANCHOR_TAG_LEN, VolumeKeys};
use crate::format::Reader;

const MAGIC: [u8; 8] = *b"encfs1an";
const FIELDS_LEN: usize = 80;
/// Bytes of a record.
pub(super) const RECORD_LEN: usize = FIELDS_LEN + ANCHOR_TAG_LEN;
/// Bytes between the beginnings of the two slots.
const SLOT_STRIDE: usize = 4096;
/// Bytes of the file.
pub(super) const FILE_LEN: usize = 2 * SLOT_STRIDE;

/// Which anchor a record belongs to. In the record, so that neither is taken for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    File,
    Guest,
}

/// A record and how often the file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) counter: u64,
    pub(super) anchored: Anchored,
}

/// Makes and reads the records of one anchor of one volume.
#[derive(Debug)]
pub(super) struct Coder {
    keys: Arc<VolumeKeys>,
    kind: RecordKind,
}

/// What a slot holds.
enum Slot {
    Damaged,
    Empty,
    Good(Record),
    NewerKeys { counter: u64, epoch: u32 },
    OtherVolume(VolumeId),
}

impl Record {
    /// Where it lies in the file.
    pub(super) fn offset(&self) -> u64 {
        if self.counter.is_multiple_of(2) {
            0
        } else {
            SLOT_STRIDE as u64
        }
    }
}

impl Coder {
    pub(super) fn new(keys: Arc<VolumeKeys>, kind: RecordKind) -> Self {
        Self { keys, kind }
    }

    /// The bytes of a record; `None` when there is no key of its epoch.
    pub(super) fn bytes(&self, record: &Record) -> Option<[u8; RECORD_LEN]> {
        let fields = self.fields(record);
        let tag = self.keys.anchor_tag(record.anchored.vmk_epoch, &fields)?;
        let mut bytes = [0; RECORD_LEN];
        let (front, back) = bytes.split_first_chunk_mut::<FIELDS_LEN>()?;
        *front = fields;
        back.copy_from_slice(&tag);
        Some(bytes)
    }

    /// A whole file with one record.
    pub(super) fn file(&self, record: &Record) -> Option<Vec<u8>> {
        let mut file = vec![0; FILE_LEN];
        let at = usize::try_from(record.offset()).ok()?;
        file.get_mut(at..at + RECORD_LEN)?
            .copy_from_slice(&self.bytes(record)?);
        Some(file)
    }

    /// The record that counts in a whole file; `None` when both slots are empty.
    pub(super) fn newest(&self, file: &[u8]) -> Result<Option<Record>, AnchorError> {
        if file.len() != FILE_LEN {
            return Err(AnchorError::Damaged);
        }
        let (a, b) = file.split_at(SLOT_STRIDE);
        match (self.slot(a, 0), self.slot(b, 1)) {
            (Slot::OtherVolume(found), _) | (_, Slot::OtherVolume(found)) => {
                Err(AnchorError::OtherVolume { found })
            }
            (Slot::Good(a), Slot::Good(b)) => Ok(Some(if a.counter > b.counter { a } else { b })),
            // Not authentic, but it can only lead to a refusal: under the keys of an older
            // superblock the older record would be the one that opens.
            (Slot::NewerKeys { counter, epoch }, Slot::Good(good))
            | (Slot::Good(good), Slot::NewerKeys { counter, epoch })
                if counter > good.counter =>
            {
                Err(AnchorError::NewerKeys { epoch })
            }
            (Slot::Good(good), _) | (_, Slot::Good(good)) => Ok(Some(good)),
            (Slot::NewerKeys { epoch, .. }, _) | (_, Slot::NewerKeys { epoch, .. }) => {
                Err(AnchorError::NewerKeys { epoch })
            }
            (Slot::Empty, Slot::Empty) => Ok(None),
            (Slot::Damaged, _) | (_, Slot::Damaged) => Err(AnchorError::Damaged),
        }
    }

    fn fields(&self, record: &Record) -> [u8; FIELDS_LEN] {
        let Record { counter, anchored } = record;
        let kind = match self.kind {
            RecordKind::File => 1,
            RecordKind::Guest => 2,
        };
        let parts: [&[u8]; 7] = [
            &MAGIC,
            &counter.to_le_bytes(),
            &self.keys.volume().0,
            &anchored.seq.to_le_bytes(),
            &anchored.head,
            &anchored.vmk_epoch.to_le_bytes(),
            &[kind, 0, 0, 0],
        ];
        let mut fields = [0; FIELDS_LEN];
        for (field, byte) in fields.iter_mut().zip(parts.into_iter().flatten()) {
            *field = *byte;
        }
        fields
    }

    /// What the slot with this index holds.
    fn slot(&self, slot: &[u8], index: u64) -> Slot {
        let (record, rest) = slot.split_at(RECORD_LEN.min(slot.len()));
        if rest.iter().any(|byte| *byte != 0) {
            return Slot::Damaged;
        }
        if record.iter().all(|byte| *byte == 0) {
            return Slot::Empty;
        }
        match self.parse(record) {
            Some(Slot::Good(good)) if good.counter % 2 != index => Slot::Damaged,
            Some(slot) => slot,
            None => Slot::Damaged,
        }
    }

    /// `None` for what has not the form of a record, or is not authentic.
    fn parse(&self, bytes: &[u8]) -> Option<Slot> {
        let mut r = Reader::new(bytes, "anchor record");
        if r.array().ok()? != MAGIC {
            return None;
        }
        let counter = r.u64().ok()?;
        let volume = VolumeId(r.array().ok()?);
        let anchored = Anchored {
            seq: r.u64().ok()?,
            head: r.array().ok()?,
            vmk_epoch: r.u32().ok()?,
        };
        r.bytes(4).ok()?;
        let tag = r.rest();
        if volume != self.keys.volume() {
            return Some(Slot::OtherVolume(volume));
        }
        let epoch = anchored.vmk_epoch;
        if self.keys.vmk_epoch() < epoch {
            return Some(Slot::NewerKeys { counter, epoch });
        }
        let record = Record { counter, anchored };
        // Made anew rather than taken from the bytes, so the kind and the padding are compared too.
        let fields = self.fields(&record);
        (bytes.starts_with(&fields) && self.keys.is_anchor_tag(epoch, &fields, tag))
            .then_some(Slot::Good(record))
    }
}
