//! Headers of frames, and what is built from them.

use wire::{arp, checksum, ethernet, icmp, ipv4, ipv6, tcp, udp};

/// Every view over any bytes.
///
/// # Panics
/// When a view that was granted does not keep within its bytes.
pub fn headers(data: &[u8]) {
    if let Ok(view) = ethernet::EthernetView::new_checked(data) {
        assert_eq!(view.payload_offset() + view.payload().len(), data.len());
        let _ = (view.dst(), view.src(), view.tag(), view.ethertype());
    }
    if let Ok(view) = ipv4::Ipv4View::new_checked(data) {
        assert!(view.header_len() + view.payload().len() <= data.len());
        assert_eq!(view.options().len() + ipv4::HEADER_LEN, view.header_len());
        let _ = (view.src(), view.dst(), view.protocol(), view.is_fragment());
        let whole = data.get(..view.header_len()).expect("a checked header");
        assert_eq!(view.checksum_is_correct(), checksum::finish(checksum::sum(whole)) == 0);
    }
    if let Ok(view) = ipv6::Ipv6View::new_checked(data) {
        assert!(ipv6::HEADER_LEN + view.payload().len() <= data.len());
        if let Ok((_, payload)) = view.transport() {
            assert!(payload.len() <= view.payload().len());
        }
    }
    if let (Some(kept), Some(transport)) = (ipv6::per_fragment_headers(data), ipv6::transport(data))
    {
        assert!(kept.next_header < kept.len && kept.len <= transport.offset);
        let _ = format!("{transport:?}");
    }
    if let Ok(view) = tcp::TcpView::new_checked(data) {
        assert_eq!(view.header_len() + view.payload().len(), data.len());
        assert_eq!(view.options().len() + tcp::HEADER_LEN, view.header_len());
    }
    if let Ok(view) = udp::UdpView::new_checked(data) {
        assert!(view.bytes().len() <= data.len());
        assert_eq!(view.payload().len() + udp::HEADER_LEN, view.bytes().len());
    }
    if let Ok(datagram) = udp::parse_ipv4(data) {
        let _ = format!("{datagram:?}");
    }
    if let Ok(packet) = arp::ArpPacket::new_checked(data) {
        let mut buf = [0; 64];
        let reply = packet.reply(wire::MacAddr([2, 0, 0, 0, 0, 1]));
        reply.build(&mut buf, wire::MacAddr::BROADCAST).expect("64 bytes hold a reply");
    }
    if let Ok(view) = icmp::EchoView::new_checked(data) {
        assert!(view.payload().len() < data.len());
    }
    assert_eq!(fold(checksum::sum(data)), fold(plain_sum(data)), "two ways to one sum");
}

/// RFC 1071 §1, two bytes at a time.
fn plain_sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    words.fold(0, |sum, word| fold(sum + word))
}

fn fold(mut sum: u32) -> u32 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
