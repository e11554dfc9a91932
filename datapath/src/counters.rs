//! Counters of one port by one worker: written by that worker alone, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

use switch::DropReason;

use crate::PortStats;

/// A number with one writer. Adding is a load and a store, not a locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline(always)]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See [`PortStats`].
#[derive(Debug)]
#[repr(align(128))] // No two workers in one line, nor in the pair that is fetched together.
pub(crate) struct Counters {
    pub(crate) rx_packets: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) tx_packets: Counter,
    pub(crate) tx_bytes: Counter,
    drops: [Counter; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            rx_packets: Counter::default(),
            rx_bytes: Counter::default(),
            tx_packets: Counter::default(),
            tx_bytes: Counter::default(),
            drops: [const { Counter(AtomicU64::new(0)) }; DropReason::COUNT],
        }
    }
}

impl Counters {
    #[inline]
    pub(crate) fn drop(&self, reason: DropReason, n: u64) {
        self.drops[reason as usize].add(n);
    }

    pub(crate) fn add_to(&self, stats: &mut PortStats) {
        stats.rx_packets += self.rx_packets.value();
        stats.rx_bytes += self.rx_bytes.value();
        stats.tx_packets += self.tx_packets.value();
        stats.tx_bytes += self.tx_bytes.value();
        for (sum, counter) in stats.drops.iter_mut().zip(&self.drops) {
            sum.1 += counter.value();
        }
    }
}

/// Stats with every reason at 0.
pub(crate) fn empty_stats() -> PortStats {
    let drops = DropReason::ALL.iter().map(|&reason| (reason, 0)).collect();
    PortStats { drops, ..PortStats::default() }
}
