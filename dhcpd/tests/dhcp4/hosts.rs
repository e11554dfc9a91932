//! Static hosts, and what a changed configuration does to leases.

use crate::common::*;
use dhcpd::LeaseEvent;
use dhcpd::dhcp4::{Actions, Config, ConfigError, DropReason, LeaseTime, StaticHost};
use dhcpd::lease::Change;
use std::net::Ipv4Addr;
use std::time::Duration;
use wire::MacAddr;

pub(crate) fn host(mac: Option<MacAddr>, name: Option<&str>, ip: Ipv4Addr) -> StaticHost {
    StaticHost { mac, name: name.map(str::to_owned), ip, lease: None }
}

#[test]
fn static_host_by_mac() {
    let mut with = config();
    with.hosts =
        vec![host(Some(mac(1)), Some("Db"), ip(1, 15)), host(Some(mac(2)), None, ip(3, 3))];
    let mut bench = Bench::new(with);
    assert_eq!(bench.lease_on(port(1), mac(1), &[(12, b"called-otherwise")]), ip(1, 15));
    assert_eq!(bench.leases()[0].hostname.as_deref(), Some("db"), "the configured name wins");
    assert_eq!(bench.lease(mac(2)), ip(3, 3));
    // Nobody else gets it, not even when asking.
    let reboot = Message::new(REQUEST, mac(9)).requested(ip(3, 3));
    assert_eq!(bench.send(&reboot).expect("an answer").kind(), NAK);
    for n in 10..19 {
        let offer = bench.send_from(port(u128::from(n)), &Message::new(DISCOVER, mac(n)));
        assert_ne!(offer.expect("an offer").yiaddr(), ip(1, 15));
    }
    // The owner may not have another one.
    let reboot = Message::new(REQUEST, mac(1)).requested(ip(1, 11));
    assert_eq!(bench.send(&reboot).expect("an answer").kind(), NAK);
}

#[test]
fn firmware_and_system_of_a_static_host_share_its_address() {
    let mut with = config();
    with.hosts = vec![host(Some(mac(1)), None, ip(1, 15))];
    let mut bench = Bench::new(with);
    assert_eq!(bench.lease_on(port(1), mac(1), &[(61, b"\0firmware uuid")]), ip(1, 15));
    assert_eq!(bench.lease_on(port(1), mac(1), &[(61, b"\xffsystem duid")]), ip(1, 15));
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn static_host_by_name() {
    let mut with = config();
    with.hosts = vec![host(None, Some("build"), ip(2, 2))];
    let mut bench = Bench::new(with);
    assert_eq!(bench.lease_on(port(1), mac(1), &[(12, b"Build")]), ip(2, 2));
    let second = bench.lease_on(port(2), mac(2), &[(12, b"build")]);
    assert_ne!(second, ip(2, 2), "the first one has it");
}

#[test]
fn only_static_hosts() {
    let mut with = config();
    with.ranges.clear();
    with.hosts = vec![host(Some(mac(1)), None, ip(1, 15))];
    let mut bench = Bench::new(with);
    bench.dropped(&Message::new(DISCOVER, mac(2)), DropReason::NoRange);
    assert_eq!(bench.lease(mac(1)), ip(1, 15));
}

#[test]
fn a_reservation_for_an_address_in_use() {
    let mut bench = Bench::new(config());
    let held = bench.lease_on(port(1), mac(1), &[]);
    let mut with = config();
    with.hosts = vec![host(Some(mac(2)), None, held)];
    let mut done = Actions::default();
    bench.engine.reload(with, bench.now, &mut done).expect("a good configuration");
    // The owner gets another address meanwhile, and that is told.
    let other = bench.lease_on(port(2), mac(2), &[]);
    assert_ne!(other, held);
    assert!(bench.engine.leases(bench.now).any(|l| l.ip == held && l.mac == mac(1)));
    bench.send_from(port(2), &Message::new(DISCOVER, mac(2)));
    assert!(
        bench.has_event(|e| matches!(e, LeaseEvent::ReservationHeld { ip, .. } if *ip == held))
    );
    // The holder is refused at its renewal, then the owner gets it.
    let renew = Message::new(REQUEST, mac(1)).ciaddr(held).unicast(held);
    assert_eq!(bench.send(&renew).expect("an answer").kind(), NAK);
    bench.pass(3600);
    assert_eq!(bench.lease_on(port(2), mac(2), &[]), held);
}

#[test]
fn a_changed_reservation_takes_effect_at_the_next_renewal() {
    let mut bench = Bench::new(config());
    let mut with = config();
    with.hosts = vec![host(Some(mac(1)), None, ip(2, 1))];
    bench.engine.reload(with.clone(), bench.now, &mut Actions::default()).expect("good");
    assert_eq!(bench.lease(mac(1)), ip(2, 1));
    let other = bench.lease_on(port(2), mac(2), &[]);
    with.hosts[0].ip = ip(2, 2);
    bench.engine.reload(with, bench.now, &mut Actions::default()).expect("good");
    let renew = Message::new(REQUEST, mac(1)).ciaddr(ip(2, 1)).unicast(ip(2, 1));
    assert_eq!(bench.send(&renew).expect("an answer").kind(), NAK);
    assert_eq!(bench.lease(mac(1)), ip(2, 2));
    let leases: Vec<_> = bench.leases().into_iter().map(|lease| lease.ip).collect();
    assert_eq!(leases, [other, ip(2, 2)], "the old address was given up");
}

#[test]
fn reload_frees_what_no_client_can_have() {
    let mut bench = Bench::new(config());
    let lease = bench.lease(mac(1));
    let mut moved = config();
    moved.server = lease;
    let mut done = Actions::default();
    bench.engine.reload(moved, bench.now, &mut done).expect("a good configuration");
    assert_eq!(done.changes, [Change::Remove(lease)]);
    let wrong = Config { server: ip(0, 0), ..config() };
    let result = bench.engine.reload(wrong, bench.now, &mut done);
    assert!(matches!(result, Err(ConfigError::Server { .. })));
    assert_eq!(bench.engine.config().server, lease, "the one before stays");
}

#[test]
fn broken_configurations_are_refused() {
    type Change = fn(&mut Config);
    let changes: [(Change, &str); 11] = [
        (|c| c.server = ip(0, 0), "not a host address"),
        (|c| c.server = Ipv4Addr::new(10, 78, 0, 1), "not a host address"),
        (|c| c.server_mac = MacAddr::BROADCAST, "MAC address"),
        (|c| c.ranges[0].end = ip(1, 9), "empty or not inside"),
        (|c| c.ranges[0].end = Ipv4Addr::new(10, 78, 0, 1), "empty or not inside"),
        (|c| c.ranges.push(c.ranges[0]), "overlap"),
        (|c| c.hosts = vec![host(None, None, ip(2, 2))], "neither a MAC address nor a name"),
        (|c| c.hosts = vec![host(Some(mac(1)), None, ip(255, 255))], "not a host address"),
        (
            |c| {
                c.hosts =
                    vec![host(Some(mac(1)), None, ip(2, 2)), host(Some(mac(2)), None, ip(2, 2))];
            },
            "have the address",
        ),
        (|c| c.domain = Some("a b".to_owned()), "not a domain name"),
        (|c| c.lease = LeaseTime::Finite(Duration::from_millis(10)), "not possible"),
    ];
    for (change, expected) in changes {
        let mut config = config();
        change(&mut config);
        let error = config.check().expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
