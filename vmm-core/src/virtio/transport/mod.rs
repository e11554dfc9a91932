//! The PCI transport (virtio 1.3 §4.1): registers in BAR 0, MSI-X, doorbells.
//!
//! ```text
//! BAR 0, 32 KiB    0x0000 common configuration   0x3000 doorbells, 4 bytes per queue
//!                  0x1000 ISR status             0x4000 MSI-X table
//!                  0x2000 device configuration   0x6000 MSI-X pending bits
//! ```
//!
//! One MSI-X vector per queue and one for configuration changes. The hypervisor turns doorbell
//! writes into kicks and the backend's calls into interrupts; this code only (re)connects them.
//! There is no INTx: a driver without MSI-X polls.

mod common;
mod interrupts;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::EventFd;

use interrupts::Connection;

use super::{ConfigChange, VirtioDevice};
use crate::memory::GuestMemory;
use crate::pci::{ConfigSpace, Identity, Msix, NO_VECTOR, PciDevice};
use crate::wiring::{InterruptSource, MsiMessage, WakeUps, Wiring, event};

const BAR: usize = 0;
const BAR_SIZE: u64 = 0x8000;
const REGION: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;
const NOTIFY_MULTIPLIER: u32 = 4;
/// Queues for which the regions have room.
const MAX_QUEUES: usize = 256;

/// Configuration space offset of the window capability's data, after its header.
const CFG_WINDOW_BAR: usize = 4;
const CFG_WINDOW_OFFSET: usize = 8;
const CFG_WINDOW_LENGTH: usize = 12;
const CFG_WINDOW_DATA: usize = 16;

#[derive(Debug)]
struct Queue {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    avail: u64,
    used: u64,
    kick: Arc<EventFd>,
    call: Connection,
}

