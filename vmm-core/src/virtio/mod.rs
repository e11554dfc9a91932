//! Virtio 1.3 devices and their PCI transport. Modern interface only, split rings.

mod net;
mod transport;

pub use net::{NetConfig, NetError, VhostUserNet};
pub use transport::VirtioPci;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use crate::wiring::InterruptSource;

/// A device behind the transport. Its life, which the transport guarantees:
///
/// 1. It exists, unconnected to any driver: `features`, `queue_sizes` and the configuration may
///    be read at any time; `features` does not change while a driver is negotiating.
/// 2. `activate` when the driver sets DRIVER_OK, with what was negotiated. The device may touch
///    the rings from here on. An error leaves it inactive, and the driver sees NEEDS_RESET.
/// 3. `reset` when the driver writes status 0, or the machine ends. When it returns nobody
///    touches the rings any more. It is also called on a device that is not active, where it
///    must do nothing.
///
/// Then 2 may come again. All calls come with the transport's lock held, one at a time.
pub trait VirtioDevice: Send {
    /// Virtio 1.3 §5.
    fn device_type(&self) -> u16;
    /// Base class, subclass, programming interface from the high byte down.
    fn pci_class(&self) -> u32;
    /// The largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Features that a driver may accept.
    fn features(&self) -> u64;
    /// Reads the device's configuration; bytes beyond it read as zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// Writes the device's configuration, where it can be written.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// # Errors
    /// What kept the device from starting; the machine logs it with its causes.
    fn activate(&mut self, activation: Activation) -> Result<(), Box<dyn std::error::Error>>;
    fn reset(&mut self);
}

/// What a driver and the transport agreed on.
#[derive(Debug)]
pub struct Activation {
    /// Accepted features, a subset of the offered ones.
    pub features: u64,
    pub memory: GuestMemory,
    /// The enabled queues.
    pub queues: Vec<ActiveQueue>,
    /// For changes of the configuration while active.
    pub config_change: Arc<ConfigChange>,
}

/// One enabled split virtqueue, checked: its size is a power of two within the device's limit
/// and all three parts lie in guest memory, aligned.
#[derive(Clone, Debug)]
pub struct ActiveQueue {
    pub index: u16,
    pub size: u16,
    /// Guest physical addresses.
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    /// The driver signals it: buffers were made available.
    pub kick: Arc<EventFd>,
    /// The device signals it: buffers were used.
    pub call: Arc<InterruptSource>,
}

/// Tells the driver that the configuration changed (virtio 1.3 §4.1.4.5, §4.1.4.3.1).
#[derive(Debug)]
pub struct ConfigChange {
    generation: AtomicU8,
    isr: AtomicU8,
    source: Arc<InterruptSource>,
}

const ISR_CONFIG: u8 = 2;

impl ConfigChange {
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            generation: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            source: Arc::new(InterruptSource::new()?),
        })
    }

    /// To be called after the change.
    pub fn notify(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        // The counter of an eventfd is full only if nobody read 2^64 signals.
        let _ = self.source.event().write(1);
    }
}
