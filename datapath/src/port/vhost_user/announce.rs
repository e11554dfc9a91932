//! Where a guest is now: the frame that makes switches learn it, sent for guests that cannot do so themselves.
//!
//! A frontend that has migrated a guest in asks for it by SEND_RARP. The frame goes through the switch as if the guest had sent it
//! on its port, so that this switch and all behind it learn the new place.

use wire::MacAddr;
use wire::arp::{ArpPacket, PACKET_LEN};
use wire::ethernet::{ETHERTYPE_RARP, EthernetHeader, HEADER_LEN, MIN_FRAME_LEN};
use zerocopy::IntoBytes;

/// A RARP request "which address do I have?" (RFC 903), to all, of the least length of a frame.
pub(crate) fn frame(mac: MacAddr) -> [u8; MIN_FRAME_LEN] {
    let mut frame = [0; MIN_FRAME_LEN];
    let header =
        EthernetHeader { dst: MacAddr::BROADCAST, src: mac, ethertype: ETHERTYPE_RARP.into() };
    frame[..HEADER_LEN].copy_from_slice(header.as_bytes());
    let packet = ArpPacket::reverse_request(mac);
    frame[HEADER_LEN..HEADER_LEN + PACKET_LEN].copy_from_slice(packet.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte for byte what QEMU sends for guests behind its own TAPs.
    #[test]
    fn it_is_a_reverse_request_from_the_guest_to_all() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let frame = frame(MacAddr(mac));
        let fixed = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
        let expected = [&[0xff; 6][..], &mac, &fixed, &mac, &[0; 4], &mac, &[0; 22]].concat();
        assert_eq!(frame[..], expected);
    }
}
