//! Time since the start, by the time stamp counter.

use smoltcp::time::Instant;

/// Assumed when neither the VMM nor the command line says: timeouts are then off by a factor.
const TYPICAL_KHZ: u32 = 2_000_000;

pub struct Clock {
    khz: u32,
    start: u64,
}

impl Clock {
    pub fn new(given_khz: Option<u32>) -> Self {
        let known = given_khz.unwrap_or_else(crate::ports::tsc_khz);
        // An absent device reads as all ones.
        let khz = if known == 0 || known == u32::MAX { TYPICAL_KHZ } else { known };
        Self { khz, start: stamp() }
    }

    pub fn khz(&self) -> u32 {
        self.khz
    }

    pub fn now(&self) -> Instant {
        let ticks = u128::from(stamp().wrapping_sub(self.start));
        Instant::from_micros((ticks * 1000 / u128::from(self.khz)) as i64)
    }
}

/// The time stamp counter.
pub fn stamp() -> u64 {
    // SAFETY: every x86-64 has it, and the boot stub leaves CR4.TSD clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}
