//! Adapter: a store in memory that remembers every call, fails on request, and can be brought back
//! as a crash would have left it. For tests.
#![allow(clippy::unwrap_used, reason = "only tests are built with it")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime::sync::Mutex;

#[cfg(test)]
pub(crate) use super::crash::Dice;
pub(crate) use super::crash::{Call, Crash};

use super::crash::Image;
use super::{Appendable, Lease, ObjectName, Space, Store, StoreError};
use crate::format::LOG_ALIGNMENT;

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
    image: Image,
    calls: Vec<Call>,
    fault: Option<Fault>,
    reads_fail: Option<ObjectName>,
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
        let mut image = Image::default();
        calls.iter().for_each(|call| image.apply(call));
        Self::with(image.crash(crash).0)
    }

    /// A store that an image was taken of.
    pub(crate) fn with(image: Image) -> Self {
        Self {
            state: Mutex::new(State {
                image,
                ..State::default()
            }),
            ..Self::default()
        }
    }

    /// Every call so far that changed the store.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// How many they are.
    pub(crate) fn call_count(&self) -> usize {
        self.state.lock().calls.len()
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
        let objects = state.image.objects();
        objects
            .map(|(name, bytes)| (name, bytes.to_vec()))
            .collect()
    }

    /// A store with these objects.
    pub(crate) fn of(objects: BTreeMap<ObjectName, Vec<u8>>) -> Self {
        Self::with(Image::of(objects))
    }

    /// Makes a call, if `check` and no fault is against it.
    fn call(
        &self,
        call: Call,
        check: impl FnOnce(&Image) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if let Some(e) = state.fault.as_mut().and_then(|fault| fault(&call)) {
            // As Linux does: what a flush failed to write is forgotten.
            if let Call::Sync(name) = call {
                state.image.forget_unflushed(name);
            }
            return Err(e);
        }
        check(&state.image)?;
        state.image.apply(&call);
        state.calls.push(call);
        Ok(())
    }
}

fn used(image: &Image) -> u64 {
    image.objects().map(|(_, bytes)| bytes.len() as u64).sum()
}

fn there(image: &Image, name: ObjectName) -> Result<&[u8], StoreError> {
    image.get(name).ok_or(StoreError::Absent)
}

fn absent(image: &Image, name: ObjectName) -> Result<(), StoreError> {
    match image.get(name) {
        Some(_) => Err(StoreError::Exists),
        None => Ok(()),
    }
}

impl Store for MemoryStore {
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.call(Call::Put(name, bytes.to_vec()), |_| Ok(()))
    }

    fn put_if_absent(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.call(Call::Put(name, bytes.to_vec()), |image| absent(image, name))
    }

    fn put_if_match(
        &self,
        name: ObjectName,
        current: &[u8],
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        self.call(Call::Put(name, bytes.to_vec()), |image| {
            if there(image, name)? == current {
                Ok(())
            } else {
                Err(StoreError::Changed)
            }
        })
    }

    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let state = self.state.lock();
        if state.reads_fail == Some(name) {
            return Err(StoreError::Io(std::io::ErrorKind::TimedOut.into()));
        }
        let bytes = there(&state.image, name)?;
        let begin = usize::try_from(offset).unwrap().min(bytes.len());
        let len = buffer.len().min(bytes.len() - begin);
        buffer[..len].copy_from_slice(&bytes[begin..begin + len]);
        Ok(len)
    }

    fn len(&self, name: ObjectName) -> Result<u64, StoreError> {
        Ok(there(&self.state.lock().image, name)?.len() as u64)
    }

    fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        self.call(Call::Delete(name), |image| there(image, name).map(|_| ()))
    }

    fn list(&self, after: Option<ObjectName>, max: usize) -> Result<Vec<ObjectName>, StoreError> {
        let state = self.state.lock();
        let names = state.image.objects().map(|(name, _)| name);
        let behind = names.filter(|name| after.is_none_or(|after| *name > after));
        Ok(behind.take(max).collect())
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.state.lock().image.objects().next().is_none())
    }

    fn lease(&self, _patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        if self.leased.swap(true, Ordering::SeqCst) {
            return Err(StoreError::Busy);
        }
        Ok(Box::new(MemoryLease(Arc::clone(&self.leased))))
    }

    fn space(&self) -> Result<Space, StoreError> {
        let total = self.capacity.unwrap_or(1 << 40);
        let used = used(&self.state.lock().image);
        Ok(Space {
            total,
            free: total.saturating_sub(used),
        })
    }
}

impl Appendable for MemoryStore {
    fn alignment(&self) -> u16 {
        LOG_ALIGNMENT
    }

    fn create(&self, name: ObjectName, _expected_len: u64) -> Result<(), StoreError> {
        self.call(Call::Create(name), |image| absent(image, name))
    }

    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let capacity = self.capacity;
        self.call(Call::Write(name, offset, bytes.to_vec()), |image| {
            let is_full = |capacity: u64| used(image).saturating_add(bytes.len() as u64) > capacity;
            if capacity.is_some_and(is_full) {
                return Err(StoreError::Full);
            }
            there(image, name).map(|_| ())
        })
    }

    fn sync(&self, name: ObjectName) -> Result<(), StoreError> {
        self.call(Call::Sync(name), |image| there(image, name).map(|_| ()))
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
