//! What the network knows by itself, and what is refused.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use dhcpd::dns::{DropReason, Host, Srv, Txt};
use dhcpd::{Ingress, LeaseEvent, Service, ServiceConfig, ServiceError};
use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};

use crate::common::{self, Message as Dhcp, mac, port};
use crate::lab::*;
use crate::support::{isolated, wait_for};

fn host(ip: &str, names: &[&str]) -> Host {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Host { ip: ip.parse().expect("an address"), names }
}

fn srv(service: &str, target: Option<&str>) -> Srv {
    Srv {
        service: service.to_owned(),
        protocol: "tcp".to_owned(),
        domain: None,
        target: target.map(str::to_owned),
        port: 5060,
        priority: 10,
        weight: 20,
    }
}

#[test]
fn names_of_the_configuration() {
    isolated(|| {
        addresses(&["10.77.0.1/16", "fd77::1/64"]);
        let mut config = config();
        config.listen.push("fd77::1".parse().expect("an address"));
        config.hosts =
            vec![host("10.77.0.5", &["Host-1", "a.b.net77.test"]), host("fd77::5", &["host-1"])];
        config.txts = vec![Txt { name: "long.net77.test".to_owned(), value: "x".repeat(600) }];
        config.srvs = vec![srv("sip", Some("host-1.net77.test")), srv("none", None)];
        let service = service(config);
        let client = Client::new("10.77.0.1");

        let answer = client.ask("HoSt-1.NeT77.tEsT.", RecordType::A);
        assert_eq!(code(&answer), ResponseCode::NoError);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(addresses_of(&answer), ["10.77.0.5"]);
        assert_eq!(answer.queries[0].name().to_ascii(), "HoSt-1.NeT77.tEsT.");
        assert_eq!(addresses_of(&client.ask("host-1.", RecordType::A)), ["10.77.0.5"]);
        assert_eq!(addresses_of(&client.ask("host-1.", RecordType::AAAA)), ["fd77::5"]);
        let over_v6 = Client::to("fd77::1", "[fd77::1]:53".parse().expect("an address"));
        assert_eq!(addresses_of(&over_v6.ask("host-1.", RecordType::A)), ["10.77.0.5"]);

        let has_soa = |answer: &hickory_proto::op::Message| {
            answer.answers.is_empty()
                && answer.authorities.len() == 1
                && answer.authorities[0].record_type() == RecordType::SOA
        };
        for (name, record_type, expected) in [
            ("host-1.net77.test.", RecordType::MX, ResponseCode::NoError),
            ("b.net77.test.", RecordType::A, ResponseCode::NoError),
            ("net77.test.", RecordType::A, ResponseCode::NoError),
            ("no.net77.test.", RecordType::A, ResponseCode::NXDomain),
            ("plain.", RecordType::A, ResponseCode::NXDomain),
            ("9.9.77.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
            ("x.invalid.", RecordType::A, ResponseCode::NXDomain),
        ] {
            let answer = client.ask(name, record_type);
            assert_eq!(code(&answer), expected, "{name}");
            assert!(has_soa(&answer), "{name}: {answer}");
        }

        let answer = client.ask("5.0.77.10.in-addr.arpa.", RecordType::PTR);
        assert!(
            matches!(&answer.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "host-1.net77.test.")
        );
        let answer = client.ask("_sip._tcp.net77.test.", RecordType::SRV);
        assert!(
            matches!(&answer.answers[0].data, RData::SRV(s) if s.target.to_ascii() == "host-1.net77.test.")
        );
        assert_eq!(answer.additionals.len(), 2);
        let answer = client.ask("_none._tcp.net77.test.", RecordType::SRV);
        assert!(matches!(&answer.answers[0].data, RData::SRV(s) if s.target.is_root()));
        let answer = client.ask_message(&edns(question("long.net77.test.", RecordType::TXT), 1232));
        assert!(matches!(&answer.answers[0].data, RData::TXT(t) if t.txt_data.len() == 3));
        assert_eq!(answer.edns.expect("the query had one").max_payload(), 1232);
        // 600 octets do not fit into a message without EDNS.
        let answer = client.ask("long.net77.test.", RecordType::TXT);
        assert!(answer.metadata.truncation && answer.answers.is_empty() && answer.edns.is_none());

        assert_eq!(addresses_of(&client.ask("x.localhost.", RecordType::A)), ["127.0.0.1"]);
        assert_eq!(client.ask("host-1.net77.test.", RecordType::ANY).answers.len(), 1);
        assert_eq!(code(&client.ask("net77.test.", RecordType::AXFR)), ResponseCode::Refused);
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&client.ask_message(&chaos)), ResponseCode::Refused);
        let counters = service.dns_counters().expect("there is DNS");
        assert_eq!(counters.forwarded(), 0);
        assert!(counters.local() > 10);
    });
}

