//! Frames to the DHCPv4 server.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use dhcpd::Now;
use dhcpd::dhcp4::{Actions, Config, Engine, IngressId, Range, StaticHost};
use dhcpd::lease::{Change, Lease, LeaseState};
use uuid::Uuid;
use wire::MacAddr;
use wire::udp::{UdpV4, build_ipv4, parse_ipv4};

use crate::input::Input;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const MAX_PER_PORT: usize = 4;
const STEPS: usize = 100;

/// Whole frames, or messages in a good frame, from several ports, with time passing, ports going and restarts.
///
/// # Panics
/// When an address has two holders, one outside the subnet is given, a port has more than its share, or an answer is no
/// frame of the server's.
pub fn dhcp(data: &[u8]) {
    let mut input = Input(data);
    let relay = input.u8() & 1 != 0;
    let mut now = Now { mono: Duration::from_secs(1000), wall: Duration::from_secs(1_700_000_000) };
    let Ok(mut engine) = Engine::new(config(relay), [], now) else {
        panic!("the configuration is good")
    };
    let mut stored: HashMap<Ipv4Addr, Lease> = HashMap::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.u8();
        let mut out = Actions::default();
        let from = IngressId {
            port: Uuid::from_u128(u128::from(step >> 4 & 3)),
            vlan: u16::from(step >> 6) * 10,
        };
        match step & 15 {
            0 => {
                let pass = Duration::from_secs(u64::from(input.u16()));
                now = Now { mono: now.mono + pass, wall: now.wall + pass };
                engine.expire(now, &mut out);
            }
            1 => engine.port_removed(from.port, now, &mut out),
            2 => {
                let leases: Vec<Lease> = stored.values().cloned().collect();
                engine = Engine::new(config(relay), leases, now).expect("it was good before");
            }
            3 => {
                let len = usize::from(input.u16());
                engine.handle(now, from, input.bytes(len), &mut out);
            }
            kind => {
                let mac = MacAddr([0x52, 0x54, 0, 0, 1, input.u8() & 7]);
                let message = message(kind, mac, &mut input);
                engine.handle(now, from, &message, &mut out);
            }
        }
        for change in &out.changes {
            match change {
                Change::Put(lease) => {
                    assert!(engine.config().net.contains(&lease.ip), "{} is elsewhere", lease.ip);
                    assert_ne!(lease.ip, SERVER);
                    stored.insert(lease.ip, lease.clone());
                }
                Change::Remove(ip) => drop(stored.remove(ip)),
            }
        }
        for reply in &out.replies {
            let datagram = parse_ipv4(&reply.frame).expect("an answer is a datagram");
            assert_eq!(datagram.src.ip(), &SERVER, "{datagram:?}");
            assert!(datagram.payload.len() >= 240);
        }
        check(&engine, now);
    }
}

fn check(engine: &Engine, now: Now) {
    let mut holders = HashMap::new();
    let mut by_port: HashMap<Uuid, usize> = HashMap::new();
    for lease in engine.leases(now) {
        assert!(holders.insert(lease.ip, lease.mac).is_none(), "{} has two holders", lease.ip);
        if lease.state == LeaseState::Bound
            && let Some(port) = lease.port
        {
            *by_port.entry(port).or_default() += 1;
        }
    }
    assert!(by_port.values().all(|held| *held <= MAX_PER_PORT), "{by_port:?}");
}

fn config(relay: bool) -> Config {
    let mut config = Config::new(SERVER, "10.77.0.0/24".parse().expect("a prefix"), SERVER_MAC);
    let ip = |last| Ipv4Addr::new(10, 77, 0, last);
    config.ranges = vec![Range { start: ip(10), end: ip(17), lease: None }];
    config.hosts = vec![
        StaticHost {
            mac: Some(MacAddr([0x52, 0x54, 0, 0, 1, 0])),
            name: None,
            ip: ip(12),
            lease: None,
        },
        StaticHost { mac: None, name: Some("named".to_owned()), ip: ip(40), lease: None },
    ];
    config.router = Some(SERVER);
    config.dns = vec![SERVER];
    config.domain = Some("net77.test".to_owned());
    config.mtu = Some(1400);
    config.max_per_port = Some(MAX_PER_PORT);
    config.relay = relay;
    config
}

/// A BOOTP message of this kind (option 53) with addresses near the pool and any further options.
fn message(kind: u8, mac: MacAddr, input: &mut Input<'_>) -> Vec<u8> {
    let near = |last: u8| if last == 0 { [0; 4] } else { [10, 77, 0, last] };
    let [ciaddr, requested, server, giaddr] = input.array().map(near);
    let mut payload = vec![0; 240];
    payload[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, mac.0[5]]);
    payload[12..16].copy_from_slice(&ciaddr);
    payload[24..28].copy_from_slice(&giaddr);
    payload[28..34].copy_from_slice(&mac.0);
    payload[236..].copy_from_slice(&[99, 130, 83, 99]);
    payload.extend([53, 1, kind - 3]);
    for (code, value) in [(50, requested), (54, server)] {
        if value != [0; 4] {
            payload.extend([code, 4]);
            payload.extend(value);
        }
    }
    payload.extend_from_slice(input.sized());
    payload.push(255);
    let source = if ciaddr == [0; 4] { Ipv4Addr::UNSPECIFIED } else { ciaddr.into() };
    let broadcast = ciaddr == [0; 4];
    let to = UdpV4 {
        src_mac: mac,
        dst_mac: MacAddr::BROADCAST,
        vlan: None,
        src: SocketAddrV4::new(source, 68),
        dst: SocketAddrV4::new(if broadcast { Ipv4Addr::BROADCAST } else { SERVER }, 67),
        ttl: 64,
    };
    let mut frame = vec![0; payload.len() + 64];
    let len = build_ipv4(&mut frame, &to, &payload).expect("there is room");
    frame.truncate(len);
    frame
}
