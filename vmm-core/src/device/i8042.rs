//! The keyboard controller, as far as an operating system needs it to reset the machine.

use super::{EndSwitch, GuestEnd};
use crate::bus::BusDevice;

/// Ports 0x60 to 0x64. Reads say that nothing is there to read and that commands are welcome.
/// Port 0x61 (system control B) has the timer output and the refresh toggle set, so that loops
/// that wait for a PC's timer end.
#[derive(Debug)]
pub struct I8042 {
    end: EndSwitch,
}

/// First port, and how many.
pub(crate) const I8042_PORTS: (u16, u16) = (0x60, 5);
const SYSTEM_CONTROL_B: u64 = 1;
const TIMER_2_OUTPUT_AND_REFRESH: u8 = 0x30;
const COMMAND: u64 = 4;
/// Pulse output line 0: the processor's reset.
const PULSE_RESET: u8 = 0xfe;

impl I8042 {
    #[must_use]
    pub fn new(end: EndSwitch) -> Self {
        Self { end }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == SYSTEM_CONTROL_B { TIMER_2_OUTPUT_AND_REFRESH } else { 0 });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data.first() == Some(&PULSE_RESET) {
            self.end.set(GuestEnd::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let end = EndSwitch::default();
        let mut controller = I8042::new(end.clone());
        controller.write(0, &[PULSE_RESET]);
        controller.write(COMMAND, &[0xd1]);
        assert_eq!(end.get(), None);
        let mut status = [0xff];
        controller.read(COMMAND, &mut status);
        assert_eq!(status, [0], "input buffer empty: ready for a command");
        controller.write(COMMAND, &[PULSE_RESET]);
        assert_eq!(end.get(), Some(GuestEnd::Reset));
    }
}
