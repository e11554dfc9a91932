//! TAP devices and packet sockets as ports, against the kernel's own stack, in namespaces of their own.

mod common;
mod leaf;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use common::nic::{GUEST_CSUM, MRG_RXBUF};
use common::{Bench, Options, eventually, frame, mac};
use datapath::port::packet::open_packet;
use datapath::port::tap::open_tap;
use datapath::{PortIo, PortState};
use leaf::Netns;
use switch::Role;
use uuid::Uuid;
use wire::udp::parse_ipv4;
use wire::{MacAddr, arp};

/// A namespace whose `tap0` is a port.
fn tap(bench: &Bench, host: u8, queues: usize) -> (Arc<Netns>, Uuid) {
    let netns = Arc::new(Netns::new());
    let queues = netns.run(move || open_tap("tap0", queues)).unwrap();
    netns.ip(&format!("addr add 192.0.2.{host}/24 dev tap0"));
    netns.ip("link set tap0 up");
    let id = bench.add_kernel(Role::Guest, PortIo::Tap { queues });
    (netns, id)
}

/// Sends `n` bytes over TCP from one namespace to another, and compares them.
fn tcp(from: &Arc<Netns>, to: &Arc<Netns>, host: u8, n: usize) {
    let listener = to.run(move || TcpListener::bind((Ipv4Addr::new(192, 0, 2, host), 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let data: Arc<Vec<u8>> = Arc::new((0..n).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect());
    let sent = Arc::clone(&data);
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    from.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, common::DEADLINE).unwrap();
        stream.set_write_timeout(Some(common::DEADLINE)).unwrap();
        stream.write_all(&sent).unwrap();
    });
    assert!(*receiver.join().unwrap() == *data, "every byte arrives");
}

#[test]
fn namespaces_talk_over_taps_with_large_frames() {
    let bench = Bench::new(0);
    let (a, a_id) = tap(&bench, 1, 1);
    let (b, _) = tap(&bench, 2, 2);
    tcp(&a, &b, 2, 8 << 20);
    tcp(&b, &a, 1, 8 << 20);
    let stats = bench.datapath.port_stats(a_id).unwrap();
    assert!(
        stats.rx_bytes / stats.rx_packets > 3000,
        "segments stay together: {} bytes in {} frames",
        stats.rx_bytes,
        stats.rx_packets
    );
}

#[test]
fn a_host_interface_is_an_uplink() {
    let bench = Bench::new(0);
    let (a, _) = tap(&bench, 1, 1);
    let host = Netns::new();
    let outside = Arc::new(Netns::new());
    host.ip("link add up0 type veth peer name far0");
    host.ip(&format!("link set far0 netns {}", outside.path()));
    host.ip("link set up0 up");
    outside.ip("addr add 192.0.2.3/24 dev far0");
    outside.ip("link set far0 up");
    let socket = host
        .run(|| {
            let index = rustix_index("up0");
            open_packet(index)
        })
        .unwrap();
    let id = bench.add_kernel(Role::Uplink, PortIo::Packet { socket });
    tcp(&a, &outside, 3, 4 << 20);
    tcp(&outside, &a, 1, 4 << 20);
    bench.datapath.remove_port(id).unwrap();
    assert!(
        !host.ip("-d link show up0").contains("promiscuity 1"),
        "promiscuity ends with the port"
    );
}

fn rustix_index(name: &str) -> u32 {
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))
        .ok()
        .and_then(|index| index.trim().parse().ok())
        .unwrap_or_else(|| {
            let name = std::ffi::CString::new(name).unwrap();
            // SAFETY: a string that ends with zero.
            unsafe { libc::if_nametoindex(name.as_ptr()) }
        })
}

#[test]
fn guests_and_the_kernel_hear_each_other() {
    for features in [MRG_RXBUF, MRG_RXBUF | GUEST_CSUM, 0] {
        let bench = Bench::new(1);
        let (netns, _) = tap(&bench, 1, 1);
        let mut nic = bench.nic(0, &Options { features, ..Options::new(mac(0)) });
        let ours = Ipv4Addr::new(192, 0, 2, 9);
        let kernel = Ipv4Addr::new(192, 0, 2, 1);
        let mut request = [0; 60];
        let len = arp::ArpPacket::request(nic.mac, ours, kernel)
            .build(&mut request, MacAddr::BROADCAST)
            .unwrap();
        nic.send(&request[..len]);
        loop {
            let (_, got) = nic.recv().expect("an ARP reply");
            if got[12..14] == [8, 6] && got[20..22] == [0, 2] {
                break;
            }
        }
        // The kernel leaves the checksum to its device.
        netns.ip(&format!("neigh replace 192.0.2.9 lladdr {} dev tap0", nic.mac));
        netns.run(move || {
            let socket = UdpSocket::bind((kernel, 0)).unwrap();
            socket.send_to(&[5; 700], SocketAddrV4::new(ours, 5000)).unwrap();
        });
        loop {
            let (header, mut got) = nic.recv().expect("a datagram");
            if got[12..14] != [8, 0] {
                continue;
            }
            assert_eq!(header.needs_csum(), features & GUEST_CSUM != 0);
            if header.needs_csum() {
                let start = usize::from(header.csum_start.get());
                let sum = wire::checksum::finish_udp(wire::checksum::sum(&got[start..]));
                let at = start + usize::from(header.csum_offset.get());
                got[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            }
            assert_eq!(parse_ipv4(&got).expect("a whole datagram").payload, [5; 700]);
            break;
        }
    }
}

#[test]
fn a_deleted_device_is_reported_and_costs_nothing() {
    let bench = Bench::new(2);
    let (netns, id) = tap(&bench, 1, 1);
    netns.ip("link del tap0");
    let state = || bench.datapath.port_status(id).unwrap().state;
    assert!(eventually(|| state() == PortState::Gone));
    // Others go on, and frames for it are dropped.
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    common::introduce(&mut [&mut a, &mut b]);
    a.send(&frame(b.mac, a.mac, 60, 1));
    b.recv().unwrap();
    let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    assert!(eventually(|| {
        let before = cpu();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let spent = (cpu().tv_sec - before.tv_sec) * 1_000_000_000 + cpu().tv_nsec - before.tv_nsec;
        spent < 50_000_000
    }));
    bench.datapath.remove_port(id).unwrap();
}
