//! Packet sockets on a veth pair, with a kernel at its other end.

mod leaf;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use datapath::offload::{OffloadSet, complete_checksum, validate};
use datapath::port::packet::{PacketSocket, open_packet};
use datapath::port::tap::{TapQueue, open_tap};
use leaf::transfer::{assert_finished, transfer};
use leaf::{DEADLINE, Link, Netns, expect, until, wait};
use wire::ethernet::{ETHERTYPE_IPV4, EthernetView};
use wire::udp::{UdpV4, build_ipv4};
use wire::virtio_net::F_NEEDS_CSUM;
use wire::{MacAddr, Tci, VirtioNetHdr};

fn index(netns: &Netns, name: &str) -> u32 {
    let path = format!("/sys/class/net/{name}/ifindex");
    let name = std::ffi::CString::new(name).unwrap();
    netns.run(move || {
        // SAFETY: a terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "{path}");
        index
    })
}

fn packet(netns: &Netns, name: &str) -> PacketSocket {
    let index = index(netns, name);
    PacketSocket::new(netns.run(move || open_packet(index)).unwrap())
}

/// Two namespaces joined by veth: `host` has our socket on `near`, `far` is a station with 192.0.2.`n`/24 and
/// fd00::`n`/64.
fn wire_to(n: u8) -> (Netns, Netns, PacketSocket) {
    let (host, far) = (Netns::new(), Netns::new());
    host.ip(&format!("link add near type veth peer name far netns {}", far.path()));
    far.ip(&format!("addr add 192.0.2.{n}/24 dev far"));
    far.ip(&format!("addr add fd00::{n}/64 dev far nodad"));
    far.ip("link set far up");
    host.ip("link set near up");
    // Until the kernel has noticed the carrier it sends nothing.
    for (netns, name) in [(&host, "near"), (&far, "far")] {
        until("carrier", || netns.ip(&format!("link show {name}")).contains("state UP"));
    }
    let socket = packet(&host, "near");
    (host, far, socket)
}

#[test]
fn tcp_passes_between_an_interface_and_a_tap() {
    for takes in [OffloadSet::NONE, OffloadSet::CHECKSUM, OffloadSet::KERNEL_TAKES] {
        let (_host, far, mut socket) = wire_to(1);
        let near = Netns::new();
        let mut queues = near.run(|| open_tap("tap0", 1)).unwrap();
        let mut tap = TapQueue::new(queues.pop().unwrap());
        near.ip("addr add 192.0.2.2/24 dev tap0");
        near.ip("addr add fd00::2/64 dev tap0 nodad");
        near.ip("link set tap0 up");
        for address in ["192.0.2.2:5001", "[fd00::2]:5001"] {
            let address: SocketAddr = address.parse().unwrap();
            let carried = transfer((&far, &mut socket), (&near, &mut tap), address, 2 << 20, takes);
            let all = carried.large + carried.passed_on;
            assert!(all > 10, "to {address}, {takes:?}: {carried:?}");
        }
        for address in ["192.0.2.1:5001", "[fd00::1]:5001"] {
            let address: SocketAddr = address.parse().unwrap();
            let carried = transfer((&near, &mut tap), (&far, &mut socket), address, 2 << 20, takes);
            let all = carried.large + carried.passed_on;
            assert!(all > 10, "to {address}, {takes:?}: {carried:?}");
        }
    }
}

#[test]
fn partial_checksums_are_seen_as_such() {
    let (_host, far, mut socket) = wire_to(1);
    far.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"partial", "192.0.2.255:4000").unwrap();
    });
    expect(&mut socket, "datagram", |hdr, frame| {
        let ethernet = EthernetView::new_checked(frame).unwrap();
        (ethernet.ethertype() == ETHERTYPE_IPV4).then_some(())?;
        assert!(hdr.needs_csum(), "veth leaves checksums to the receiver");
        let window = &frame[..frame.len().min(switch::WINDOW_LEN)];
        let offload = validate(hdr, window, frame.len(), OffloadSet::ALL).unwrap();
        assert!(wire::udp::parse_ipv4(frame).is_err());
        let mut frame = frame.to_vec();
        complete_checksum(&mut frame, &offload).unwrap();
        assert_finished(&frame);
        assert_eq!(wire::udp::parse_ipv4(&frame).unwrap().payload, b"partial");
        Some(())
    });
}

