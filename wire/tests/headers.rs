//! Views and builders of the other headers against etherparse, and against damage.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpPacket as OracleArp, IpDscp, IpFragOffset, IpNumber, Ipv4Header as OracleIpv4,
    Ipv6FlowLabel, Ipv6Header as OracleIpv6, TcpHeader as OracleTcp, TcpOptions,
};
use proptest::prelude::*;
use wire::arp::ArpPacket;
use wire::ethernet::EthernetView;
use wire::icmp::{self, EchoView};
use wire::ipv4::{Ipv4Header, Ipv4View};
use wire::ipv6::{Ipv6Header, Ipv6View};
use wire::tcp::TcpView;
use wire::{MacAddr, Malformed, Tci, Vid};
use zerocopy::IntoBytes;

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #[test]
    fn ipv4_views_read_what_etherparse_writes(
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), ttl in any::<u8>(), protocol in any::<u8>(),
        id in any::<u16>(), dscp in 0u8..64, dont_fragment in any::<bool>(), more_fragments in any::<bool>(),
        offset in 0u16..0x2000, option_words in 0usize..=10, payload in bytes(100), padding in bytes(20),
    ) {
        let mut oracle = OracleIpv4::new(
            u16::try_from(payload.len()).unwrap(), ttl, IpNumber(protocol), src, dst,
        ).unwrap();
        oracle.identification = id;
        oracle.dscp = IpDscp::try_new(dscp).unwrap();
        oracle.dont_fragment = dont_fragment;
        oracle.more_fragments = more_fragments;
        oracle.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        let options = vec![1; option_words * 4];
        oracle.options = options.as_slice().try_into().unwrap();
        oracle.set_payload_len(payload.len()).unwrap();
        oracle.header_checksum = oracle.calc_header_checksum();
        let mut packet = Vec::new();
        oracle.write(&mut packet).unwrap();
        packet.extend_from_slice(&payload);
        packet.extend_from_slice(&padding);

        let view = Ipv4View::new_checked(&packet).unwrap();
        prop_assert_eq!(view.src(), Ipv4Addr::from(src));
        prop_assert_eq!(view.dst(), Ipv4Addr::from(dst));
        prop_assert_eq!(view.protocol(), protocol);
        prop_assert_eq!(view.header().ttl, ttl);
        prop_assert_eq!(view.header().id.get(), id);
        prop_assert_eq!(view.options(), &options[..]);
        prop_assert_eq!(view.payload(), &payload[..]);
        prop_assert_eq!(view.is_fragment(), more_fragments || offset != 0);
        prop_assert!(view.checksum_is_correct());
    }

    #[test]
    fn etherparse_reads_our_ip_headers(
        v4 in any::<([u8; 4], [u8; 4])>(), v6 in any::<([u8; 16], [u8; 16])>(), hops in any::<u8>(),
        len in 0usize..=65_515,
    ) {
        let ours = Ipv4Header::new(v4.0.into(), v4.1.into(), 17, hops, len).unwrap();
        let (oracle, _) = OracleIpv4::from_slice(ours.as_bytes()).unwrap();
        prop_assert_eq!(oracle.header_checksum, oracle.calc_header_checksum());
        prop_assert_eq!(usize::from(oracle.payload_len().unwrap()), len);
        prop_assert_eq!((oracle.source, oracle.destination, oracle.time_to_live), (v4.0, v4.1, hops));
        prop_assert!(oracle.dont_fragment);
        let ours = Ipv6Header::new(v6.0.into(), v6.1.into(), 58, hops, len).unwrap();
        let (oracle, _) = OracleIpv6::from_slice(ours.as_bytes()).unwrap();
        prop_assert_eq!((oracle.source, oracle.destination, oracle.hop_limit), (v6.0, v6.1, hops));
        prop_assert_eq!(usize::from(oracle.payload_length), len);
        prop_assert_eq!(oracle.next_header, IpNumber(58));
    }

    #[test]
    fn ipv6_views_read_what_etherparse_writes(
        src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), next in 100u8..130, hop_limit in any::<u8>(),
        flow in 0u32..=0xf_ffff, payload in bytes(100), padding in bytes(20),
    ) {
        let oracle = OracleIpv6 {
            traffic_class: 0xa5,
            flow_label: Ipv6FlowLabel::try_new(flow).unwrap(),
            payload_length: u16::try_from(payload.len()).unwrap(),
            next_header: IpNumber(next),
            hop_limit, source: src, destination: dst,
        };
        let mut packet = oracle.to_bytes().to_vec();
        packet.extend_from_slice(&payload);
        packet.extend_from_slice(&padding);
        let view = Ipv6View::new_checked(&packet).unwrap();
        prop_assert_eq!((view.src(), view.dst()), (Ipv6Addr::from(src), Ipv6Addr::from(dst)));
        prop_assert_eq!(view.header().hop_limit, hop_limit);
        prop_assert_eq!(view.payload(), &payload[..]);
        prop_assert_eq!(view.transport(), Ok((next, &payload[..])));
    }

    #[test]
    fn extension_headers_are_walked(
        chain in proptest::collection::vec((prop::sample::select(vec![0u8, 43, 60]), 0u8..3), 0..=8),
        payload in bytes(40),
    ) {
        let mut body = Vec::new();
        for (index, (_, words)) in chain.iter().enumerate() {
            let next = chain.get(index + 1).map_or(6, |(kind, _)| *kind);
            body.extend_from_slice(&[next, *words]);
            body.resize(body.len() + 6 + usize::from(*words) * 8, 0);
        }
        body.extend_from_slice(&payload);
        let first = chain.first().map_or(6, |(kind, _)| *kind);
        let any = Ipv6Addr::LOCALHOST;
        let mut packet =
            Ipv6Header::new(any, any, first, 64, body.len()).unwrap().as_bytes().to_vec();
        packet.extend_from_slice(&body);
        let view = Ipv6View::new_checked(&packet).unwrap();
        prop_assert_eq!(view.transport(), Ok((6, &payload[..])));
        // Every fragment repeats what comes up to the last header that routers look at.
        let repeated = chain.iter().rposition(|(kind, _)| *kind != 60).map_or(0, |last| last + 1);
        let len = |headers: usize| -> usize {
            40 + chain[..headers].iter().map(|(_, words)| 8 + usize::from(*words) * 8).sum::<usize>()
        };
        let found = wire::ipv6::per_fragment_headers(&packet).unwrap();
        prop_assert_eq!(found.len, len(repeated));
        prop_assert_eq!(found.next_header, repeated.checked_sub(1).map_or(6, len));
        // Cut anywhere, the walk ends in an error or finds the same place.
        for end in 40..packet.len() {
            match wire::ipv6::transport(&packet[..end]) {
                Some(found) => prop_assert_eq!((found.protocol, found.offset), (6, packet.len() - payload.len())),
                None => prop_assert!(end < packet.len() - payload.len()),
            }
            let cut = wire::ipv6::per_fragment_headers(&packet[..end]);
            prop_assert!(cut.is_none_or(|cut| cut == found));
        }
    }

    #[test]
    fn tcp_views_read_what_etherparse_writes(
        ports in any::<(u16, u16)>(), sequence in any::<u32>(), acknowledgment in any::<u32>(),
        window in any::<u16>(), option_words in 0usize..=10, payload in bytes(100), psh in any::<bool>(),
    ) {
        let mut oracle = OracleTcp::new(ports.0, ports.1, sequence, window);
        oracle.acknowledgment_number = acknowledgment;
        oracle.ack = true;
        oracle.psh = psh;
        let options = vec![1; option_words * 4];
        oracle.options = TcpOptions::try_from_slice(&options).unwrap();
        let mut packet = oracle.to_bytes().to_vec();
        packet.extend_from_slice(&payload);
        let view = TcpView::new_checked(&packet).unwrap();
        let header = view.header();
        prop_assert_eq!((header.src_port.get(), header.dst_port.get()), ports);
        prop_assert_eq!(header.sequence.get(), sequence);
        prop_assert_eq!(header.acknowledgment.get(), acknowledgment);
        prop_assert_eq!(header.window.get(), window);
        prop_assert_eq!(header.flags & wire::tcp::FLAG_PSH != 0, psh);
        prop_assert_eq!(header.flags & wire::tcp::FLAG_ACK, wire::tcp::FLAG_ACK);
        prop_assert_eq!(view.options(), &options[..]);
        prop_assert_eq!(view.payload(), &payload[..]);
    }

    #[test]
    fn echoes_have_correct_checksums(
        addresses in any::<([u8; 16], [u8; 16])>(), identifier in any::<u16>(), sequence in any::<u16>(),
        payload in bytes(100),
    ) {
        let mut buf = [0; 256];
        let len = icmp::build_echo_v4(&mut buf, icmp::V4_ECHO_REQUEST, identifier, sequence, &payload).unwrap();
        let oracle = etherparse::Icmpv4Slice::from_slice(&buf[..len]).unwrap();
        prop_assert_eq!(oracle.checksum(), oracle.icmp_type().calc_checksum(&payload));
        let view = EchoView::new_checked(&buf[..len]).unwrap();
        prop_assert_eq!((view.header().identifier.get(), view.header().sequence.get()), (identifier, sequence));
        prop_assert_eq!(view.payload(), &payload[..]);

        let (src, dst) = addresses;
        let len = icmp::build_echo_v6(
            &mut buf, (src.into(), dst.into()), icmp::V6_ECHO_REPLY, identifier, sequence, &payload,
        ).unwrap();
        let oracle = etherparse::Icmpv6Slice::from_slice(&buf[..len]).unwrap();
        prop_assert!(oracle.is_checksum_valid(src, dst));
        prop_assert!(matches!(oracle.icmp_type(), etherparse::Icmpv6Type::EchoReply(_)));
    }

    #[test]
    fn arp_packets_are_those_of_etherparse(
        macs in any::<([u8; 6], [u8; 6])>(), ips in any::<([u8; 4], [u8; 4])>(), padding in bytes(20),
    ) {
        let request = ArpPacket::request(MacAddr(macs.0), ips.0.into(), ips.1.into());
        let mut frame = [0; 60];
        let len = request.build(&mut frame, MacAddr::BROADCAST).unwrap();
        let ethernet = EthernetView::new_checked(&frame[..len]).unwrap();
        prop_assert_eq!((ethernet.src(), ethernet.dst()), (MacAddr(macs.0), MacAddr::BROADCAST));
        prop_assert_eq!(ethernet.ethertype(), wire::ethernet::ETHERTYPE_ARP);
        prop_assert_eq!(ArpPacket::new_checked(ethernet.payload()), Ok(&request));

        let reply = request.reply(MacAddr(macs.1));
        let oracle = OracleArp::new(
            etherparse::ArpHardwareId::ETHERNET, etherparse::EtherType::IPV4,
            etherparse::ArpOperation::REPLY, &macs.1, &ips.1, &macs.0, &ips.0,
        ).unwrap();
        prop_assert_eq!(reply.as_bytes(), &oracle.to_bytes()[..]);
        let padded = [oracle.to_bytes().to_vec(), padding].concat();
        prop_assert_eq!(ArpPacket::new_checked(&padded), Ok(&reply));
    }

    #[test]
    fn tags_are_taken_apart(tci in any::<u16>(), service in any::<bool>(), payload in bytes(30)) {
        let tpid: u16 = if service { 0x88a8 } else { 0x8100 };
        let mut frame = vec![2; 12];
        frame.extend_from_slice(&tpid.to_be_bytes());
        frame.extend_from_slice(&tci.to_be_bytes());
        // Only the outermost tag is looked through.
        frame.extend_from_slice(&0x8100u16.to_be_bytes());
        frame.extend_from_slice(&payload);
        let view = EthernetView::new_checked(&frame).unwrap();
        prop_assert_eq!(view.tag(), Some(Tci(tci)));
        prop_assert_eq!(view.ethertype(), 0x8100);
        prop_assert_eq!(view.payload(), &payload[..]);
        prop_assert_eq!(view.payload_offset(), 18);
        prop_assert_eq!(u16::from(Tci(tci).pcp()), tci >> 13);
        prop_assert_eq!(Tci(tci).dei(), tci >> 12 & 1 == 1);
        prop_assert_eq!(Tci(tci).raw_vid(), tci & 0xfff);
        prop_assert_eq!(Tci(tci).with_vid(Vid::MAX).0, tci & 0xf000 | 4094);
        for end in 0..18 {
            prop_assert_eq!(EthernetView::new_checked(&frame[..end]).err(), Some(Malformed::Truncated));
        }
    }

    #[test]
    fn no_input_panics(bytes in bytes(120)) {
        let _ = EthernetView::new_checked(&bytes).map(|view| view.payload().len());
        let _ = Ipv4View::new_checked(&bytes).map(|view| (view.options().len(), view.payload().len()));
        let _ = Ipv6View::new_checked(&bytes).map(|view| view.transport().is_ok());
        let _ = TcpView::new_checked(&bytes).map(|view| (view.options().len(), view.payload().len()));
        let _ = wire::udp::UdpView::new_checked(&bytes).map(|view| view.payload().len());
        let _ = EchoView::new_checked(&bytes).map(|view| view.payload().len());
        let _ = ArpPacket::new_checked(&bytes);
        let _ = wire::ipv6::transport(&bytes);
        let _ = wire::ipv6::per_fragment_headers(&bytes);
    }
}

