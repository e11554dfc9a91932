//! Whether a port is out of service, and why.

use std::sync::PoisonError;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Workers put the port in, the thread that serves its frontend takes it out. The flag is what workers look at for each
/// burst; it changes only under the reason's lock, so that both belong together.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    on: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Quarantine {
    /// True the first time since the last release, for whoever tells others of it. The first reason stays.
    #[cold]
    pub(crate) fn begin(&self, reason: String) -> bool {
        let mut said = self.lock();
        said.get_or_insert(reason);
        !self.on.swap(true, Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.lock().clone()
    }

    /// The guest starts anew.
    pub(crate) fn end(&self) {
        let mut said = self.lock();
        *said = None;
        self.on.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
