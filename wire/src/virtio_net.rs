//! The header before each frame in a virtio network queue, and before each frame of a TAP or packet socket with vnet
//! headers (virtio 1.3 §5.1.6).

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The checksum at `csum_start + csum_offset` has to be completed; the field holds the pseudo-header's sum.
pub const F_NEEDS_CSUM: u8 = 1;
/// The receiver may take the checksum as checked.
pub const F_DATA_VALID: u8 = 2;
/// The frame is the result of receive segment coalescing.
pub const F_RSC_INFO: u8 = 4;

/// A single frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be cut into segments of `gso_size` bytes.
pub const GSO_TCPV4: u8 = 1;
/// UDP over IPv4, to be cut into IP fragments (legacy UFO).
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP over either family, to be cut into datagrams of `gso_size` bytes (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Set beside the type: the TCP segments carry explicit congestion notification.
pub const GSO_ECN: u8 = 0x80;

/// Bytes of [`VirtioNetHdr`].
pub const HDR_LEN: usize = 12;
const _: () = assert!(size_of::<VirtioNetHdr>() == HDR_LEN);

/// `virtio_net_hdr` of virtio 1.0 and later: little-endian, with `num_buffers` always present (virtio 1.3 §5.1.6).
///
/// `VirtioNetHdr::default()` is a single frame with nothing left to do.
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
pub struct VirtioNetHdr {
    /// [`F_NEEDS_CSUM`], [`F_DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers of a frame to be segmented: a hint that must not be trusted.
    pub hdr_len: U16,
    /// Payload bytes of each segment.
    pub gso_size: U16,
    /// Where checksumming starts, from the first byte of the frame.
    pub csum_start: U16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: U16,
    /// Receive buffers that the frame takes (mergeable buffers); 0 or ignored elsewhere.
    pub num_buffers: U16,
}

impl VirtioNetHdr {
    /// The checksum has to be completed.
    #[must_use]
    #[inline]
    pub const fn needs_csum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// The segmentation type without [`GSO_ECN`].
    #[must_use]
    #[inline]
    pub const fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// The frame has to be cut into several.
    #[must_use]
    #[inline]
    pub const fn is_gso(&self) -> bool {
        self.gso() != GSO_NONE
    }
}
