//! The DHCPv4 engine under random traffic: it never panics, and no address ever has two holders.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::common::*;
use dhcpd::dhcp4::{Actions, Config, StaticHost};
use dhcpd::lease::{Change, LeaseState};
use proptest::prelude::*;

fn config() -> Config {
    let mut config = crate::common::config();
    config.max_per_port = Some(6);
    config.hosts = vec![
        StaticHost { mac: Some(mac(0)), name: None, ip: ip(1, 12), lease: None },
        StaticHost { mac: None, name: Some("named".to_owned()), ip: ip(1, 13), lease: None },
    ];
    config
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Message { port: u8, message: Box<Message> },
    Pass(u64),
    PortRemoved(u8),
    Restart,
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        8 => (10_u8..20).prop_map(|d| ip(1, d)),
        1 => Just(SERVER),
        1 => any::<u32>().prop_map(Ipv4Addr::from),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let id = prop::option::of(prop_oneof![Just(&b"one"[..]), Just(&b"two"[..])]);
    let name = prop::option::of(prop_oneof![Just(&b"named"[..]), Just(&b"vm"[..])]);
    let server = prop::option::of(prop_oneof![4 => Just(SERVER), 1 => Just(ip(0, 2))]);
    let kind = prop_oneof![4 => Just(DISCOVER), 6 => Just(REQUEST), 1 => Just(DECLINE), 2 => Just(RELEASE), 1 => Just(INFORM)];
    let addresses = (prop::option::of(address()), prop::option::of(address()), server);
    (kind, 0_u8..6, id, name, addresses, any::<bool>()).prop_map(
        |(kind, n, id, name, (requested, ciaddr, server), unicast)| {
            let mut message = Message::new(kind, mac(n));
            if let Some(id) = id {
                message = message.option(61, id);
            }
            if let Some(name) = name {
                message = message.option(12, name);
            }
            if let Some(ip) = requested {
                message = message.requested(ip);
            }
            if let Some(ip) = server {
                message = message.server(ip);
            }
            if let Some(ip) = ciaddr {
                message = message.ciaddr(ip);
            }
            if unicast { message.unicast(ciaddr.unwrap_or(ip(1, 10))) } else { message }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (0_u8..3, message()).prop_map(|(port, message)| Step::Message {
            port,
            message: Box::new(message),
        }),
        2 => (1_u64..2000).prop_map(Step::Pass),
        1 => (0_u8..3).prop_map(Step::PortRemoved),
        1 => Just(Step::Restart),
    ]
}

/// What the lease file would hold, and what clients were promised.
#[derive(Default)]
struct World {
    stored: HashMap<Ipv4Addr, dhcpd::lease::Lease>,
}

impl World {
    fn apply(&mut self, done: &Actions) {
        for change in &done.changes {
            match change {
                Change::Put(lease) => {
                    self.stored.insert(lease.ip, lease.clone());
                }
                Change::Remove(ip) => {
                    self.stored.remove(ip);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn an_address_has_one_holder(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new(config());
        let mut world = World::default();
        for step in steps {
            match step {
                Step::Message { port: n, message } => {
                    let before: HashMap<_, _> =
                        bench.leases().into_iter().map(|lease| (lease.ip, lease)).collect();
                    let answer = bench.send_from(port(u128::from(n) + 1), &message);
                    world.apply(&bench.done);
                    if let Some(answer) = answer.filter(|a| a.kind() == OFFER || a.kind() == ACK)
                        && !answer.yiaddr().is_unspecified()
                    {
                        let ip = answer.yiaddr();
                        prop_assert!((crate::common::ip(1, 10)..=crate::common::ip(1, 19)).contains(&ip));
                        // Whoever had it, it was this MAC.
                        if let Some(lease) = before.get(&ip) {
                            prop_assert_eq!(lease.mac, message.mac);
                            prop_assert_eq!(lease.state, LeaseState::Bound);
                        }
                        prop_assert!(ip != crate::common::ip(1, 12) || message.mac == mac(0));
                        if answer.kind() == ACK {
                            let stored = &world.stored[&ip];
                            prop_assert_eq!(stored.mac, message.mac, "on disk before it is promised");
                        }
                    }
                }
                Step::Pass(seconds) => {
                    bench.pass(seconds);
                    world.apply(&bench.done);
                }
                Step::PortRemoved(n) => {
                    let mut done = Actions::default();
                    bench.engine.port_removed(port(u128::from(n) + 1), bench.now, &mut done);
                    world.apply(&done);
                }
                Step::Restart => {
                    let stored: Vec<_> = world.stored.values().cloned().collect();
                    bench.engine = dhcpd::dhcp4::Engine::new(config(), stored, bench.now)
                        .expect("a good configuration");
                }
            }
            // What is held is what is on disk, and each port and MAC within its limit.
            let leases = bench.leases();
            prop_assert_eq!(leases.len(), world.stored.len());
            let (mut ports, mut macs) = (HashMap::new(), HashMap::new());
            for lease in &leases {
                prop_assert_eq!(world.stored[&lease.ip].mac, lease.mac);
                *ports.entry(lease.port).or_insert(0) += 1;
                *macs.entry(lease.mac).or_insert(0) += 1;
            }
            prop_assert!(ports.values().all(|count| *count <= 6));
            prop_assert!(macs.values().all(|count| *count <= 8));
        }
    }

    #[test]
    fn random_frames(frame in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut bench = Bench::new(config());
        bench.frame(&frame);
        prop_assert!(bench.done.changes.is_empty());
    }

    #[test]
    fn random_options(options in prop::collection::vec(any::<u8>(), 0..400), head in any::<[u8; 12]>()) {
        let mut bench = Bench::new(Config { relay: true, ..config() });
        let message = Message::new(DISCOVER, mac(1));
        let mut payload = message.payload();
        payload.pop();
        payload.extend_from_slice(&options);
        payload[12..24].copy_from_slice(&head);
        bench.frame(&message.frame_of(&payload));
    }

    #[test]
    fn mutated_messages(
        message in message(),
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bench = Bench::new(config());
        let mut payload = message.payload();
        for (index, value) in at {
            let index = index.index(payload.len());
            payload[index] = value;
        }
        bench.frame(&message.frame_of(&payload));
    }
}
