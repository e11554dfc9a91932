//! ICMP echo for both families (RFC 792, RFC 4443), and ICMPv6 checksums.

use core::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ipv6::NEXT_ICMPV6;
use crate::{BufferTooSmall, Malformed, checksum};

pub const V4_ECHO_REPLY: u8 = 0;
pub const V4_ECHO_REQUEST: u8 = 8;
pub const V6_ECHO_REQUEST: u8 = 128;
pub const V6_ECHO_REPLY: u8 = 129;

/// Bytes of [`EchoHeader`].
pub const ECHO_HEADER_LEN: usize = 8;

/// The header of echo requests and replies of both families.
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
pub struct EchoHeader {
    pub kind: u8,
    pub code: u8,
    pub checksum: U16,
    pub identifier: U16,
    pub sequence: U16,
}

/// An echo request or reply whose header is all there. The checksum is not looked at.
#[derive(Clone, Copy, Debug)]
pub struct EchoView<'a> {
    header: &'a EchoHeader,
    payload: &'a [u8],
}

impl<'a> EchoView<'a> {
    /// `bytes` is the payload of an IP packet.
    ///
    /// # Errors
    /// [`Malformed`] when the header is cut short or is not that of an echo.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) =
            EchoHeader::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        let echo = matches!(
            header.kind,
            V4_ECHO_REPLY | V4_ECHO_REQUEST | V6_ECHO_REQUEST | V6_ECHO_REPLY
        );
        if echo && header.code == 0 {
            Ok(Self { header, payload })
        } else {
            Err(Malformed::Version)
        }
    }

    #[must_use]
    pub fn header(&self) -> &'a EchoHeader {
        self.header
    }

    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Builds an ICMPv4 echo with its checksum at the start of `buf`, and returns its length.
///
/// # Errors
/// [`BufferTooSmall`]
pub fn build_echo_v4(
    buf: &mut [u8],
    kind: u8,
    identifier: u16,
    sequence: u16,
    payload: &[u8],
) -> Result<usize, BufferTooSmall> {
    build_echo(buf, kind, identifier, sequence, payload, 0)
}

/// Builds an ICMPv6 echo with its checksum at the start of `buf`, and returns its length.
///
/// # Errors
/// [`BufferTooSmall`]
pub fn build_echo_v6(
    buf: &mut [u8],
    (src, dst): (Ipv6Addr, Ipv6Addr),
    kind: u8,
    identifier: u16,
    sequence: u16,
    payload: &[u8],
) -> Result<usize, BufferTooSmall> {
    let needed = ECHO_HEADER_LEN + payload.len();
    let len = u32::try_from(needed).map_err(|_| BufferTooSmall { needed })?;
    let pseudo = checksum::pseudo_v6(src, dst, NEXT_ICMPV6, len);
    build_echo(buf, kind, identifier, sequence, payload, pseudo)
}

fn build_echo(
    buf: &mut [u8],
    kind: u8,
    identifier: u16,
    sequence: u16,
    payload: &[u8],
    pseudo: u32,
) -> Result<usize, BufferTooSmall> {
    let needed = ECHO_HEADER_LEN + payload.len();
    let buf = buf.get_mut(..needed).ok_or(BufferTooSmall { needed })?;
    let mut header = EchoHeader {
        kind,
        code: 0,
        checksum: U16::ZERO,
        identifier: U16::new(identifier),
        sequence: U16::new(sequence),
    };
    let sum = pseudo + checksum::sum(header.as_bytes()) + checksum::sum(payload);
    header.checksum = U16::new(checksum::finish(sum));
    let (head, tail) = buf.split_at_mut(ECHO_HEADER_LEN);
    head.copy_from_slice(header.as_bytes());
    tail.copy_from_slice(payload);
    Ok(needed)
}