#[test]
fn odd_messages() {
    isolated(|| {
        addresses(&["10.77.0.1/16"]);
        let service = service(config());
        let client = Client::new("10.77.0.1");
        let good = question("localhost.", RecordType::A).to_vec().expect("it can be written");
        for len in 0..12 {
            client.is_ignored(&good[..len]);
        }
        let mut response = good.clone();
        response[2] |= 0x80;
        client.is_ignored(&response);
        for (at, value, expected) in [
            (5, 0, ResponseCode::FormErr),
            (5, 2, ResponseCode::FormErr),
            (4, 255, ResponseCode::FormErr),
        ] {
            let mut odd = good.clone();
            odd[at] = value;
            client.send(&odd);
            assert_eq!(code(&client.receive().expect("an answer")), expected);
        }
        for opcode in [OpCode::Status, OpCode::Notify] {
            let mut message = question("localhost.", RecordType::A);
            message.metadata.op_code = opcode;
            assert_eq!(code(&client.ask_message(&message)), ResponseCode::NotImp);
        }
        let mut versioned = edns(question("localhost.", RecordType::A), 1232);
        versioned.edns.as_mut().expect("it has one").set_version(1);
        assert_eq!(u16::from(code(&client.ask_message(&versioned))), 16, "BADVERS");
        let counters = service.dns_counters().expect("there is DNS");
        assert_eq!(counters.dropped(DropReason::Short), 12);
        assert_eq!(counters.dropped(DropReason::Response), 1);
        // Noise of all sizes, then a question.
        let mut state = 1_u32;
        for len in 0..1500 {
            let noise: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_be_bytes()[0]
                })
                .collect();
            client.send(&noise);
        }
        let other = Client::new("10.77.0.1");
        assert_eq!(addresses_of(&other.ask("localhost.", RecordType::A)), ["127.0.0.1"]);
    });
}

#[test]
fn over_tcp() {
    isolated(|| {
        addresses(&["10.77.0.1/16"]);
        let _service = service(config());
        let query = question("localhost.", RecordType::A).to_vec().expect("it can be written");
        let len = u16::try_from(query.len()).expect("short").to_be_bytes();
        let framed = [&len[..], &query].concat();
        // Two in one segment, then one octet by octet.
        let mut stream = connect();
        stream.write_all(&[&framed[..], &framed].concat()).expect("it is sent");
        for _ in 0..2 {
            assert_eq!(addresses_of(&read_framed(&mut stream).expect("an answer")), ["127.0.0.1"]);
        }
        for octet in &framed {
            stream.write_all(&[*octet]).expect("it is sent");
        }
        assert_eq!(addresses_of(&read_framed(&mut stream).expect("an answer")), ["127.0.0.1"]);
        // An empty message ends the connection.
        stream.write_all(&[0, 0]).expect("it is sent");
        assert_eq!(stream.read(&mut [0; 1]).expect("it is closed"), 0);
        // Connections that say nothing do not keep others out for ever: at most eight each.
        let mut idle: Vec<_> = (0..12).map(|_| connect()).collect();
        let closed = idle.iter_mut().skip(8).map(|stream| stream.read(&mut [0; 1]).ok());
        assert_eq!(closed.collect::<Vec<_>>(), [Some(0); 4]);
        let client = Client::new("10.77.0.1");
        assert_eq!(addresses_of(&client.ask("localhost.", RecordType::A)), ["127.0.0.1"]);
    });
}

#[test]
fn an_isolated_network_refuses() {
    isolated(|| {
        addresses(&["10.77.0.1/16", "192.0.2.53/32"]);
        let upstream = Upstream::start("192.0.2.53:53", gives(1));
        let mut config = config();
        config.forward = false;
        config.default_upstreams = vec!["192.0.2.53:53".parse().expect("an address")];
        config.hosts = vec![host("10.77.0.5", &["web"])];
        let _service = service(config);
        let client = Client::new("10.77.0.1");
        let answer = client.ask("www.example.com.", RecordType::A);
        assert_eq!(code(&answer), ResponseCode::Refused);
        assert!(!answer.metadata.recursion_available);
        assert_eq!(addresses_of(&client.ask("web.net77.test.", RecordType::A)), ["10.77.0.5"]);
        assert_eq!(code(&client.ask("x.net77.test.", RecordType::A)), ResponseCode::NXDomain);
        assert_eq!(upstream.queries(), 0);
    });
}

#[test]
fn strangers_get_no_answer() {
    isolated(|| {
        addresses(&["10.77.0.1/16", "10.77.3.3/16", "198.51.100.1/24"]);
        let mut config = config();
        config.clients = vec!["10.77.0.0/16".parse().expect("a prefix")];
        let service = service(config);
        let stranger = Client::new("198.51.100.1");
        stranger.send(&question("localhost.", RecordType::A).to_vec().expect("it can be written"));
        for from in ["10.77.3.3", "10.77.0.1", "127.0.0.1"] {
            let client = Client::new(from);
            assert_eq!(addresses_of(&client.ask("localhost.", RecordType::A)), ["127.0.0.1"]);
        }
        assert_eq!(service.dns_counters().expect("there is DNS").dropped(DropReason::Client), 1);
    });
}

