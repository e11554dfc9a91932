//! IPv4 headers (RFC 791).

use core::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Malformed, checksum};

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// In [`Ipv4Header::flags_fragment`].
pub const FLAG_DONT_FRAGMENT: u16 = 0x4000;
/// In [`Ipv4Header::flags_fragment`].
pub const FLAG_MORE_FRAGMENTS: u16 = 0x2000;

/// The fixed part of the header.
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
pub struct Ipv4Header {
    /// 0x40 | words of the header.
    pub version_ihl: u8,
    pub tos: u8,
    /// Header and payload.
    pub total_len: U16,
    pub id: U16,
    /// Flags in the upper 3 bits, offset in units of 8 bytes below.
    pub flags_fragment: U16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: U16,
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

impl Ipv4Header {
    /// A header without options for `payload_len` bytes, not to be fragmented, with its checksum; `None` above 65,515
    /// bytes.
    #[must_use]
    pub fn new(
        src: Ipv4Addr,
        dst: Ipv4Addr,
        protocol: u8,
        ttl: u8,
        payload_len: usize,
    ) -> Option<Self> {
        let mut header = Self {
            version_ihl: 0x45,
            total_len: U16::new(u16::try_from(HEADER_LEN.checked_add(payload_len)?).ok()?),
            flags_fragment: U16::new(FLAG_DONT_FRAGMENT),
            ttl,
            protocol,
            src: src.octets(),
            dst: dst.octets(),
            ..Self::default()
        };
        header.checksum = U16::new(checksum::ipv4_header(header.as_bytes()));
        Some(header)
    }
}

/// A packet whose header, options and payload are all there. The header's checksum is not looked at unless asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4View<'a> {
    header: &'a Ipv4Header,
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> Ipv4View<'a> {
    /// Padding after the packet's own length is cut off.
    ///
    /// # Errors
    /// [`Malformed`] when the version is not 4, the header length is below 20, or lengths do not fit each other.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = Ipv4Header::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        if header.version_ihl >> 4 != 4 {
            return Err(Malformed::Version);
        }
        let header_len = usize::from(header.version_ihl & 15) * 4;
        let total_len = usize::from(header.total_len.get());
        if header_len < HEADER_LEN || total_len < header_len {
            return Err(Malformed::Length);
        }
        let bytes = bytes.get(..total_len).ok_or(Malformed::Truncated)?;
        Ok(Self { header, bytes, header_len })
    }

    #[must_use]
    pub fn header(&self) -> &'a Ipv4Header {
        self.header
    }

    /// Bytes of the header with its options.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    #[must_use]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.header.src)
    }

    #[must_use]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.header.dst)
    }

    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.header.protocol
    }

    /// A first, middle or last fragment.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.header.flags_fragment.get() & !(FLAG_DONT_FRAGMENT | 0x8000) != 0
    }

    #[must_use]
    pub fn checksum_is_correct(&self) -> bool {
        checksum::ipv4_header(&self.bytes[..self.header_len]) == 0
    }

    #[must_use]
    pub fn options(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..self.header_len]
    }

    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }
}
