//! Large frames and checksums between guests that do and do not know about them.

mod common;

common::packed::on_both_layouts! {
    a_frame_of_64_kib_passes_whole_between_guests_that_negotiated_it
    a_guest_that_negotiated_nothing_gets_finished_segments
    tags_and_offloads_go_together
    segments_that_find_no_room_are_dropped_one_by_one
}

use std::net::Ipv4Addr;

use common::nic::{CSUM, EVENT_IDX, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF};
use common::{BROADCAST, Bench, Nic, Options, PortOptions, eventually, frame, mac};
use datapath::{BridgeSpec, Config};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use switch::{DropReason, Vid, VlanMode};
use wire::virtio_net::{F_NEEDS_CSUM, GSO_TCPV4};
use wire::{MacAddr, VirtioNetHdr, checksum};

const SENDS: u64 = CSUM | HOST_TSO4;
const TAKES: u64 = GUEST_CSUM | GUEST_TSO4;
const SRC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const DST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A TCP frame whose checksum is left to others, with its header; to be segmented if `gso_size` is not 0.
fn tcp(dst: MacAddr, src: MacAddr, payload: &[u8], gso_size: u16) -> (VirtioNetHdr, Vec<u8>) {
    let builder = PacketBuilder::ethernet2(src.0, dst.0)
        .ipv4(SRC.octets(), DST.octets(), 64)
        .tcp(1000, 2000, 7, 100)
        .psh();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    let len = u16::try_from(20 + payload.len()).unwrap();
    let partial = checksum::fold(checksum::pseudo_v4(SRC, DST, 6, len));
    bytes[50..52].copy_from_slice(&partial.to_be_bytes());
    let header = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: if gso_size > 0 { GSO_TCPV4 } else { 0 },
        hdr_len: 54.into(),
        gso_size: gso_size.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..VirtioNetHdr::default()
    };
    (header, bytes)
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect()
}

/// The payload of a finished segment.
fn payload(frame: &[u8]) -> (u32, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("not IPv4") };
    assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
    let whole = tcp.slice();
    let len = u16::try_from(whole.len()).unwrap();
    let sum = checksum::pseudo_v4(SRC, DST, 6, len) + checksum::sum(whole);
    assert_eq!(checksum::fold(sum), 0xffff, "the checksum is complete");
    (tcp.sequence_number(), tcp.payload().to_vec())
}

fn meet(from: &mut Nic, to: &mut Nic) {
    to.send(&frame(BROADCAST, to.mac, 60, 0));
    from.recv().unwrap();
}

fn a_frame_of_64_kib_passes_whole_between_guests_that_negotiated_it() {
    for rx_buffer in [1600, 70_000] {
        let bench = Bench::new(2);
        let mergeable = if rx_buffer < 65_000 { MRG_RXBUF } else { 0 };
        let base = Options { rx_buffer, ..Options::new(mac(0)) };
        let features = EVENT_IDX | mergeable;
        let mut a = bench.nic(0, &Options { features: features | SENDS, ..base.clone() });
        let mut b =
            bench.nic(1, &Options { features: features | TAKES, mac: mac(1), ..base.clone() });
        meet(&mut a, &mut b);
        for (len, gso) in [(65_000, 1448), (65_480, 1000), (3000, 1448), (100, 0)] {
            let (header, sent) = tcp(b.mac, a.mac, &bytes(len), gso);
            a.send_with(0, &header, &sent);
            let (got_header, got) = b.recv().unwrap();
            assert_eq!(got, sent);
            let expected = VirtioNetHdr { num_buffers: got_header.num_buffers, ..header };
            let without_hint = |h: VirtioNetHdr| VirtioNetHdr { hdr_len: 0.into(), ..h };
            assert_eq!(without_hint(got_header), without_hint(expected));
        }
        assert_eq!(bench.all_drops(1), []);
    }
}

fn a_guest_that_negotiated_nothing_gets_finished_segments() {
    for mergeable in [0, MRG_RXBUF] {
        let bench = Bench::new(3);
        let mut a = bench.nic(0, &Options { features: SENDS | MRG_RXBUF, ..Options::new(mac(0)) });
        let mut b = bench.nic(1, &Options { features: mergeable, ..Options::new(mac(1)) });
        // A third that takes everything gets the same flood as it is.
        let features = TAKES | MRG_RXBUF;
        let mut c = bench.nic(2, &Options { features, ..Options::new(mac(2)) });
        for (len, gso) in [(20_000, 1448), (60_000, 1000), (1448, 1448), (1, 0), (1000, 0)] {
            let (header, sent) = tcp(mac(9), a.mac, &bytes(len), gso);
            a.send_with(0, &header, &sent);
            let mut got = Vec::new();
            while got.len() < len {
                let (header, segment) = b.recv().unwrap();
                assert_eq!((header.flags, header.gso_type), (0, 0));
                let (sequence, piece) = payload(&segment);
                assert_eq!(sequence as usize, 7 + got.len());
                assert!(piece.len() <= usize::from(gso).max(1000));
                got.extend(piece);
            }
            assert!(got == bytes(len));
            assert_eq!(c.recv().unwrap().1, sent);
        }
    }
}

fn tags_and_offloads_go_together() {
    let ports = [
        PortOptions { vlan: VlanMode::Access(Vid::new(5).unwrap()), ..PortOptions::default() },
        PortOptions::default(),
        PortOptions::default(),
    ];
    let bench = Bench::with(Config::default(), BridgeSpec::default(), &ports);
    let all = SENDS | TAKES | MRG_RXBUF;
    let mut a = bench.nic(0, &Options { features: all, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { features: MRG_RXBUF, ..Options::new(mac(1)) });
    let mut c = bench.nic(2, &Options { features: all, ..Options::new(mac(2)) });
    let (header, sent) = tcp(mac(9), a.mac, &bytes(5000), 1448);
    a.send_with(0, &header, &sent);
    // With the tag, everything is four bytes further.
    let (header, got) = c.recv().unwrap();
    assert_eq!((header.csum_start.get(), got.len()), (38, sent.len() + 4));
    let mut total = Vec::new();
    while total.len() < 5000 {
        let (_, segment) = b.recv().unwrap();
        assert_eq!(segment[12..16], [0x81, 0, 0, 5]);
        let untagged = [&segment[..12], &segment[16..]].concat();
        total.extend(payload(&untagged).1);
    }
    assert!(total == bytes(5000));
    // And back: the tag goes, the offsets with it.
    c.send_with(0, &header, &got);
    let (header, back) = a.recv().unwrap();
    assert_eq!((header.csum_start.get(), back), (34, sent));
}

fn segments_that_find_no_room_are_dropped_one_by_one() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options { features: SENDS | MRG_RXBUF, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { rx_size: 16, ..Options::new(mac(1)) });
    let (header, sent) = tcp(b.mac, a.mac, &bytes(50_000), 1000);
    a.send_with(0, &header, &sent);
    assert!(eventually(|| bench.drops(1, DropReason::RxRingFull) == 34));
    for _ in 0..16 {
        payload(&b.recv().unwrap().1);
    }
}
