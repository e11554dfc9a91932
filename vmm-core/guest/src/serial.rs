//! Lines on the serial console: `event key=value ...`, for people and tests alike.

use core::fmt::{self, Write};

use crate::ports;

const PORT: u16 = 0x3f8;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            ports::out8(PORT, byte);
        }
        Ok(())
    }
}

pub fn line(text: fmt::Arguments<'_>) {
    let _ = Serial.write_fmt(text);
    let _ = Serial.write_str("\n");
}

/// Prints one line.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::serial::line(format_args!($($part)*)) };
}
