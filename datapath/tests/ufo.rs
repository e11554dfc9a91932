//! Large UDP datagrams (virtio 1.3 §5.1.3, HOST_UFO and GUEST_UFO): one datagram in one frame, cut into IP fragments for
//! who does not take it so.

mod common;
mod leaf;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use common::nic::{CSUM, GUEST_CSUM, MRG_RXBUF};
use common::{Bench, Options, mac};
use datapath::PortIo;
use datapath::port::packet::open_packet;
use datapath::port::tap::open_tap;
use etherparse::PacketBuilder;
use leaf::Netns;
use switch::{DropReason, Role};
use wire::virtio_net::{F_NEEDS_CSUM, GSO_UDP};
use wire::{MacAddr, VirtioNetHdr, checksum};

const GUEST_UFO: u64 = 1 << 10;
const HOST_UFO: u64 = 1 << 14;
const SENDS: u64 = CSUM | HOST_UFO | MRG_RXBUF;
const TAKES: u64 = GUEST_CSUM | GUEST_UFO | MRG_RXBUF;
const V4: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2))];
const V6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
];
/// Of the kernels that we talk to.
const KERNEL_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);
/// Up to the longest that fits a packet of either family and its headers.
const LENGTHS: [usize; 4] = [1500, 2953, 20_000, 65_487];

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect()
}

/// One datagram as Linux before 4.14 left it to its device, for an MTU of 1500.
fn datagram(
    dst: MacAddr,
    src: MacAddr,
    [from, to]: [IpAddr; 2],
    port: u16,
    payload: &[u8],
) -> (VirtioNetHdr, Vec<u8>) {
    let ethernet = PacketBuilder::ethernet2(src.0, dst.0);
    let len = 8 + payload.len();
    let (mut bytes, network) = (Vec::new(), 14);
    let (transport, size, pseudo) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let builder = ethernet.ipv4(from.octets(), to.octets(), 64).udp(1000, port);
            builder.write(&mut bytes, payload).unwrap();
            // Linux sets "don't fragment" only on what fits; etherparse always does.
            bytes[network + 6] = 0;
            bytes[network + 10..network + 12].fill(0);
            let sum = checksum::ipv4_header(&bytes[network..network + 20]);
            bytes[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
            (34, 1480, checksum::pseudo_v4(from, to, 17, u16::try_from(len).unwrap()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let builder = ethernet.ipv6(from.octets(), to.octets(), 64).udp(1000, port);
            builder.write(&mut bytes, payload).unwrap();
            (54, 1448, checksum::pseudo_v6(from, to, 17, u32::try_from(len).unwrap()))
        }
        _ => unreachable!("both of one family"),
    };
    let at = usize::from(transport) + 6;
    bytes[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let header = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP,
        hdr_len: (transport + 8).into(),
        gso_size: size.into(),
        csum_start: transport.into(),
        csum_offset: 6.into(),
        ..VirtioNetHdr::default()
    };
    (header, bytes)
}

/// The second address of each family on an interface that is up.
fn configure(netns: &Netns, name: &str) {
    netns.ip(&format!("link set {name} address {KERNEL_MAC}"));
    netns.ip(&format!("addr add 192.0.2.2/24 dev {name}"));
    netns.ip(&format!("addr add fd00::2/64 dev {name} nodad"));
    netns.ip(&format!("link set {name} up"));
}

fn listen(netns: &Netns, address: IpAddr) -> (UdpSocket, u16) {
    let socket = netns.run(move || UdpSocket::bind(SocketAddr::new(address, 0)).unwrap());
    socket.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn expect(socket: &UdpSocket, sent: &[u8]) {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).expect("a datagram");
    assert!(buffer[..len] == *sent, "{len} bytes of {}, or not the same", sent.len());
}

/// A count of the namespace's kernel, as `/proc/net/snmp` and `/proc/net/snmp6` have it.
fn reassembled(netns: &Netns, family: &[IpAddr; 2]) -> u64 {
    let v4 = family[0].is_ipv4();
    netns.run(move || {
        // Of the thread: the namespace is not the process's.
        if v4 {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let at = names.split(' ').position(|name| name == "ReasmOKs").unwrap();
            values.split(' ').nth(at).unwrap().parse().unwrap()
        } else {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let line = text.lines().find(|line| line.starts_with("Ip6ReasmOKs")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        }
    })
}

fn tap() -> (Netns, Vec<OwnedFd>) {
    let netns = Netns::new();
    let queues = netns.run(|| open_tap("tap0", 1)).unwrap();
    configure(&netns, "tap0");
    (netns, queues)
}

#[test]
fn a_datagram_passes_whole_to_who_takes_it() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { features: TAKES, ..Options::new(mac(1)) });
    for family in [V4, V6] {
        for len in LENGTHS {
            let (header, sent) = datagram(b.mac, a.mac, family, 2000, &payload(len));
            a.send_with(0, &header, &sent);
            let (got_header, got) = b.recv().unwrap();
            assert!(got == sent, "{len}");
            assert_eq!(VirtioNetHdr { num_buffers: 0.into(), ..got_header }, header);
        }
    }
    assert_eq!(bench.all_drops(1), []);
}

