//! Where a packed ring is (virtio 1.3 §2.8.1).

/// AVAIL and USED in a descriptor's flags.
const F_AVAIL: u16 = 1 << 7;
pub(crate) const F_USED: u16 = 1 << 15;
pub(crate) const F_OWNER: u16 = F_AVAIL | F_USED;

/// A place in the ring and the wrap counter there, as the device area and SET_VRING_BASE have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position(pub(crate) u16);

pub(crate) const WRAP: u16 = 1 << 15;

impl Position {
    /// `None` for a place that the ring does not have.
    pub(crate) fn new(bits: u16, size: u16) -> Option<Self> {
        (bits & !WRAP < size).then_some(Self(bits))
    }

    pub(crate) fn bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub(crate) fn at(self) -> u16 {
        self.0 & !WRAP
    }

    #[inline(always)]
    pub(crate) fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// `n` descriptors on, which are not more than the ring has.
    #[inline(always)]
    pub(crate) fn plus(self, n: u16, size: u16) -> Self {
        let at = u32::from(self.at()) + u32::from(n);
        let (at, turned) = match at.checked_sub(u32::from(size)) {
            Some(at) => (at, WRAP),
            None => (at, 0),
        };
        #[expect(clippy::cast_possible_truncation, reason = "below the size")]
        Self(at as u16 | (self.0 & WRAP) ^ turned)
    }

    /// Descriptors back to where it began, two turns at most.
    pub(crate) fn minus(self, n: u16, size: u16) -> Self {
        // Two turns forward are none.
        let (half, turn) = (size - n, size);
        self.plus(turn, size).plus(half, size)
    }

    /// AVAIL and USED of a descriptor that the driver offers here.
    #[inline(always)]
    pub(crate) fn offered(self) -> u16 {
        if self.wrap() { F_AVAIL } else { F_USED }
    }

    /// AVAIL and USED of one that the device has used.
    #[inline(always)]
    pub(crate) fn used(self) -> u16 {
        if self.wrap() { F_OWNER } else { 0 }
    }

    /// The place in a line of two turns.
    fn linear(self, size: u16) -> u32 {
        u32::from(self.at()) + if self.wrap() { 0 } else { u32::from(size) }
    }

    /// Descriptors from `other` on to here, less than two turns.
    #[inline(always)]
    pub(crate) fn distance(self, other: Self, size: u16) -> u32 {
        let turns = 2 * u32::from(size);
        (self.linear(size) + turns - other.linear(size)) % turns
    }
}
