//! What a driver keeps of a packed ring (virtio 1.3 §2.8), and the two layouts as a choice for whole tests.

use std::cell::Cell;
use std::collections::VecDeque;

pub(crate) const RING_PACKED: u64 = 1 << 34;
pub(crate) const IN_ORDER: u64 = 1 << 35;

pub(crate) const F_AVAIL: u16 = 1 << 7;
pub(crate) const F_USED: u16 = 1 << 15;
pub(crate) const EVENT_DESC: u16 = 2;
pub(crate) const EVENT_DISABLE: u16 = 1;

thread_local!(static LAYOUT: Cell<u64> = const { Cell::new(0) });

/// Features of the ring's layout that [`Options::new`](super::Options::new) takes in this thread.
pub(crate) fn layout() -> u64 {
    LAYOUT.get()
}

/// Runs a test with cards of this layout.
pub(crate) fn with_layout(features: u64, test: impl FnOnce()) {
    LAYOUT.set(features);
    test();
}

/// Makes two tests of each function: one with split rings, one with packed ones.
#[allow(unused_macros, reason = "each test file uses its part")]
macro_rules! on_both_layouts {
    ($($name:ident)*) => { $(
        mod $name {
            #[test]
            fn split() {
                super::common::packed::with_layout(0, super::$name);
            }

            #[test]
            fn packed() {
                super::common::packed::with_layout(super::common::packed::RING_PACKED, super::$name);
            }
        }
    )* };
}
pub(crate) use on_both_layouts;

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
            if self.at >= size {
                *self = Self { at: 0, wrap: !self.wrap };
            }
        }
    }

    pub(crate) fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    /// AVAIL and USED of a descriptor that is offered here.
    pub(crate) fn offered(self) -> u16 {
        if self.wrap { F_AVAIL } else { F_USED }
    }

    pub(crate) fn is_used(self, flags: u16) -> bool {
        [F_AVAIL, F_USED].map(|bit| flags & bit != 0) == [self.wrap; 2]
    }
}

/// A driver's descriptors, which a packed ring has no place for, and its chains.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    /// Address, length, flags, next: as in a split ring's table.
    pub(crate) table: Vec<(u64, u32, u16, u16)>,
    pub(crate) avail: Place,
    pub(crate) used: Place,
    /// Chains that the device has: head and number of descriptors.
    pub(crate) out: VecDeque<(u16, u16)>,
    /// Chains that came back together (VIRTIO_F_IN_ORDER).
    pub(crate) back: VecDeque<(u16, u32)>,
}

impl Packed {
    pub(crate) fn new(size: u16, start: u16) -> Self {
        let place = Place { at: start % size, wrap: true };
        Self {
            table: vec![(0, 0, 0, 0); usize::from(size)],
            avail: place,
            used: place,
            out: VecDeque::new(),
            back: VecDeque::new(),
        }
    }
}
