//! Core: The file that an anchor keeps, from any bytes.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a target that cannot go on must stop"
)]

use std::sync::{Arc, OnceLock};

use ::keys::VolumeMasterKey;

use super::Anchored;
use super::record::{Coder, FILE_LEN, RECORD_LEN, Record, RecordKind};
use crate::crypto::{ANCHOR_TAG_LEN, EpochKeys, VolumeKeys};
use crate::format::NameKey;
use crate::testing::{ID, aead};

const FIELDS: usize = RECORD_LEN - ANCHOR_TAG_LEN;
/// Where the second slot begins.
const SECOND: usize = FILE_LEN / 2;
/// Where the epoch of the keys is in a record.
const EPOCH: usize = 72;

/// The records of both slots, with the tags that they came with and with right ones.
pub(crate) fn record(input: &[u8]) {
    let (keys, coder) = coder();
    let (first, second) = input.split_at(RECORD_LEN.min(input.len()));
    let mut file = vec![0; FILE_LEN];
    file[..first.len()].copy_from_slice(first);
    let second_len = second.len().min(FILE_LEN - SECOND);
    file[SECOND..SECOND + second_len].copy_from_slice(&second[..second_len]);
    // Cut short or too long it is damaged, whatever it holds.
    assert!(coder.newest(input).is_err() || input.len() == FILE_LEN);
    judge(coder, &file);
    for slot in [0, SECOND] {
        let epoch = u32::from_le_bytes(file[slot + EPOCH..slot + EPOCH + 4].try_into().unwrap());
        let fields = &file[slot..slot + FIELDS];
        if fields.iter().any(|byte| *byte != 0)
            && let Some(tag) = keys.anchor_tag(epoch, fields)
        {
            file[slot + FIELDS..slot + RECORD_LEN].copy_from_slice(&tag);
        }
    }
    judge(coder, &file);
}

/// What a file counts as is in it, byte for byte, in its own slot.
fn judge(coder: &Coder, file: &[u8]) {
    if let Ok(Some(newest)) = coder.newest(file) {
        let at = usize::try_from(newest.offset()).unwrap();
        let want = coder.bytes(&newest).unwrap();
        assert_eq!(file[at..at + RECORD_LEN], want);
    }
}

/// What the target begins with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let record = |counter| Record {
        counter,
        anchored: Anchored {
            seq: 9,
            head: [3; 32],
            vmk_epoch: 1,
        },
    };
    let (_, coder) = coder();
    let bytes = |counter| coder.bytes(&record(counter)).unwrap();
    vec![
        [bytes(2), bytes(3)].concat(),
        [bytes(4), bytes(3)].concat(),
        bytes(2).to_vec(),
        [[0; RECORD_LEN], bytes(1)].concat(),
    ]
}

fn coder() -> &'static (Arc<VolumeKeys>, Coder) {
    static CODER: OnceLock<(Arc<VolumeKeys>, Coder)> = OnceLock::new();
    CODER.get_or_init(|| {
        let epoch_keys = |epoch, byte| {
            let vmk = VolumeMasterKey::take_from(&mut [byte; 32]).unwrap();
            EpochKeys::new(&vmk, epoch, ID).unwrap()
        };
        let older = Some(epoch_keys(0, 1));
        let keys = VolumeKeys::new(aead(), epoch_keys(1, 2), older, NameKey([0; 16]));
        let keys = Arc::new(keys);
        let coder = Coder::new(Arc::clone(&keys), RecordKind::File);
        (keys, coder)
    })
}
