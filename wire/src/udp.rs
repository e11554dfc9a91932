//! UDP headers (RFC 768), and whole Ethernet/IPv4/UDP frames for engines that speak through the switch.

use core::net::{Ipv4Addr, SocketAddrV4};

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ethernet::{self, ETHERTYPE_IPV4, EthernetView};
use crate::ipv4::{self, Ipv4Header, Ipv4View, PROTOCOL_UDP};
use crate::vlan::{self, Tci, Vid, VlanTag};
use crate::{BufferTooSmall, MacAddr, Malformed, checksum};

/// Bytes of [`UdpHeader`].
pub const HEADER_LEN: usize = 8;

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
pub struct UdpHeader {
    pub src_port: U16,
    pub dst_port: U16,
    /// Header and payload.
    pub len: U16,
    /// 0: none (IPv4 only).
    pub checksum: U16,
}

/// A datagram whose header and payload are all there. The checksum is not looked at.
#[derive(Clone, Copy, Debug)]
pub struct UdpView<'a> {
    header: &'a UdpHeader,
    bytes: &'a [u8],
}

impl<'a> UdpView<'a> {
    /// Bytes after the datagram's own length are cut off.
    ///
    /// # Errors
    /// [`Malformed`] when the length field is below 8 or above what is there.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = UdpHeader::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        let len = usize::from(header.len.get());
        if len < HEADER_LEN {
            return Err(Malformed::Length);
        }
        let bytes = bytes.get(..len).ok_or(Malformed::Truncated)?;
        Ok(Self { header, bytes })
    }

    #[must_use]
    pub fn header(&self) -> &'a UdpHeader {
        self.header
    }

    #[must_use]
    pub fn src_port(&self) -> u16 {
        self.header.src_port.get()
    }

    #[must_use]
    pub fn dst_port(&self) -> u16 {
        self.header.dst_port.get()
    }

    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// Header and payload.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The addresses of a frame to be built by [`build_ipv4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpV4 {
    pub src_mac: MacAddr,
    pub dst_mac: MacAddr,
    /// The VLAN of a tag; untagged without.
    pub vlan: Option<Vid>,
    pub src: SocketAddrV4,
    pub dst: SocketAddrV4,
    pub ttl: u8,
}

/// Builds a whole Ethernet/IPv4/UDP frame with complete checksums at the start of `buf`, and returns its length. Short
/// frames are not padded.
///
/// # Errors
/// [`BufferTooSmall`] when `buf` cannot hold the frame or the payload is above 65,507 bytes.
pub fn build_ipv4(buf: &mut [u8], to: &UdpV4, payload: &[u8]) -> Result<usize, BufferTooSmall> {
    let tag_len = if to.vlan.is_some() { vlan::TAG_LEN } else { 0 };
    let needed = ethernet::HEADER_LEN + tag_len + ipv4::HEADER_LEN + HEADER_LEN + payload.len();
    let too_small = BufferTooSmall { needed };
    let udp_len = HEADER_LEN + payload.len();
    let (src, dst) = (*to.src.ip(), *to.dst.ip());
    let ip = Ipv4Header::new(src, dst, PROTOCOL_UDP, to.ttl, udp_len).ok_or(too_small)?;
    let udp_len = u16::try_from(udp_len).map_err(|_| too_small)?;
    let mut udp = UdpHeader {
        src_port: U16::new(to.src.port()),
        dst_port: U16::new(to.dst.port()),
        len: U16::new(udp_len),
        checksum: U16::ZERO,
    };
    udp.checksum = U16::new(checksum::finish_udp(
        checksum::pseudo_v4(src, dst, PROTOCOL_UDP, udp_len)
            + checksum::sum(udp.as_bytes())
            + checksum::sum(payload),
    ));

    let mut rest = buf.get_mut(..needed).ok_or(too_small)?;
    let mut put = |bytes: &[u8]| {
        let (head, tail) = core::mem::take(&mut rest).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        rest = tail;
    };
    put(to.dst_mac.as_bytes());
    put(to.src_mac.as_bytes());
    if let Some(vid) = to.vlan {
        put(VlanTag::customer(Tci::from_vid(vid)).as_bytes());
    }
    put(&ETHERTYPE_IPV4.to_be_bytes());
    put(ip.as_bytes());
    put(udp.as_bytes());
    put(payload);
    Ok(needed)
}

/// A UDP datagram out of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpV4Datagram<'a> {
    pub src_mac: MacAddr,
    pub dst_mac: MacAddr,
    pub src: SocketAddrV4,
    pub dst: SocketAddrV4,
    pub payload: &'a [u8],
}

/// Takes a UDP datagram out of a whole Ethernet frame with at most one VLAN tag. Lengths, the header's checksum and a
/// non-zero UDP checksum are checked; a frame with a partial checksum has to be completed first.
///
/// # Errors
/// [`Malformed`]: [`Protocol`](Malformed::Protocol) when it is something else than UDP over IPv4,
/// [`Fragment`](Malformed::Fragment) for fragments.
pub fn parse_ipv4(frame: &[u8]) -> Result<UdpV4Datagram<'_>, Malformed> {
    let ethernet = EthernetView::new_checked(frame)?;
    if ethernet.ethertype() != ETHERTYPE_IPV4 {
        return Err(Malformed::Protocol);
    }
    let ip = Ipv4View::new_checked(ethernet.payload())?;
    if ip.protocol() != PROTOCOL_UDP {
        return Err(Malformed::Protocol);
    }
    if !ip.checksum_is_correct() {
        return Err(Malformed::Checksum);
    }
    if ip.is_fragment() {
        return Err(Malformed::Fragment);
    }
    let udp = UdpView::new_checked(ip.payload())?;
    if udp.header().checksum.get() != 0 && !checksum_is_correct(ip.src(), ip.dst(), &udp) {
        return Err(Malformed::Checksum);
    }
    Ok(UdpV4Datagram {
        src_mac: ethernet.src(),
        dst_mac: ethernet.dst(),
        src: SocketAddrV4::new(ip.src(), udp.src_port()),
        dst: SocketAddrV4::new(ip.dst(), udp.dst_port()),
        payload: udp.payload(),
    })
}

fn checksum_is_correct(src: Ipv4Addr, dst: Ipv4Addr, udp: &UdpView<'_>) -> bool {
    let pseudo = checksum::pseudo_v4(src, dst, PROTOCOL_UDP, udp.header().len.get());
    checksum::finish(pseudo + checksum::sum(udp.bytes())) == 0
}
