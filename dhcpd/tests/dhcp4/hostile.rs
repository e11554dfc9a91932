//! What guests must not get away with.

use crate::common::*;
use dhcpd::dhcp4::{Actions, Config, DropReason, Range};
use dhcpd::lease::{Change, LeaseState};
use dhcpd::{LeaseEvent, Removal};
use std::net::Ipv4Addr;
use wire::MacAddr;

#[test]
fn a_full_pool_serves_those_who_are_in_it() {
    let mut bench = Bench::new(config());
    for n in 0..10 {
        bench.lease_on(port(n), mac(u8::try_from(n).expect("small")), &[]);
    }
    bench.dropped(&Message::new(DISCOVER, mac(50)), DropReason::Exhausted);
    assert!(bench.has_event(|event| *event == LeaseEvent::Exhausted));
    bench.dropped(&Message::new(DISCOVER, mac(51)), DropReason::Exhausted);
    assert!(!bench.has_event(|event| *event == LeaseEvent::Exhausted), "told once a minute");
    let held = bench.leases().into_iter().find(|lease| lease.mac == mac(3)).expect("it is there");
    let renew = Message::new(REQUEST, mac(3)).ciaddr(held.ip).unicast(held.ip);
    assert_eq!(bench.send_from(port(3), &renew).expect("an answer").kind(), ACK);
    bench.pass(61);
    bench.dropped(&Message::new(DISCOVER, mac(52)), DropReason::Exhausted);
    assert!(bench.has_event(|event| *event == LeaseEvent::Exhausted));
}

#[test]
fn a_full_pool_of_offers_makes_room() {
    let mut with = config();
    with.max_per_port = None;
    let mut bench = Bench::new(with);
    for n in 0..10 {
        bench.send(&Message::new(DISCOVER, mac(n))).expect("an offer");
    }
    bench.dropped(&Message::new(DISCOVER, mac(50)), DropReason::Exhausted);
    bench.pass(4);
    bench.send(&Message::new(DISCOVER, mac(50))).expect("an old offer makes room");
}

#[test]
fn decline_and_release_of_what_is_not_ones_own() {
    let mut bench = Bench::new(config());
    let lease = bench.lease_on(port(1), mac(1), &[(61, b"own id")]);
    let give_up = |kind, n, id: &[u8]| {
        let message = Message::new(kind, mac(n)).option(61, id).server(SERVER);
        if kind == DECLINE {
            message.requested(lease)
        } else {
            message.ciaddr(lease).unicast(lease)
        }
    };
    for kind in [DECLINE, RELEASE] {
        for message in [give_up(kind, 2, b"own id"), give_up(kind, 1, b"other"), {
            let mut message = give_up(kind, 1, b"");
            message.options.retain(|(code, _)| *code != 61);
            message
        }] {
            bench.dropped(&message, DropReason::NotHolder);
        }
        // The right words from another port.
        assert!(bench.send_from(port(2), &give_up(kind, 1, b"own id")).is_none());
        assert_eq!(bench.done.changes, []);
    }
    bench.dropped(&Message::new(DECLINE, mac(1)).server(SERVER), DropReason::NoAddress);
    assert_eq!(bench.leases()[0].ip, lease);
    assert_eq!(bench.leases()[0].state, LeaseState::Bound);
    assert!(bench.send(&give_up(RELEASE, 1, b"own id")).is_none());
    assert_eq!(bench.done.changes, [Change::Remove(lease)]);
    assert_eq!(bench.leases(), []);
}

#[test]
fn relays() {
    let mut bench = Bench::new(config());
    let discover = Message::new(DISCOVER, mac(1)).giaddr(ip(0, 9)).option(82, b"\x01\x04port");
    bench.dropped(&discover, DropReason::Relay);
    bench.dropped(&Message::new(DISCOVER, mac(1)).option(82, b"\x01\x01x"), DropReason::Relay);
    let mut bench = Bench::new(Config { relay: true, ..config() });
    let mut relayed = discover.clone().unicast(ip(0, 9)).option(61, b"id");
    relayed.src_mac = mac(99);
    let offer = bench.send(&relayed).expect("an offer");
    assert_eq!(offer.dst.to_string(), "10.77.0.9:67");
    assert_eq!(offer.dst_mac, mac(99));
    assert_eq!(offer.options.last(), Some(&(82, b"\x01\x04port".to_vec())), "verbatim and last");
    let foreign = Message::new(DISCOVER, mac(1)).giaddr(Ipv4Addr::new(192, 168, 1, 1));
    bench.dropped(&foreign, DropReason::RelaySubnet);
}

