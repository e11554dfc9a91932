//! The usual exchanges: offers, leases, renewals, endings (RFC 2131 §4.3).

use crate::common::*;
use crate::hosts::host;
use dhcpd::dhcp4::{Actions, Config, DropReason, Engine, Range};
use dhcpd::lease::{Change, LeaseState};
use dhcpd::{LeaseEvent, Removal};
use std::net::Ipv4Addr;
use std::time::Duration;
use wire::MacAddr;

#[test]
fn offer_by_broadcast() {
    let mut bench = Bench::new(config());
    let discover = Message::new(DISCOVER, mac(1)).broadcast_flag();
    let offer = bench.send(&discover).expect("an offer");
    assert_eq!(offer.kind(), OFFER);
    assert_eq!(offer.dst_mac, MacAddr::BROADCAST);
    assert_eq!(offer.dst.to_string(), "255.255.255.255:68");
    assert_eq!(offer.src.to_string(), "10.77.0.1:67");
    assert_eq!(offer.payload[4..8], discover.head[4..8], "xid");
    assert_eq!(offer.payload[10..12], [0x80, 0], "flags");
    assert_eq!(offer.payload[28..44], discover.head[28..44], "chaddr");
    assert_eq!(offer.ciaddr(), Ipv4Addr::UNSPECIFIED);
    assert!((ip(1, 10)..=ip(1, 19)).contains(&offer.yiaddr()));
    assert_eq!(offer.option(54), Some(SERVER.octets().to_vec()));
    assert_eq!(offer.u32(51), Some(3600));
    assert!(!offer.durable);
    assert_eq!(bench.done.changes, [], "offers are not written to disk");
}

#[test]
fn offer_by_unicast() {
    let mut bench = Bench::new(config());
    let offer = bench.send(&Message::new(DISCOVER, mac(1))).expect("an offer");
    assert_eq!(offer.dst_mac, mac(1));
    assert_eq!(*offer.dst.ip(), offer.yiaddr());
    assert_eq!(offer.dst.port(), 68);
}

#[test]
fn two_clients_get_two_addresses() {
    let mut bench = Bench::new(config());
    let first = bench.send(&Message::new(DISCOVER, mac(1))).expect("an offer");
    let second = bench.send(&Message::new(DISCOVER, mac(2))).expect("an offer");
    assert_ne!(first.yiaddr(), second.yiaddr());
}

#[test]
fn a_client_gets_the_same_address_when_all_is_forgotten() {
    let first = Bench::new(config()).lease(mac(1));
    assert_eq!(Bench::new(config()).lease(mac(1)), first);
}

#[test]
fn a_free_address_is_given_when_asked_for() {
    let mut bench = Bench::new(config());
    for wanted in [ip(1, 13), ip(1, 17)] {
        let discover = Message::new(DISCOVER, mac(wanted.octets()[3])).requested(wanted);
        assert_eq!(bench.send(&discover).expect("an offer").yiaddr(), wanted);
    }
}

#[test]
fn an_address_that_cannot_be_given_is_not() {
    let mut bench = Bench::new(config());
    let taken = bench.lease(mac(1));
    let server = SERVER;
    for wanted in [taken, ip(2, 1), Ipv4Addr::UNSPECIFIED, server, ip(0, 0), ip(255, 255)] {
        let offer = bench.send(&Message::new(DISCOVER, mac(2)).requested(wanted)).expect("one");
        assert_ne!(offer.yiaddr(), wanted);
        assert!((ip(1, 10)..=ip(1, 19)).contains(&offer.yiaddr()));
    }
}

#[test]
fn edges_and_own_address_inside_a_range_are_never_given() {
    let net = "10.77.9.0/29".parse().expect("a prefix");
    let mut small = Config::new(ip(9, 1), net, SERVER_MAC);
    small.ranges = vec![Range { start: ip(9, 0), end: ip(9, 7), lease: None }];
    small.router = Some(ip(9, 2));
    small.hosts = vec![host(Some(mac(99)), None, ip(9, 3))];
    let mut bench = Bench::new(small);
    let mut given = Vec::new();
    for n in 1..=5 {
        let offer = bench.send_from(port(u128::from(n)), &Message::new(DISCOVER, mac(n)));
        given.extend(offer.map(|offer| offer.yiaddr()));
    }
    given.sort();
    assert_eq!(given, [ip(9, 4), ip(9, 5), ip(9, 6)]);
}

