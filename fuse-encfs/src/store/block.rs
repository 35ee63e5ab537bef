//! Adapter: a store on a block device or in one file, cut into slots of one length.
//!
//! **Design.** An object lies in one slot or more; a table at the front of the device says in
//! which, one sector a slot. An object that grows gets its slots as it is written, each found by
//! the next flush of the object. The two superblocks have areas of their own, each with two copies
//! that are written in turn, so that one is always whole. The bytes are in `layout`.
//!
//! **Invariants.** The first piece of an object is entered last. A slot is given free only when
//! its entry is cleared; it is given out again only to be entered anew, so a crash finds the one
//! entry or the other. Nothing that the device says is trusted beyond "here the bytes may lie":
//! the bytes of another object, of another time or of nobody do not open.
//!
//! **Limits.** An object has no length of its own unless it was put whole: it reads on to the end
//! of its last slot, where old bytes may lie.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime::sync::{Mutex, RwLock};

use self::device::Device;
use self::layout::{AREA_LEN, BLOCK, ENTRY_LEN, Entry, HEADERS_AT, HeaderError, Layout};
use self::table::{Object, Table};
use super::dir::sync_directory;
use super::{Appendable, Lease, ObjectName, Space, Store, StoreError, holds};
use crate::format::SEGMENT_LEN_MAX;

mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod layout;
mod table;
#[cfg(test)]
mod tests;

/// Bytes at either end of a device that must be zeros before it is laid out: there partition
/// tables, filesystems, volume managers and arrays have their marks.
const BLANK: u64 = 1 << 20;
/// Slots that are not shown as free: a checkpoint and a log need some on a full store.
const SLOTS_KEPT: u64 = 8;
/// Bytes of the table that are read at once.
const TABLE_PIECE: usize = 1 << 20;
/// Handles kept at most of objects that nothing unflushed was written to.
const HANDLES_MAX: usize = 64;
const BLOCK_U16: u16 = 4096;
const _: () = assert!(BLOCK_U16 as u64 == BLOCK);

/// A block device, or a file, as a store.
#[derive(Debug)]
pub(super) struct BlockStore {
    device: Device,
    layout: Layout,
    table: RwLock<Table>,
    handles: Mutex<BTreeMap<ObjectName, Arc<Handle>>>,
    replacing: Mutex<()>,
}

/// What an object is written and flushed by. Each has its own, because the system tells a failure
/// to write back once to each, and to nobody who opens it later.
#[derive(Debug)]
struct Handle {
    file: File,
    is_unflushed: AtomicBool,
}

