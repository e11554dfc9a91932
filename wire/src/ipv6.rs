//! IPv6 headers (RFC 8200).

use core::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;

pub const NEXT_HOP_BY_HOP: u8 = 0;
pub const NEXT_TCP: u8 = 6;
pub const NEXT_UDP: u8 = 17;
pub const NEXT_ROUTING: u8 = 43;
pub const NEXT_FRAGMENT: u8 = 44;
pub const NEXT_ICMPV6: u8 = 58;
pub const NEXT_NONE: u8 = 59;
pub const NEXT_DESTINATION_OPTIONS: u8 = 60;

/// Bytes of [`Ipv6Header`].
pub const HEADER_LEN: usize = 40;

/// Extension headers that are walked over.
const MOST_HEADERS: usize = 8;

/// The fixed header.
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
pub struct Ipv6Header {
    /// Version 6 in the upper 4 bits, traffic class (8), flow label (20).
    pub version_class_flow: U32,
    /// Everything after this header, extension headers included.
    pub payload_len: U16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: [u8; 16],
    pub dst: [u8; 16],
}

impl Ipv6Header {
    /// A header for `payload_len` bytes; `None` above 65,535.
    #[must_use]
    pub fn new(
        src: Ipv6Addr,
        dst: Ipv6Addr,
        next_header: u8,
        hop_limit: u8,
        payload_len: usize,
    ) -> Option<Self> {
        Some(Self {
            version_class_flow: U32::new(6 << 28),
            payload_len: U16::new(u16::try_from(payload_len).ok()?),
            next_header,
            hop_limit,
            src: src.octets(),
            dst: dst.octets(),
        })
    }
}

/// What is found behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The protocol, or an extension header that cannot be looked through: a fragment header, IPsec, none.
    pub protocol: u8,
    /// Where it starts, from the first byte of the IPv6 header.
    pub offset: usize,
}

/// Walks over hop-by-hop options, routing and destination options headers from the start of an IPv6 packet. `None`
/// when they reach beyond `bytes`, or there are more than 8.
#[must_use]
pub fn transport(bytes: &[u8]) -> Option<Transport> {
    let mut protocol = *bytes.get(6)?;
    let mut offset = HEADER_LEN;
    for _ in 0..=MOST_HEADERS {
        if !matches!(protocol, NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION_OPTIONS) {
            return Some(Transport { protocol, offset });
        }
        let &[next, words] = bytes.get(offset..)?.first_chunk()?;
        protocol = next;
        offset += (usize::from(words) + 1) * 8;
    }
    None
}

/// The headers that every fragment of a packet repeats (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerFragmentHeaders {
    /// Bytes from the first of the IPv6 header.
    pub len: usize,
    /// Where the last of them names what follows, from the first byte of the IPv6 header.
    pub next_header: usize,
}

/// All headers up to the last routing header, else the hop-by-hop options, else the IPv6 header alone, of a packet that
/// begins with `bytes`. `None` when they reach beyond `bytes`, or there are more than 8.
#[must_use]
pub fn per_fragment_headers(bytes: &[u8]) -> Option<PerFragmentHeaders> {
    let mut found = PerFragmentHeaders { len: HEADER_LEN, next_header: 6 };
    let mut protocol = *bytes.get(found.next_header)?;
    let mut offset = HEADER_LEN;
    for _ in 0..=MOST_HEADERS {
        if !matches!(protocol, NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION_OPTIONS) {
            return Some(found);
        }
        let &[next, words] = bytes.get(offset..)?.first_chunk()?;
        let len = offset + (usize::from(words) + 1) * 8;
        if protocol != NEXT_DESTINATION_OPTIONS {
            found = PerFragmentHeaders { len, next_header: offset };
        }
        (protocol, offset) = (next, len);
    }
    None
}

/// A packet whose header and payload are all there.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6View<'a> {
    header: &'a Ipv6Header,
    bytes: &'a [u8],
}

impl<'a> Ipv6View<'a> {
    /// Padding after the packet's own length is cut off. Jumbograms are not known: a zero length is an empty payload.
    ///
    /// # Errors
    /// [`Malformed`] when the version is not 6 or the packet is cut short.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = Ipv6Header::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        if header.version_class_flow.get() >> 28 != 6 {
            return Err(Malformed::Version);
        }
        let len = HEADER_LEN + usize::from(header.payload_len.get());
        let bytes = bytes.get(..len).ok_or(Malformed::Truncated)?;
        Ok(Self { header, bytes })
    }

    #[must_use]
    pub fn header(&self) -> &'a Ipv6Header {
        self.header
    }

    #[must_use]
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.header.src)
    }

    #[must_use]
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.header.dst)
    }

    /// Extension headers and all.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// The transport protocol and its bytes, behind extension headers.
    ///
    /// # Errors
    /// [`Malformed`] when the extension headers reach beyond the packet.
    pub fn transport(&self) -> Result<(u8, &'a [u8]), Malformed> {
        let found = transport(self.bytes).ok_or(Malformed::Truncated)?;
        let bytes = self.bytes.get(found.offset..).ok_or(Malformed::Truncated)?;
        Ok((found.protocol, bytes))
    }
}
