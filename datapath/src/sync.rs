//! What threads meet at, in one place: the models (crate `models`) put loom's versions here.

pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

use std::time::{Duration, Instant};

/// Waiting for another thread's next step: first on the processor, then beside it.
pub(crate) struct Pause(Instant);

impl Pause {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn pause(&self) {
        if self.0.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