#[test]
fn one_port_cannot_take_all() {
    let mut with = config();
    with.ranges = vec![Range { start: ip(1, 0), end: ip(2, 255), lease: None }];
    with.max_per_port = Some(4);
    let mut bench = Bench::new(with);
    for n in 0..4 {
        bench.lease(mac(n));
    }
    bench.dropped(&Message::new(DISCOVER, mac(50)), DropReason::PortLimit);
    bench.dropped(&Message::new(REQUEST, mac(50)).requested(ip(1, 1)), DropReason::PortLimit);
    // Declined addresses count: a port cannot spoil the pool.
    let held = bench.leases();
    for lease in &held {
        let decline = Message::new(DECLINE, lease.mac).requested(lease.ip).server(SERVER);
        assert!(bench.send(&decline).is_none());
    }
    bench.dropped(&Message::new(DISCOVER, mac(50)), DropReason::PortLimit);
    bench.lease_on(port(2), mac(60), &[]);
    // Gone with the port.
    let mut done = Actions::default();
    bench.engine.port_removed(port(1), bench.now, &mut done);
    assert_eq!(done.changes.len(), 4);
    bench.lease(mac(50));
}

#[test]
fn offers_of_a_port_replace_each_other() {
    let mut with = config();
    with.max_per_port = Some(4);
    let mut bench = Bench::new(with);
    for n in 0..200 {
        bench.send(&Message::new(DISCOVER, mac(n))).expect("an offer");
    }
    let others: Vec<_> = (0..6).map(|n| bench.lease_on(port(2 + n), mac(200), &[])).collect();
    assert!(!others.is_empty());
    assert!(bench.engine.next_timer().is_some());
}

#[test]
fn one_mac_cannot_take_all() {
    let mut with = config();
    with.max_per_port = None;
    let mut bench = Bench::new(with);
    for n in 0..8 {
        bench.lease_on(port(1), mac(1), &[(61, &[0, n])]);
    }
    bench.dropped(&Message::new(DISCOVER, mac(1)).option(61, &[0, 9]), DropReason::ClientLimit);
    bench.lease(mac(2));
}

#[test]
fn a_port_that_is_removed_frees_its_addresses() {
    let mut bench = Bench::new(config());
    let lease = bench.lease_on(port(1), mac(1), &[]);
    let other = bench.lease_on(port(2), mac(2), &[]);
    let mut done = Actions::default();
    bench.engine.port_removed(port(1), bench.now, &mut done);
    assert_eq!(done.changes, [Change::Remove(lease)]);
    assert!(matches!(&done.events[..], [LeaseEvent::Removed { why: Removal::PortRemoved, .. }]));
    assert_eq!(bench.leases().into_iter().map(|l| l.ip).collect::<Vec<_>>(), [other]);
}

#[test]
fn what_is_not_a_request_is_dropped() {
    let mut bench = Bench::new(config());
    let discover = || Message::new(DISCOVER, mac(1));
    let with = |at: usize, value: u8| {
        let mut message = discover();
        message.head[at] = value;
        message
    };
    bench.dropped(&with(0, 2), DropReason::NotARequest);
    bench.dropped(&with(0, 0), DropReason::NotARequest);
    bench.dropped(&with(1, 6), DropReason::HardwareType);
    for hlen in [0, 5, 7, 16, 17, 100, 213, 255] {
        bench.dropped(&with(2, hlen), DropReason::HardwareType);
    }
    bench.dropped(&with(3, 17), DropReason::Hops);
    bench.dropped(&with(236, 0), DropReason::Bootp);
    let mut zero = discover();
    zero.head[28..34].fill(0);
    bench.dropped(&zero, DropReason::ClientAddress);
    bench.dropped(&with(28, 0x01), DropReason::ClientAddress);
    let mut bootp = discover();
    bootp.options.clear();
    bench.dropped(&bootp, DropReason::Bootp);
    for kind in [0, 2, 5, 6, 9, 10, 13, 255] {
        bench.dropped(&Message::new(kind, mac(1)), DropReason::MessageType);
    }
    let mut long = discover();
    long.options[0].1 = vec![1, 1];
    bench.dropped(&long, DropReason::Malformed);
    for code in [50, 51, 54, 57] {
        bench.dropped(&discover().option(code, &[1]), DropReason::Malformed);
        bench.dropped(&discover().option(code, &[]), DropReason::Malformed);
    }
}

