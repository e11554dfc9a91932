//! The two clocks that engines are given.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// One reading of both clocks. Engines never read a clock themselves.
///
/// Timers run on `mono`, so that a jump of the wall clock neither expires nor prolongs anything;
/// what must survive a restart is stored in `wall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time since an arbitrary point that does not move while this machine runs (it includes
    /// time spent suspended).
    pub mono: Duration,
    /// Time since the Unix epoch.
    pub wall: Duration,
}

impl Now {
    /// Reads the system's clocks.
    #[must_use]
    pub fn read() -> Self {
        Self { mono: clock(ClockId::Boottime), wall: clock(ClockId::Realtime) }
    }
}

fn clock(id: ClockId) -> Duration {
    let now = clock_gettime(id);
    // A clock set before the epoch counts as the epoch.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
