//! Core: a frozen volume, which is thawed in the end, whatever happens to who froze it.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use runtime::sync::{Condvar, Mutex};

use super::controlled::{ControlError, Controlled};
use crate::exit::Exit;

/// Freezes and thaws one volume.
pub(super) struct Freezer {
    volume: Arc<dyn Controlled>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    freeze: Mutex<Freeze>,
    thawed: Condvar,
}

#[derive(Default)]
struct Freeze {
    /// How often the volume was frozen: a number for each time.
    number: u64,
    frozen: bool,
}

impl Freezer {
    pub(super) fn new(volume: Arc<dyn Controlled>) -> Self {
        Self {
            volume,
            state: Arc::default(),
        }
    }

    /// Freezes for at most `limit`.
    pub(super) fn freeze(&self, limit: Duration) -> Result<(), ControlError> {
        let mut freeze = self.state.freeze.lock();
        if freeze.frozen {
            return Err(ControlError::AlreadyFrozen);
        }
        self.volume.freeze()?;
        freeze.frozen = true;
        freeze.number += 1;
        let watched = self.watch(freeze.number, limit);
        if let Err(e) = watched {
            freeze.frozen = false;
            self.volume.thaw()?;
            return Err(ControlError::Failed {
                code: "fs.system",
                exit: Exit::Bug.code(),
                message: format!("no thread watches over the freeze: {e}"),
            });
        }
        Ok(())
    }

    /// Thaws; an error when the volume has not been frozen all the time since it was.
    pub(super) fn thaw(&self) -> Result<(), ControlError> {
        let mut freeze = self.state.freeze.lock();
        if !freeze.frozen {
            return Err(ControlError::NotFrozen);
        }
        freeze.frozen = false;
        self.state.thawed.notify_all();
        self.volume.thaw()
    }

    /// Thaws if need be: the mount ends.
    pub(super) fn end(&self) {
        match self.thaw() {
            Ok(()) | Err(ControlError::NotFrozen) => {}
            Err(e) => tracing::warn!(error_code = e.code(), "{e}"),
        }
    }

    /// Thaws freeze `number` when its time is over.
    fn watch(&self, number: u64, limit: Duration) -> io::Result<()> {
        let (volume, state) = (Arc::clone(&self.volume), Arc::clone(&self.state));
        let watch = move || {
            let mut freeze = state.freeze.lock();
            let is_this = |freeze: &mut Freeze| freeze.frozen && freeze.number == number;
            state.thawed.wait_while_for(&mut freeze, is_this, limit);
            if is_this(&mut freeze) {
                freeze.frozen = false;
                tracing::warn!(
                    error_code = "fs.freeze_expired",
                    seconds = limit.as_secs(),
                    "the volume was thawed because its time was over"
                );
                if let Err(e) = volume.thaw() {
                    tracing::warn!(error_code = e.code(), "{e}");
                }
            }
        };
        thread::Builder::new()
            .name("encfs-freeze".into())
            .spawn(watch)
            .map(|_| ())
    }
}