impl BlockStore {
    /// Opens the store on the device at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let device = Device::open(path)?;
        let layout = read_header(&device)?;
        Self::with(device, layout)
    }

    /// Opens the store on the device at `path`, and lays it out first when the device is blank. A
    /// device that holds anything else is refused.
    pub(super) fn open_or_lay_out(path: &Path) -> Result<Self, StoreError> {
        let device = Device::open(path)?;
        let layout = match read_header(&device) {
            Err(StoreError::NotAnObject) => lay_out(&device)?,
            read => read?,
        };
        Self::with(device, layout)
    }

    /// Makes a file of `size` bytes at `path`, where there is none, and a store in it.
    pub(super) fn make(path: &Path, size: u64) -> Result<Self, StoreError> {
        Layout::of_device(size).ok_or(StoreError::TooSmall)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let made = file
            .set_len(size)
            .map_err(StoreError::from)
            .and_then(|()| sync_directory(path.parent().filter(|p| !p.as_os_str().is_empty())))
            .and_then(|()| Self::open_or_lay_out(path));
        if made.is_err() {
            // Nobody's but ours, as it was made just now.
            let _ = fs::remove_file(path);
        }
        made
    }

    fn with(device: Device, layout: Layout) -> Result<Self, StoreError> {
        let table = read_table(&device, &layout)?;
        if table.hurt() > 0 {
            tracing::warn!(
                slots = table.hurt(),
                "entries of the store's table are damaged; their slots are left alone"
            );
        }
        Ok(Self {
            device,
            layout,
            table: RwLock::new(table),
            handles: Mutex::default(),
            replacing: Mutex::default(),
        })
    }

    fn handle(&self, name: ObjectName) -> Result<Arc<Handle>, StoreError> {
        let mut handles = self.handles.lock();
        if let Some(handle) = handles.get(&name) {
            return Ok(Arc::clone(handle));
        }
        if handles.len() >= HANDLES_MAX {
            handles.retain(|_, handle| {
                handle.is_unflushed.load(Ordering::SeqCst) || Arc::strong_count(handle) > 1
            });
        }
        let handle = Arc::new(Handle {
            file: self.device.handle()?,
            is_unflushed: AtomicBool::new(false),
        });
        handles.insert(name, Arc::clone(&handle));
        Ok(handle)
    }

    /// Where on the device the byte at `offset` of an object lies, and how many follow it there;
    /// `None` behind the object's end.
    fn locate(&self, name: ObjectName, offset: u64) -> Result<Option<(u64, u64)>, StoreError> {
        let table = self.table.read();
        let object = table.object(name)?;
        let (piece, within) = self.piece(offset);
        let end = object.whole.unwrap_or(u64::MAX);
        let slot = object.slots.get(piece).filter(|_| offset < end);
        let len = (self.layout.slot_len - within).min(end.saturating_sub(offset));
        Ok(slot.map(|slot| (self.layout.slot_at(*slot) + within, len)))
    }

    fn piece(&self, offset: u64) -> (usize, u64) {
        let piece = usize::try_from(offset / self.layout.slot_len).unwrap_or(usize::MAX);
        (piece, offset % self.layout.slot_len)
    }

    /// Gives an object slots up to the one that `offset` lies in.
    fn grow(&self, name: ObjectName, offset: u64, file: &File) -> Result<(), StoreError> {
        let mut table = self.table.write();
        let (wanted, _) = self.piece(offset);
        loop {
            let object = table.object(name)?;
            let (generation, have) = (object.generation, object.slots.len());
            if have > wanted || object.whole.is_some() {
                return Ok(());
            }
            let before = object.slots.last().copied();
            let slot = table.take(before)?;
            let entry = Entry {
                name,
                generation,
                index: u32::try_from(have).unwrap_or(u32::MAX),
                whole: None,
            };
            let entered = write_entry(file, slot, Some(&entry));
            match entered.and_then(|()| table.grow(name, slot)) {
                Ok(()) => {}
                Err(e) => {
                    table.release([slot]);
                    return Err(e);
                }
            }
        }
    }

    /// Takes `count` slots out of the free ones, or none.
    fn take(&self, count: usize) -> Result<(u64, Vec<u32>), StoreError> {
        let mut table = self.table.write();
        let generation = table.next_generation()?;
        let mut slots = Vec::new();
        for _ in 0..count {
            match table.take(slots.last().copied()) {
                Ok(slot) => slots.push(slot),
                Err(e) => {
                    table.release(slots);
                    return Err(e);
                }
            }
        }
        Ok((generation, slots))
    }

    fn give_back(&self, slots: &[u32]) {
        for slot in slots {
            // Left in the table, it counts as unfinished after a crash, or is written over.
            let _ = write_entry(self.device.shared(), *slot, None);
            let begin = self.layout.slot_at(*slot);
            self.device.discard(&(begin..begin + self.layout.slot_len));
        }
        self.table.write().release(slots.iter().copied());
    }

    fn put_segment(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let slot_len = usize::try_from(self.layout.slot_len).unwrap_or(usize::MAX);
        let count = bytes.len().div_ceil(slot_len).max(1);
        let (generation, slots) = self.take(count)?;
        let object = Object {
            generation,
            slots,
            whole: Some(bytes.len() as u64),
        };
        let file = self.device.handle()?;
        let pieces = || (0_u32..).zip(&object.slots);
        let written = bytes
            .chunks(slot_len)
            .zip(&object.slots)
            .try_for_each(|(piece, slot)| {
                self.device.write(&file, self.layout.slot_at(*slot), piece)
            });
        let entered = |(index, slot): (u32, &u32)| {
            let entry = Entry {
                name,
                generation,
                index,
                whole: object.whole,
            };
            write_entry(&file, *slot, Some(&entry))
        };
        let done = written
            .and_then(|()| pieces().skip(1).try_for_each(entered))
            .and_then(|()| Ok(file.sync_data()?))
            .and_then(|()| pieces().take(1).try_for_each(entered))
            .and_then(|()| Ok(file.sync_data()?));
        if done.is_err() {
            self.give_back(&object.slots);
            return done;
        }
        let replaced = self.table.write().insert(name, object);
        if let Some(replaced) = replaced {
            self.give_back(&replaced.slots);
        }
        Ok(())
    }

    /// The newest whole copy of a superblock, how manieth it was, and which of the two it is.
    fn superblock(&self, slot: u8) -> Result<Option<(Vec<u8>, u64, usize)>, StoreError> {
        let mut newest: Option<(Vec<u8>, u64, usize)> = None;
        for copy in [0, 1] {
            let mut area = vec![0; AREA_LEN];
            self.device.read(layout::copy_at(slot, copy), &mut area)?;
            if let Some((sequence, object)) = layout::parse_copy(&area)
                && newest
                    .as_ref()
                    .is_none_or(|(_, before, _)| sequence > *before)
            {
                newest = Some((object.to_vec(), sequence, copy));
            }
        }
        Ok(newest)
    }

    fn put_superblock(&self, slot: u8, bytes: &[u8]) -> Result<(), StoreError> {
        let (sequence, copy) = match self.superblock(slot)? {
            Some((_, sequence, copy)) => (sequence, 1 - copy),
            None => (0, 0),
        };
        let next = sequence.checked_add(1);
        let next = next.ok_or(StoreError::Malformed("the copies have ended"))?;
        let area = layout::copy_bytes(next, bytes);
        let area = area.ok_or_else(|| StoreError::Io(ErrorKind::FileTooLarge.into()))?;
        let file = self.device.handle()?;
        file.write_all_at(&area, layout::copy_at(slot, copy))?;
        Ok(file.sync_data()?)
    }

    fn delete_superblock(&self, slot: u8) -> Result<(), StoreError> {
        self.superblock(slot)?.ok_or(StoreError::Absent)?;
        for copy in [0, 1] {
            let at = layout::copy_at(slot, copy);
            self.device.shared().write_all_at(&[0; AREA_LEN], at)?;
        }
        Ok(())
    }

    fn has(&self, name: ObjectName) -> Result<bool, StoreError> {
        match name {
            ObjectName::Superblock(slot) => Ok(self.superblock(slot)?.is_some()),
            ObjectName::Segment(..) => Ok(self.table.read().has(name)),
        }
    }
}

