//! IEEE 802.1Q tags.

use core::fmt;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherType of a customer tag (IEEE 802.1Q-2018 table 9-1).
pub const TPID_CUSTOMER: u16 = 0x8100;
/// EtherType of a service tag.
pub const TPID_SERVICE: u16 = 0x88a8;

/// Bytes that a tag takes in a frame.
pub const TAG_LEN: usize = 4;

/// The EtherType introduces a VLAN tag.
#[must_use]
#[inline]
pub const fn is_tpid(ethertype: u16) -> bool {
    matches!(ethertype, TPID_CUSTOMER | TPID_SERVICE)
}

/// A VLAN identifier, 0..=4094. 0 means "no VLAN": untagged and priority-tagged frames of a port without a VLAN of
/// its own. 4095 is reserved (IEEE 802.1Q-2018 table 9-2) and cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vid(u16);

impl Vid {
    /// The VLAN of untagged frames on ports without a VLAN of their own.
    pub const NONE: Self = Self(0);
    pub const MAX: Self = Self(4094);

    /// `None` above 4094.
    #[must_use]
    #[inline]
    pub const fn new(vid: u16) -> Option<Self> {
        if vid <= Self::MAX.0 { Some(Self(vid)) } else { None }
    }

    #[must_use]
    #[inline]
    pub const fn value(self) -> u16 {
        self.0
    }

    #[must_use]
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<Vid> for u16 {
    fn from(vid: Vid) -> Self {
        vid.0
    }
}

impl TryFrom<u16> for Vid {
    type Error = VidOutOfRange;

    fn try_from(vid: u16) -> Result<Self, VidOutOfRange> {
        Self::new(vid).ok_or(VidOutOfRange(vid))
    }
}

/// A VLAN identifier above 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VidOutOfRange(pub u16);

impl fmt::Display for VidOutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VLAN {} is out of range, expected 0 to 4094", self.0)
    }
}

impl core::error::Error for VidOutOfRange {}

/// Tag control information: priority (3 bits), drop eligible (1 bit), VLAN identifier (12 bits); host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tci(pub u16);

impl Tci {
    /// Priority 0, not drop eligible.
    #[must_use]
    #[inline]
    pub const fn from_vid(vid: Vid) -> Self {
        Self(vid.0)
    }

    /// The identifier as it stands in the tag, 4095 included.
    #[must_use]
    #[inline]
    pub const fn raw_vid(self) -> u16 {
        self.0 & 0x0fff
    }

    /// `None` for the reserved 4095.
    #[must_use]
    #[inline]
    pub const fn vid(self) -> Option<Vid> {
        Vid::new(self.raw_vid())
    }

    /// Priority code point, 0..=7.
    #[must_use]
    #[inline]
    pub const fn pcp(self) -> u8 {
        self.0.to_be_bytes()[0] >> 5
    }

    /// Drop eligible indicator.
    #[must_use]
    #[inline]
    pub const fn dei(self) -> bool {
        self.0 & 0x1000 != 0
    }

    /// The same priority and drop eligibility in another VLAN.
    #[must_use]
    #[inline]
    pub const fn with_vid(self, vid: Vid) -> Self {
        Self(self.0 & 0xf000 | vid.0)
    }
}

impl fmt::Debug for Tci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vid {} pcp {}", self.raw_vid(), self.pcp())?;
        if self.dei() { f.write_str(" dei") } else { Ok(()) }
    }
}

/// A tag as it stands in a frame, from its own EtherType on; the EtherType of what it tags follows.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct VlanTag {
    /// [`TPID_CUSTOMER`] or [`TPID_SERVICE`].
    pub tpid: U16,
    pub tci: U16,
}

impl VlanTag {
    /// A customer tag.
    #[must_use]
    pub fn customer(tci: Tci) -> Self {
        Self { tpid: U16::new(TPID_CUSTOMER), tci: U16::new(tci.0) }
    }

    #[must_use]
    pub fn tci(&self) -> Tci {
        Tci(self.tci.get())
    }
}