/// A tagged UDP frame as a guest would send it.
fn tagged(tci: Tci, tpid: u16, payload: &[u8]) -> Vec<u8> {
    let addresses = UdpV4 {
        src_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 8]),
        vlan: tci.vid(),
        src: "192.0.2.9:9".parse().unwrap(),
        dst: "192.0.2.8:8".parse().unwrap(),
        ttl: 64,
    };
    let mut buf = vec![0; 1600];
    let len = build_ipv4(&mut buf, &addresses, payload).unwrap();
    buf.truncate(len);
    buf[12..14].copy_from_slice(&tpid.to_be_bytes());
    buf[14..16].copy_from_slice(&tci.0.to_be_bytes());
    buf
}

#[test]
fn tags_that_the_kernel_took_out_are_put_back() {
    let (_host, far, mut socket) = wire_to(1);
    let mut other = packet(&far, "far");
    for (tci, tpid) in [
        (Tci(7), 0x8100),
        (Tci(5 << 13 | 4094), 0x8100),
        // Priority alone: VLAN 0.
        (Tci(3 << 13), 0x8100),
        (Tci(1 << 12 | 7), 0x88a8),
    ] {
        let sent = tagged(tci, tpid, format!("{tci:?}").as_bytes());
        Link::send(&mut other, &VirtioNetHdr::default(), &[&sent]).unwrap();
        expect(&mut socket, "tagged frame", |hdr, frame| {
            (frame.len() > 12 && frame[..12] == sent[..12]).then_some(())?;
            assert_eq!(frame, sent, "{tci:?}");
            assert!(!hdr.needs_csum());
            Some(())
        });
    }

    // Offsets count the tag.
    let mut sent = tagged(Tci(7), 0x8100, b"and a partial checksum");
    let whole = sent.clone();
    let pseudo = wire::checksum::pseudo_v4(
        [192, 0, 2, 9].into(),
        [192, 0, 2, 8].into(),
        17,
        u16::try_from(sent.len() - 38).unwrap(),
    );
    sent[44..46].copy_from_slice(&wire::checksum::fold(pseudo).to_be_bytes());
    let mut hdr = VirtioNetHdr { flags: F_NEEDS_CSUM, ..Default::default() };
    hdr.csum_start.set(38);
    hdr.csum_offset.set(6);
    Link::send(&mut other, &hdr, &[&sent]).unwrap();
    expect(&mut socket, "tagged frame with a partial checksum", |found, frame| {
        (frame.len() == sent.len() && frame[..12] == sent[..12]).then_some(())?;
        let window = &frame[..frame.len().min(switch::WINDOW_LEN)];
        let offload = validate(found, window, frame.len(), OffloadSet::ALL).unwrap();
        assert_eq!(offload.header(), hdr);
        let mut frame = frame.to_vec();
        complete_checksum(&mut frame, &offload).unwrap();
        assert_eq!(frame, whole);
        Some(())
    });
}

#[test]
fn large_tagged_segments_keep_their_tag() {
    // What a guest with segmentation offload sends on a VLAN, through one socket and out of another.
    let (_host, far, mut socket) = wire_to(1);
    let mut other = packet(&far, "far");
    let payload = vec![0x5a; 5000];
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8])
        .single_vlan(7.try_into().unwrap())
        .ipv4([192, 0, 2, 9], [192, 0, 2, 8], 64)
        .tcp(1000, 2000, 1, 500)
        .write(&mut frame, &payload)
        .unwrap();
    let mut hdr = VirtioNetHdr { flags: F_NEEDS_CSUM, gso_type: 1, ..Default::default() };
    hdr.hdr_len.set(58);
    hdr.gso_size.set(1000);
    hdr.csum_start.set(38);
    hdr.csum_offset.set(16);
    let pseudo = wire::checksum::pseudo_v4([192, 0, 2, 9].into(), [192, 0, 2, 8].into(), 6, 5020);
    frame[54..56].copy_from_slice(&wire::checksum::fold(pseudo).to_be_bytes());
    Link::send(&mut other, &hdr, &[&frame]).unwrap();
    expect(&mut socket, "large tagged frame", |found, received| {
        (received.len() > 12 && received[..12] == frame[..12]).then_some(())?;
        let window = &received[..switch::WINDOW_LEN];
        let offload = validate(found, window, received.len(), OffloadSet::ALL).unwrap();
        assert!(offload.is_gso());
        assert_eq!(offload.header(), hdr);
        assert_eq!(received, frame);
        Some(())
    });
}

