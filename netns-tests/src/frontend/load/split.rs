//! Both rings of a port in the split layout (virtio 1.3 §2.7). Descriptors and the order of the available entries are written once;
//! after that only indices move.

use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::buffers::Buffers;
use crate::frontend::memory::Memory;
use crate::frontend::ring::{RingLayout, desc};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;

/// The sending ring.
#[derive(Debug)]
pub(super) struct Tx {
    ring: Ring,
    pub(super) buffers: Buffers,
    avail: u16,
}

/// The receiving ring.
#[derive(Debug)]
pub(super) struct Rx {
    ring: Ring,
    buffers: Buffers,
    avail: u16,
    used: u16,
}

/// Where the ring is in this process.
#[derive(Debug)]
struct Ring {
    layout: RingLayout,
    base: *mut u8,
}

// SAFETY: the pointer leads into a mapping that the port keeps; it belongs to the process.
unsafe impl Send for Ring {}

impl Tx {
    pub(super) fn new(memory: &Memory, layout: RingLayout, buffers: Buffers) -> Tx {
        let chain = buffers.chain;
        for slot in 0..buffers.slots {
            let mut left = buffers.frame_len();
            for part in 0..chain {
                let at = slot * chain + part;
                let len = left.min(buffers.part_len());
                left -= len;
                let last = part + 1 == chain;
                let flags = if last { 0 } else { NEXT };
                let addr = buffers.part(slot, part) as u64;
                let next = if last { 0 } else { at + 1 };
                memory.write(layout.desc_at(at), &desc(addr, len, flags, next));
            }
        }
        for at in 0..layout.num {
            memory.store_u16(layout.avail_at(at), at % buffers.slots * chain);
        }
        // No interrupts: this driver polls.
        memory.store_u16(layout.avail, NO_INTERRUPT);
        Tx { ring: Ring { layout, base: memory.as_ptr() }, buffers, avail: 0 }
    }

    /// Slots that the switch has given back.
    #[inline]
    pub(super) fn free(&mut self) -> u16 {
        let used = self.ring.index(self.ring.layout.used).load(Ordering::Acquire);
        self.buffers.slots.saturating_sub(self.avail.wrapping_sub(used))
    }

    /// Sends `count` frames, which must be free, each with the next number.
    #[inline]
    pub(super) fn send(&mut self, count: u16, mut number: impl FnMut() -> u64) {
        for n in 0..count {
            let slot = self.avail.wrapping_add(n) & (self.buffers.slots - 1);
            self.buffers.put_number(slot, number());
        }
        self.avail = self.avail.wrapping_add(count);
        self.ring.index(self.ring.layout.avail).store(self.avail, Ordering::Release);
    }

    pub(super) fn wants_kick(&self) -> bool {
        self.ring.wants_kick()
    }

    /// The buffer that the next frame goes out of.
    pub(super) fn next_slot(&self) -> u16 {
        self.avail & (self.buffers.slots - 1)
    }
}

impl Rx {
    pub(super) fn new(memory: &Memory, layout: RingLayout, buffers: Buffers) -> Rx {
        for slot in 0..layout.num {
            let addr = buffers.part(slot, 0) as u64;
            memory.write(layout.desc_at(slot), &desc(addr, buffers.part_len(), WRITE, 0));
            memory.store_u16(layout.avail_at(slot), slot);
        }
        memory.store_u16(layout.avail, NO_INTERRUPT);
        memory.store_u16(layout.avail + 2, layout.num);
        Rx { ring: Ring { layout, base: memory.as_ptr() }, buffers, avail: layout.num, used: 0 }
    }

    /// Takes up to `most` buffers, shows each with its bytes, and offers them again.
    #[inline]
    pub(super) fn receive(&mut self, most: u16, mut seen: impl FnMut(&Buffers, u16, u32)) -> u16 {
        let Ring { layout, base } = self.ring;
        let mask = layout.num - 1;
        let used = self.ring.index(layout.used).load(Ordering::Acquire);
        let count = used.wrapping_sub(self.used).min(most);
        if count == 0 {
            return 0;
        }
        for n in 0..count {
            let entry = layout.used + 4 + usize::from(self.used.wrapping_add(n) & mask) * 8;
            // SAFETY: a ring entry, at a wrapped index; aligned to 4 and within the memory.
            let [id, len] = unsafe { ptr::read_volatile(base.add(entry).cast::<[u32; 2]>()) };
            let id = u16::try_from(id).unwrap_or(0) & mask;
            seen(&self.buffers, id, len);
            let entry = layout.avail + 4 + usize::from(self.avail.wrapping_add(n) & mask) * 2;
            // SAFETY: a ring entry, at a wrapped index.
            unsafe { ptr::write_volatile(base.add(entry).cast::<u16>(), id) };
        }
        self.used = self.used.wrapping_add(count);
        self.avail = self.avail.wrapping_add(count);
        fence(Ordering::Release);
        self.ring.index(layout.avail).store(self.avail, Ordering::Release);
        count
    }

    pub(super) fn wants_kick(&self) -> bool {
        self.ring.wants_kick()
    }
}

impl Ring {
    /// Index of the available or used ring that starts at `part`.
    #[inline]
    fn index(&self, part: usize) -> &AtomicU16 {
        // SAFETY: rings are within the memory and aligned; both sides access indices atomically.
        unsafe { AtomicU16::from_ptr(self.base.add(part + 2).cast()) }
    }

    fn wants_kick(&self) -> bool {
        // What was offered must be visible before the switch's wish is read.
        fence(Ordering::SeqCst);
        // SAFETY: as above; the flags are the word before the index.
        let flags = unsafe { AtomicU16::from_ptr(self.base.add(self.layout.used).cast()) };
        flags.load(Ordering::Relaxed) & 1 == 0
    }
}
