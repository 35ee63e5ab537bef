//! Core: which slots an object lies in, and which are free.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::Entry;
use crate::store::{ObjectName, StoreError};

/// What the table of a device says.
#[derive(Debug, Default)]
pub(super) struct Table {
    objects: BTreeMap<ObjectName, Object>,
    free: BTreeSet<u32>,
    /// Slots whose entries say nothing that can be true: neither an object's nor free.
    hurt: usize,
    /// The highest one that was given.
    generation: u64,
    /// The last slot that was given.
    last: u32,
}

/// Where an object lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) generation: u64,
    /// Its slots in order.
    pub(super) slots: Vec<u32>,
    /// Bytes of one that was written whole.
    pub(super) whole: Option<u64>,
}

/// What each entry of the table says; an error for one that cannot be true.
type Found = Result<Option<Entry>, ()>;

impl Table {
    /// The table that these entries make. An object counts only with its first piece, which is
    /// written last, and up to the first piece that is missing: what a crash left unfinished is
    /// free.
    pub(super) fn of(entries: impl Iterator<Item = (u32, Found)>) -> Result<Self, StoreError> {
        let mut table = Self::default();
        let mut pieces = BTreeMap::new();
        for (slot, found) in entries {
            match found {
                Ok(Some(entry)) => {
                    table.generation = table.generation.max(entry.generation);
                    let key = (entry.name, entry.generation, entry.index);
                    if pieces.insert(key, (slot, entry.whole)).is_some() {
                        return Err(StoreError::Malformed("two slots hold the same piece"));
                    }
                }
                Ok(None) => {
                    table.free.insert(slot);
                }
                Err(()) => table.hurt += 1,
            }
        }
        for ((name, generation, index), (slot, whole)) in pieces {
            let object = table.objects.get_mut(&name);
            match object.filter(|object| object.generation == generation) {
                Some(object) if object.slots.len() as u64 == u64::from(index) => {
                    object.slots.push(slot);
                }
                // In order of generations: this one is newer.
                _ if index == 0 => {
                    let newer = Object {
                        generation,
                        slots: vec![slot],
                        whole,
                    };
                    let older = table.objects.insert(name, newer);
                    table.free.extend(older.into_iter().flat_map(|o| o.slots));
                }
                _ => {
                    table.free.insert(slot);
                }
            }
        }
        Ok(table)
    }

    /// The object of a name.
    pub(super) fn object(&self, name: ObjectName) -> Result<&Object, StoreError> {
        self.objects.get(&name).ok_or(StoreError::Absent)
    }

    /// Whether there is an object of a name.
    pub(super) fn has(&self, name: ObjectName) -> bool {
        self.objects.contains_key(&name)
    }

    /// Names behind `after`.
    pub(super) fn names(&self, after: Option<ObjectName>) -> impl Iterator<Item = ObjectName> {
        let names = self.objects.keys().copied();
        names.filter(move |name| after.is_none_or(|after| *name > after))
    }

