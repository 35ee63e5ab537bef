//! Adapter: a store in memory that remembers every call, fails on request, and can be brought back
//! as a crash would have left it. For tests.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime::sync::Mutex;

use super::{Appendable, Lease, ObjectName, Space, Store, StoreError};

const SECTOR: usize = 512;

/// A call that changes the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Create(ObjectName),
    Delete(ObjectName),
    Put(ObjectName, Vec<u8>),
    Sync(ObjectName),
    Write(ObjectName, u64, Vec<u8>),
}

/// What a crash leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Crash {
    /// The daemon dies: what it wrote stays, flushed or not.
    Daemon,
    /// The power fails: each write that was not flushed stays, goes, or is torn between sectors,
    /// and an object that was deleted may be there again, as this seed decides.
    Power(u64),
}

/// Decides whether a call fails, before it has any effect.
type Fault = Box<dyn FnMut(&Call) -> Option<StoreError> + Send>;

/// A store in memory.
#[derive(Default)]
pub(crate) struct MemoryStore {
    state: Mutex<State>,
    leased: Arc<AtomicBool>,
    capacity: Option<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectName, Object>,
    calls: Vec<Call>,
    fault: Option<Fault>,
    reads_fail: Option<ObjectName>,
}

#[derive(Debug, Default, Clone)]
struct Object {
    durable: Vec<u8>,
    unflushed: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct MemoryLease(Arc<AtomicBool>);

impl MemoryStore {
    /// A store that holds `capacity` bytes.
    pub(crate) fn with_capacity(capacity: u64) -> Self {
        Self {
            capacity: Some(capacity),
            ..Self::default()
        }
    }

    /// The store after some calls and a crash.
    pub(crate) fn after(calls: &[Call], crash: Crash) -> Self {
        let mut objects: BTreeMap<ObjectName, Object> = BTreeMap::new();
        let mut deleted = BTreeMap::new();
        for call in calls {
            match call {
                Call::Create(name) => {
                    objects.insert(*name, Object::default());
                }
                Call::Delete(name) => {
                    if let Some(object) = objects.remove(name) {
                        deleted.insert(*name, object);
                    }
                }
                Call::Put(name, bytes) => {
                    objects.insert(
                        *name,
                        Object {
                            durable: bytes.clone(),
                            unflushed: vec![],
                        },
                    );
                }
                Call::Sync(name) => objects.get_mut(name).unwrap().flush(),
                Call::Write(name, at, bytes) => {
                    let at = usize::try_from(*at).unwrap();
                    objects
                        .get_mut(name)
                        .unwrap()
                        .unflushed
                        .push((at, bytes.clone()));
                }
            }
        }
        match crash {
            Crash::Daemon => objects.values_mut().for_each(Object::flush),
            Crash::Power(seed) => {
                let mut dice = Dice(seed);
                objects
                    .values_mut()
                    .for_each(|object| object.lose(&mut dice));
                deleted.retain(|_, _| dice.roll(2) == 0);
                for (name, mut object) in deleted {
                    object.lose(&mut dice);
                    objects.entry(name).or_insert(object);
                }
            }
        }
        Self {
            state: Mutex::new(State {
                objects,
                ..State::default()
            }),
            ..Self::default()
        }
    }

    /// Every call so far that changed the store.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// Lets `fault` decide from now on which calls fail.
    pub(crate) fn fail(&self, fault: impl FnMut(&Call) -> Option<StoreError> + Send + 'static) {
        self.state.lock().fault = Some(Box::new(fault));
    }

    /// Lets no call fail any more.
    pub(crate) fn mend(&self) {
        let mut state = self.state.lock();
        state.fault = None;
        state.reads_fail = None;
    }

    /// Lets every read of an object fail.
    pub(crate) fn fail_reads(&self, name: ObjectName) {
        self.state.lock().reads_fail = Some(name);
    }

    /// All objects with their bytes.
    pub(crate) fn objects(&self) -> BTreeMap<ObjectName, Vec<u8>> {
        let state = self.state.lock();
        state
            .objects
            .iter()
            .map(|(name, object)| (*name, object.visible()))
            .collect()
    }

    /// A store with these objects.
    pub(crate) fn of(objects: BTreeMap<ObjectName, Vec<u8>>) -> Self {
        let object = |bytes| Object {
            durable: bytes,
            unflushed: Vec::new(),
        };
        let objects = objects
            .into_iter()
            .map(|(name, bytes)| (name, object(bytes)))
            .collect();
        Self {
            state: Mutex::new(State {
                objects,
                ..State::default()
            }),
            ..Self::default()
        }
    }

