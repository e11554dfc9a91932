//! What the bridge reads of a frame: addresses, tag, and whether it asks for DHCP.

use std::net::Ipv4Addr;

use wire::ethernet::ETHERTYPE_IPV4;
use wire::{MacAddr, Tci, ipv4, vlan};

/// Bytes of a frame that are enough for every decision: Ethernet, a tag, an IPv4 header with all options, UDP ports.
pub const WINDOW_LEN: usize = 128;

/// A frame's first headers.
#[derive(Clone, Copy)]
pub(super) struct Headers {
    pub(super) dst: MacAddr,
    pub(super) src: MacAddr,
    pub(super) tag: Option<Tci>,
    /// After the tag.
    ethertype: u16,
}

impl Headers {
    /// `None` when the window ends before the EtherType of what the frame carries.
    #[inline]
    pub(super) fn parse(window: &[u8]) -> Option<Self> {
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = window.first_chunk()?;
        let mut ethertype = u16::from_be_bytes([t0, t1]);
        let mut tag = None;
        if vlan::is_tpid(ethertype) {
            let &[c0, c1, t0, t1] = window.get(14..18)?.first_chunk()?;
            tag = Some(Tci(u16::from_be_bytes([c0, c1])));
            ethertype = u16::from_be_bytes([t0, t1]);
        }
        let dst = MacAddr([d0, d1, d2, d3, d4, d5]);
        let src = MacAddr([s0, s1, s2, s3, s4, s5]);
        Some(Self { dst, src, tag, ethertype })
    }

    /// The destination of an unfragmented UDP datagram over IPv4 to port 67, where BOOTP and DHCP servers listen
    /// (RFC 2131 §4.1).
    #[inline]
    pub(super) fn dhcp4_server(&self, window: &[u8]) -> Option<Ipv4Addr> {
        const SERVER_PORT: [u8; 2] = 67u16.to_be_bytes();
        if self.ethertype != ETHERTYPE_IPV4 {
            return None;
        }
        let packet = window.get(if self.tag.is_some() { 18 } else { 14 }..)?;
        let header: &[u8; ipv4::HEADER_LEN] = packet.first_chunk()?;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        if header[9] != ipv4::PROTOCOL_UDP || header[0] >> 4 != 4 || fragment != 0 {
            return None;
        }
        let udp = packet.get(usize::from(header[0] & 15) * 4..)?;
        (udp.get(2..4)? == SERVER_PORT)
            .then(|| Ipv4Addr::new(header[16], header[17], header[18], header[19]))
    }
}

/// Addresses of protocols that live on one link only: a bridge neither forwards nor floods them. IEEE 802.1Q-2018
/// table 8-1 and 8-2, Cisco's (CDP, PVST+, UplinkFast, ISL, CFM) and Extreme's (EDP, EAPS).
#[inline]
pub(super) fn is_reserved(dst: MacAddr) -> bool {
    match dst.0 {
        [0x01, 0x80, 0xc2, 0, 0, last] => last < 0x10,
        [0x01, 0x00, 0x0c, rest @ ..] => {
            matches!(rest, [0, 0, 0] | [0xcc, 0xcc, 0xc0..=0xc7 | 0xcc | 0xcd] | [0xcd, 0xcd, 0xcd])
        }
        [0x00, 0xe0, 0x2b, 0, 0, 0 | 4 | 6] => true,
        _ => false,
    }
}
