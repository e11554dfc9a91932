//! How far apart two CPUs are: the round trip of one cache line between them.
//!
//! On virtual machines two CPUs are at times two threads of one core and at times two cores, and this
//! changes within minutes; rates of anything that passes data between them change with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::thread::{CpuSet, sched_setaffinity};

const WINDOWS: u64 = 10;
const TRIPS: u64 = 20_000;
/// Two threads of one core were seen to take 22 ns (Xeon) and 60 ns (EPYC), two cores 105 to 145 ns
/// (Xeon) and 340 ns (EPYC).
const NEAR: Duration = Duration::from_nanos(80);

/// Distance of two CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Two threads of one core.
    Near,
    /// Two cores.
    Far,
}

impl Placement {
    #[must_use]
    pub fn of(round_trip: Duration) -> Placement {
        if round_trip < NEAR { Placement::Near } else { Placement::Far }
    }
}

/// A cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

/// Smallest mean round trip of ten windows. Takes some ten milliseconds when nothing else runs there.
///
/// # Errors
/// When a CPU does not exist or may not be used.
pub fn round_trip(here: usize, there: usize) -> anyhow::Result<Duration> {
    let line = Line(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| -> anyhow::Result<()> {
            let pinned = pin(there);
            // Without the pin the other side must still be answered.
            for trip in 0..WINDOWS * TRIPS {
                await_value(&line, 2 * trip + 1);
                line.0.store(2 * trip + 2, Ordering::Release);
            }
            pinned
        });
        let ask = scope.spawn(|| -> anyhow::Result<Duration> {
            let pinned = pin(here);
            let mut best = Duration::MAX;
            for window in 0..WINDOWS {
                let start = Instant::now();
                for trip in window * TRIPS..(window + 1) * TRIPS {
                    line.0.store(2 * trip + 1, Ordering::Release);
                    await_value(&line, 2 * trip + 2);
                }
                if window > 0 {
                    best = best.min(start.elapsed() / u32::try_from(TRIPS).unwrap_or(u32::MAX));
                }
            }
            pinned.map(|()| best)
        });
        let best = ask.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        echo.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(best)
    })
}

/// Ties the calling thread to one CPU.
///
/// # Errors
/// When it does not exist or may not be used.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    anyhow::ensure!(cpu < CpuSet::MAX_CPU, "CPU {cpu} is out of range");
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

fn await_value(line: &Line, value: u64) {
    let mut spins = 0_u32;
    while line.0.load(Ordering::Acquire) != value {
        spins = spins.wrapping_add(1);
        if spins.is_multiple_of(1 << 20) {
            // Both threads on one CPU, because a pin failed: let the other one run.
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}