    fn call<T>(
        &self,
        call: Call,
        effect: impl FnOnce(&mut BTreeMap<ObjectName, Object>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.state.lock();
        if let Some(e) = state.fault.as_mut().and_then(|fault| fault(&call)) {
            // As Linux does: what a flush failed to write is forgotten.
            if let Call::Sync(name) = call
                && let Some(object) = state.objects.get_mut(&name)
            {
                object.unflushed.clear();
            }
            return Err(e);
        }
        let done = effect(&mut state.objects)?;
        state.calls.push(call);
        Ok(done)
    }

    fn used(objects: &BTreeMap<ObjectName, Object>) -> u64 {
        objects
            .values()
            .map(|object| object.visible().len() as u64)
            .sum()
    }
}

impl Store for MemoryStore {
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.call(Call::Put(name, bytes.to_vec()), |objects| {
            objects.insert(
                name,
                Object {
                    durable: bytes.to_vec(),
                    unflushed: Vec::new(),
                },
            );
            Ok(())
        })
    }

    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let state = self.state.lock();
        if state.reads_fail == Some(name) {
            return Err(StoreError::Io(std::io::ErrorKind::TimedOut.into()));
        }
        let bytes = state
            .objects
            .get(&name)
            .ok_or(StoreError::Absent)?
            .visible();
        let begin = usize::try_from(offset).unwrap().min(bytes.len());
        let len = buffer.len().min(bytes.len() - begin);
        buffer[..len].copy_from_slice(&bytes[begin..begin + len]);
        Ok(len)
    }

    fn len(&self, name: ObjectName) -> Result<u64, StoreError> {
        let state = self.state.lock();
        let object = state.objects.get(&name).ok_or(StoreError::Absent)?;
        Ok(object.visible().len() as u64)
    }

    fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        self.call(Call::Delete(name), |objects| {
            objects.remove(&name).map(|_| ()).ok_or(StoreError::Absent)
        })
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.state.lock().objects.is_empty())
    }

    fn lease(&self, _patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        if self.leased.swap(true, Ordering::SeqCst) {
            return Err(StoreError::Busy);
        }
        Ok(Box::new(MemoryLease(Arc::clone(&self.leased))))
    }

    fn space(&self) -> Result<Space, StoreError> {
        let total = self.capacity.unwrap_or(1 << 40);
        let used = Self::used(&self.state.lock().objects);
        Ok(Space {
            total,
            free: total.saturating_sub(used),
        })
    }
}

impl Appendable for MemoryStore {
    fn create(&self, name: ObjectName, _expected_len: u64) -> Result<(), StoreError> {
        self.call(Call::Create(name), |objects| {
            match objects.insert(name, Object::default()) {
                None => Ok(()),
                Some(_) => Err(StoreError::Exists),
            }
        })
    }

    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let capacity = self.capacity.unwrap_or(u64::MAX);
        self.call(Call::Write(name, offset, bytes.to_vec()), |objects| {
            if Self::used(objects) + bytes.len() as u64 > capacity {
                return Err(StoreError::Full);
            }
            let object = objects.get_mut(&name).ok_or(StoreError::Absent)?;
            object
                .unflushed
                .push((usize::try_from(offset).unwrap(), bytes.to_vec()));
            Ok(())
        })
    }

    fn sync(&self, name: ObjectName) -> Result<(), StoreError> {
        self.call(Call::Sync(name), |objects| {
            objects.get_mut(&name).ok_or(StoreError::Absent)?.flush();
            Ok(())
        })
    }
}

impl Lease for MemoryLease {
    fn revalidate(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn announce_end(&self) {}
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

impl Object {
    fn visible(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.unflushed
            .iter()
            .for_each(|(at, write)| put(&mut bytes, *at, write));
        bytes
    }

    fn flush(&mut self) {
        self.durable = self.visible();
        self.unflushed.clear();
    }

    fn lose(&mut self, dice: &mut Dice) {
        for (at, write) in std::mem::take(&mut self.unflushed) {
            let sectors = write.len().div_ceil(SECTOR);
            match dice.roll(3) {
                0 => put(&mut self.durable, at, &write),
                1 => {}
                _ => {
                    for sector in (0..sectors).filter(|_| dice.roll(2) == 0) {
                        let begin = sector * SECTOR;
                        let end = write.len().min(begin + SECTOR);
                        put(&mut self.durable, at + begin, &write[begin..end]);
                    }
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, write: &[u8]) {
    let end = at + write.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(write);
}

/// A small generator (xorshift64*), so that a seed reproduces a crash.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}
