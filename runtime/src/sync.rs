//! Core: the locks of the product, in one place so that a model checker can replace them.
//!
//! parking_lot instead of std: no poisoning, hence no `unwrap` at each lock, and a lock of one byte.
//! A panic under a lock leaves the state as it was then: what is locked is changed in one step, or
//! its owner stops for good (`bug.panic`).

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
