//! Both rings of a port in the packed layout (virtio 1.3 §2.8). Addresses are written once; each turn of a descriptor is one store
//! of its length, id and flags, which are 8 bytes together.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use super::buffers::Buffers;
use crate::frontend::memory::Memory;
use crate::frontend::ring::RingLayout;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Flags of an event suppression structure: no notifications (§2.8.10).
const DISABLE: u16 = 1;

/// The sending ring.
#[derive(Debug)]
pub(super) struct Tx {
    ring: Ring,
    pub(super) buffers: Buffers,
    next: Position,
    oldest: Position,
    free: u16,
}

/// The receiving ring.
#[derive(Debug)]
pub(super) struct Rx {
    ring: Ring,
    buffers: Buffers,
    next: Position,
    oldest: Position,
}

/// A place in the ring, and the wrap counter there.
#[derive(Clone, Copy, Debug)]
struct Position {
    at: u16,
    wrap: bool,
}

#[derive(Debug)]
struct Ring {
    layout: RingLayout,
    base: *mut u8,
}

// SAFETY: the pointer leads into a mapping that the port keeps; it belongs to the process.
unsafe impl Send for Ring {}

impl Position {
    const START: Position = Position { at: 0, wrap: true };

    #[inline]
    fn step(&mut self, count: u16, num: u16) {
        self.at += count;
        if self.at >= num {
            self.at -= num;
            self.wrap = !self.wrap;
        }
    }

    /// Flags of a descriptor that the switch may take.
    #[inline]
    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }
}

impl Tx {
    pub(super) fn new(memory: &Memory, layout: RingLayout, buffers: Buffers) -> Tx {
        let ring = Ring { layout, base: memory.as_ptr() };
        for slot in 0..buffers.slots {
            for part in 0..buffers.chain {
                let at = slot * buffers.chain + part;
                ring.set_addr(at, buffers.part(slot, part) as u64);
            }
        }
        ring.no_interrupts();
        let free = buffers.slots;
        Tx { ring, buffers, next: Position::START, oldest: Position::START, free }
    }

    /// Slots that the switch has given back.
    #[inline]
    pub(super) fn free(&mut self) -> u16 {
        let Buffers { slots, chain, .. } = self.buffers;
        while self.free < slots && self.ring.is_used(self.oldest) {
            self.oldest.step(chain, self.ring.layout.num);
            self.free += 1;
        }
        self.free
    }

    /// Sends `count` frames, which must be free, each with the next number.
    #[inline]
    pub(super) fn send(&mut self, count: u16, mut number: impl FnMut() -> u64) {
        let Buffers { chain, .. } = self.buffers;
        for _ in 0..count {
            let slot = self.next.at >> chain.trailing_zeros();
            self.buffers.put_number(slot, number());
            let flags = self.next.available();
            let mut left = self.buffers.frame_len();
            let first = left.min(self.buffers.part_len());
            left -= first;
            for part in 1..chain {
                let len = left.min(self.buffers.part_len());
                left -= len;
                let more = if part + 1 < chain { NEXT } else { 0 };
                self.ring.offer(self.next.at + part, len, slot, flags | more);
            }
            // The first one makes the whole chain available.
            let more = if chain > 1 { NEXT } else { 0 };
            self.ring.offer(self.next.at, first, slot, flags | more);
            self.next.step(chain, self.ring.layout.num);
        }
        self.free -= count;
    }

    pub(super) fn wants_kick(&self) -> bool {
        self.ring.wants_kick()
    }

    pub(super) fn next_slot(&self) -> u16 {
        self.next.at >> self.buffers.chain.trailing_zeros()
    }
}

impl Rx {
    pub(super) fn new(memory: &Memory, layout: RingLayout, buffers: Buffers) -> Rx {
        let ring = Ring { layout, base: memory.as_ptr() };
        for slot in 0..layout.num {
            ring.set_addr(slot, buffers.part(slot, 0) as u64);
            ring.offer(slot, buffers.part_len(), slot, AVAIL | WRITE);
        }
        ring.no_interrupts();
        let mut next = Position::START;
        next.step(layout.num, layout.num);
        Rx { ring, buffers, next, oldest: Position::START }
    }

    /// Takes up to `most` buffers, shows each with its bytes, and offers them again.
    #[inline]
    pub(super) fn receive(&mut self, most: u16, mut seen: impl FnMut(&Buffers, u16, u32)) -> u16 {
        let num = self.ring.layout.num;
        let mut count = 0;
        while count < most && self.ring.is_used(self.oldest) {
            let (len, id) = self.ring.taken(self.oldest.at);
            let id = id & (num - 1);
            seen(&self.buffers, id, len);
            if id != self.next.at {
                // A switch that gives buffers back in another order.
                self.ring.set_addr(self.next.at, self.buffers.part(id, 0) as u64);
            }
            let flags = self.next.available() | WRITE;
            self.ring.offer(self.next.at, self.buffers.part_len(), id, flags);
            self.oldest.step(1, num);
            self.next.step(1, num);
            count += 1;
        }
        count
    }

    pub(super) fn wants_kick(&self) -> bool {
        self.ring.wants_kick()
    }
}

impl Ring {
    fn set_addr(&self, at: u16, addr: u64) {
        // SAFETY: the first 8 bytes of a descriptor below `num`; aligned and within the memory.
        let word = unsafe { AtomicU64::from_ptr(self.base.add(self.layout.desc_at(at)).cast()) };
        word.store(addr, Ordering::Relaxed);
    }

    /// Writes length, id and flags at once.
    #[inline]
    fn offer(&self, at: u16, len: u32, id: u16, flags: u16) {
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.half(at).store(word, Ordering::Release);
    }

    /// The switch has given back the descriptor there.
    #[inline]
    fn is_used(&self, position: Position) -> bool {
        let [.., flags] = self.fields(position.at);
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        avail == used && used == position.wrap
    }

    /// Length and id of a descriptor that was given back.
    #[inline]
    fn taken(&self, at: u16) -> (u32, u16) {
        let [low, high, id, _] = self.fields(at);
        (u32::from(low) | u32::from(high) << 16, id)
    }

    /// Length in two halves, id, flags.
    #[inline]
    fn fields(&self, at: u16) -> [u16; 4] {
        let bytes = self.half(at).load(Ordering::Acquire).to_le_bytes();
        let word = |n: usize| u16::from_le_bytes([bytes[n], bytes[n + 1]]);
        [word(0), word(2), word(4), word(6)]
    }

    #[inline]
    fn half(&self, at: u16) -> &AtomicU64 {
        // SAFETY: the last 8 bytes of a descriptor below `num`; aligned and within the memory.
        unsafe { AtomicU64::from_ptr(self.base.add(self.layout.desc_at(at) + 8).cast()) }
    }

    /// This driver polls.
    fn no_interrupts(&self) {
        self.event_flags(self.layout.avail).store(DISABLE, Ordering::Relaxed);
    }

    fn wants_kick(&self) -> bool {
        // What was offered must be visible before the switch's wish is read.
        fence(Ordering::SeqCst);
        self.event_flags(self.layout.used).load(Ordering::Relaxed) & 3 != DISABLE
    }

    /// Flags of the event suppression structure there: the second half of 4 bytes.
    fn event_flags(&self, part: usize) -> &AtomicU16 {
        // SAFETY: in the memory and aligned; the layout gives each structure more room than it needs.
        unsafe { AtomicU16::from_ptr(self.base.add(part + 2).cast()) }
    }
}
