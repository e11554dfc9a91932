//! What a worker's time goes to.
//!
//! The clock is read between rounds, not per burst: the time between two readings is divided among the queues that
//! gave frames in it, by frames and bytes. A reading without frames is idle time, which is nobody's.

use std::time::Duration;

use super::burst::Taken;

/// Bytes that are copied in the time which a frame takes without them.
const FRAME: u64 = 800;

/// Costs since the last reading, by the source's position.
#[derive(Debug, Default)]
pub(super) struct Meter {
    costs: Vec<u64>,
    /// Sources with a cost.
    touched: Vec<usize>,
    total: u64,
}

impl Meter {
    /// The sources are others; costs are forgotten.
    pub(super) fn reset(&mut self, sources: usize) {
        self.costs.clear();
        self.costs.resize(sources, 0);
        self.touched.clear();
        self.touched.reserve(sources);
        self.total = 0;
    }

    #[inline]
    pub(super) fn add(&mut self, source: usize, taken: Taken) {
        let cost = taken.frames as u64 * FRAME + taken.bytes;
        let Some(sum) = self.costs.get_mut(source).filter(|_| cost > 0) else { return };
        if *sum == 0 {
            // Each source once: there is room.
            self.touched.push(source);
        }
        *sum += cost;
        self.total += cost;
    }

    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.total == 0
    }

    /// Divides the time since the last reading, in nanoseconds.
    pub(super) fn settle(&mut self, elapsed: Duration, mut charge: impl FnMut(usize, u64)) {
        let elapsed = elapsed.as_nanos();
        for source in self.touched.drain(..) {
            let cost = std::mem::take(&mut self.costs[source]);
            let share = elapsed * u128::from(cost) / u128::from(self.total);
            charge(source, u64::try_from(share).unwrap_or(u64::MAX));
        }
        self.total = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_divided_by_frames_and_bytes_and_once_only() {
        let mut meter = Meter::default();
        meter.reset(3);
        assert!(meter.is_idle());
        meter.add(2, Taken { frames: 10, bytes: 2000 });
        meter.add(0, Taken { frames: 10, bytes: 10_000 });
        meter.add(2, Taken { frames: 0, bytes: 0 });
        meter.add(2, Taken { frames: 10, bytes: 2000 });
        let mut charged = Vec::new();
        meter.settle(Duration::from_nanos(3_800), |source, time| charged.push((source, time)));
        assert_eq!(charged, [(2, 2_000), (0, 1_800)]);
        assert!(meter.is_idle());
        meter.settle(Duration::from_secs(1), |source, time| panic!("{source} pays {time}"));
    }
}
