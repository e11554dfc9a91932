//! Which configuration each worker has seen: quiescent-state-based reclamation.
//!
//! A new snapshot is stored, then the epoch is raised and every worker woken. A worker looks at the epoch between bursts; when it has risen
//! it drops the old snapshot, takes the new one, adjusts what it waits for, and only then says that it has seen the
//! epoch. So when all have, nobody touches what only the old snapshot held. A sleeping worker is woken for it: it must let go
//! of descriptors that are about to be closed.

use crate::sync::Pause;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wake::WakeFd;

#[derive(Debug)]
struct Seat {
    seen: AtomicU64,
    wake: WakeFd,
}

/// What a worker says when it ends.
const ENDED: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Epochs {
    current: AtomicU64,
    seats: Box<[Seat]>,
}

impl Epochs {
    pub(crate) fn new(workers: usize) -> std::io::Result<Self> {
        let seat = |_| Ok(Seat { seen: AtomicU64::new(0), wake: WakeFd::new()? });
        Ok(Self {
            current: AtomicU64::new(1),
            seats: (0..workers).map(seat).collect::<std::io::Result<_>>()?,
        })
    }

    pub(crate) fn workers(&self) -> usize {
        self.seats.len()
    }

    /// For workers, between bursts: below, nothing has changed.
    #[inline(always)]
    pub(crate) fn current(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// A worker has taken up the snapshot of this epoch, or a later one.
    pub(crate) fn seen(&self, worker: usize, epoch: u64) {
        self.seats[worker].seen.store(epoch, Ordering::Release);
    }

    pub(crate) fn ended(&self, worker: usize) {
        self.seen(worker, ENDED);
    }

    pub(crate) fn wake_fd(&self, worker: usize) -> &WakeFd {
        &self.seats[worker].wake
    }

    pub(crate) fn wake(&self, worker: usize) {
        self.seats[worker].wake.wake();
    }

    /// To be called when a new snapshot is in place. Returns the epoch to wait for.
    pub(crate) fn advance(&self) -> u64 {
        let epoch = self.current.fetch_add(1, Ordering::AcqRel) + 1;
        for seat in &self.seats {
            seat.wake.wake();
        }
        epoch
    }

    pub(crate) fn all_seen(&self, epoch: u64) -> bool {
        self.seats.iter().all(|seat| seat.seen.load(Ordering::Acquire) >= epoch)
    }

    /// Waits until every worker has seen `epoch`: the length of one burst, and of being scheduled.
    pub(crate) fn wait(&self, epoch: u64) {
        let pause = Pause::new();
        while !self.all_seen(epoch) {
            pause.pause();
        }
    }
}
