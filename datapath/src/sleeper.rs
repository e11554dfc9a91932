//! A thread that sleeps while there is nothing for it, and those who give it something.
//!
//! The sleeper says that it sleeps, then looks once more; the others give, then look whether it sleeps. A full fence between
//! the two steps on each side lets at least one of them see the other, so nothing lies there unnoticed. Waking costs a system
//! call only when it sleeps.

use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::wake::WakeFd;

#[derive(Debug)]
pub(crate) struct Sleeper {
    sleeps: AtomicBool,
    wake: WakeFd,
}

impl Sleeper {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { sleeps: AtomicBool::new(false), wake: WakeFd::new()? })
    }

    /// To be called after something was given to the sleeper.
    #[inline]
    pub(crate) fn given(&self) {
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) {
            self.wake.wake();
        }
    }

    /// Ends its sleep, or the next one.
    pub(crate) fn wake(&self) {
        self.wake.wake();
    }

    /// Sleeps by `wait` unless there is something, which `ready` tells. What `wait` says; false without a sleep.
    pub(crate) fn sleep_unless(
        &self,
        ready: impl FnOnce() -> bool,
        wait: impl FnOnce(&WakeFd) -> bool,
    ) -> bool {
        self.sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let woken = !ready() && wait(&self.wake);
        self.sleeps.store(false, Ordering::Relaxed);
        woken
    }
}
