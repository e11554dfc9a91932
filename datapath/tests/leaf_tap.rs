//! TAP devices against the kernel's own network stack.

mod leaf;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use datapath::offload::OffloadSet;
use datapath::port::gather::MAX_PIECES;
use datapath::port::tap::{TapQueue, open_tap};
use leaf::transfer::{Carried, carry, transfer};
use leaf::{BUFFER, DEADLINE, Link, Netns, expect, until, wait};
use wire::arp::{self, ArpPacket};
use wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetView};
use wire::icmp::{self, EchoView};
use wire::ipv4::{Ipv4Header, Ipv4View, PROTOCOL_ICMP};
use wire::virtio_net::GSO_TCPV4;
use wire::{MacAddr, VirtioNetHdr};
use zerocopy::IntoBytes;

const KERNEL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OUR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// A TAP of the namespace, up, with an address of each family: 192.0.2.`host`/24 and fd00::`host`/64.
fn tap(netns: &Netns, name: &'static str, host: u8) -> TapQueue {
    let mut queues = netns.run(move || open_tap(name, 1)).unwrap();
    netns.ip(&format!("addr add 192.0.2.{host}/24 dev {name}"));
    netns.ip(&format!("addr add fd00::{host}/64 dev {name} nodad"));
    netns.ip(&format!("link set {name} up"));
    TapQueue::new(queues.pop().unwrap())
}

#[test]
fn the_kernel_answers_arp_and_echo() {
    let netns = Netns::new();
    let mut tap = tap(&netns, "tap0", 1);
    let done = VirtioNetHdr::default();

    let mut frame = [0; 60];
    let request = ArpPacket::request(OUR_MAC, OURS, KERNEL);
    let len = request.build(&mut frame, MacAddr::BROADCAST).unwrap();
    Link::send(&mut tap, &done, &[&frame[..len]]).unwrap();
    let kernel_mac = expect(&mut tap, "ARP reply", |hdr, frame| {
        let ethernet = EthernetView::new_checked(frame).unwrap();
        (ethernet.ethertype() == ETHERTYPE_ARP).then_some(())?;
        let reply = ArpPacket::new_checked(ethernet.payload()).unwrap();
        (reply.operation.get() == arp::REPLY).then_some(())?;
        assert_eq!((reply.sender_ip(), reply.target_ip()), (KERNEL, OURS));
        assert!(!hdr.needs_csum() && !hdr.is_gso());
        Some(reply.sender_mac)
    });

    let mut echo = [0; 100];
    let len =
        icmp::build_echo_v4(&mut echo, icmp::V4_ECHO_REQUEST, 77, 5, b"across the wall").unwrap();
    let ip = Ipv4Header::new(OURS, KERNEL, PROTOCOL_ICMP, 64, len).unwrap();
    let ethernet = [&kernel_mac.0[..], &OUR_MAC.0, &ETHERTYPE_IPV4.to_be_bytes()].concat();
    // In pieces, as a guest's buffers would be.
    Link::send(&mut tap, &done, &[&ethernet, ip.as_bytes(), &echo[..3], &echo[3..len]]).unwrap();
    expect(&mut tap, "echo reply", |_, frame| {
        let ethernet = EthernetView::new_checked(frame).unwrap();
        (ethernet.ethertype() == ETHERTYPE_IPV4).then_some(())?;
        assert_eq!((ethernet.src(), ethernet.dst()), (kernel_mac, OUR_MAC));
        let ip = Ipv4View::new_checked(ethernet.payload()).unwrap();
        (ip.protocol() == PROTOCOL_ICMP).then_some(())?;
        let reply = EchoView::new_checked(ip.payload()).unwrap();
        assert_eq!(reply.header().kind, icmp::V4_ECHO_REPLY);
        assert_eq!((reply.header().identifier.get(), reply.header().sequence.get()), (77, 5));
        assert_eq!(reply.payload(), b"across the wall");
        Some(())
    });
}

