//! Kinds of work, and the features that stand for them.

/// Work that a port can leave to others, or take over from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OffloadSet(u8);

impl OffloadSet {
    pub const NONE: Self = Self(0);
    pub const CHECKSUM: Self = Self(1);
    pub const TSO4: Self = Self(1 << 1);
    pub const TSO6: Self = Self(1 << 2);
    pub const TSO_ECN: Self = Self(1 << 3);
    pub const USO4: Self = Self(1 << 4);
    pub const USO6: Self = Self(1 << 5);
    /// One UDP datagram over either family, to be cut into IP fragments.
    pub const UFO: Self = Self(1 << 6);
    pub const ALL: Self = Self(0x7f);

    /// What the kernel takes over from us on TAP devices and packet sockets: UDP segments only since 6.2, so never.
    pub const KERNEL_TAKES: Self =
        Self(Self::CHECKSUM.0 | Self::TSO4.0 | Self::TSO6.0 | Self::TSO_ECN.0 | Self::UFO.0);

    /// What a driver that negotiated these features may leave to the device (virtio 1.3 §5.1.3).
    #[must_use]
    pub fn driver_leaves(features: u64) -> Self {
        const CSUM: u32 = 0;
        const HOST_TSO4: u32 = 11;
        const HOST_TSO6: u32 = 12;
        const HOST_ECN: u32 = 13;
        const HOST_UFO: u32 = 14;
        const HOST_USO: u32 = 56;
        Self::from_bits(
            features,
            &[
                (CSUM, Self::CHECKSUM),
                (HOST_TSO4, Self::TSO4),
                (HOST_TSO6, Self::TSO6),
                (HOST_ECN, Self::TSO_ECN),
                (HOST_UFO, Self::UFO),
                (HOST_USO, Self::USO4.union(Self::USO6)),
            ],
        )
    }

    /// What a driver that negotiated these features takes over from the device.
    #[must_use]
    pub fn driver_takes(features: u64) -> Self {
        const GUEST_CSUM: u32 = 1;
        const GUEST_TSO4: u32 = 7;
        const GUEST_TSO6: u32 = 8;
        const GUEST_ECN: u32 = 9;
        const GUEST_UFO: u32 = 10;
        const GUEST_USO4: u32 = 54;
        const GUEST_USO6: u32 = 55;
        Self::from_bits(
            features,
            &[
                (GUEST_CSUM, Self::CHECKSUM),
                (GUEST_TSO4, Self::TSO4),
                (GUEST_TSO6, Self::TSO6),
                (GUEST_ECN, Self::TSO_ECN),
                (GUEST_UFO, Self::UFO),
                (GUEST_USO4, Self::USO4),
                (GUEST_USO6, Self::USO6),
            ],
        )
    }

    fn from_bits(features: u64, bits: &[(u32, Self)]) -> Self {
        let set = bits.iter().filter(|(bit, _)| features >> bit & 1 != 0);
        let set = set.fold(Self::NONE, |set, (_, one)| set.union(*one));
        // Every kind of segmentation computes checksums (virtio 1.3 §5.1.3.1).
        if set.contains(Self::CHECKSUM) { set } else { Self::NONE }
    }

    #[must_use]
    #[inline]
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
