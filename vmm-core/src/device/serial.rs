//! The serial console: a 16550 whose output goes to a writer and whose input comes from the
//! machine's main loop.

use std::fmt;
use std::io::{self, Write};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// How many ports the device takes.
pub const SERIAL_PORTS: u16 = 8;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The device. String instructions write all their bytes.
pub struct SerialConsole {
    uart: Serial<Line, NoEvents, Box<dyn Write + Send>>,
    /// Output stopped working: said once.
    mute: bool,
}

impl fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialConsole").field("mute", &self.mute).finish_non_exhaustive()
    }
}

impl SerialConsole {
    /// `interrupt` is signalled for the device's interrupt, `output` gets what the guest prints.
    #[must_use]
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> Self {
        Self { uart: Serial::new(Line(interrupt), output), mute: false }
    }

    /// Bytes that [`SerialConsole::input`] takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Types `bytes` into the guest's console, as many as there is room for.
    ///
    /// # Errors
    /// When the interrupt cannot be signalled.
    pub fn input(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = &bytes[..bytes.len().min(self.room())];
        self.uart.enqueue_raw_bytes(fits).map_err(|error| match error {
            vm_superio::serial::Error::Trigger(error)
            | vm_superio::serial::Error::IOError(error) => error,
            vm_superio::serial::Error::FullFifo => io::ErrorKind::WouldBlock.into(),
        })
    }
}

impl BusDevice for SerialConsole {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(offset) = u8::try_from(offset) else { return };
        for byte in data {
            *byte = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = u8::try_from(offset) else { return };
        for &byte in data {
            if let Err(error) = self.uart.write(offset, byte)
                && !self.mute
            {
                self.mute = true;
                tracing::warn!(%error, "the guest's console output is lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_and_input() {
        let screen = Screen::default();
        let interrupt = crate::wiring::event().unwrap();
        let line = interrupt.try_clone().unwrap();
        let mut serial = SerialConsole::new(interrupt, Box::new(screen.clone()));
        serial.write(0, b"hi");
        serial.write(0, b"!");
        assert_eq!(*screen.0.lock().unwrap(), b"hi!");

        serial.write(1, &[1]);
        let long = [b'x'; 100];
        let taken = serial.input(&long).unwrap();
        assert!(taken > 0 && taken <= 64);
        assert_eq!(line.read().unwrap(), 1, "received data raises the interrupt");
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(byte, [b'x']);
    }
}
