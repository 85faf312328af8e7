//! What the gate and the keys are locked with: std's. tests/suites/shuttle compiles those two files with locks of its own in this module's place.

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, atomic};