/// What a guest without the feature gets is put together by the kernel of a namespace.
#[test]
fn a_kernel_reassembles_the_fragments_that_others_get() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { features: MRG_RXBUF, ..Options::new(mac(1)) });
    let (netns, mut queues) = tap();
    let mut kernel = datapath::port::tap::TapQueue::new(queues.pop().unwrap());
    for family in [V4, V6] {
        let (socket, port) = listen(&netns, family[1]);
        for (at, len) in LENGTHS.into_iter().enumerate() {
            let sent = payload(len);
            let (header, frame) = datagram(KERNEL_MAC, a.mac, family, port, &sent);
            a.send_with(0, &header, &frame);
            let size = usize::from(header.gso_size.get());
            for piece in 0..(len + 8).div_ceil(size) {
                let (header, got) = b.recv().unwrap();
                assert_eq!((header.flags, header.gso_type), (0, 0));
                assert!(got.len() <= 14 + 1500, "fragment {piece} of {} bytes", got.len());
                leaf::Link::send(&mut kernel, &VirtioNetHdr::default(), &[&got]).unwrap();
            }
            expect(&socket, &sent);
            assert_eq!(reassembled(&netns, &family), at as u64 + 1);
        }
    }
    assert_eq!(bench.all_drops(1), []);
}

#[test]
fn the_kernel_behind_a_tap_takes_a_datagram_whole() {
    let bench = Bench::new(1);
    let (netns, queues) = tap();
    bench.add_kernel(Role::Guest, PortIo::Tap { queues });
    let mut a = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    for family in [V4, V6] {
        let (socket, port) = listen(&netns, family[1]);
        for len in LENGTHS {
            let sent = payload(len);
            let (header, frame) = datagram(KERNEL_MAC, a.mac, family, port, &sent);
            a.send_with(0, &header, &frame);
            expect(&socket, &sent);
        }
        assert_eq!(reassembled(&netns, &family), 0);
    }
}

/// Also with a size that is no multiple of 8, of which nobody could put fragments together.
#[test]
fn a_host_interface_gets_fragments_that_its_neighbour_reassembles() {
    let bench = Bench::new(1);
    let (host, far) = (Netns::new(), Netns::new());
    host.ip(&format!("link add near type veth peer name far netns {}", far.path()));
    configure(&far, "far");
    host.ip("link set near up");
    for (netns, name) in [(&host, "near"), (&far, "far")] {
        leaf::until("carrier", || netns.ip(&format!("link show {name}")).contains("state UP"));
    }
    let index = host.run(|| {
        // SAFETY: a terminated string.
        unsafe { libc::if_nametoindex(c"near".as_ptr()) }
    });
    let socket = host.run(move || open_packet(index)).unwrap();
    bench.add_kernel(Role::Guest, PortIo::Packet { socket });
    let mut a = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    for family in [V4, V6] {
        let (socket, port) = listen(&far, family[1]);
        for (at, len) in LENGTHS.into_iter().enumerate() {
            let sent = payload(len);
            let (mut header, frame) = datagram(KERNEL_MAC, a.mac, family, port, &sent);
            header.gso_size.set(header.gso_size.get() - 5);
            a.send_with(0, &header, &frame);
            expect(&socket, &sent);
            assert_eq!(reassembled(&far, &family), at as u64 + 1);
        }
    }
}

#[test]
fn only_who_negotiated_it_may_send_it() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options { features: TAKES, ..Options::new(mac(1)) });
    for (before, features) in (0..).zip([CSUM | MRG_RXBUF, HOST_UFO | MRG_RXBUF]) {
        let mut a = bench.nic(0, &Options { features, ..Options::new(mac(0)) });
        let (header, frame) = datagram(b.mac, a.mac, V4, 2000, &payload(5000));
        a.send_with(0, &header, &frame);
        a.send(&common::frame(b.mac, a.mac, 100, 1));
        // The frame behind it is the first that arrives.
        assert_eq!(b.recv().unwrap().1.len(), 100);
        assert!(common::eventually(|| bench.drops(0, DropReason::BadOffload) == before + 1));
    }
}

type Change = fn(&mut VirtioNetHdr, &mut Vec<u8>);

#[test]
fn lies_are_dropped_with_their_reason() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options { features: SENDS, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { features: MRG_RXBUF, ..Options::new(mac(1)) });
    let (header, honest) = datagram(b.mac, a.mac, V4, 2000, &payload(20_000));
    let lies: [(&str, Change); 6] = [
        ("fragments of nothing", |header, _| header.gso_size.set(7)),
        ("thousands of fragments", |header, _| header.gso_size.set(8)),
        ("forbidden to be cut", |_, frame| frame[20] = 0x40),
        ("a fragment", |_, frame| frame[21] = 1),
        ("another UDP length", |_, frame| frame[39] ^= 1),
        ("a longer frame", |_, frame| frame.push(0)),
    ];
    for (before, (what, lie)) in (0..).zip(lies) {
        let (mut header, mut frame) = (header, honest.clone());
        lie(&mut header, &mut frame);
        a.send_with(0, &header, &frame);
        let dropped = || bench.drops(0, DropReason::BadOffload) == before + 1;
        assert!(common::eventually(dropped), "{what}");
        // The frame behind it is the first that arrives.
        a.send(&common::frame(b.mac, a.mac, 100, 1));
        assert_eq!(b.recv().unwrap().1.len(), 100, "{what}");
    }
}