#[test]
fn selecting() {
    let mut bench = Bench::new(config());
    let offer = bench.send(&Message::new(DISCOVER, mac(1))).expect("an offer");
    let request = Message::new(REQUEST, mac(1)).requested(offer.yiaddr()).server(SERVER);
    let ack = bench.send(&request).expect("an answer");
    assert_eq!((ack.kind(), ack.yiaddr(), ack.durable), (ACK, offer.yiaddr(), true));
    assert!(matches!(&bench.done.changes[..], [Change::Put(lease)] if lease.ip == ack.yiaddr()));
    assert!(matches!(&bench.done.events[..], [LeaseEvent::Added(_)]));
    // The same again, as after a lost ACK.
    let ack = bench.send(&request).expect("an answer");
    assert_eq!(ack.kind(), ACK);
    assert!(matches!(&bench.done.events[..], [LeaseEvent::Renewed(_)]));
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn an_address_that_somebody_else_has_is_refused() {
    let mut bench = Bench::new(config());
    let taken = bench.lease(mac(1));
    let request = Message::new(REQUEST, mac(2)).requested(taken).server(SERVER);
    let nak = bench.send(&request.clone().option(61, b"client")).expect("an answer");
    assert_eq!(nak.kind(), NAK);
    assert_eq!((nak.yiaddr(), nak.ciaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    let codes: Vec<u8> = nak.options.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [53, 54, 61]);
    assert_eq!(nak.dst_mac, MacAddr::BROADCAST);
    assert_eq!(bench.leases()[0].mac, mac(1));
    // Offered to somebody else counts too.
    let offered = bench.send(&Message::new(DISCOVER, mac(3))).expect("an offer").yiaddr();
    let request = Message::new(REQUEST, mac(2)).requested(offered).server(SERVER);
    assert_eq!(bench.send(&request).expect("an answer").kind(), NAK);
}

#[test]
fn another_servers_offer_was_taken() {
    let mut bench = Bench::new(config());
    let offer = bench.send(&Message::new(DISCOVER, mac(1))).expect("an offer").yiaddr();
    let request = Message::new(REQUEST, mac(1)).requested(ip(1, 99)).server(ip(0, 2));
    bench.dropped(&request, DropReason::OtherServer);
    // Ours is free at once.
    let discover = Message::new(DISCOVER, mac(2)).requested(offer);
    assert_eq!(bench.send(&discover).expect("an offer").yiaddr(), offer);
}

#[test]
fn a_request_without_an_address() {
    let mut bench = Bench::new(config());
    bench.dropped(&Message::new(REQUEST, mac(1)).server(SERVER), DropReason::NoAddress);
    bench.dropped(&Message::new(REQUEST, mac(1)), DropReason::NoAddress);
}

#[test]
fn rebooting() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    let reboot = |n, ip| Message::new(REQUEST, mac(n)).requested(ip);
    assert_eq!(bench.send(&reboot(1, lease)).expect("an answer").kind(), ACK);
    // Wrong subnet, outside the ranges, the server's own.
    for wrong in [Ipv4Addr::new(192, 168, 1, 5), ip(9, 9), SERVER, ip(255, 255)] {
        let nak = bench.send(&reboot(2, wrong)).expect("an answer");
        assert_eq!((nak.kind(), nak.dst_mac), (NAK, MacAddr::BROADCAST), "{wrong}");
    }
    // Unknown to us, but free: a lost lease file is rebuilt.
    let free = (10..20).map(|d| ip(1, d)).find(|ip| *ip != lease).expect("nine are free");
    assert_eq!(bench.send(&reboot(3, free)).expect("an answer").kind(), ACK);
}

#[test]
fn renewing_and_rebinding() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    let before = bench.leases()[0].expiry.expect("it ends");
    bench.pass(1800);
    let renew = Message::new(REQUEST, mac(1)).ciaddr(lease).unicast(lease).broadcast_flag();
    let ack = bench.send(&renew).expect("an answer");
    assert_eq!((ack.kind(), ack.yiaddr(), ack.ciaddr()), (ACK, lease, lease));
    assert_eq!((ack.dst_mac, *ack.dst.ip()), (mac(1), lease), "not broadcast");
    assert_eq!(bench.leases()[0].expiry.expect("it ends"), before + Duration::from_secs(1800));
    bench.pass(3150);
    let mut rebind = Message::new(REQUEST, mac(1)).ciaddr(lease);
    rebind.src = lease;
    let ack = bench.send(&rebind).expect("an answer");
    assert_eq!((ack.kind(), *ack.dst.ip()), (ACK, lease));
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn a_foreign_renewal_is_ignored_and_a_foreign_rebinding_refused() {
    let mut bench = Bench::new(config());
    let foreign = Ipv4Addr::new(192, 168, 1, 5);
    let renew = Message::new(REQUEST, mac(1)).ciaddr(foreign).unicast(foreign);
    bench.dropped(&renew, DropReason::ForeignAddress);
    let rebind = Message::new(REQUEST, mac(1)).ciaddr(foreign);
    assert_eq!(bench.send(&rebind).expect("an answer").kind(), NAK);
}

#[test]
fn expiry() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    bench.pass(3599);
    assert_eq!(bench.done, Actions::default());
    bench.pass(1);
    assert_eq!(bench.done.changes, [Change::Remove(lease)]);
    assert!(
        bench.has_event(|event| matches!(event, LeaseEvent::Removed { why: Removal::Expired, .. }))
    );
    assert_eq!(bench.leases(), []);
    assert_eq!(bench.engine.next_timer(), None);
}