#[test]
fn a_busy_port_fails_the_start() {
    isolated(|| {
        addresses(&["10.77.0.1/16"]);
        let start = || {
            let config = ServiceConfig {
                network: "test".to_owned(),
                dhcp4: None,
                dns: Some(config()),
                lease_file: "/nonexistent".into(),
            };
            Service::start(config, None, |_| ())
        };
        let expected: SocketAddr = SocketAddr::new(SERVER, 53);
        for busy in ["10.77.0.1:53", "0.0.0.0:53"] {
            let other = UdpSocket::bind(busy).expect("it is free");
            let error = start().expect_err("the port is busy");
            assert!(
                matches!(error, ServiceError::PortBusy { addr } if addr == expected),
                "{error}"
            );
            drop(other);
        }
        start().expect("it is free now").stop();
        start().expect("and again").stop();
    });
}

#[test]
fn an_address_that_is_not_there() {
    isolated(|| {
        let config = ServiceConfig {
            network: "test".to_owned(),
            dhcp4: None,
            dns: Some(config()),
            lease_file: "/nonexistent".into(),
        };
        let error = Service::start(config, None, |_| ()).expect_err("nobody has the address");
        assert!(matches!(error, ServiceError::Bind { .. }), "{error}");
    });
}

#[test]
fn names_of_dhcp_clients() {
    isolated(|| {
        addresses(&["10.77.0.1/16"]);
        let dir = tempfile::tempdir().expect("a directory");
        let mut dns = config();
        dns.hosts = vec![host("10.77.0.5", &["web"])];
        let mut dhcp4 = common::config();
        dhcp4.hosts = vec![dhcpd::dhcp4::StaticHost {
            mac: Some(mac(9)),
            name: Some("db".to_owned()),
            ip: common::ip(2, 2),
            lease: None,
        }];
        let config = ServiceConfig {
            network: "test".to_owned(),
            dhcp4: Some(dhcp4),
            dns: Some(dns),
            lease_file: dir.path().join("leases"),
        };
        let (io, network) = crate::io::pair();
        let (sender, events) = std::sync::mpsc::channel();
        let tell = move |event| {
            // A test that is over does not listen.
            let _ = sender.send(event);
        };
        let service = Service::start(config, Some(Box::new(io)), tell).expect("it starts");
        let request = |n: u8, name: &str, d: u8| {
            let message = Dhcp::new(common::REQUEST, mac(n)).requested(common::ip(1, d));
            let frame = message.option(12, name.as_bytes()).frame();
            let port = port(u128::from(n));
            network.frames.send(Ingress { port, vlan: 0, frame }).expect("the service runs");
            network.answer().expect("an ACK");
        };
        let client = Client::new("10.77.0.1");
        let a = |name: &str| addresses_of(&client.ask(name, RecordType::A));
        let ptr = |ip: Ipv4Addr| {
            let [a, b, c, d] = ip.octets();
            let answer = client.ask(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR);
            answer.answers.first().map(|record| record.data.to_string())
        };
        assert_eq!(
            a("db.net77.test."),
            ["10.77.2.2"],
            "a static host has its name without a lease"
        );
        assert_eq!(a("vm.net77.test."), Vec::<String>::new());
        request(1, "VM.net77.test", 10);
        assert_eq!(a("vm.net77.test."), ["10.77.1.10"]);
        assert_eq!(a("vm."), ["10.77.1.10"]);
        assert_eq!(ptr(common::ip(1, 10)).as_deref(), Some("vm.net77.test."));
        // Taken names.
        for (n, name) in [(2, "vm"), (3, "web"), (4, "db")] {
            request(n, name, 10 + n);
            let taken = wait_for("the event", || {
                events.try_iter().find(|event| matches!(event, LeaseEvent::NameTaken { .. }))
            });
            assert_eq!(
                taken,
                LeaseEvent::NameTaken { ip: common::ip(1, 10 + n), name: name.to_owned() }
            );
        }
        assert_eq!(
            (a("vm."), a("web."), a("db.")),
            (vec!["10.77.1.10".into()], vec!["10.77.0.5".into()], vec!["10.77.2.2".into()])
        );
        assert_eq!(ptr(common::ip(1, 12)), None);
        // A new name takes the place of the old one.
        request(1, "vm2", 10);
        assert_eq!(a("vm2."), ["10.77.1.10"]);
        assert_eq!(a("vm."), ["10.77.1.12"], "the next one has it");
        // Gone with the lease.
        service.port_removed(port(1));
        wait_for("the name's end", || a("vm2.").is_empty().then_some(()));
        assert_eq!(ptr(common::ip(1, 10)), None);
    });
}
