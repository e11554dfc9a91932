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
/// Two threads of one core were seen to take 22 ns (Xeon) and 60 ns (EPYC), two cores 95 to 190 ns
/// (Xeon) and 340 ns (EPYC): nothing was seen between 60 and 95.
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

/// Round trips before and after a run that differ by more than this factor are of CPUs that moved.
const MOVED: f64 = 1.6;

impl Placement {
    #[must_use]
    pub fn of(round_trip: Duration) -> Placement {
        if round_trip < NEAR { Placement::Near } else { Placement::Far }
    }

    /// Where the CPUs were during a run, by the round trips before and after it. `None`: they moved.
    #[must_use]
    pub fn between(before: Duration, after: Duration) -> Option<Placement> {
        let (least, most) = (before.min(after), before.max(after));
        let here = Placement::of(before);
        (here == Placement::of(after) && most.as_secs_f64() < least.as_secs_f64() * MOVED)
            .then_some(here)
    }
}

/// Lets the calling thread, and all that it starts from now on, run before whatever else wants its CPU.
///
/// # Errors
/// When the machine has no real time for us and no higher priority either.
pub fn real_time() -> anyhow::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure lives through the call, and 0 is the calling thread.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) };
    if status != 0 {
        rustix::process::setpriority_process(None, -20).context("cannot raise the priority")?;
    }
    Ok(())
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
