//! Core: a volume whose store does not change for a while, so that it can be copied.
//!
//! Two doors, as two kinds of writers come: who writes records needs no lock, and who appends to the
//! log holds the log's. Both find out once they are in; who finds the door closed goes out again and
//! waits, with nothing in his hands that the one who froze the volume would need.

use std::sync::atomic::{AtomicBool, Ordering};

use runtime::sync::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::Journal;

/// The doors.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Whether records may not be written; held for reading by who writes one.
    records: RwLock<bool>,
    /// Whether nothing may be appended to the log.
    log: AtomicBool,
    opening: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    /// Lets through who writes to objects of the store, until he lets go of what he gets.
    pub(super) fn pass(&self) -> RwLockReadGuard<'_, bool> {
        loop {
            let records = self.records.read();
            if !*records {
                return records;
            }
            drop(records);
            self.wait_while(|| *self.records.read());
        }
    }

    pub(super) fn is_log_frozen(&self) -> bool {
        self.log.load(Ordering::Acquire)
    }

    pub(super) fn wait_for_log(&self) {
        if self.is_log_frozen() {
            self.wait_while(|| self.is_log_frozen());
        }
    }

    fn wait_while(&self, is_closed: impl Fn() -> bool) {
        let mut opening = self.opening.lock();
        while is_closed() {
            self.opened.wait(&mut opening);
        }
    }

    fn open(&self) {
        *self.records.write() = false;
        self.log.store(false, Ordering::Release);
        let _opening = self.opening.lock();
        self.opened.notify_all();
    }
}

impl Journal {
    /// Lets nothing change the store until [`Journal::thaw`]: what is under way is finished, what
    /// comes waits. Everything that is to be in a copy was made durable before.
    pub(crate) fn freeze(&self) {
        // A checkpoint that is under way is finished first: it passes the other door in its middle.
        let _checkpointing = self.checkpointing.lock();
        *self.gate.records.write() = true;
        let _log = self.log.lock();
        self.gate.log.store(true, Ordering::Release);
    }

    /// Lets the store change again.
    pub(crate) fn thaw(&self) {
        self.gate.open();
    }
}
