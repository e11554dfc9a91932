//! Where the frames of one ring are.

use wire::MacAddr;
use wire::virtio_net::HDR_LEN;

use crate::frontend::Memory;

const SOURCE_AT: usize = HDR_LEN + 6;

/// Slots of equal size in the frontend's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    base: *mut u8,
    /// Offset of the first slot in the memory, which is its guest address too.
    start: usize,
    /// Slots of this ring.
    pub(super) slots: u16,
    /// Descriptors that a slot is cut into.
    pub(super) chain: u16,
    /// Bytes of each descriptor's room.
    part: u32,
    /// Bytes of a frame with its header, in a ring that sends.
    frame: u32,
    /// Where each frame carries its number.
    number_at: usize,
}

// SAFETY: the pointer leads into a mapping that the port keeps; it belongs to the process.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `slots * chain` rooms of `part` bytes from `base + start` on, inside one mapping.
    ///
    /// # Panics
    /// When a room does not hold the number, or the number of slots is not a power of two.
    pub(super) fn new(
        memory: &Memory,
        start: usize,
        [slots, chain]: [u16; 2],
        [part, frame]: [u32; 2],
        number_at: usize,
    ) -> Buffers {
        let bytes = usize::from(slots) * usize::from(chain) * part as usize;
        assert!(start + bytes <= memory.len() && part as usize >= number_at + 8);
        assert!(slots.is_power_of_two());
        Buffers { base: memory.as_ptr(), start, slots, chain, part, frame, number_at }
    }

    /// Offset of one part of a slot.
    #[inline]
    pub(super) fn part(&self, slot: u16, part: u16) -> usize {
        let index = usize::from(slot) * usize::from(self.chain) + usize::from(part);
        self.start + index * self.part as usize
    }

    /// Room of each part.
    #[inline]
    pub(super) fn part_len(&self) -> u32 {
        self.part
    }

    /// Bytes that a slot sends, header and all.
    #[inline]
    pub(super) fn frame_len(&self) -> u32 {
        self.frame
    }

    #[inline]
    pub(super) fn put_number(&self, slot: u16, number: u64) {
        // SAFETY: `new` has checked that all slots are inside the mapping and hold a number.
        unsafe { self.at(slot, self.number_at).cast::<u64>().write_unaligned(number) };
    }

    #[inline]
    pub(super) fn number(&self, slot: u16) -> u64 {
        // SAFETY: as above.
        unsafe { self.at(slot, self.number_at).cast::<u64>().read_unaligned() }
    }

    /// `num_buffers` of the header (virtio 1.3 §5.1.6.1).
    #[inline]
    pub(super) fn num_buffers(&self, slot: u16) -> u16 {
        // SAFETY: as above; the header comes before the number.
        unsafe { self.at(slot, 10).cast::<u16>().read_unaligned() }
    }

    /// Source address of the frame in a slot.
    pub(super) fn source(&self, slot: u16) -> MacAddr {
        // SAFETY: as above; the addresses come before the number.
        MacAddr(unsafe { self.at(slot, SOURCE_AT).cast::<[u8; 6]>().read() })
    }

    pub(super) fn set_source(&self, slot: u16, mac: MacAddr) {
        // SAFETY: as above.
        unsafe { self.at(slot, SOURCE_AT).cast::<[u8; 6]>().write(mac.0) };
    }

    #[inline]
    fn at(&self, slot: u16, offset: usize) -> *mut u8 {
        self.base.wrapping_add(self.part(slot & (self.slots - 1), 0) + offset)
    }
}
