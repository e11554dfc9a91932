//! Whole UDP frames against etherparse, both ways, and against damage.

use std::net::SocketAddrV4;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use wire::udp::{self, UdpV4};
use wire::{MacAddr, Malformed, Vid};

fn mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

fn socket() -> impl Strategy<Value = SocketAddrV4> {
    any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddrV4::new(ip.into(), port))
}

prop_compose! {
    fn addresses()(
        src_mac in mac(),
        dst_mac in mac(),
        vlan in proptest::option::of(0u16..=4094),
        src in socket(),
        dst in socket(),
        ttl in any::<u8>(),
    ) -> UdpV4 {
        UdpV4 { src_mac, dst_mac, vlan: vlan.and_then(Vid::new), src, dst, ttl }
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..600)
}

fn build(to: &UdpV4, payload: &[u8]) -> Vec<u8> {
    let mut buf = vec![0xaa; 2048];
    let len = udp::build_ipv4(&mut buf, to, payload).unwrap();
    assert!(buf[len..].iter().all(|&byte| byte == 0xaa), "bytes after the frame were touched");
    buf.truncate(len);
    buf
}

proptest! {
    #[test]
    fn etherparse_reads_what_we_build(to in addresses(), payload in payload()) {
        let frame = build(&to, &payload);
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP: {sliced:?}") };
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4") };
        prop_assert_eq!(ip.header().source_addr(), *to.src.ip());
        prop_assert_eq!(ip.header().destination_addr(), *to.dst.ip());
        prop_assert_eq!(ip.header().ttl(), to.ttl);
        prop_assert_eq!(
            ip.header().header_checksum(),
            ip.header().to_header().calc_header_checksum()
        );
        prop_assert_eq!(udp.source_port(), to.src.port());
        prop_assert_eq!(udp.destination_port(), to.dst.port());
        prop_assert_eq!(udp.payload(), &payload[..]);
        prop_assert_eq!(
            udp.checksum(),
            udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), &payload).unwrap()
        );
        prop_assert_eq!(sliced.vlan().is_some(), to.vlan.is_some());
    }

    #[test]
    fn we_read_what_etherparse_builds(to in addresses(), payload in payload()) {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2(to.src_mac.0, to.dst_mac.0);
        let (src, dst) = (to.src.ip().octets(), to.dst.ip().octets());
        let ip = match to.vlan {
            Some(vid) => ethernet.single_vlan(vid.value().try_into().unwrap()).ipv4(src, dst, to.ttl),
            None => ethernet.ipv4(src, dst, to.ttl),
        };
        ip.udp(to.src.port(), to.dst.port()).write(&mut frame, &payload).unwrap();
        // Padding is no part of the datagram.
        frame.extend_from_slice(&[0; 7]);
        let datagram = udp::parse_ipv4(&frame).unwrap();
        prop_assert_eq!(datagram.src_mac, to.src_mac);
        prop_assert_eq!(datagram.dst_mac, to.dst_mac);
        prop_assert_eq!(datagram.src, to.src);
        prop_assert_eq!(datagram.dst, to.dst);
        prop_assert_eq!(datagram.payload, &payload[..]);
    }

    #[test]
    fn one_flipped_bit_after_the_ethernet_header_is_noticed(
        to in addresses(), payload in payload(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut frame = build(&UdpV4 { vlan: None, ..to }, &payload);
        let position = 14 + at.index(frame.len() - 14);
        frame[position] ^= 1 << bit;
        match udp::parse_ipv4(&frame) {
            Err(_) => {}
            // The one legal change: a checksum whose only bit is cleared says "none".
            Ok(datagram) => prop_assert!(
                matches!(position, 40 | 41) && frame[40..42] == [0, 0],
                "accepted {datagram:?} after a change at {position}",
            ),
        }
    }

    #[test]
    fn a_frame_cut_short_is_refused(to in addresses(), payload in payload(), at in any::<prop::sample::Index>()) {
        let frame = build(&to, &payload);
        prop_assert!(udp::parse_ipv4(&frame[..at.index(frame.len())]).is_err());
    }

    #[test]
    fn no_input_panics(frame in proptest::collection::vec(any::<u8>(), 0..128)) {
        let _ = udp::parse_ipv4(&frame);
    }
}

#[test]
fn a_buffer_that_is_too_small_is_left_alone() {
    let to = UdpV4 {
        src_mac: MacAddr([2; 6]),
        dst_mac: MacAddr::BROADCAST,
        vlan: Vid::new(7),
        src: "192.0.2.1:67".parse().unwrap(),
        dst: "255.255.255.255:68".parse().unwrap(),
        ttl: 64,
    };
    let mut buf = [0xaa; 49];
    let error = udp::build_ipv4(&mut buf, &to, &[1, 2, 3, 4]).unwrap_err();
    assert_eq!(error.needed, 50);
    assert_eq!(buf, [0xaa; 49]);
    let mut large = vec![0; 70_000];
    assert!(udp::build_ipv4(&mut large, &to, &vec![0; 65_508]).is_err());
    assert!(udp::build_ipv4(&mut large, &to, &vec![0; 65_507]).is_ok());
}

#[test]
fn fragments_and_other_protocols_are_told_apart() {
    let to = UdpV4 {
        src_mac: MacAddr([2; 6]),
        dst_mac: MacAddr::BROADCAST,
        vlan: None,
        src: "0.0.0.0:68".parse().unwrap(),
        dst: "255.255.255.255:67".parse().unwrap(),
        ttl: 64,
    };
    let change = |change: &dyn Fn(&mut [u8])| {
        let mut frame = build(&to, b"payload");
        change(&mut frame);
        frame[24..26].copy_from_slice(&[0, 0]);
        let checksum = wire::checksum::ipv4_header(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        udp::parse_ipv4(&frame).map(|_| ())
    };
    assert_eq!(change(&|_| {}), Ok(()));
    assert_eq!(change(&|frame| frame[20] = 0x20), Err(Malformed::Fragment));
    assert_eq!(change(&|frame| frame[21] = 1), Err(Malformed::Fragment));
    assert_eq!(change(&|frame| frame[23] = 6), Err(Malformed::Protocol));
    assert_eq!(change(&|frame| frame[12] = 0x86), Err(Malformed::Protocol));
    assert_eq!(change(&|frame| frame[39] = 7), Err(Malformed::Length));
    assert_eq!(change(&|frame| frame[39] = 255), Err(Malformed::Truncated));
}