#[test]
fn offers_end_after_a_minute() {
    let mut bench = Bench::new(config());
    let offer = bench.send(&Message::new(DISCOVER, mac(1))).expect("an offer").yiaddr();
    let discover = Message::new(DISCOVER, mac(2)).requested(offer);
    assert_ne!(bench.send(&discover).expect("an offer").yiaddr(), offer);
    bench.pass(61);
    assert_eq!(bench.done.changes, []);
    assert_eq!(bench.send(&discover).expect("an offer").yiaddr(), offer);
}

#[test]
fn a_wall_clock_that_jumps_ends_nothing() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    for wall in [1_u64, 4_000_000_000] {
        bench.now.wall = Duration::from_secs(wall);
        bench.pass(10);
        assert_eq!(bench.done.changes, []);
        assert_eq!(bench.leases()[0].ip, lease);
        let left = bench.leases()[0].expiry.expect("it ends") - bench.now.wall;
        assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3500), "{left:?}");
    }
}

#[test]
fn leases_come_back_after_a_restart() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    let stored = bench.leases();
    let mut after = bench.now;
    // Another boot: the monotonic clock begins anew.
    after.mono = Duration::from_secs(3);
    after.wall += Duration::from_secs(600);
    bench.engine = Engine::new(config(), stored.clone(), after).expect("a good configuration");
    bench.now = after;
    let renew = Message::new(REQUEST, mac(1)).ciaddr(lease).unicast(lease);
    assert_eq!(bench.send(&renew).expect("an answer").kind(), ACK);
    // Over while the server was down.
    after.wall += Duration::from_secs(3600);
    let engine = Engine::new(config(), stored.clone(), after).expect("a good configuration");
    assert_eq!(engine.leases(after).count(), 0);
    // The clock was set back by years meanwhile: not longer than it was granted.
    after.wall = Duration::from_secs(1000);
    let mut engine = Engine::new(config(), stored, after).expect("a good configuration");
    after.mono += Duration::from_secs(3601);
    let mut done = Actions::default();
    engine.expire(after, &mut done);
    assert_eq!(done.changes, [Change::Remove(lease)]);
}

#[test]
fn decline() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    let decline = Message::new(DECLINE, mac(1)).requested(lease).server(SERVER);
    assert!(bench.send(&decline).is_none());
    assert!(bench.has_event(|event| matches!(event, LeaseEvent::Quarantined(l) if l.ip == lease)));
    assert_eq!(bench.leases()[0].state, LeaseState::Quarantined);
    let next = bench.lease(mac(1));
    assert_ne!(next, lease);
    let offer = bench.send(&Message::new(DISCOVER, mac(2)).requested(lease)).expect("an offer");
    assert_ne!(offer.yiaddr(), lease);
    bench.pass(601);
    let offer = bench.send(&Message::new(DISCOVER, mac(3)).requested(lease)).expect("an offer");
    assert_eq!(offer.yiaddr(), lease);
}

#[test]
fn inform() {
    let mut bench = Bench::new(config());
    let client = ip(7, 7);
    let inform = Message::new(INFORM, mac(1)).ciaddr(client).option(55, &[1, 3, 6, 51, 58, 59]);
    let ack = bench.send(&inform).expect("an answer");
    assert_eq!((ack.kind(), ack.yiaddr(), ack.durable), (ACK, Ipv4Addr::UNSPECIFIED, false));
    assert_eq!((ack.dst_mac, *ack.dst.ip()), (mac(1), client));
    for code in [51, 58, 59] {
        assert_eq!(ack.option(code), None);
    }
    assert_eq!(ack.option(6), Some(SERVER.octets().to_vec()));
    assert_eq!((bench.leases(), bench.done.changes.len()), (vec![], 0));
    // Without ciaddr, the address that it came from.
    let ack = bench.send(&Message::new(INFORM, mac(1)).unicast(client)).expect("an answer");
    assert_eq!(*ack.dst.ip(), client);
    bench.dropped(&Message::new(INFORM, mac(1)), DropReason::ForeignAddress);
    let foreign = Message::new(INFORM, mac(1)).ciaddr(Ipv4Addr::new(8, 8, 8, 8));
    bench.dropped(&foreign, DropReason::ForeignAddress);
}

#[test]
fn a_client_that_changes_its_address_gives_up_the_old_one() {
    let mut bench = Bench::new(config());
    let old = bench.lease(mac(1));
    let new = (10..20).map(|d| ip(1, d)).find(|ip| *ip != old).expect("nine are free");
    let ack = bench.send(&Message::new(REQUEST, mac(1)).requested(new)).expect("an answer");
    assert_eq!(ack.kind(), ACK);
    assert_eq!(bench.leases().len(), 1);
    assert!(bench.done.changes.contains(&Change::Remove(old)));
    assert!(bench.has_event(|e| matches!(e, LeaseEvent::Removed { why: Removal::Replaced, .. })));
}
