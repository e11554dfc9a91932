//! What options say, and how they are written (RFC 2132, 3396, 3442, 4702, 6842).

use crate::common::*;
use crate::hosts::host;
use dhcpd::LeaseEvent;
use dhcpd::dhcp4::{Boot, ClientRoute, DropReason, LeaseTime, StaticHost};
use dhcproto::v4::{DhcpOption, OptionCode};
use dhcproto::{Encodable as _, Encoder, v4};
use std::net::Ipv4Addr;
use std::time::Duration;

#[test]
fn tagged_frames_are_answered_in_their_vlan() {
    let mut bench = Bench::new(config());
    let mut discover = Message::new(DISCOVER, mac(1));
    discover.vlan = Some(42);
    let offer = bench.frame_from(port(7), 42, &discover.frame()).expect("an offer");
    assert_eq!(offer.frame[12..16], [0x81, 0, 0, 42]);
    discover.vlan = None;
    let offer = bench.frame_from(port(7), 42, &discover.frame()).expect("an offer");
    assert_eq!(offer.frame[12..14], [8, 0], "an access port's frames carry no tag");
}

#[test]
fn options_asked_for() {
    let mut with = config();
    with.routes =
        vec![ClientRoute { net: "192.168.7.0/25".parse().expect("a prefix"), gateway: ip(0, 9) }];
    let mut bench = Bench::new(with);
    let list = [1, 3, 6, 15, 28, 51, 58, 59, 26, 119, 121, 42, 1, 3];
    let offer = bench.send(&Message::new(DISCOVER, mac(1)).option(55, &list)).expect("an offer");
    let mut codes: Vec<u8> = offer.options.iter().map(|(code, _)| *code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [1, 3, 6, 15, 26, 28, 51, 53, 54, 58, 59, 121], "each once");
    assert_eq!(offer.option(1), Some(vec![255, 255, 0, 0]));
    assert_eq!(offer.option(3), Some(vec![10, 77, 0, 1]));
    assert_eq!(offer.option(6), Some(vec![10, 77, 0, 1]));
    assert_eq!(offer.option(15), Some(b"net77.test".to_vec()));
    assert_eq!(offer.option(26), Some(1400_u16.to_be_bytes().to_vec()));
    assert_eq!(offer.option(28), Some(vec![10, 77, 255, 255]));
    assert_eq!(offer.u32(58), Some(1800));
    assert_eq!(offer.u32(59), Some(3150));
    // RFC 3442: the default route is repeated.
    let routes = [25, 192, 168, 7, 0, 10, 77, 0, 9, 0, 10, 77, 0, 1];
    assert_eq!(offer.option(121), Some(routes.to_vec()));
    match offer.oracle().opts().get(OptionCode::ClasslessStaticRoute) {
        Some(DhcpOption::ClasslessStaticRoute(routes)) => assert_eq!(routes.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_isolated_network_has_no_router() {
    let mut isolated = config();
    isolated.router = None;
    let mut bench = Bench::new(isolated);
    let offer = bench.send(&Message::new(DISCOVER, mac(1)).option(55, &[1, 3, 6])).expect("one");
    assert_eq!(offer.option(3), None);
    assert_eq!(offer.option(6), Some(SERVER.octets().to_vec()));
    let offer = bench.send(&Message::new(DISCOVER, mac(1))).expect("an offer");
    assert_eq!(offer.option(3), None);
}

#[test]
fn lease_times() {
    let mut long = config();
    long.lease = LeaseTime::Finite(Duration::from_secs(86_400));
    let mut endless = config();
    endless.lease = LeaseTime::Infinite;
    for (config, asked, given) in [
        (&long, None, 86_400),
        (&long, Some(600), 600),
        (&long, Some(60), 120),
        (&long, Some(0), 120),
        (&long, Some(7 * 86_400), 86_400),
        (&long, Some(u32::MAX), 86_400),
        (&endless, None, u32::MAX),
        (&endless, Some(u32::MAX), u32::MAX),
        (&endless, Some(3600), 3600),
    ] {
        let mut bench = Bench::new(config.clone());
        let mut discover = Message::new(DISCOVER, mac(1));
        if let Some(asked) = asked {
            discover = discover.option(51, &asked.to_be_bytes());
        }
        let offer = bench.send(&discover).expect("an offer");
        assert_eq!(offer.u32(51), Some(given), "{asked:?}");
        assert_eq!(offer.u32(58).is_some(), given != u32::MAX);
    }
}

#[test]
fn an_infinite_lease_does_not_end() {
    let mut endless = config();
    endless.lease = LeaseTime::Infinite;
    let mut bench = Bench::new(endless);
    let lease = bench.lease(mac(1));
    bench.pass(10 * 365 * 86_400);
    assert_eq!(bench.leases()[0].ip, lease);
    assert_eq!(bench.leases()[0].expiry, None);
}

#[test]
fn ranges_and_hosts_have_lease_times_of_their_own() {
    let mut with = config();
    let minutes = |n: u64| Some(LeaseTime::Finite(Duration::from_secs(n * 60)));
    with.ranges[0].lease = minutes(10);
    with.hosts = vec![StaticHost { lease: minutes(5), ..host(Some(mac(5)), None, ip(2, 5)) }];
    let mut bench = Bench::new(with);
    let time =
        |bench: &mut Bench, n| bench.send(&Message::new(DISCOVER, mac(n))).expect("one").u32(51);
    assert_eq!(time(&mut bench, 1), Some(600));
    assert_eq!(time(&mut bench, 5), Some(300));
}

#[test]
fn client_identifiers() {
    let mut bench = Bench::new(config());
    // One MAC, two identifiers: two clients.
    let one = bench.lease_on(port(1), mac(1), &[(61, b"one")]);
    let two = bench.lease_on(port(1), mac(1), &[(61, b"two")]);
    assert_ne!(one, two);
    assert_eq!(bench.leases().len(), 2);
    // Two MACs, one identifier, as clones have: two clients, and it is told.
    let clone = bench.lease_on(port(2), mac(2), &[(61, b"one")]);
    assert_ne!(clone, one);
    let told = |e: &LeaseEvent| matches!(e, LeaseEvent::DuplicateClientId { port: p, other, .. } if *p == port(2) && other.ip == one);
    assert!(bench.has_event(told));
    // It is echoed as it was (RFC 6842).
    let id = b"\x01odd \xff\0 id";
    let offer = bench.send(&Message::new(DISCOVER, mac(3)).option(61, id)).expect("an offer");
    assert_eq!(offer.option(61), Some(id.to_vec()));
    // Of no use: counts as absent.
    for id in [&b""[..], b"x"] {
        let offer = bench.send(&Message::new(DISCOVER, mac(4)).option(61, id)).expect("an offer");
        assert_eq!(offer.option(61), None);
    }
}

#[test]
fn names() {
    for (claimed, known) in [
        (&b"vm-a"[..], Some("vm-a")),
        (b"vm-a.net77.test", Some("vm-a")),
        (b"vm-a.evil.org", None),
        (b"wpad", None),
        (b"\n$(reboot)", None),
        (&[0xff; 255], None),
        (&[b'a'; 64], None),
    ] {
        let mut bench = Bench::new(config());
        bench.lease_on(port(1), mac(1), &[(12, claimed), (55, &[12])]);
        assert_eq!(bench.leases()[0].hostname.as_deref(), known, "{claimed:?}");
        let ack = bench
            .send(&Message::new(REQUEST, mac(1)).requested(bench.leases()[0].ip).option(55, &[12]));
        let ack = ack.expect("an answer");
        assert_eq!(ack.option(12), known.map(|name| name.as_bytes().to_vec()), "the name is kept");
    }
}

#[test]
fn fqdn() {
    for (option, name, flags) in [
        (&b"\x01\0\0vm-a"[..], Some("vm-a"), 1),
        (b"\x00\0\0vm-a.net77.test", Some("vm-a"), 3),
        (b"\x05\0\0\x04vm-a", Some("vm-a"), 5),
        (b"\x04\0\0\x04vm-a\x05net77\x04test\0", Some("vm-a"), 7),
        (b"\x08\0\0vm-a", Some("vm-a"), 8),
        (b"\x05\0\0\x3fvm-a", None, 0),
        (b"\x05\0\0\xc0\x00", None, 0),
        (b"\x05", None, 0),
        (b"", None, 0),
    ] {
        let mut bench = Bench::new(config());
        let ack =
            bench.send(&Message::new(REQUEST, mac(1)).requested(ip(1, 10)).option(81, option));
        let ack = ack.expect("an answer");
        assert_eq!(bench.leases()[0].hostname.as_deref(), name, "{option:?}");
        let Some(value) = ack.option(81) else {
            assert_eq!(name, None);
            continue;
        };
        assert_eq!(value[..3], [flags, 255, 255]);
        let expected =
            if flags & 4 == 0 { &b"vm-a.net77.test"[..] } else { b"\x04vm-a\x05net77\x04test\0" };
        assert_eq!(&value[3..], expected);
    }
}

#[test]
fn overloaded_fields_are_read() {
    for (overload, at) in [(1, 108), (2, 44), (3, 44)] {
        let mut bench = Bench::new(config());
        let mut request =
            Message::new(REQUEST, mac(1)).requested(ip(1, 10)).option(52, &[overload]);
        request.head[at..at + 9].copy_from_slice(b"\x0c\x06hidden\xff");
        let ack = bench.send(&request).expect("an answer");
        assert_eq!(ack.kind(), ACK);
        assert_eq!(bench.leases()[0].hostname.as_deref(), Some("hidden"), "{overload}");
    }
    // Without option 52 they are not options.
    let mut bench = Bench::new(config());
    let mut request = Message::new(REQUEST, mac(1)).requested(ip(1, 10));
    request.head[44..53].copy_from_slice(b"\x0c\x06hidden\xff");
    bench.send(&request).expect("an answer");
    assert_eq!(bench.leases()[0].hostname, None);
    for wrong in [&[0][..], &[4], &[1, 1], &[]] {
        let request = Message::new(REQUEST, mac(1)).requested(ip(1, 10)).option(52, wrong);
        bench.dropped(&request, DropReason::Malformed);
    }
}

#[test]
fn split_options_are_joined() {
    let mut bench = Bench::new(config());
    let request =
        Message::new(REQUEST, mac(1)).option(12, b"vm-").requested(ip(1, 10)).option(12, b"split");
    bench.send(&request).expect("an answer");
    assert_eq!(bench.leases()[0].hostname.as_deref(), Some("vm-split"));
}

#[test]
fn long_options_are_split() {
    let mut with = config();
    let route = |n| ClientRoute {
        net: format!("172.16.{n}.0/24").parse().expect("a prefix"),
        gateway: ip(0, 9),
    };
    with.routes = (0..60).map(route).collect();
    let mut bench = Bench::new(with);
    let discover = Message::new(DISCOVER, mac(1)).option(55, &[121]).option(57, &[5, 220]);
    let offer = bench.send(&discover).expect("an offer");
    assert_eq!(offer.options.iter().filter(|(code, _)| *code == 121).count(), 2);
    // 60 routes of 1 + 3 + 4 octets and the default route.
    assert_eq!(offer.option(121).map(|v| v.len()), Some(60 * 8 + 5));
}

#[test]
fn the_largest_message_that_the_client_takes() {
    let mut with = config();
    with.routes = (0..40)
        .map(|n| ClientRoute {
            net: format!("172.16.{n}.0/24").parse().expect("a prefix"),
            gateway: ip(0, 9),
        })
        .collect();
    let mut bench = Bench::new(with);
    let id = [7; 100];
    for size in [None, Some(576_u16), Some(68), Some(0)] {
        let mut discover =
            Message::new(DISCOVER, mac(1)).option(61, &id).option(55, &[121, 1, 3, 6]);
        if let Some(size) = size {
            discover = discover.option(57, &size.to_be_bytes());
        }
        let offer = bench.send(&discover).expect("an offer");
        assert!(offer.payload.len() + 28 <= 576, "{}", offer.payload.len());
        assert_eq!(offer.option(121), None, "it does not fit");
        for code in [1, 3, 6, 51, 53, 54, 61] {
            assert!(offer.option(code).is_some(), "{code}");
        }
    }
}

#[test]
fn network_boot() {
    let mut with = config();
    with.boot =
        Some(Boot { file: "pxelinux.0".to_owned(), server: Some(ip(0, 5)), server_name: None });
    let mut bench = Bench::new(with);
    let offer = bench.send(&Message::new(DISCOVER, mac(1)).option(55, &[66, 67])).expect("one");
    assert_eq!(offer.siaddr(), ip(0, 5));
    assert_eq!(&offer.payload[108..119], b"pxelinux.0\0");
    assert_eq!(offer.option(67), Some(b"pxelinux.0".to_vec()));
    assert_eq!(offer.option(66), Some(b"10.77.0.5".to_vec()));
}

#[test]
fn messages_that_dhcproto_encodes() {
    let mut bench = Bench::new(config());
    let encode = |message: &v4::Message| {
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).expect("it encodes");
        Message::new(DISCOVER, mac(1)).frame_of(&bytes)
    };
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let mut message =
        v4::Message::new_with_id(7, unspecified, unspecified, unspecified, unspecified, &mac(1).0);
    message.opts_mut().insert(DhcpOption::MessageType(v4::MessageType::Discover));
    message.opts_mut().insert(DhcpOption::ClientIdentifier(vec![1, 2, 3]));
    message.opts_mut().insert(DhcpOption::Hostname("oracle".to_owned()));
    message.opts_mut().insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainName,
    ]));
    let offer = bench.frame(&encode(&message)).expect("an offer");
    let theirs = offer.oracle();
    assert_eq!(theirs.opts().msg_type(), Some(v4::MessageType::Offer));
    let option = |code| theirs.opts().get(code).cloned();
    assert_eq!(
        option(OptionCode::SubnetMask),
        Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)))
    );
    assert_eq!(option(OptionCode::Router), Some(DhcpOption::Router(vec![SERVER])));
    assert_eq!(
        option(OptionCode::DomainName),
        Some(DhcpOption::DomainName("net77.test".to_owned()))
    );
    assert_eq!(option(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(3600)));
    assert_eq!(
        option(OptionCode::ClientIdentifier),
        Some(DhcpOption::ClientIdentifier(vec![1, 2, 3]))
    );
    message.opts_mut().insert(DhcpOption::MessageType(v4::MessageType::Request));
    message.opts_mut().insert(DhcpOption::RequestedIpAddress(theirs.yiaddr()));
    message.opts_mut().insert(DhcpOption::ServerIdentifier(SERVER));
    let ack = bench.frame(&encode(&message)).expect("an answer");
    assert_eq!(ack.oracle().opts().msg_type(), Some(v4::MessageType::Ack));
    assert_eq!(bench.leases()[0].hostname.as_deref(), Some("oracle"));
}
