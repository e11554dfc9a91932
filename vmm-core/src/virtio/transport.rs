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

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, ConfigChange, VirtioDevice};
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

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;

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

/// An interrupt source and the vector that the driver gave it.
#[derive(Debug)]
struct Connection {
    source: Arc<InterruptSource>,
    vector: u16,
    gsi: Option<u32>,
}

impl Connection {
    fn new(source: Arc<InterruptSource>) -> Self {
        Self { source, vector: NO_VECTOR, gsi: None }
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

    /// Makes every source raise what its vector now delivers.
    fn connect_interrupts(&mut self) {
        let calls = self.queues.iter_mut().map(|queue| &mut queue.call);
        for connection in calls.chain([&mut self.config_connection]) {
            let message = self.msix.message(connection.vector);
            connection.source.set_polled(!self.msix.enabled() || connection.vector == NO_VECTOR);
            let vector = self.vectors.get_mut(usize::from(connection.vector));
            let result = match (message, vector) {
                (Some(message), Some((gsi, routed))) => {
                    let mut result = Ok(());
                    if *routed != Some(message) {
                        result = self.wiring.route_msi(*gsi, message);
                        *routed = Some(message);
                    }
                    result.and_then(|()| reconnect(&*self.wiring, connection, Some(*gsi)))
                }
                _ => reconnect(&*self.wiring, connection, None),
            };
            if let Err(error) = result {
                tracing::error!(%error, vector = connection.vector, "an interrupt is lost");
            }
        }
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

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        // A driver may not clear bits except by a reset; NEEDS_RESET is the device's.
        let mut status = status & !STATUS_NEEDS_RESET | self.status;
        let new = status & !self.status;
        if new & STATUS_FEATURES_OK != 0 && !self.features_acceptable() {
            status &= !STATUS_FEATURES_OK;
        }
        if new & STATUS_DRIVER_OK != 0 && !self.active {
            let ready = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
            if status & ready != ready {
                tracing::warn!(status, "a driver starts its device without negotiating");
                status |= STATUS_NEEDS_RESET;
            } else if let Err(error) = self.activate() {
                tracing::error!(error = Chain(&*error).to_string(), "a virtio device cannot start");
                status |= STATUS_NEEDS_RESET;
            }
        }
        self.status = status;
        if new & STATUS_DRIVER_OK != 0 && status & STATUS_NEEDS_RESET != 0 {
            self.config_change.notify();
        }
    }

    fn features_acceptable(&self) -> bool {
        let version_1 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
        let extra = self.driver_features & !self.device.features();
        if extra != 0 || self.driver_features & version_1 == 0 {
            tracing::warn!(
                accepted = format_args!("{:#x}", self.driver_features),
                offered = format_args!("{:#x}", self.device.features()),
                "a driver's features are refused"
            );
            return false;
        }
        true
    }

    fn activate(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let mut queues = Vec::new();
        for (index, queue) in self.queues.iter().enumerate().filter(|(_, queue)| queue.enabled) {
            let queue = ActiveQueue {
                index: u16::try_from(index)?,
                size: queue.size,
                descriptors: queue.descriptors,
                avail: queue.avail,
                used: queue.used,
                kick: queue.kick.clone(),
                call: queue.call.source.clone(),
            };
            check_rings(&queue, &self.memory)?;
            queues.push(queue);
        }
        self.device.activate(Activation {
            features: self.driver_features,
            memory: self.memory.clone(),
            queues,
            config_change: self.config_change.clone(),
        })?;
        self.active = true;
        Ok(())
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn common(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let half = |features: u64, select: u32| match select {
            0 => low(features),
            1 => low(features >> 32),
            _ => 0,
        };
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(self.device.features(), self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(16, &self.config_connection.vector.to_le_bytes());
        put(18, &u16::try_from(self.queues.len()).expect("at most 256").to_le_bytes());
        put(20, &[self.status, self.config_change.generation.load(Ordering::Acquire)]);
        put(22, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queue() {
            put(24, &queue.size.to_le_bytes());
            put(26, &queue.call.vector.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.descriptors.to_le_bytes());
            put(40, &queue.avail.to_le_bytes());
            put(48, &queue.used.to_le_bytes());
        } else {
            put(26, &NO_VECTOR.to_le_bytes());
        }
        bytes
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        let Some(to) = bytes.get_mut(..data.len()) else { return };
        to.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let word = low(value);
        let half = u16::from_le_bytes([bytes[0], bytes[1]]);
        match (offset, data.len()) {
            (0, 4) => self.device_feature_select = word,
            (8, 4) => self.driver_feature_select = word,
            (12, 4) if self.status & STATUS_FEATURES_OK == 0 => match self.driver_feature_select {
                0 => set_half(&mut self.driver_features, 0, word),
                1 => set_half(&mut self.driver_features, 4, word),
                _ => {}
            },
            (16, 2) => {
                self.config_connection.vector = self.existing(half);
                self.connect_interrupts();
            }
            (20, 1) => self.set_status(bytes[0]),
            (22, 2) => self.queue_select = half,
            (26, 2) => {
                let vector = self.existing(half);
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.call.vector = vector;
                    self.connect_interrupts();
                }
            }
            _ => self.write_queue(offset, data.len(), value),
        }
    }

    /// Registers that cannot change once the queue is enabled.
    fn write_queue(&mut self, offset: u64, len: usize, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled {
            return;
        }
        match (offset, len) {
            (24, 2) => {
                // An impossible size is remembered as it is and refused by `queue_enable`.
                queue.size = u16::try_from(value).unwrap_or(0);
            }
            (28, 2) => {
                queue.enabled =
                    value == 1 && queue.size.is_power_of_two() && queue.size <= queue.max_size;
            }
            (32..56, 4 | 8) if offset.is_multiple_of(len as u64) => {
                let part = match offset / 8 {
                    4 => &mut queue.descriptors,
                    5 => &mut queue.avail,
                    _ => &mut queue.used,
                };
                if len == 8 {
                    *part = value;
                } else {
                    set_half(part, usize::from(offset % 8 == 4) * 4, low(value));
                }
            }
            _ => {}
        }
    }

    /// A vector that the driver asks for, or none when there is no such vector.
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let mut bits = [0_u8; MAX_QUEUES / 8 + 8];
        let calls = self.queues.iter().map(|queue| &queue.call);
        for connection in calls.chain([&self.config_connection]) {
            let vector = usize::from(connection.vector);
            if vector < self.vectors.len()
                && connection.gsi.is_none()
                && connection.source.pending()
            {
                bits[vector / 8] |= 1 << (vector % 8);
            }
        }
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bits.get(offset + i).copied().unwrap_or(0);
        }
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

/// An error with its causes on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// A driver gave an address where there is no memory for a ring of this size.
#[derive(Debug, thiserror::Error)]
#[error(
    "the {part} of queue {queue} at {address:#x} ({len} bytes) is not in guest memory or not aligned"
)]
struct BadRing {
    part: &'static str,
    queue: u16,
    address: u64,
    len: usize,
}

/// Virtio 1.3 §2.7: sizes and alignments of the three parts.
fn check_rings(queue: &ActiveQueue, memory: &GuestMemory) -> Result<(), BadRing> {
    let size = usize::from(queue.size);
    for (part, address, len, alignment) in [
        ("descriptor table", queue.descriptors, 16 * size, 16),
        ("available ring", queue.avail, 6 + 2 * size, 2),
        ("used ring", queue.used, 6 + 8 * size, 4),
    ] {
        let inside = memory.find_region(GuestAddress(address)).is_some_and(|region| {
            use vm_memory::GuestMemoryRegion as _;
            let offset = address - region.start_addr().0;
            region.len() - offset >= len as u64
        });
        if !inside || address % alignment != 0 {
            return Err(BadRing { part, queue: queue.index, address, len });
        }
    }
    Ok(())
}

fn reconnect(wiring: &dyn Wiring, connection: &mut Connection, gsi: Option<u32>) -> io::Result<()> {
    if connection.gsi == gsi {
        return Ok(());
    }
    if let Some(old) = connection.gsi.take() {
        wiring.disconnect_interrupt(old, connection.source.event())?;
    }
    if let Some(new) = gsi {
        wiring.connect_interrupt(new, connection.source.event())?;
        connection.gsi = Some(new);
    }
    Ok(())
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Replaces the four bytes of `value` from byte `at` on.
fn set_half(value: &mut u64, at: usize, half: u32) {
    let mut bytes = value.to_le_bytes();
    bytes[at..at + 4].copy_from_slice(&half.to_le_bytes());
    *value = u64::from_le_bytes(bytes);
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
