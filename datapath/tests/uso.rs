//! Large UDP sends (virtio 1.3 §5.1.3, HOST_USO and GUEST_USO): several datagrams in one frame.

mod common;
mod leaf;

use std::net::{Ipv4Addr, UdpSocket};

use common::nic::{CSUM, GUEST_CSUM, MRG_RXBUF};
use common::{Bench, Options, mac};
use datapath::PortIo;
use datapath::port::tap::open_tap;
use etherparse::PacketBuilder;
use switch::Role;
use wire::udp::parse_ipv4;
use wire::virtio_net::{F_NEEDS_CSUM, GSO_UDP_L4};
use wire::{MacAddr, VirtioNetHdr, checksum};

const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;
const HOST_USO: u64 = 1 << 56;
const SENDS: u64 = CSUM | HOST_USO | MRG_RXBUF;
const TAKES: u64 = GUEST_CSUM | GUEST_USO4 | GUEST_USO6 | MRG_RXBUF;
const SRC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const SIZE: usize = 1000;

/// Datagrams of [`SIZE`] bytes and a shorter last one, in one frame.
fn datagrams(dst: MacAddr, src: MacAddr, port: u16, payload: &[u8]) -> (VirtioNetHdr, Vec<u8>) {
    let builder =
        PacketBuilder::ethernet2(src.0, dst.0).ipv4(SRC.octets(), DST.octets(), 64).udp(1000, port);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    let len = u16::try_from(8 + payload.len()).unwrap();
    let partial = checksum::fold(checksum::pseudo_v4(SRC, DST, 17, len));
    bytes[40..42].copy_from_slice(&partial.to_be_bytes());
    let header = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 42.into(),
        gso_size: u16::try_from(SIZE).unwrap().into(),
        csum_start: 34.into(),
        csum_offset: 6.into(),
        ..VirtioNetHdr::default()
    };
    (header, bytes)
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect()
}

#[test]
fn datagrams_pass_together_to_who_takes_them_and_one_by_one_to_others() {
    let bench = Bench::new(3);
    let mut a = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { features: MRG_RXBUF, ..Options::new(mac(1)) });
    let mut c = bench.nic(2, &Options { features: TAKES, ..Options::new(mac(2)) });
    for len in [SIZE + 1, 20_000, 59_999] {
        // To nobody known: both get it.
        let (header, sent) = datagrams(mac(9), a.mac, 2000, &payload(len));
        a.send_with(0, &header, &sent);
        let (got_header, got) = c.recv().unwrap();
        assert_eq!(got, sent);
        assert_eq!((got_header.gso_type, got_header.gso_size), (GSO_UDP_L4, header.gso_size));
        for expected in payload(len).chunks(SIZE) {
            let (header, got) = b.recv().unwrap();
            assert_eq!((header.flags, header.gso_type), (0, 0));
            let datagram = parse_ipv4(&got).expect("a datagram with good checksums");
            assert_eq!(datagram.payload, expected);
        }
    }
    assert_eq!(bench.all_drops(1), []);
    assert_eq!(bench.all_drops(2), []);
}

#[test]
fn the_kernel_behind_a_tap_gets_every_datagram() {
    let bench = Bench::new(1);
    let netns = leaf::Netns::new();
    let queues = netns.run(|| open_tap("tap0", 1)).unwrap();
    netns.ip("link set tap0 address 02:00:00:00:00:77");
    netns.ip("addr add 192.0.2.2/24 dev tap0");
    netns.ip("link set tap0 up");
    bench.add_kernel(Role::Guest, PortIo::Tap { queues });
    let mut nic = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    let socket = netns.run(|| UdpSocket::bind((DST, 0)).unwrap());
    socket.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let to = MacAddr([2, 0, 0, 0, 0, 0x77]);
    let sent = payload(20_500);
    let (header, frame) = datagrams(to, nic.mac, port, &sent);
    nic.send_with(0, &header, &frame);
    let mut buffer = [0; 2 * SIZE];
    for expected in sent.chunks(SIZE) {
        let len = socket.recv(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..len], expected);
    }
}