#[test]
fn contradicting_lengths_are_refused() {
    let v4 = |change: fn(&mut [u8])| {
        let any = Ipv4Addr::LOCALHOST;
        let mut packet = Ipv4Header::new(any, any, 6, 64, 4).unwrap().as_bytes().to_vec();
        packet.extend_from_slice(&[0; 4]);
        change(&mut packet);
        Ipv4View::new_checked(&packet).err()
    };
    assert_eq!(v4(|_| {}), None);
    assert_eq!(v4(|packet| packet[0] = 0x65), Some(Malformed::Version));
    assert_eq!(v4(|packet| packet[0] = 0x44), Some(Malformed::Length));
    assert_eq!(v4(|packet| packet[0] = 0x4f), Some(Malformed::Length));
    assert_eq!(v4(|packet| packet[3] = 19), Some(Malformed::Length));
    assert_eq!(v4(|packet| packet[3] = 25), Some(Malformed::Truncated));
    assert_eq!(Ipv4View::new_checked(&[0x45; 19]).err(), Some(Malformed::Truncated));
    assert_eq!(Ipv4Header::new(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 6, 1, 65_516), None);

    let mut tcp = [0u8; 24];
    tcp[12] = 0x60;
    assert!(TcpView::new_checked(&tcp).is_ok());
    tcp[12] = 0x70;
    assert_eq!(TcpView::new_checked(&tcp).err(), Some(Malformed::Truncated));
    tcp[12] = 0x40;
    assert_eq!(TcpView::new_checked(&tcp).err(), Some(Malformed::Length));

    let any = Ipv6Addr::LOCALHOST;
    let mut v6 = Ipv6Header::new(any, any, 6, 64, 1).unwrap().as_bytes().to_vec();
    assert_eq!(Ipv6View::new_checked(&v6).err(), Some(Malformed::Truncated));
    v6.push(0);
    assert!(Ipv6View::new_checked(&v6).is_ok());
    v6[0] = 0x40;
    assert_eq!(Ipv6View::new_checked(&v6).err(), Some(Malformed::Version));
}