impl Queue {
    fn reset(&mut self) {
        self.size = self.max_size;
        self.enabled = false;
        (self.descriptors, self.avail, self.used) = (0, 0, 0);
        self.call.vector = NO_VECTOR;
    }
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    config: ConfigSpace,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    wiring: Arc<dyn Wiring>,
    msix: Msix,
    msix_capability: usize,
    window_capability: usize,
    /// GSI of each vector, and the message it has now.
    vectors: Vec<(u32, Option<MsiMessage>)>,
    queues: Vec<Queue>,
    config_change: Arc<ConfigChange>,
    config_connection: Connection,
    /// Address of BAR 0 for which doorbells are connected.
    doorbells: Option<u64>,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    active: bool,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("device_type", &self.device.device_type())
            .field("status", &self.status)
            .field("driver_features", &format_args!("{:#x}", self.driver_features))
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// Wraps `device`; `wake_ups` learns its interrupt sources, for guests that poll.
    ///
    /// # Errors
    /// When events or interrupt numbers run out.
    ///
    /// # Panics
    /// When the device has no queue or more than 256: an error of its author.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        wiring: Arc<dyn Wiring>,
        wake_ups: &WakeUps,
    ) -> io::Result<Self> {
        let count = device.queue_sizes().len();
        assert!((1..=MAX_QUEUES).contains(&count));
        let mut queues = Vec::with_capacity(count);
        for &max_size in device.queue_sizes() {
            let source = Arc::new(InterruptSource::new()?);
            wake_ups.add(source.clone());
            queues.push(Queue {
                max_size,
                size: max_size,
                enabled: false,
                descriptors: 0,
                avail: 0,
                used: 0,
                kick: Arc::new(event()?),
                call: Connection::new(source),
            });
        }
        let config_change = Arc::new(ConfigChange::new()?);
        wake_ups.add(config_change.source.clone());
        let msix = Msix::new(u16::try_from(count + 1).expect("at most 257"));
        let mut vectors = Vec::with_capacity(count + 1);
        for _ in 0..msix.vectors() {
            vectors.push((wiring.allocate_gsi()?, None));
        }
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1040 + device.device_type(),
            revision: 1,
            class: device.pci_class(),
            subsystem_vendor: 0x1af4,
            subsystem: 0x1040,
        });
        config.add_memory_bar(BAR, BAR_SIZE);
        let (msix_capability, window_capability) = capabilities(&mut config, &msix);
        Ok(Self {
            config,
            device,
            memory,
            wiring,
            msix,
            msix_capability,
            window_capability,
            vectors,
            queues,
            config_connection: Connection::new(config_change.source.clone()),
            config_change,
            doorbells: None,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            active: false,
        })
    }

    /// Ends the device's work, as the driver's reset does.
    pub fn reset(&mut self) {
        if self.active {
            self.active = false;
            self.device.reset();
        }
        self.status = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.config_connection.vector = NO_VECTOR;
        self.config_change.isr.store(0, Ordering::Release);
        for queue in &mut self.queues {
            queue.reset();
        }
        self.connect_interrupts();
    }

    fn connect_doorbells(&mut self) {
        let wanted = self.config.bar_address(BAR);
        if wanted == self.doorbells {
            return;
        }
        let bell = |base: u64, index: usize| base + NOTIFY + index as u64 * 4;
        for (index, queue) in self.queues.iter().enumerate() {
            let old = self.doorbells.map_or(Ok(()), |base| {
                self.wiring.disconnect_doorbell(bell(base, index), &queue.kick)
            });
            let new = wanted.map_or(Ok(()), |base| {
                self.wiring.connect_doorbell(bell(base, index), &queue.kick)
            });
            if let Err(error) = old.and(new) {
                // Writes then come to `write_bar`, which kicks by hand: slower, still right.
                tracing::debug!(%error, index, "a doorbell is not connected");
            }
        }
        self.doorbells = wanted;
    }

    /// The window capability: a BAR access through configuration space.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.window_capability;
        let mut bar = [0; 1];
        let (mut offset, mut length) = ([0; 4], [0; 4]);
        self.config.read(at + CFG_WINDOW_BAR, &mut bar);
        self.config.read(at + CFG_WINDOW_OFFSET, &mut offset);
        self.config.read(at + CFG_WINDOW_LENGTH, &mut length);
        let (offset, length) = (u64::from(u32::from_le_bytes(offset)), u32::from_le_bytes(length));
        let inside = usize::from(bar[0]) == BAR && offset + u64::from(length) <= BAR_SIZE;
        (inside && matches!(length, 1 | 2 | 4)).then_some((offset, length as usize))
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if offset == self.window_capability + CFG_WINDOW_DATA
            && let Some((at, len)) = self.window()
            && len <= data.len()
        {
            let mut value = [0; 4];
            self.read_bar(BAR, at, &mut value[..len]);
            self.config.put(offset, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if offset == self.window_capability + CFG_WINDOW_DATA
            && let Some((at, len)) = self.window()
            && let Some(value) = data.get(..len)
        {
            self.write_bar(BAR, at, value);
        }
        let control = self.msix_capability..self.msix_capability + 4;
        if control.contains(&offset) {
            let mut word = [0; 2];
            self.config.read(self.msix_capability + 2, &mut word);
            self.msix.set_control(u16::from_le_bytes(word));
            self.connect_interrupts();
        }
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let at = usize::try_from(offset % REGION).expect("below 4096");
        match offset & !(REGION - 1) {
            COMMON => {
                let common = self.common();
                if let Some(bytes) = common.get(at..at + data.len()) {
                    data.copy_from_slice(bytes);
                }
            }
            ISR if at == 0 => {
                if let Some(isr) = data.first_mut() {
                    *isr = self.config_change.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE => self.device.read_config(at, data),
            PENDING => self.read_pending(at, data),
            TABLE..PENDING => {
                self.msix.read_table(usize::try_from(offset - TABLE).expect("below 8192"), data);
            }
            _ => {}
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset % REGION).expect("below 4096");
        match offset & !(REGION - 1) {
            COMMON => self.write_common(offset, data),
            DEVICE => self.device.write_config(at, data),
            NOTIFY => {
                if let Some(queue) = self.queues.get(at / 4) {
                    let _ = queue.kick.write(1);
                }
            }
            TABLE..PENDING => {
                let offset = usize::try_from(offset - TABLE).expect("below 8192");
                if self.msix.write_table(offset, data).is_some() {
                    self.connect_interrupts();
                }
            }
            _ => {}
        }
    }

    fn bars_changed(&mut self) {
        self.connect_doorbells();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        if self.active {
            self.device.reset();
        }
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Adds the virtio and MSI-X capabilities; returns where MSI-X's and the window's are.
fn capabilities(config: &mut ConfigSpace, msix: &Msix) -> (usize, usize) {
    const VENDOR: u8 = 0x09;
    const MSIX: u8 = 0x11;
    let body = |kind: u8, length: u8, offset: u64, size: u32| {
        let mut body = [0; 14];
        body[0] = length;
        body[1] = kind;
        body[2] = u8::try_from(BAR).expect("0");
        body[6..10].copy_from_slice(&low(offset).to_le_bytes());
        body[10..14].copy_from_slice(&size.to_le_bytes());
        body
    };
    let region = low(REGION);
    config.add_capability(VENDOR, &body(1, 16, COMMON, region), &[]);
    config.add_capability(VENDOR, &body(3, 16, ISR, region), &[]);
    config.add_capability(VENDOR, &body(4, 16, DEVICE, region), &[]);
    let mut notify = body(2, 20, NOTIFY, region).to_vec();
    notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
    config.add_capability(VENDOR, &notify, &[]);
    let mut window = body(5, 20, 0, 0).to_vec();
    window.extend([0; 4]);
    // The window's BAR, offset, length and data belong to the driver.
    let writable = [
        0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let window = config.add_capability(VENDOR, &window, &writable);
    let mut table = (msix.vectors() - 1).to_le_bytes().to_vec();
    table.extend(low(TABLE).to_le_bytes());
    table.extend(low(PENDING).to_le_bytes());
    let msix = config.add_capability(MSIX, &table, &[0, 0xc0]);
    (msix, window)
}