#[test]
fn only_what_the_interface_receives_is_seen() {
    let (host, far, mut socket) = wire_to(1);
    host.ip("addr add 192.0.2.7/24 dev near");
    // What the host's own stack sends, and what we send ourselves, is not for us.
    host.run(|| {
        let socket = UdpSocket::bind("192.0.2.7:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"from the host", "192.0.2.255:4000").unwrap();
    });
    let ours = tagged(Tci(7), 0x8100, b"from us");
    Link::send(&mut socket, &VirtioNetHdr::default(), &[&ours]).unwrap();
    far.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"from afar", "192.0.2.255:4000").unwrap();
    });
    let contains = |frame: &[u8], text: &[u8]| frame.windows(text.len()).any(|part| part == text);
    expect(&mut socket, "datagram from afar", |_, frame| {
        assert!(!contains(frame, b"from the host") && !contains(frame, b"from us"), "{frame:02x?}");
        contains(frame, b"from afar").then_some(())
    });
}

#[test]
fn promiscuity_ends_with_the_socket() {
    let (host, _far, socket) = wire_to(1);
    let promiscuity = || {
        let details = host.ip("-d link show near");
        let (_, rest) = details.split_once("promiscuity ").expect("no promiscuity");
        rest.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(promiscuity(), 1);
    let second = packet(&host, "near");
    assert_eq!(promiscuity(), 2);
    drop((socket, second));
    // A process that another test is starting may hold the descriptors a moment longer.
    until("the end of promiscuity", || promiscuity() == 0);
}

#[test]
fn errors_that_a_worker_can_act_on() {
    let (host, far, mut socket) = wire_to(1);
    let done = VirtioNetHdr::default();
    let error = host.run(|| open_packet(4711)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    assert_eq!(open_packet(u32::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);

    let error = Link::send(&mut socket, &done, &[&[2; 3000]]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    let gone = libc::iovec { iov_base: std::ptr::without_provenance_mut(4096), iov_len: 60 };
    // SAFETY: the kernel finds nothing at this address and says so.
    let error = unsafe { socket.send(&done, &[gone]) }.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));

    // A frame larger than the buffer is lost, and said to be.
    far.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(&[0; 1000], "192.0.2.255:9").unwrap();
    });
    let mut hdr = VirtioNetHdr::default();
    assert_eq!(socket.recv(&mut hdr, &mut [0; 3]).unwrap_err().kind(), ErrorKind::InvalidInput);
    let fails = |socket: &mut PacketSocket, wanted: &dyn Fn(&std::io::Error) -> bool| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "the error did not come");
            match socket.recv(&mut VirtioNetHdr::default(), &mut [0; 500]) {
                Err(error) if wanted(&error) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait(&[socket.as_fd()]),
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    fails(&mut socket, &|error| error.kind() == ErrorKind::InvalidData);
    host.ip("link set near down");
    fails(&mut socket, &|error| error.raw_os_error() == Some(libc::ENETDOWN));
    let error = Link::send(&mut socket, &done, &[&[2; 60]]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
    host.ip("link set near up");
    host.ip("link del near");
    fails(&mut socket, &|error| error.raw_os_error() == Some(libc::ENETDOWN));
    let error = Link::send(&mut socket, &done, &[&[2; 60]]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
    assert!(socket.as_fd().as_raw_fd() >= 0);
}