    /// Whether nothing lies on the device.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.hurt == 0
    }

    /// Free slots.
    pub(super) fn free(&self) -> u64 {
        self.free.len() as u64
    }

    /// Slots whose entries say nothing that can be true.
    pub(super) fn hurt(&self) -> usize {
        self.hurt
    }

    /// A generation that is higher than any before.
    pub(super) fn next_generation(&mut self) -> Result<u64, StoreError> {
        let next = self.generation.checked_add(1);
        self.generation = next.ok_or(StoreError::Malformed("the generations have ended"))?;
        Ok(self.generation)
    }

    /// A free slot: the one behind `before`, or else the next that is free, so that an object lies
    /// in one piece mostly and a slot is left alone for long after it became free.
    pub(super) fn take(&mut self, before: Option<u32>) -> Result<u32, StoreError> {
        let from = before.unwrap_or(self.last);
        let behind = self.free.range(from..).next();
        let slot = behind.or_else(|| self.free.first()).copied();
        let slot = slot.ok_or(StoreError::Full)?;
        self.free.remove(&slot);
        self.last = slot;
        Ok(slot)
    }

    /// Gives slots free.
    pub(super) fn release(&mut self, slots: impl IntoIterator<Item = u32>) {
        self.free.extend(slots);
    }

    /// Adds an object, and gives the one that it replaces.
    pub(super) fn insert(&mut self, name: ObjectName, object: Object) -> Option<Object> {
        self.objects.insert(name, object)
    }

    /// Adds a slot to an object, if it is still the same and lies in `pieces` of them.
    pub(super) fn grow(&mut self, name: ObjectName, slot: u32) -> Result<(), StoreError> {
        let object = self.objects.get_mut(&name).ok_or(StoreError::Absent)?;
        object.slots.push(slot);
        Ok(())
    }

    /// Takes an object out. Its slots are not free before they are given so.
    pub(super) fn remove(&mut self, name: ObjectName) -> Result<Object, StoreError> {
        self.objects.remove(&name).ok_or(StoreError::Absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{SegmentKind, SegmentUid};

    const A: ObjectName = ObjectName::Segment(SegmentKind::Data, SegmentUid([1; 16]));
    const B: ObjectName = ObjectName::Segment(SegmentKind::Log, SegmentUid([2; 16]));

    fn entry(name: ObjectName, generation: u64, index: u32) -> Found {
        Ok(Some(Entry {
            name,
            generation,
            index,
            whole: None,
        }))
    }

    fn table(found: &[Found]) -> Result<Table, StoreError> {
        Table::of((0..).zip(found.iter().copied()))
    }

    #[track_caller]
    fn check(found: &[Found], a: Option<&[u32]>, free: &[u32]) {
        let table = table(found).unwrap();
        let slots = table.object(A).ok().map(|object| object.slots.as_slice());
        assert_eq!(slots, a, "{found:?}");
        assert_eq!(table.free, free.iter().copied().collect(), "{found:?}");
    }

    #[test]
    fn what_a_crash_left_unfinished_is_free() {
        check(&[Ok(None), entry(A, 1, 0)], Some(&[1]), &[0]);
        check(
            &[entry(A, 1, 2), entry(A, 1, 0), entry(A, 1, 1)],
            Some(&[1, 2, 0]),
            &[],
        );
        // A piece in the middle is missing.
        check(
            &[entry(A, 1, 0), entry(A, 1, 2), entry(A, 1, 3)],
            Some(&[0]),
            &[1, 2],
        );
        // The first piece is missing.
        check(&[entry(A, 1, 1), entry(B, 2, 0)], None, &[0]);
        // Replaced, and the older one not yet cleared.
        check(
            &[
                entry(A, 1, 0),
                entry(A, 1, 1),
                entry(A, 2, 0),
                entry(A, 3, 1),
            ],
            Some(&[2]),
            &[0, 1, 3],
        );
    }

    #[test]
    fn a_hurt_entry_takes_only_its_own_slot() {
        check(
            &[entry(A, 1, 0), Err(()), entry(A, 1, 1)],
            Some(&[0, 2]),
            &[],
        );
        let table = table(&[Err(()), Ok(None)]).unwrap();
        assert_eq!((table.hurt(), table.is_empty()), (1, false));
    }

    #[test]
    fn two_slots_with_one_piece_are_refused() {
        let refused = table(&[entry(A, 1, 0), entry(B, 2, 0), entry(A, 1, 0)]);
        assert!(matches!(refused, Err(StoreError::Malformed(_))));
    }

    #[test]
    fn slots_are_given_onwards_and_then_from_the_start() {
        let mut table = table(&[Ok(None); 4]).unwrap();
        let next = |table: &mut Table, before| table.take(before).ok();
        assert_eq!(next(&mut table, None), Some(0));
        assert_eq!(next(&mut table, None), Some(1));
        table.release([0]);
        assert_eq!(next(&mut table, Some(1)), Some(2));
        assert_eq!(next(&mut table, Some(2)), Some(3));
        assert_eq!(next(&mut table, Some(3)), Some(0));
        assert_eq!(next(&mut table, None), None);
    }

    #[test]
    fn generations_end_with_an_error() {
        let mut table = table(&[entry(A, u64::MAX, 0)]).unwrap();
        assert!(matches!(
            table.next_generation(),
            Err(StoreError::Malformed(_))
        ));
    }
}
