//! ARP for IPv4 over Ethernet (RFC 826).

use core::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ethernet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetHeader};
use crate::{BufferTooSmall, MacAddr, Malformed};

pub const REQUEST: u16 = 1;
pub const REPLY: u16 = 2;
/// RARP (RFC 903).
pub const REVERSE_REQUEST: u16 = 3;

const HARDWARE_ETHERNET: u16 = 1;

/// Bytes of [`ArpPacket`].
pub const PACKET_LEN: usize = 28;

/// A whole packet.
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
pub struct ArpPacket {
    pub hardware: U16,
    pub protocol: U16,
    pub hardware_len: u8,
    pub protocol_len: u8,
    pub operation: U16,
    pub sender_mac: MacAddr,
    pub sender_ip: [u8; 4],
    pub target_mac: MacAddr,
    pub target_ip: [u8; 4],
}

impl ArpPacket {
    /// "Who has `target`? Tell `sender`." With `sender` equal to `target` it announces the address (RFC 5227 §3); with
    /// `sender` 0.0.0.0 it probes for it.
    #[must_use]
    pub fn request(sender_mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self {
            hardware: U16::new(HARDWARE_ETHERNET),
            protocol: U16::new(ETHERTYPE_IPV4),
            hardware_len: 6,
            protocol_len: 4,
            operation: U16::new(REQUEST),
            sender_mac,
            sender_ip: sender.octets(),
            target_mac: MacAddr::ZERO,
            target_ip: target.octets(),
        }
    }

    /// "Which address do I have?" (RFC 903). Sent to all, it shows switches where the station is.
    #[must_use]
    pub fn reverse_request(mac: MacAddr) -> Self {
        Self {
            operation: U16::new(REVERSE_REQUEST),
            target_mac: mac,
            ..Self::request(mac, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED)
        }
    }

    /// The answer of the station that has the request's target address.
    #[must_use]
    pub fn reply(&self, mac: MacAddr) -> Self {
        Self {
            operation: U16::new(REPLY),
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
            ..*self
        }
    }

    /// Takes a packet off the start of an Ethernet payload.
    ///
    /// # Errors
    /// [`Malformed`] when it is cut short or not about IPv4 over Ethernet.
    pub fn new_checked(payload: &[u8]) -> Result<&Self, Malformed> {
        let (packet, _) = Self::ref_from_prefix(payload).map_err(|_| Malformed::Truncated)?;
        let kind = (packet.hardware.get(), packet.protocol.get());
        if kind != (HARDWARE_ETHERNET, ETHERTYPE_IPV4) {
            return Err(Malformed::Protocol);
        }
        if (packet.hardware_len, packet.protocol_len) != (6, 4) {
            return Err(Malformed::Length);
        }
        Ok(packet)
    }

    #[must_use]
    pub fn sender_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.sender_ip)
    }

    #[must_use]
    pub fn target_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.target_ip)
    }

    /// Writes a whole untagged Ethernet frame from the packet's sender to `dst`, and returns its length.
    ///
    /// # Errors
    /// [`BufferTooSmall`]
    pub fn build(&self, buf: &mut [u8], dst: MacAddr) -> Result<usize, BufferTooSmall> {
        let needed = ethernet::HEADER_LEN + PACKET_LEN;
        let buf = buf.get_mut(..needed).ok_or(BufferTooSmall { needed })?;
        let ethertype = U16::new(ETHERTYPE_ARP);
        let header = EthernetHeader { dst, src: self.sender_mac, ethertype };
        let (head, tail) = buf.split_at_mut(ethernet::HEADER_LEN);
        head.copy_from_slice(header.as_bytes());
        tail.copy_from_slice(self.as_bytes());
        Ok(needed)
    }
}
