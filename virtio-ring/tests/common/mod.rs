//! A driver for the tests: its own mapping of the guest's memory, and rings in it.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod packed;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_ring::{GuestMemory, MappedRegion, RegionSpec, RingConfig};

pub(crate) const F_NEXT: u16 = 1;
pub(crate) const F_WRITE: u16 = 2;
pub(crate) const F_INDIRECT: u16 = 4;

/// Where the regions lie for the guest and for its frontend.
pub(crate) const GUEST: u64 = 0x1_0000_0000;
pub(crate) const USER: u64 = 0x7f00_0000_0000;

/// Memory of a guest, written with system calls: independent of the mapping under test.
pub(crate) struct Guest {
    file: File,
    pub(crate) size: u64,
}

impl Guest {
    pub(crate) fn new(size: u64) -> Self {
        let fd = memfd_create("ring-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        Self { file: File::from(fd), size }
    }

    /// The whole as `regions` regions side by side, with a hole of as much between them in guest addresses.
    pub(crate) fn map(&self, regions: u64) -> Arc<GuestMemory> {
        let part = self.size / regions;
        let map = |i| {
            let spec = RegionSpec {
                guest_addr: GUEST + 2 * i * part,
                size: part,
                user_addr: USER + i * part,
                mmap_offset: i * part,
            };
            Arc::new(MappedRegion::map(spec, self.file.as_fd()).unwrap())
        };
        Arc::new(GuestMemory::new((0..regions).map(map).collect()).unwrap())
    }

    pub(crate) fn fd(&self) -> OwnedFd {
        self.file.as_fd().try_clone_to_owned().unwrap()
    }

    pub(crate) fn shrink(&self, size: u64) {
        ftruncate(&self.file, size).unwrap();
    }

    /// `offset` is from the first region's beginning, without holes.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset, 2).try_into().unwrap())
    }

    pub(crate) fn set_u16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// A split ring's driver. Offsets are those of [`Guest::write`]; all of the ring lies in the first region.
pub(crate) struct Driver {
    pub(crate) guest: Guest,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) avail_idx: u16,
    pub(crate) used_seen: u16,
}

impl Driver {
    pub(crate) fn new(guest: Guest, size: u16, start: u16) -> Self {
        let n = u64::from(size);
        let avail = 16 * n;
        let used = (avail + 6 + 2 * n).next_multiple_of(4);
        let driver = Self { guest, size, desc: 0, avail, used, avail_idx: start, used_seen: start };
        driver.guest.set_u16(avail + 2, start);
        driver.guest.set_u16(used + 2, start);
        driver
    }

    pub(crate) fn config(&self, event_idx: bool, indirect: bool) -> RingConfig {
        RingConfig {
            size: self.size,
            desc: USER + self.desc,
            avail: USER + self.avail,
            used: USER + self.used,
            packed: false,
            base: u32::from(self.used_seen),
            event_idx,
            indirect,
            in_order: false,
        }
    }

    /// Behind the ring: where buffers can be.
    pub(crate) fn buffers(&self) -> u64 {
        (self.used + 6 + 8 * u64::from(self.size)).next_multiple_of(64)
    }

    pub(crate) fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }

    pub(crate) fn set_desc(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = Self::descriptor(addr, len, flags, next);
        self.guest.write(self.desc + 16 * u64::from(at), &bytes);
    }

    /// Offers a chain; the device sees it with the next [`Driver::publish`].
    pub(crate) fn push(&mut self, head: u16) {
        let place = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.guest.set_u16(place, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    pub(crate) fn publish(&self) {
        self.guest.set_u16(self.avail + 2, self.avail_idx);
    }

    pub(crate) fn set_interrupt_flag(&self, no_interrupt: bool) {
        self.guest.set_u16(self.avail, u16::from(no_interrupt));
    }

    pub(crate) fn set_used_event(&self, event: u16) {
        self.guest.set_u16(self.avail + 4 + 2 * u64::from(self.size), event);
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.guest.u16(self.used + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.guest.u16(self.used)
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.guest.u16(self.used + 2)
    }

    /// The next used entry: head and length.
    pub(crate) fn pop(&mut self) -> Option<(u32, u32)> {
        if self.used_idx() == self.used_seen {
            return None;
        }
        let place = self.used + 4 + 8 * u64::from(self.used_seen % self.size);
        let entry = self.guest.read(place, 8);
        self.used_seen = self.used_seen.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }
}