/// Two namespaces with a TAP each, and TCP between them through us.
fn between(address: &str, takes: OffloadSet) -> Carried {
    let (client, server) = (Netns::new(), Netns::new());
    let mut client_tap = tap(&client, "tap0", 1);
    let mut server_tap = tap(&server, "tap0", 2);
    let address: SocketAddr = address.parse().unwrap();
    transfer((&client, &mut client_tap), (&server, &mut server_tap), address, 4 << 20, takes)
}

#[test]
fn large_segments_of_a_kernel_are_cut_for_another() {
    for address in ["192.0.2.2:5001", "[fd00::2]:5001"] {
        let carried = between(address, OffloadSet::NONE);
        assert!(carried.large > 10 && carried.partial > 0, "{address}: {carried:?}");
        assert!(carried.segments > carried.large * 4, "{address}: {carried:?}");
        assert_eq!(carried.passed_on, 0);
    }
}

#[test]
fn checksums_alone_can_be_left_to_the_kernel() {
    let carried = between("192.0.2.2:5001", OffloadSet::CHECKSUM);
    assert!(carried.large > 10 && carried.passed_on > 0, "{carried:?}");
    assert_eq!(carried.partial, 0);
}

#[test]
fn large_segments_pass_from_kernel_to_kernel() {
    for address in ["192.0.2.2:5001", "[fd00::2]:5001"] {
        let carried = between(address, OffloadSet::KERNEL_TAKES);
        assert!(carried.passed_on > 10, "{address}: {carried:?}");
        assert_eq!((carried.large, carried.partial), (0, 0), "{address}: {carried:?}");
        // Far fewer frames than segments of 1,460 bytes.
        assert!(carried.frames < 2 * (4 << 20) / 1460, "{address}: {carried:?}");
    }
}

#[test]
fn datagrams_in_bulk_are_cut() {
    const COUNT: usize = 6;
    static SIZE: libc::c_int = 1000;
    let (client, server) = (Netns::new(), Netns::new());
    let mut client_tap = tap(&client, "tap0", 1);
    let mut server_tap = tap(&server, "tap0", 2);
    for target in ["192.0.2.2:5002", "[fd00::2]:5002"] {
        let target: SocketAddr = target.parse().unwrap();
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let receiver = server.run(move || UdpSocket::bind(target).unwrap());
        receiver.set_nonblocking(true).unwrap();
        let sent = client.start(move || {
            let socket = UdpSocket::bind(any).unwrap();
            // SAFETY: one int, with its size.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_UDP,
                    libc::UDP_SEGMENT,
                    (&raw const SIZE).cast(),
                    4,
                )
            };
            assert_eq!(set, 0);
            let bulk: Vec<u8> = (0..COUNT).flat_map(|n| [u8::try_from(n).unwrap(); 1000]).collect();
            // The last one is shorter.
            socket.send_to(&bulk[..bulk.len() - 300], target).unwrap();
        });
        let mut carried = Carried::default();
        let mut received = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while received.len() < COUNT {
            assert!(Instant::now() < deadline, "{target}: {received:?} {carried:?}");
            carry(&mut client_tap, &mut server_tap, OffloadSet::NONE, &mut carried);
            carry(&mut server_tap, &mut client_tap, OffloadSet::NONE, &mut carried);
            let mut buf = [0; 2000];
            match receiver.recv(&mut buf) {
                Ok(len) => received.push((buf[0], len)),
                Err(_) => wait(&[fd(&client_tap), fd(&server_tap)]),
            }
        }
        sent.recv().unwrap();
        let expected: Vec<_> = (0..6).map(|n| (n, if n == 5 { 700 } else { 1000 })).collect();
        assert_eq!(received, expected, "{target}");
        assert_eq!((carried.large, carried.segments), (1, COUNT), "{target}: {carried:?}");
    }
}

fn fd(tap: &TapQueue) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(tap)
}

