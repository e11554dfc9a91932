//! What the bridge reads of a frame: addresses, tag, and whether it asks for DHCP.

use std::net::Ipv4Addr;

use wire::ethernet::ETHERTYPE_IPV4;
use wire::{Tci, ipv4, vlan};

/// Bytes of a frame that are enough for every decision: Ethernet, a tag, an IPv4 header with all options, UDP ports.
pub const WINDOW_LEN: usize = 128;

/// A station or group address, read as a big-endian number of 48 bits: one load and one comparison each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) u64);

impl Address {
    #[inline]
    pub(super) const fn is_multicast(self) -> bool {
        self.0 & 1 << 40 != 0
    }

    /// Neither group nor all-zero.
    #[inline]
    pub(super) const fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != 0
    }

    /// Addresses of protocols that live on one link only: a bridge neither forwards nor floods them. IEEE
    /// 802.1Q-2018 tables 8-1 and 8-2, Cisco's (CDP, PVST+, UplinkFast, ISL, CFM) and Extreme's (EDP, EAPS).
    #[inline]
    pub(super) const fn is_reserved(self) -> bool {
        const IEEE: u64 = 0x01_80c2;
        const CISCO: u64 = 0x01_000c;
        const EXTREME: u64 = 0x00_e02b;
        let number = self.0 & 0xff_ffff;
        match self.0 >> 24 {
            IEEE => number < 0x10,
            CISCO => {
                matches!(number, 0 | 0xcc_ccc0..=0xcc_ccc7 | 0xcc_cccc | 0xcc_cccd | 0xcd_cdcd)
            }
            EXTREME => matches!(number, 0 | 4 | 6),
            _ => false,
        }
    }
}

/// A frame's first headers.
#[derive(Clone, Copy)]
pub(super) struct Headers {
    pub(super) dst: Address,
    pub(super) src: Address,
    pub(super) tag: Option<Tci>,
    /// After the tag.
    ethertype: u16,
}

impl Headers {
    /// `None` when the window ends before the EtherType of what the frame carries.
    #[inline]
    pub(super) fn parse(window: &[u8]) -> Option<Self> {
        // Two overlapping words hold both addresses and the EtherType.
        let head: &[u8; 14] = window.first_chunk()?;
        let dst = u64::from_be_bytes(*head.first_chunk()?) >> 16;
        let rest = u64::from_be_bytes(*head.last_chunk()?);
        let src = rest >> 16;
        let [.., t0, t1] = rest.to_be_bytes();
        let mut ethertype = u16::from_be_bytes([t0, t1]);
        let mut tag = None;
        if vlan::is_tpid(ethertype) {
            let &[c0, c1, t0, t1] = window.get(14..18)?.first_chunk()?;
            tag = Some(Tci(u16::from_be_bytes([c0, c1])));
            ethertype = u16::from_be_bytes([t0, t1]);
        }
        Some(Self { dst: Address(dst), src: Address(src), tag, ethertype })
    }

    /// Where what the frame carries begins.
    #[inline]
    pub(super) fn end(&self) -> usize {
        if self.tag.is_some() { 18 } else { 14 }
    }

    /// The destination of an unfragmented UDP datagram over IPv4 to port 67, where BOOTP and DHCP servers listen
    /// (RFC 2131 §4.1).
    #[inline]
    pub(super) fn dhcp4_server(&self, window: &[u8]) -> Option<Ipv4Addr> {
        const SERVER_PORT: [u8; 2] = 67u16.to_be_bytes();
        if self.ethertype != ETHERTYPE_IPV4 {
            return None;
        }
        let packet = window.get(self.end()..)?;
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
