//! The common configuration (virtio 1.3 §4.1.4.3): status, features, queues.

use std::fmt;
use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::{Queue, VirtioPci, low};
use crate::memory::GuestMemory;
use crate::pci::NO_VECTOR;
use crate::virtio::{Activation, ActiveQueue};

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;

impl VirtioPci {
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

    pub(super) fn common(&self) -> [u8; 64] {
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

    pub(super) fn write_common(&mut self, offset: u64, data: &[u8]) {
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

/// Replaces the four bytes of `value` from byte `at` on.
fn set_half(value: &mut u64, at: usize, half: u32) {
    let mut bytes = value.to_le_bytes();
    bytes[at..at + 4].copy_from_slice(&half.to_le_bytes());
    *value = u64::from_le_bytes(bytes);
}