#[test]
fn forged_sources_are_dropped() {
    let mut bench = Bench::new(config());
    for src in ["255.255.255.255", "224.0.0.1", "127.0.0.1", "10.77.0.1"] {
        let mut message = Message::new(DISCOVER, mac(1));
        message.src = src.parse().expect("an address");
        bench.dropped(&message, DropReason::Source);
    }
    for src in [MacAddr::BROADCAST, MacAddr::ZERO, SERVER_MAC] {
        let mut message = Message::new(DISCOVER, mac(1));
        message.src_mac = src;
        bench.dropped(&message, DropReason::Source);
    }
    bench.dropped(&Message::new(REQUEST, mac(1)).ciaddr(SERVER), DropReason::Source);
}

#[test]
fn the_datagram_must_be_whole() {
    let mut bench = Bench::new(config());
    let frame = Message::new(DISCOVER, mac(1)).frame();
    for len in 0..frame.len() {
        bench.dropped_frame(&frame[..len], DropReason::NotUdp);
    }
    let mut wrong = frame.clone();
    wrong[280] ^= 1;
    bench.dropped_frame(&wrong, DropReason::NotUdp);
    let message = Message::new(DISCOVER, mac(1));
    let payload = message.payload();
    for len in 0..240 {
        let frame = message.frame_of(&payload[..len]);
        bench.dropped_frame(&frame, DropReason::Truncated);
    }
    // From here on a cut hits the options: served or dropped, never worse.
    for len in 240..payload.len() {
        bench.frame(&message.frame_of(&payload[..len]));
    }
}

#[test]
fn every_option_of_every_length() {
    let mut bench = Bench::new(Config { relay: true, ..config() });
    let message = Message::new(DISCOVER, mac(1));
    for code in 1..=254 {
        for (claimed, there) in [(0, 0), (1, 1), (2, 2), (3, 3), (255, 255), (9, 3), (255, 0)] {
            let mut payload = message.head.to_vec();
            payload.extend_from_slice(&[53, 1, 1, code, claimed]);
            payload.extend(std::iter::repeat_n(0x41, there));
            bench.frame(&message.frame_of(&payload));
        }
    }
}

#[test]
fn a_lease_is_not_taken_over_from_another_port() {
    let mut bench = Bench::new(config());
    let held = bench.lease_on(port(1), mac(1), &[(61, b"secret")]);
    let request = |id: &[u8]| Message::new(REQUEST, mac(1)).requested(held).option(61, id);
    // With the MAC alone, or another identifier.
    let vague = Message::new(REQUEST, mac(1)).requested(held);
    for message in [vague, request(b"guess")] {
        assert_eq!(bench.send_from(port(2), &message).expect("an answer").kind(), NAK);
        assert_eq!(bench.leases()[0].port, Some(port(1)));
    }
    let offer = bench.send_from(port(2), &Message::new(DISCOVER, mac(1))).expect("an offer");
    assert_ne!(offer.yiaddr(), held);
    // A client that shows its identifier has moved; that is told.
    assert_eq!(bench.send_from(port(2), &request(b"secret")).expect("an answer").kind(), ACK);
    let moved = |event: &LeaseEvent| matches!(event, LeaseEvent::Moved { lease, from } if lease.ip == held && *from == port(1));
    assert!(bench.has_event(moved));
    assert_eq!(bench.leases()[0].port, Some(port(2)));
}