#[test]
fn more_extension_headers_than_anyone_sends_are_not_walked() {
    let any = Ipv6Addr::LOCALHOST;
    let mut packet = Ipv6Header::new(any, any, 60, 64, 80).unwrap().as_bytes().to_vec();
    for _ in 0..9 {
        packet.extend_from_slice(&[60, 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(wire::ipv6::transport(&packet), None);
    assert_eq!(wire::ipv6::per_fragment_headers(&packet), None);
}

#[test]
fn vlan_identifiers_end_at_4094() {
    assert_eq!(Vid::new(4094), Some(Vid::MAX));
    assert_eq!(Vid::new(4095), None);
    assert_eq!(Tci(0xffff).vid(), None);
    assert_eq!(Tci(0x6001).vid(), Vid::new(1));
}

#[test]
fn mac_addresses_are_read_and_written() {
    let mac: MacAddr = "52:54:00:Ab:c:ff".parse().unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:0c:ff");
    for text in [
        "",
        "52:54:00:ab:0c",
        "52:54:00:ab:0c:ff:0",
        "52:54:00:ab:0c:+f",
        "g2:54:00:ab:0c:ff",
        "52:54:00:ab:0c:fff",
    ] {
        assert!(text.parse::<MacAddr>().is_err(), "{text}");
    }
    assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
    assert!(
        mac.is_station()
            && !MacAddr::ZERO.is_station()
            && !MacAddr([1, 0, 0, 0, 0, 0]).is_station()
    );
}

#[test]
fn the_virtio_header_is_little_endian() {
    use wire::virtio_net::{GSO_ECN, GSO_TCPV4, VirtioNetHdr};
    use zerocopy::FromBytes;
    let bytes = [1, GSO_TCPV4 | GSO_ECN, 54, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0];
    let hdr = VirtioNetHdr::read_from_bytes(&bytes).unwrap();
    assert!(hdr.needs_csum() && hdr.is_gso());
    assert_eq!(hdr.gso(), GSO_TCPV4);
    assert_eq!((hdr.hdr_len.get(), hdr.gso_size.get()), (54, 1460));
    assert_eq!((hdr.csum_start.get(), hdr.csum_offset.get(), hdr.num_buffers.get()), (34, 16, 1));
    assert_eq!(hdr.as_bytes(), bytes);
}