impl Store for BlockStore {
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        match name {
            ObjectName::Superblock(slot) => self.put_superblock(slot, bytes),
            ObjectName::Segment(..) => self.put_segment(name, bytes),
        }
    }

    fn put_if_absent(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        // The lease keeps others away; the lock keeps two threads of this process apart.
        let _one = self.replacing.lock();
        if self.has(name)? {
            return Err(StoreError::Exists);
        }
        self.put(name, bytes)
    }

    fn put_if_match(
        &self,
        name: ObjectName,
        current: &[u8],
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let _one = self.replacing.lock();
        if !holds(self, name, current)? {
            return Err(StoreError::Changed);
        }
        self.put(name, bytes)
    }

    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        if let ObjectName::Superblock(slot) = name {
            let (object, ..) = self.superblock(slot)?.ok_or(StoreError::Absent)?;
            let begin = usize::try_from(offset).unwrap_or(usize::MAX);
            let rest = object.get(begin..).unwrap_or_default();
            buffer
                .iter_mut()
                .zip(rest)
                .for_each(|(to, from)| *to = *from);
            return Ok(rest.len().min(buffer.len()));
        }
        let mut done = 0;
        while let Some((at, len)) = self.locate(name, offset.saturating_add(done as u64))? {
            let rest = buffer.get_mut(done..).unwrap_or_default();
            let len = rest.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            let got = self
                .device
                .read(at, rest.get_mut(..len).unwrap_or_default())?;
            done += got;
            if got < len || done == buffer.len() {
                break;
            }
        }
        Ok(done)
    }

    fn len(&self, name: ObjectName) -> Result<u64, StoreError> {
        if let ObjectName::Superblock(slot) = name {
            let (object, ..) = self.superblock(slot)?.ok_or(StoreError::Absent)?;
            return Ok(object.len() as u64);
        }
        let table = self.table.read();
        let object = table.object(name)?;
        let room = (object.slots.len() as u64).saturating_mul(self.layout.slot_len);
        Ok(object.whole.unwrap_or(room))
    }

    fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        if let ObjectName::Superblock(slot) = name {
            return self.delete_superblock(slot);
        }
        let object = self.table.write().remove(name)?;
        self.handles.lock().remove(&name);
        self.give_back(&object.slots);
        Ok(())
    }

    fn list(&self, after: Option<ObjectName>, max: usize) -> Result<Vec<ObjectName>, StoreError> {
        let mut names = Vec::new();
        for name in [ObjectName::Superblock(0), ObjectName::Superblock(1)] {
            if after.is_none_or(|after| name > after) && self.has(name)? {
                names.push(name);
            }
        }
        names.extend(self.table.read().names(after));
        names.truncate(max);
        Ok(names)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        let areas = layout::copy_at(0, 0)..layout::copy_at(1, 1) + BLOCK;
        Ok(self.table.read().is_empty() && self.device.is_zero(areas)?)
    }

    fn lease(&self, patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let lease = self.device.lease(patience)?;
        // Who held it before may have changed the table since it was read.
        *self.table.write() = read_table(&self.device, &self.layout)?;
        Ok(lease)
    }

    fn space(&self) -> Result<Space, StoreError> {
        let free = self.table.read().free().saturating_sub(SLOTS_KEPT);
        Ok(Space {
            total: self.layout.slots.saturating_mul(self.layout.slot_len),
            free: free.saturating_mul(self.layout.slot_len),
        })
    }
}

