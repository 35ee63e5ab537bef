//! Adapter: any store, with calls that fail or lie as planned. For tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use runtime::sync::Mutex;

use super::crash::Dice;
use super::{Appendable, Lease, ObjectName, Space, Store, StoreError};

/// Kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Create,
    Delete,
    Get,
    Put,
    Sync,
    Write,
}

/// What a call does in place of what it should.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nothing, and it fails.
    Io,
    /// Nothing, and there is no space.
    Full,
    /// A write or a put that fails after a part of it; the part is drawn from the seed.
    Torn(u64),
    /// Nothing, and it says that all went well.
    Lies,
    /// A read that gives what the object held when the fault was planned.
    Stale(Vec<u8>),
}

/// Which calls a fault hits.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) kind: Kind,
    /// Calls on one object alone.
    pub(crate) name: Option<ObjectName>,
    /// The first call that is hit, counted from 0 over all calls of the kind.
    pub(crate) from: u64,
    /// The last one.
    pub(crate) to: u64,
    pub(crate) fault: Fault,
}

/// A store that does not do all that it is asked.
#[derive(Debug)]
pub(crate) struct FaultStore {
    inner: Arc<dyn Appendable>,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    rules: Vec<Rule>,
    counts: BTreeMap<Kind, u64>,
    hits: u64,
}

impl Rule {
    /// Hits one call of a kind.
    pub(crate) fn once(kind: Kind, at: u64, fault: Fault) -> Self {
        Self {
            kind,
            name: None,
            from: at,
            to: at,
            fault,
        }
    }

    /// Hits every call of a kind from one on.
    pub(crate) fn for_ever(kind: Kind, from: u64, fault: Fault) -> Self {
        Self {
            to: u64::MAX,
            ..Self::once(kind, from, fault)
        }
    }
}

impl FaultStore {
    /// A store over another, without any fault so far.
    pub(crate) fn new(inner: Arc<dyn Appendable>) -> Self {
        Self {
            inner,
            plan: Mutex::default(),
        }
    }

    /// Plans faults, beside those that are planned.
    pub(crate) fn plan_all(&self, rules: impl IntoIterator<Item = Rule>) {
        self.plan.lock().rules.extend(rules);
    }

    /// How many calls of a kind there were.
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.plan.lock().counts.get(&kind).copied().unwrap_or(0)
    }

    /// How many calls were hit.
    pub(crate) fn hits(&self) -> u64 {
        self.plan.lock().hits
    }

    /// Counts a call, and gives the fault that hits it.
    fn fault(&self, kind: Kind, name: ObjectName) -> Option<Fault> {
        let mut plan = self.plan.lock();
        let count = plan.counts.entry(kind).or_default();
        let at = *count;
        *count += 1;
        let hit = plan.rules.iter().find(|rule| {
            rule.kind == kind
                && rule.name.is_none_or(|only| only == name)
                && (rule.from..=rule.to).contains(&at)
        });
        let fault = hit.map(|rule| rule.fault.clone());
        plan.hits += u64::from(fault.is_some());
        fault
    }

    /// Makes a call that no part can be done of.
    fn call(
        &self,
        kind: Kind,
        name: ObjectName,
        call: impl FnOnce(&dyn Appendable) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match self.fault(kind, name) {
            None => call(&*self.inner),
            Some(Fault::Lies) => Ok(()),
            Some(Fault::Full) => Err(StoreError::Full),
            Some(Fault::Io | Fault::Torn(_) | Fault::Stale(_)) => Err(failed()),
        }
    }
}

fn failed() -> StoreError {
    StoreError::Io(std::io::ErrorKind::TimedOut.into())
}

impl Store for FaultStore {
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.call(Kind::Put, name, |inner| inner.put(name, bytes))
    }

    fn put_if_absent(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.call(Kind::Put, name, |inner| inner.put_if_absent(name, bytes))
    }

    fn put_if_match(
        &self,
        name: ObjectName,
        current: &[u8],
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let put = |inner: &dyn Appendable| inner.put_if_match(name, current, bytes);
        self.call(Kind::Put, name, put)
    }

    fn get(&self, name: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        match self.fault(Kind::Get, name) {
            None => self.inner.get(name, offset, buffer),
            Some(Fault::Stale(bytes)) => {
                let begin = usize::try_from(offset).unwrap().min(bytes.len());
                let len = buffer.len().min(bytes.len() - begin);
                buffer[..len].copy_from_slice(&bytes[begin..begin + len]);
                Ok(len)
            }
            Some(Fault::Lies) => Ok(0),
            Some(Fault::Full | Fault::Io | Fault::Torn(_)) => Err(failed()),
        }
    }

    fn len(&self, name: ObjectName) -> Result<u64, StoreError> {
        self.inner.len(name)
    }

    fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        self.call(Kind::Delete, name, |inner| inner.delete(name))
    }

    fn list(&self, after: Option<ObjectName>, max: usize) -> Result<Vec<ObjectName>, StoreError> {
        self.inner.list(after, max)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.inner.is_empty()
    }

    fn lease(&self, patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        self.inner.lease(patience)
    }

    fn space(&self) -> Result<Space, StoreError> {
        self.inner.space()
    }
}

impl Appendable for FaultStore {
    fn alignment(&self) -> u16 {
        self.inner.alignment()
    }

    fn create(&self, name: ObjectName, expected_len: u64) -> Result<(), StoreError> {
        let create = |inner: &dyn Appendable| inner.create(name, expected_len);
        self.call(Kind::Create, name, create)
    }

    fn write_at(&self, name: ObjectName, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        match self.fault(Kind::Write, name) {
            None => self.inner.write_at(name, offset, bytes),
            Some(Fault::Lies) => Ok(()),
            Some(Fault::Full) => Err(StoreError::Full),
            Some(Fault::Torn(seed)) => {
                let part = Dice(seed).roll(bytes.len() as u64 + 1);
                let part = usize::try_from(part).unwrap();
                self.inner.write_at(name, offset, &bytes[..part])?;
                Err(failed())
            }
            Some(Fault::Io | Fault::Stale(_)) => Err(failed()),
        }
    }

    fn sync(&self, name: ObjectName) -> Result<(), StoreError> {
        self.call(Kind::Sync, name, |inner| inner.sync(name))
    }
}
