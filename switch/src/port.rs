//! What the switch knows of a port: its index, role, VLAN mode and isolation.

use core::fmt;

use wire::{MacAddr, Vid};

/// Ports that a datapath can hold. The forwarding table stores an index in 10 bits.
pub const MAX_PORTS: usize = 1024;

/// A port's place in the datapath's tables, below [`MAX_PORTS`].
///
/// It names a port only inside one configuration snapshot; a place is given away again only after every worker has
/// left the snapshots that knew the old port, and after [`Fdb::flush_port`](crate::Fdb::flush_port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIndex(pub u16);

/// What stands behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A virtual machine, container or namespace.
    Guest,
    /// The network's own address on the host.
    Gateway,
    /// The way to other switches: a host interface or a Linux bridge.
    Uplink,
    /// An engine inside the daemon, as DHCP. It gets what is trapped for it and what is sent to a static entry; never
    /// a flood, and its frames are not learned.
    Internal,
}

/// A set of VLANs 1..=4094 (VLAN 0 is never listed: see [`VlanMode`]).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VidSet([u64; 64]);

impl VidSet {
    #[must_use]
    pub const fn empty() -> Self {
        Self([0; 64])
    }

    /// 1..=4094.
    #[must_use]
    pub const fn all() -> Self {
        let mut words = [u64::MAX; 64];
        words[0] = u64::MAX - 1;
        words[63] = u64::MAX >> 1;
        Self(words)
    }

    /// VLAN 0 is ignored.
    pub fn insert(&mut self, vid: Vid) {
        if !vid.is_none() {
            let (word, bit) = Self::place(vid.value());
            self.0[word] |= bit;
        }
    }

    pub fn remove(&mut self, vid: Vid) {
        let (word, bit) = Self::place(vid.value());
        self.0[word] &= !bit;
    }

    /// False for VLAN 0.
    #[must_use]
    #[inline]
    pub const fn contains(&self, vid: Vid) -> bool {
        let (word, bit) = Self::place(vid.value());
        self.0[word] & bit != 0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 64]
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Vid> + '_ {
        (0..=Vid::MAX.value()).filter_map(Vid::new).filter(|&vid| self.contains(vid))
    }

    const fn place(vid: u16) -> (usize, u64) {
        // The mask changes nothing for a Vid; it lets the compiler drop the bounds check.
        ((vid as usize >> 6) & 63, 1 << (vid & 63))
    }
}

impl Default for VidSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl FromIterator<Vid> for VidSet {
    fn from_iter<I: IntoIterator<Item = Vid>>(vids: I) -> Self {
        let mut set = Self::empty();
        for vid in vids {
            set.insert(vid);
        }
        set
    }
}

impl fmt::Debug for VidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all() {
            f.write_str("all")
        } else {
            f.debug_set().entries(self.iter()).finish()
        }
    }
}

/// Which VLANs a port carries, and in what form. The rules are those of Open vSwitch's `vlan_mode`.
///
/// A frame is *untagged* here when it has no tag or a priority tag (VLAN 0); its priority survives where it leaves
/// with a tag. VLAN 0 itself leaves untagged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "one per port, copied only on configuration")]
pub enum VlanMode {
    /// One VLAN, untagged on the wire. Every tagged frame is refused, even of the same VLAN.
    Access(Vid),
    /// Several VLANs with tags. `native` is the VLAN of untagged frames; `None` refuses them. The native VLAN is
    /// carried whether allowed or not, and VLAN 0 only when it is the native one.
    Trunk { native: Option<Native>, allowed: VidSet },
}

/// The VLAN of a trunk's untagged frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Native {
    pub vlan: Vid,
    /// Frames of this VLAN leave with a tag (libvirt `nativeMode='tagged'`). Without effect on VLAN 0.
    pub tagged: bool,
}

impl VlanMode {
    /// Every VLAN passes as it is, untagged frames as VLAN 0: a port that knows nothing of VLANs.
    #[must_use]
    pub const fn transparent() -> Self {
        Self::trunk(Some(Vid::NONE), VidSet::all())
    }

    /// A trunk whose native VLAN, if any, leaves untagged.
    #[must_use]
    pub const fn trunk(native: Option<Vid>, allowed: VidSet) -> Self {
        let native = match native {
            Some(vlan) => Some(Native { vlan, tagged: false }),
            None => None,
        };
        Self::Trunk { native, allowed }
    }

    /// The port sends and receives this VLAN.
    #[must_use]
    pub fn carries(&self, vlan: Vid) -> bool {
        match self {
            Self::Access(own) => *own == vlan,
            Self::Trunk { native, allowed } => {
                native.is_some_and(|native| native.vlan == vlan) || allowed.contains(vlan)
            }
        }
    }

    /// The VLAN of a frame that arrives untagged.
    #[must_use]
    pub fn untagged_vlan(&self) -> Option<Vid> {
        match self {
            Self::Access(own) => Some(*own),
            Self::Trunk { native, .. } => native.map(|native| native.vlan),
        }
    }

    /// Frames of this VLAN leave the port with a tag.
    #[must_use]
    pub fn leaves_tagged(&self, vlan: Vid) -> bool {
        match self {
            Self::Access(_) => false,
            Self::Trunk { native, .. } => {
                !vlan.is_none() && native.is_none_or(|native| native.vlan != vlan || native.tagged)
            }
        }
    }
}

impl Default for VlanMode {
    fn default() -> Self {
        Self::transparent()
    }
}

/// A port as the bridge sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    pub role: Role,
    pub vlan: VlanMode,
    /// Isolated ports exchange no frames with each other. Ignored unless the role is [`Role::Guest`].
    pub isolated: bool,
    /// The station behind the port, where it is known beforehand. Guests may use others: nothing is enforced.
    pub mac: Option<MacAddr>,
}

impl PortConfig {
    /// A transparent, not isolated port.
    #[must_use]
    pub const fn new(role: Role) -> Self {
        Self { role, vlan: VlanMode::transparent(), isolated: false, mac: None }
    }

    /// The entry that belongs into the forwarding table as long as the port exists: the gateway's own address, so
    /// that no guest can draw the gateway's traffic to itself by using its address.
    #[must_use]
    pub fn static_entry(&self) -> Option<(MacAddr, Vid)> {
        if self.role == Role::Gateway { self.mac.zip(self.vlan.untagged_vlan()) } else { None }
    }
}