#[test]
fn a_device_is_attached_to_again_with_as_many_queues_as_one_likes() {
    let netns = Netns::new();
    netns.ip("tuntap add dev mq mode tap multi_queue vnet_hdr");
    for queues in [1, 4, 2] {
        let opened = netns.run(move || open_tap("mq", queues)).unwrap();
        assert_eq!(opened.len(), queues);
    }
    assert!(netns.ip("link show mq").contains("mq"), "a persistent device stays");
    let opened = netns.run(|| open_tap("gone", 2)).unwrap();
    assert!(netns.ip("link show gone").contains("gone"));
    drop(opened);
    // A device that is not persistent goes with its queues.
    until("the device's end", || !netns.ip("-o link show").contains("gone"));
}

#[test]
fn the_kernel_may_number_devices() {
    let netns = Netns::new();
    let queues = netns.run(|| open_tap("vnl%d", 2)).unwrap();
    // Both queues are of one device.
    let links = netns.ip("-o link show");
    assert_eq!(queues.len(), 2);
    assert_eq!(links.lines().filter(|line| line.contains("vnl")).count(), 1, "{links}");
    assert!(links.contains("vnl0"));
}

#[test]
fn devices_of_another_kind_and_impossible_names_are_refused() {
    let netns = Netns::new();
    netns.ip("tuntap add dev single mode tap");
    netns.ip("tuntap add dev three mode tun multi_queue");
    netns.ip("link add veth0 type veth peer name veth1");
    for name in ["single", "three", "veth0", "lo"] {
        let error = netns.run(move || open_tap(name, 1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name}: {error}");
    }
    for name in ["", "a-name-of-16-xyz", "a/b", "a b", ".", "..", "a:1", "a\n", "ä"] {
        let error = netns.run(move || open_tap(name, 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}: {error}");
        assert_eq!(error.raw_os_error(), None, "{name:?}: {error}");
    }
}

#[test]
fn offloads_are_on() {
    let netns = Netns::new();
    let _queues = netns.run(|| open_tap("tap0", 1)).unwrap();
    let details = netns.ip("-d link show tap0");
    assert!(details.contains("multi_queue") && details.contains("vnet_hdr"), "{details}");
    assert!(details.contains("pi off"), "{details}");
}

#[test]
fn errors_that_a_worker_can_act_on() {
    let netns = Netns::new();
    let mut tap = tap(&netns, "tap0", 1);
    let done = VirtioNetHdr::default();
    let frame = [2; 60];

    let many: Vec<&[u8]> = frame.chunks(1).chain(frame.chunks(1)).collect();
    Link::send(&mut tap, &done, &many[..MAX_PIECES]).unwrap();
    let error = Link::send(&mut tap, &done, &many[..MAX_PIECES + 1]).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::InvalidInput, None));

    // Memory that went away.
    let gone = libc::iovec { iov_base: std::ptr::without_provenance_mut(4096), iov_len: 60 };
    // SAFETY: the kernel finds nothing at this address and says so.
    let error = unsafe { tap.send(&done, &[gone]) }.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));

    // Segments of a frame that has none.
    let mut lie = VirtioNetHdr { flags: 1, gso_type: GSO_TCPV4, ..Default::default() };
    lie.csum_start.set(6000);
    let error = Link::send(&mut tap, &lie, &[&frame]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    // A buffer that the frame does not fit.
    netns.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(&[0; 1000], "192.0.2.255:9").unwrap();
    });
    let mut hdr = VirtioNetHdr::default();
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "the datagram did not come");
        match tap.recv(&mut hdr, &mut [0; 500]) {
            Err(error) if error.kind() == ErrorKind::InvalidData => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(&[fd(&tap)]),
            // Something shorter of the kernel's own.
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }

    netns.ip("link set tap0 down");
    let error = Link::send(&mut tap, &done, &[&frame]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    netns.ip("link del tap0");
    let mut buf = vec![0; BUFFER];
    let error = tap.recv(&mut hdr, &mut buf).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
}
