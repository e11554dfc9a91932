//! The internal port: what the bridge traps for an engine, and the engine's answers.

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use common::nic::{CSUM, MRG_RXBUF};
use common::{BROADCAST, Bench, Nic, Options, PortOptions, eventually, frame, mac};
use datapath::{
    BridgeSpec, Closed, Config, Egress, Error, Ingress, InternalHandle, PortIo, PortSpec,
    SendError, internal,
};
use switch::{DropReason, Role, Vid, VlanMode};
use uuid::Uuid;
use wire::udp::{UdpV4, build_ipv4, parse_ipv4};
use wire::virtio_net::F_NEEDS_CSUM;
use wire::{MacAddr, VirtioNetHdr, checksum};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 1);

fn dhcp(src: MacAddr, to: Ipv4Addr, vlan: Option<Vid>) -> Vec<u8> {
    let mut buf = [0; 600];
    let udp = UdpV4 {
        src_mac: src,
        dst_mac: BROADCAST,
        vlan,
        src: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        dst: SocketAddrV4::new(to, 67),
        ttl: 64,
    };
    let len = build_ipv4(&mut buf, &udp, &[7; 300]).unwrap();
    buf[..len].to_vec()
}

fn bench(capacity: usize) -> (Bench, InternalHandle, Uuid) {
    let spec = BridgeSpec { trap_dhcp4: true, gateway_v4: vec![SERVER], ..BridgeSpec::default() };
    let bench = Bench::with(Config::default(), spec, &vec![PortOptions::default(); 2]);
    let (port, handle) = internal(capacity);
    let id = Uuid::new_v4();
    add(&bench, id, port).unwrap();
    (bench, handle, id)
}

fn add(bench: &Bench, id: Uuid, port: datapath::InternalPort) -> Result<(), Error> {
    bench.datapath.add_port(PortSpec {
        id,
        name: "dhcp".to_owned(),
        bridge: bench.bridge,
        mac: MacAddr::ZERO,
        role: Role::Internal,
        vlan: VlanMode::transparent(),
        isolated: false,
        mtu: 1500,
        io: PortIo::Internal(port),
    })
}

fn one(handle: &mut InternalHandle) -> Ingress {
    let mut got = Vec::new();
    handle.recv(&mut got, Some(common::DEADLINE)).unwrap();
    assert_eq!(got.len(), 1);
    got.remove(0)
}

fn nics(bench: &Bench, features: u64) -> (Nic, Nic) {
    let a = bench.nic(0, &Options { features, ..Options::new(mac(0)) });
    (a, bench.nic(1, &Options::new(mac(1))))
}

#[test]
fn dhcp_goes_to_the_engine_alone_and_its_answer_to_the_asker() {
    let (bench, mut handle, _) = bench(16);
    let (mut a, mut b) = nics(&bench, MRG_RXBUF);
    for (to, vlan) in
        [(Ipv4Addr::BROADCAST, None), (SERVER, None), (Ipv4Addr::BROADCAST, Vid::new(7))]
    {
        let sent = dhcp(a.mac, to, vlan);
        a.send(&sent);
        let got = one(&mut handle);
        let number = vlan.map_or(0, Vid::value);
        assert_eq!(got, Ingress { port: bench.id(0), vlan: number, frame: sent });
        let answer = frame(a.mac, MacAddr([2, 9, 9, 9, 9, 9]), 400, 1);
        handle.send(Egress { port: bench.id(0), vlan: number, frame: answer.clone() }).unwrap();
        assert_eq!(a.recv().unwrap().1, answer);
    }
    // A server that is not ours is a guest's own affair; the other heard nothing before that.
    let sent = dhcp(a.mac, Ipv4Addr::new(10, 1, 1, 1), None);
    a.send(&sent);
    assert_eq!(b.recv().unwrap().1, sent);
}

#[test]
fn a_checksum_that_the_guest_left_to_others_is_complete() {
    let (bench, mut handle, _) = bench(16);
    let (mut a, _b) = nics(&bench, MRG_RXBUF | CSUM);
    let whole = dhcp(a.mac, SERVER, None);
    let mut partial = whole.clone();
    let len = u16::try_from(whole.len() - 34).unwrap();
    let sum = checksum::fold(checksum::pseudo_v4(Ipv4Addr::UNSPECIFIED, SERVER, 17, len));
    partial[40..42].copy_from_slice(&sum.to_be_bytes());
    let header = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: 34.into(),
        csum_offset: 6.into(),
        ..VirtioNetHdr::default()
    };
    a.send_with(0, &header, &partial);
    let got = one(&mut handle);
    parse_ipv4(&got.frame).expect("complete");
    assert_eq!(got.frame, whole);
}

#[test]
fn an_engine_that_does_not_keep_up_loses_frames_with_a_reason() {
    let (bench, mut handle, id) = bench(4);
    let (mut a, _b) = nics(&bench, MRG_RXBUF);
    for _ in 0..10 {
        a.send(&dhcp(mac(0), Ipv4Addr::BROADCAST, None));
    }
    let full = || {
        let drops = bench.datapath.port_stats(id).unwrap().drops;
        drops.iter().find(|(reason, _)| *reason == DropReason::TrapFull).unwrap().1
    };
    assert!(eventually(|| full() == 6));
    let mut got = Vec::new();
    handle.recv(&mut got, None).unwrap();
    assert_eq!(got.len(), 4);
}

#[test]
fn waiting_ends_with_time_a_waker_or_the_port() {
    let (bench, mut handle, id) = bench(4);
    let mut got = Vec::new();
    let start = Instant::now();
    handle.recv(&mut got, Some(Duration::from_millis(30))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    let waker = handle.waker();
    let waiting = std::thread::spawn(move || {
        let mut got = Vec::new();
        let woken = handle.recv(&mut got, None);
        (woken, got.len(), handle)
    });
    waker.wake();
    let (woken, n, mut handle) = waiting.join().unwrap();
    assert_eq!((woken, n), (Ok(()), 0));
    let waiting = std::thread::spawn(move || {
        let mut got = Vec::new();
        loop {
            if let Err(closed) = handle.recv(&mut got, None) {
                return (closed, handle);
            }
        }
    });
    let (other, _other_handle) = internal(4);
    let again = add(&bench, Uuid::new_v4(), other);
    assert!(matches!(again, Err(Error::InternalExists(_))), "one engine for each bridge");
    bench.datapath.remove_port(id).unwrap();
    let (closed, handle) = waiting.join().unwrap();
    assert_eq!(closed, Closed);
    let egress = Egress { port: bench.id(0), vlan: 0, frame: vec![0; 60] };
    assert_eq!(handle.send(egress), Err(SendError::Closed));
}

#[test]
fn answers_to_ports_that_are_gone_are_dropped() {
    let (bench, handle, id) = bench(4);
    let egress = Egress { port: Uuid::new_v4(), vlan: 0, frame: vec![0; 60] };
    handle.send(egress).unwrap();
    let gone = || {
        let drops = bench.datapath.port_stats(id).unwrap().drops;
        drops.iter().find(|(reason, _)| *reason == DropReason::PortGone).unwrap().1
    };
    assert!(eventually(|| gone() == 1));
}
