//! `kill -9` of the server under load: every ACK that a client saw is in the lease file
//! afterwards, and no address has two holders.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dhcpd::lease::Store;
use socket2::{Domain, Socket, Type};
use wire::MacAddr;

use crate::common::{ACK, DISCOVER, Message, OFFER, REQUEST, SERVER};
use crate::lab::{CONFIG, Lab};
use crate::support::isolated;

const ROUNDS: usize = 20;
const ACKS_PER_ROUND: usize = 40;

fn socket() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    socket.bind_device(Some(b"c0")).expect("c0 is there");
    socket.set_broadcast(true).expect("it can be set");
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68).into()).expect("port 68 is free");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it can be set");
    socket.into()
}

fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr([0x52, 0x54, a, b, c, d])
}

/// New clients one after the other, until told to stop: who got which address.
fn load(stop: &AtomicBool, acks: &AtomicUsize) -> HashMap<Ipv4Addr, MacAddr> {
    let socket = socket();
    let mut held = HashMap::new();
    let mut next = 0;
    let mut buf = [0; 2048];
    let server = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let send = |message: Message| {
        // The server's socket may have gone, or its queue be full.
        let _ = socket.send_to(&message.broadcast_flag().payload(), server);
    };
    while !stop.load(Ordering::SeqCst) {
        // Ten clients at a time, so that the server has something to group.
        for _ in 0..10 {
            next += 1;
            send(Message::new(DISCOVER, mac(next)));
        }
        loop {
            let len = match socket.recv(&mut buf) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            };
            let message = &buf[..len];
            let octets: [u8; 4] = message[16..20].try_into().expect("four octets");
            let ip = Ipv4Addr::from(octets);
            let mac = MacAddr(message[28..34].try_into().expect("six octets"));
            // Our server puts the message type first.
            match message[242] {
                OFFER => send(Message::new(REQUEST, mac).requested(ip).server(SERVER)),
                ACK => {
                    if let Some(other) = held.insert(ip, mac) {
                        assert_eq!(other, mac, "{ip} was given twice");
                    }
                    acks.fetch_add(1, Ordering::SeqCst);
                }
                other => panic!("message type {other}"),
            }
            if acks.load(Ordering::SeqCst).is_multiple_of(10) {
                break;
            }
        }
    }
    held
}

#[test]
fn every_ack_is_kept() {
    isolated(|| {
        let mut lab = Lab::new();
        let (stop, acks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let namespace = lab.namespace();
        let (stop_there, acks_there) = (stop.clone(), acks.clone());
        lab.start(CONFIG);
        let clients = std::thread::spawn(move || {
            Lab::enter(&namespace);
            load(&stop_there, &acks_there)
        });
        for round in 0..ROUNDS {
            let goal = acks.load(Ordering::SeqCst) + ACKS_PER_ROUND;
            crate::support::wait_for("leases", || {
                assert!(!clients.is_finished(), "the clients gave up");
                (acks.load(Ordering::SeqCst) >= goal).then_some(())
            });
            if round % 2 == 0 {
                // Not always between two bursts.
                std::thread::yield_now();
            }
            assert!(!lab.end("-KILL").success());
            if round + 1 < ROUNDS {
                lab.start(CONFIG);
            }
        }
        stop.store(true, Ordering::SeqCst);
        let held = clients.join().expect("no address was given twice");
        assert!(held.len() >= ROUNDS * ACKS_PER_ROUND);
        let opened = Store::open(&lab.path("leases")).expect("a killed server damages nothing");
        let stored: HashMap<Ipv4Addr, MacAddr> =
            opened.leases.iter().map(|lease| (lease.ip, lease.mac)).collect();
        for (ip, mac) in held {
            assert_eq!(stored.get(&ip), Some(&mac), "{ip} was acknowledged");
        }
    });
}
