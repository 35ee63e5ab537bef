//! Core: inodes with something that the map does not know.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::sync::{Mutex, RwLock};

use super::overlay::Overlay;
use crate::format::{Ino, Timestamp};

/// What the map does not know of one inode.
#[derive(Debug, Default)]
pub(super) struct Vnode {
    pub(super) state: RwLock<State>,
}

/// The same, locked.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) overlay: Overlay,
    /// When it was read last, if that is to be kept.
    pub(super) atime: Option<Timestamp>,
}

/// Such inodes, by number. Most inodes have none.
#[derive(Debug, Default)]
pub(super) struct Vnodes(Mutex<BTreeMap<Ino, Arc<Vnode>>>);

impl Vnodes {
    /// What there is of an inode.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Vnode>> {
        self.0.lock().get(&ino).map(Arc::clone)
    }

    /// What there is of an inode, for more to come.
    pub(super) fn get_or_make(&self, ino: Ino) -> Arc<Vnode> {
        Arc::clone(self.0.lock().entry(ino).or_default())
    }

    /// Forgets an inode of which there is nothing, and which nobody is about to change.
    pub(super) fn release(&self, ino: Ino) {
        let mut vnodes = self.0.lock();
        // Who has another reference got it under this lock, and could write through it.
        let is_idle = vnodes
            .get_mut(&ino)
            .and_then(Arc::get_mut)
            .is_some_and(|vnode| {
                let state = vnode.state.get_mut();
                state.overlay.is_empty() && state.atime.is_none()
            });
        if is_idle {
            vnodes.remove(&ino);
        }
    }

    /// Forgets an inode that is no more.
    pub(super) fn remove(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }

    /// The numbers of all.
    pub(super) fn all(&self) -> Vec<Ino> {
        self.0.lock().keys().copied().collect()
    }
}
