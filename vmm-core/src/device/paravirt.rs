//! Three ports for freestanding guests, which have neither interrupts nor firmware.
//!
//! | offset | access | meaning |
//! |---|---|---|
//! | 0 | write u32 | idle: sleep that many microseconds (at most one second), or until a device whose driver polls has news |
//! | 4 | write u32 | exit: ends the machine with this value |
//! | 8 | read u32 | frequency of the time stamp counter in kHz, 0 when the host does not know it |
//!
//! Other widths are ignored and read as all ones. Without the idle port a guest that polls its
//! rings would burn a host core for nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{EndSwitch, GuestEnd};
use crate::bus::BusDevice;
use crate::wiring::WakeUps;

/// How many ports the device takes.
pub const PARAVIRT_PORTS: u16 = 12;
const IDLE: u64 = 0;
const EXIT: u64 = 4;
const TSC_KHZ: u64 = 8;
/// Bounds how long the bus lock of the device is held.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The device.
pub struct Paravirt {
    end: EndSwitch,
    tsc_khz: u32,
    wake_ups: Arc<WakeUps>,
    stop: EventFd,
}

impl fmt::Debug for Paravirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paravirt").field("tsc_khz", &self.tsc_khz).finish_non_exhaustive()
    }
}

impl Paravirt {
    /// `stop` ends a sleep for good: it is never consumed.
    #[must_use]
    pub fn new(end: EndSwitch, tsc_khz: u32, wake_ups: Arc<WakeUps>, stop: EventFd) -> Self {
        Self { end, tsc_khz, wake_ups, stop }
    }
}

impl BusDevice for Paravirt {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == TSC_KHZ && data.len() == 4 {
            data.copy_from_slice(&self.tsc_khz.to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        match offset {
            IDLE => {
                let time = Duration::from_micros(value.into()).min(LONGEST_SLEEP);
                self.wake_ups.sleep(time, &self.stop);
            }
            EXIT => self.end.set(GuestEnd::Exit(value)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn device() -> (Paravirt, EndSwitch) {
        let end = EndSwitch::default();
        let stop = crate::wiring::event().unwrap();
        (Paravirt::new(end.clone(), 2_000_000, Arc::default(), stop), end)
    }

    #[test]
    fn exit_takes_the_first_whole_word() {
        let (mut device, end) = device();
        device.write(EXIT, &[1]);
        device.write(TSC_KHZ, &[1, 0, 0, 0]);
        assert_eq!(end.get(), None);
        device.write(EXIT, &[7, 0, 0, 0]);
        device.write(EXIT, &[9, 0, 0, 0]);
        assert_eq!(end.get(), Some(GuestEnd::Exit(7)));
    }

    #[test]
    fn idle_sleeps_for_microseconds_and_is_bounded() {
        let (mut device, _) = device();
        let start = Instant::now();
        device.write(IDLE, &5000_u32.to_le_bytes());
        assert!(start.elapsed() >= Duration::from_millis(5));
        device.write(IDLE, &u32::MAX.to_le_bytes());
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_clock_rate_reads_as_a_word() {
        let (mut device, _) = device();
        let mut word = [0; 4];
        device.read(TSC_KHZ, &mut word);
        assert_eq!(u32::from_le_bytes(word), 2_000_000);
        let mut byte = [0];
        device.read(TSC_KHZ, &mut byte);
        assert_eq!(byte, [0xff]);
    }
}
