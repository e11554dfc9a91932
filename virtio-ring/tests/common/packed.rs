//! A packed ring's driver (virtio 1.3 §2.8). Offsets are those of [`Guest::write`]; all of the ring lies in the first region.

use virtio_ring::RingConfig;

use super::{F_NEXT, Guest, USER};

pub(crate) const F_AVAIL: u16 = 1 << 7;
pub(crate) const F_USED: u16 = 1 << 15;
pub(crate) const ENABLE: u16 = 0;
pub(crate) const DISABLE: u16 = 1;
pub(crate) const DESC: u16 = 2;

/// A place and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: u16,
    pub(crate) wrap: bool,
}

impl Place {
    pub(crate) fn step(&mut self, n: u16, size: u16) {
        for _ in 0..n {
            self.at += 1;
            if self.at == size {
                *self = Self { at: 0, wrap: !self.wrap };
            }
        }
    }

    pub(crate) fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }
}

#[derive(Clone)]
pub(crate) struct PackedDriver {
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
    pub(crate) avail: Place,
    pub(crate) used: Place,
}

/// A buffer: address, length, flags.
pub(crate) type Buffer = (u64, u32, u16);

impl PackedDriver {
    /// `start` as a driver has it that used the ring before.
    pub(crate) fn new(guest: &Guest, size: u16, start: Place) -> Self {
        let driver = 16 * u64::from(size);
        let this = Self { size, desc: 0, driver, device: driver + 4, avail: start, used: start };
        // Everything was used in the turn before.
        for at in 0..size {
            let turn = if at < start.at { start.wrap } else { !start.wrap };
            let flags = if turn { F_AVAIL | F_USED } else { 0 };
            guest.write(16 * u64::from(at), &Self::descriptor((0, 0, flags), 0));
        }
        this
    }

    pub(crate) fn config(&self, event_idx: bool, indirect: bool, in_order: bool) -> RingConfig {
        RingConfig {
            packed: true,
            size: self.size,
            desc: USER + self.desc,
            avail: USER + self.driver,
            used: USER + self.device,
            base: u32::from(self.used.bits()),
            event_idx,
            indirect,
            in_order,
        }
    }

    /// Behind the ring: where buffers can be.
    pub(crate) fn buffers(&self) -> u64 {
        (self.device + 4).next_multiple_of(64)
    }

    pub(crate) fn descriptor((addr, len, flags): Buffer, id: u16) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&id.to_le_bytes());
        bytes[14..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    /// Offers a chain. Only its last descriptor has the ID, and the first one's flags are written last.
    pub(crate) fn offer(&mut self, guest: &Guest, id: u16, buffers: &[Buffer]) {
        let head = self.avail;
        let mut head_flags = 0;
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let owner = if self.avail.wrap { F_AVAIL } else { F_USED };
            let flags = flags | owner | if last { 0 } else { F_NEXT };
            let id = if last { id } else { 0xdead };
            let bytes = Self::descriptor((addr, len, flags), id);
            let place = self.desc + 16 * u64::from(self.avail.at);
            if i == 0 {
                head_flags = flags;
                guest.write(place, &bytes[..14]);
            } else {
                guest.write(place, &bytes);
            }
            self.avail.step(1, self.size);
        }
        guest.set_u16(self.desc + 16 * u64::from(head.at) + 14, head_flags);
    }

    pub(crate) fn flags(&self, guest: &Guest, at: u16) -> u16 {
        guest.u16(self.desc + 16 * u64::from(at) + 14)
    }

    /// The used descriptor at the driver's place, if there is one: ID, length, flags.
    pub(crate) fn peek(&self, guest: &Guest) -> Option<(u16, u32, u16)> {
        let place = self.desc + 16 * u64::from(self.used.at);
        let bytes = guest.read(place + 8, 8);
        let len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let id = u16::from_le_bytes(bytes[4..6].try_into().unwrap());
        let flags = u16::from_le_bytes(bytes[6..].try_into().unwrap());
        let turn = [F_AVAIL, F_USED].map(|bit| flags & bit != 0);
        (turn == [self.used.wrap; 2]).then_some((id, len, flags))
    }

    /// What the driver wishes to be told.
    pub(crate) fn set_event(&self, guest: &Guest, offset: u16, flags: u16) {
        guest.set_u16(self.driver, offset);
        guest.set_u16(self.driver + 2, flags);
    }

    /// What the device wishes to be told: offset and flags.
    pub(crate) fn device_event(&self, guest: &Guest) -> (u16, u16) {
        (guest.u16(self.device), guest.u16(self.device + 2))
    }
}
