//! One queue's worker, and what the queue costs it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::counters::Counter;

/// No worker has the queue.
const NOBODY: usize = usize::MAX;

/// What is known of one queue. Orderings are relaxed: a change takes effect through the epoch that follows it.
#[derive(Debug)]
#[repr(align(64))] // Queues of different workers lie side by side.
pub(crate) struct Duty {
    owner: AtomicUsize,
    /// Nanoseconds that were spent on the queue's frames. The owner's alone to write.
    busy: Counter,
    /// `busy` at the last sample.
    sampled: AtomicU64,
    /// Millionths of a worker's time.
    load: AtomicU64,
}

impl Default for Duty {
    fn default() -> Self {
        Self {
            owner: AtomicUsize::new(NOBODY),
            busy: Counter::default(),
            sampled: AtomicU64::new(0),
            load: AtomicU64::new(0),
        }
    }
}

impl Duty {
    pub(crate) fn of(queues: usize) -> std::sync::Arc<[Self]> {
        (0..queues).map(|_| Self::default()).collect()
    }

    pub(crate) fn owner(&self) -> Option<usize> {
        Some(self.owner.load(Ordering::Relaxed)).filter(|&owner| owner != NOBODY)
    }

    /// The queue has to be nobody's, in an epoch that all workers have seen.
    pub(crate) fn give(&self, worker: usize) {
        self.owner.store(worker, Ordering::Relaxed);
    }

    /// The queue's worker lets go of it in the next epoch.
    pub(crate) fn withdraw(&self) {
        self.owner.store(NOBODY, Ordering::Relaxed);
    }

    /// For the owner.
    #[inline]
    pub(crate) fn spend(&self, nanoseconds: u64) {
        self.busy.add(nanoseconds);
    }

    pub(crate) fn load(&self) -> u64 {
        self.load.load(Ordering::Relaxed)
    }

    /// Takes into account what was spent in the time since the last sample: half of the load is new.
    pub(crate) fn sample(&self, elapsed: Duration) {
        let busy = self.busy.value();
        let spent = busy.wrapping_sub(self.sampled.swap(busy, Ordering::Relaxed));
        let elapsed = elapsed.as_nanos().max(1);
        let share = u64::try_from(u128::from(spent) * 1_000_000 / elapsed).unwrap_or(u64::MAX);
        self.load.store(u64::midpoint(self.load(), share.min(1_000_000)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_follows_what_is_spent() {
        let duty = Duty::default();
        for _ in 0..20 {
            duty.spend(250_000_000);
            duty.sample(Duration::from_secs(1));
        }
        assert!((249_990..=250_000).contains(&duty.load()), "{}", duty.load());
        for _ in 0..20 {
            duty.sample(Duration::from_secs(1));
        }
        assert_eq!(duty.load(), 0);
    }
}
