//! Small devices on ports: the serial console, the keyboard controller's reset line and the
//! paravirtual ports of test guests.

mod i8042;
mod paravirt;
mod serial;

pub use i8042::I8042;
pub(crate) use i8042::I8042_PORTS;
pub use paravirt::{PARAVIRT_PORTS, Paravirt};
pub use serial::{SERIAL_PORTS, SerialConsole};

use std::sync::{Arc, OnceLock};

/// How a guest ended itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// A reset through the keyboard controller.
    Reset,
    /// The value written to the exit port.
    Exit(u32),
}

/// Set once by the device through which the guest ends, read by the vCPU after each access.
#[derive(Clone, Debug, Default)]
pub struct EndSwitch(Arc<OnceLock<GuestEnd>>);

impl EndSwitch {
    /// The first end counts.
    pub fn set(&self, end: GuestEnd) {
        let _ = self.0.set(end);
    }

    #[must_use]
    pub fn get(&self) -> Option<GuestEnd> {
        self.0.get().copied()
    }
}
