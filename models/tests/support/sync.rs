//! Loom's versions of what `sync` holds in the product.

#[allow(unused_imports, reason = "each model uses its part")]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

/// Lets another thread go on.
pub(crate) struct Pause;

impl Pause {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn pause(&self) {
        loom::thread::yield_now();
    }
}

/// Not the real ones: their sizes are others.
pub(crate) const MODELLED: bool = true;