impl Appendable for BlockStore {
    fn alignment(&self) -> u16 {
        BLOCK_U16
    }

    fn create(&self, name: ObjectName, _expected_len: u64) -> Result<(), StoreError> {
        only_segments(name)?;
        if self.table.read().has(name) {
            return Err(StoreError::Exists);
        }
        let (generation, slots) = self.take(1)?;
        let entry = Entry {
            name,
            generation,
            index: 0,
            whole: None,
        };
        let handle = self.handle(name)?;
        let entered = slots
            .iter()
            .try_for_each(|slot| write_entry(&handle.file, *slot, Some(&entry)))
            .and_then(|()| Ok(handle.file.sync_data()?));
        if entered.is_err() {
            self.give_back(&slots);
            return entered;
        }
        let object = Object {
            generation,
            slots,
            whole: None,
        };
        self.table.write().insert(name, object);
        Ok(())
    }

    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        only_segments(name)?;
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > SEGMENT_LEN_MAX) {
            return Err(StoreError::Io(ErrorKind::FileTooLarge.into()));
        }
        let handle = self.handle(name)?;
        handle.is_unflushed.store(true, Ordering::SeqCst);
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = offset + (bytes.len() - rest.len()) as u64;
            self.grow(name, offset, &handle.file)?;
            let (at, room) = self
                .locate(name, offset)?
                .ok_or_else(|| StoreError::Io(ErrorKind::FileTooLarge.into()))?;
            let len = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (piece, further) = rest.split_at(len);
            self.device.write(&handle.file, at, piece)?;
            rest = further;
        }
        Ok(())
    }

    fn sync(&self, name: ObjectName) -> Result<(), StoreError> {
        only_segments(name)?;
        self.table.read().object(name)?;
        let handle = self.handle(name)?;
        handle.is_unflushed.store(false, Ordering::SeqCst);
        handle.file.sync_data().map_err(|e| {
            handle.is_unflushed.store(true, Ordering::SeqCst);
            e.into()
        })
    }
}

/// Superblocks are put whole.
fn only_segments(name: ObjectName) -> Result<(), StoreError> {
    match name {
        ObjectName::Segment(..) => Ok(()),
        ObjectName::Superblock(_) => Err(StoreError::Io(ErrorKind::Unsupported.into())),
    }
}

fn read_header(device: &Device) -> Result<Layout, StoreError> {
    let mut refused = HeaderError::Malformed;
    for at in HEADERS_AT {
        let mut header = vec![0; AREA_LEN];
        device.read(at, &mut header)?;
        match Layout::parse(&header, device.len()) {
            Ok(layout) => return Ok(layout),
            Err(HeaderError::Malformed) => {}
            Err(e) => refused = e,
        }
    }
    Err(refused.into())
}

fn lay_out(device: &Device) -> Result<Layout, StoreError> {
    let layout = Layout::of_device(device.len()).ok_or(StoreError::TooSmall)?;
    // Another one may be about to do the same.
    let _lease = device.lease(Duration::ZERO)?;
    let ends = [
        0..BLANK.min(device.len()),
        device.len().saturating_sub(BLANK)..device.len(),
    ];
    for end in ends {
        if !device.is_zero(end)? {
            return Err(StoreError::NotEmpty);
        }
    }
    let file = device.handle()?;
    let zeros = vec![0; ENTRY_LEN];
    for slot in 0..u32::try_from(layout.slots).unwrap_or(u32::MAX) {
        file.write_all_at(&zeros, Layout::entry_at(slot))?;
    }
    file.sync_data()?;
    for at in HEADERS_AT {
        file.write_all_at(&layout.bytes(), at)?;
    }
    file.sync_data()?;
    Ok(layout)
}

fn read_table(device: &Device, layout: &Layout) -> Result<Table, StoreError> {
    let mut found = Vec::new();
    let mut slot: u32 = 0;
    while u64::from(slot) < layout.slots {
        let left = layout.table_len() - u64::from(slot) * ENTRY_LEN as u64;
        let len = TABLE_PIECE.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut piece = vec![0; len];
        if device.read(Layout::entry_at(slot), &mut piece)? < len {
            return Err(StoreError::Malformed("the table is cut off"));
        }
        for entry in piece.chunks(ENTRY_LEN) {
            found.push((slot, Entry::parse(entry, slot).map_err(|_| ())));
            slot += 1;
        }
    }
    Table::of(found.into_iter())
}

fn write_entry(file: &File, slot: u32, entry: Option<&Entry>) -> Result<(), StoreError> {
    let bytes = entry.map_or_else(|| vec![0; ENTRY_LEN], |entry| entry.bytes(slot));
    Ok(file.write_all_at(&bytes, Layout::entry_at(slot))?)
}
