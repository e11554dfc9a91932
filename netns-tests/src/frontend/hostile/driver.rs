//! The driver's end of one ring, in either layout, that offers whatever it is told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Attacker, NEXT};
use crate::frontend::memory::Memory;
use crate::frontend::ring::RingLayout;

/// How rings lie in memory (virtio 1.3 §2.7, §2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Split,
    Packed,
}

/// AVAIL and USED of a packed ring's descriptor.
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;
const F_OWNER: u16 = F_AVAIL | F_USED;

/// Where the descriptors are that a packed ring's chains are copied from.
const TABLE: usize = 0xc000;

/// One ring. A split ring's chains are made of its own table; a packed ring has none, so its chains are copied into
/// the ring, from a table beside it, when they are put on offer.
#[derive(Debug)]
pub(super) struct Driver {
    layout: Layout,
    pub(super) parts: RingLayout,
    memory: Arc<Memory>,
    /// Of a packed ring.
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// Descriptors offered and given back since the ring's first turn began.
    offered: u32,
    used: u32,
    /// Descriptors of each chain that the device has.
    out: VecDeque<u16>,
    /// Chains that came back.
    back: u16,
}

impl Driver {
    pub(super) fn new(layout: Layout, parts: RingLayout, memory: &Arc<Memory>) -> Self {
        Self { layout, parts, memory: Arc::clone(memory), places: Mutex::default() }
    }

    /// Offset of a descriptor that chains are made of.
    pub(super) fn table_at(&self, index: u16) -> usize {
        match self.layout {
            Layout::Split => self.parts.desc_at(index),
            Layout::Packed => self.parts.desc + TABLE + usize::from(index) * 16,
        }
    }

    /// What SET_VRING_BASE says of a ring that goes on where both sides are.
    pub(super) fn base(&self) -> u32 {
        match self.layout {
            Layout::Split => u32::from(self.memory.load_u16(self.parts.used + 2)),
            Layout::Packed => {
                self.used();
                let bits = u32::from(bits(self.places().used));
                bits | bits << 16
            }
        }
    }

    /// Goes on at the answer to GET_VRING_BASE: what is on offer there is not any more.
    pub(super) fn resume(&self, base: u32) {
        if self.layout == Layout::Packed {
            let mut places = self.places();
            let mut on = places.used;
            while u32::from(bits(on)) != base & 0xffff {
                on += 1;
                assert!(on < places.used + 2 * u32::from(Attacker::RING), "{base:#x}: no place");
            }
            *places = Places { offered: on, used: on, out: VecDeque::new(), back: places.back };
        }
    }

    pub(super) fn offer(&self, head: u16, id: u16) {
        match self.layout {
            Layout::Split => {
                let index = self.memory.load_u16(self.parts.avail + 2);
                self.memory.store_u16(self.parts.avail_at(index), head);
                self.memory.store_u16(self.parts.avail + 2, index.wrapping_add(1));
            }
            Layout::Packed => self.copy_chain(head, id),
        }
    }

    /// The first descriptor's flags come last, as the device looks at them first. A chain that comes back to itself
    /// fills the ring.
    fn copy_chain(&self, head: u16, id: u16) {
        let mut places = self.places();
        let start = places.offered;
        let (mut index, mut n) = (head % Attacker::RING, 0);
        let mut first = 0;
        loop {
            let mut entry = [0; 16];
            self.memory.read(self.table_at(index), &mut entry);
            let flags = u16::from_le_bytes([entry[12], entry[13]]);
            let next = u16::from_le_bytes([entry[14], entry[15]]);
            let place = start + u32::from(n);
            let at = self.parts.desc_at(bits(place) & !WRAP);
            entry[12..14].copy_from_slice(&id.to_le_bytes());
            self.memory.write(at, &entry[..14]);
            let flags = flags & !F_OWNER | offered(place);
            if n == 0 {
                first = flags;
            } else {
                self.memory.store_u16(at + 14, flags);
            }
            n += 1;
            if flags & NEXT == 0 || n == Attacker::RING {
                break;
            }
            index = next % Attacker::RING;
        }
        self.memory.store_u16(self.parts.desc_at(bits(start) & !WRAP) + 14, first);
        places.offered += u32::from(n);
        places.out.push_back(n);
    }

    /// Chains that the device has given back.
    pub(super) fn used(&self) -> u16 {
        if self.layout == Layout::Split {
            return self.memory.load_u16(self.parts.used + 2);
        }
        let mut places = self.places();
        while let Some(&n) = places.out.front() {
            let at = self.parts.desc_at(bits(places.used) & !WRAP);
            let owner = self.memory.load_u16(at + 14) & F_OWNER;
            let used = if bits(places.used) & WRAP != 0 { F_OWNER } else { 0 };
            if owner != used {
                break;
            }
            places.out.pop_front();
            places.used += u32::from(n);
            places.back = places.back.wrapping_add(1);
        }
        places.back
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const WRAP: u16 = 1 << 15;

/// A place in a packed ring with its wrap counter, as SET_VRING_BASE has them.
fn bits(count: u32) -> u16 {
    let size = u32::from(Attacker::RING);
    let at = u16::try_from(count % size).unwrap_or(0);
    if (count / size).is_multiple_of(2) { at | WRAP } else { at }
}

/// AVAIL and USED of a descriptor that is offered there.
fn offered(count: u32) -> u16 {
    if bits(count) & WRAP != 0 { F_AVAIL } else { F_USED }
}
