//! Questions that go upstream.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dhcpd::dns::{Config, DropReason, Forwarder, OwnAddresses};
use dhcpd::{Service, ServiceConfig};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::lab::*;
use crate::support::{isolated, wait_for};

fn to(servers: &[&str]) -> Config {
    let mut config = config();
    config.default_upstreams =
        servers.iter().map(|server| server.parse().expect("an address")).collect();
    config
}

const UP: [&str; 3] = ["192.0.2.53:53", "192.0.2.54:53", "192.0.2.55:5353"];

fn namespace(test: impl FnOnce() + Send + 'static) {
    isolated(|| {
        addresses(&[
            "10.77.0.1/16",
            "10.77.0.2/16",
            "192.0.2.53/32",
            "192.0.2.54/32",
            "192.0.2.55/32",
        ]);
        test();
    });
}

#[test]
fn forwarded_and_cached() {
    namespace(|| {
        let upstream = Upstream::start(UP[0], gives(1));
        let service = service(to(&UP[..1]));
        let client = Client::new("10.77.0.1");
        let answer = client.ask("www.Example.com.", RecordType::A);
        assert_eq!(addresses_of(&answer), ["192.0.2.1"]);
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
        let again = client.ask("WWW.example.com.", RecordType::A);
        assert_eq!(addresses_of(&again), ["192.0.2.1"]);
        assert_eq!(again.queries[0].name().to_ascii(), "WWW.example.com.");
        assert!(again.answers[0].ttl <= 60);
        assert_eq!(upstream.queries(), 1);
        let counters = service.dns_counters().expect("there is DNS");
        assert_eq!((counters.forwarded(), counters.cached()), (1, 1));
        // Without RD only what is known is told.
        let mut local_only = question("other.example.com.", RecordType::A);
        local_only.metadata.recursion_desired = false;
        assert_eq!(code(&client.ask_message(&local_only)), ResponseCode::Refused);
        assert_eq!(upstream.queries(), 1);
        assert_eq!(client.ask("x.example.com.", RecordType::ANY).answers.len(), 1, "RFC 8482");
        assert_eq!(upstream.queries(), 1);
    });
}

#[test]
fn ports_and_ids_are_random() {
    namespace(|| {
        let ids = Arc::new(Mutex::new(Vec::new()));
        let seen = ids.clone();
        let upstream = Upstream::start(UP[0], move |query| {
            seen.lock().expect("no panics").push(query.metadata.id);
            gives(1)(query)
        });
        let _service = service(to(&UP[..1]));
        let client = Client::new("10.77.0.1");
        for n in 0..200 {
            client.ask(&format!("n{n}.example.com."), RecordType::A);
        }
        let distinct = |mut values: Vec<u16>| {
            values.sort_unstable();
            values.dedup();
            values.len()
        };
        // Of 200 random values of 2^16 (ports: 28,000) fewer than ten are expected to repeat.
        assert!(distinct(ids.lock().expect("no panics").clone()) > 180);
        assert!(distinct(upstream.ports()) > 180);
    });
}

#[test]
fn the_next_server_is_asked() {
    for failing in [None, Some(ResponseCode::ServFail), Some(ResponseCode::Refused)] {
        namespace(move || {
            let bad = Upstream::start(UP[0], move |query| {
                failing.map(|code| reply_to(query, code)).into_iter().collect()
            });
            let good = Upstream::start(UP[1], gives(2));
            let _service = service(to(&UP[..2]));
            let client = Client::new("10.77.0.1");
            let start = Instant::now();
            assert_eq!(addresses_of(&client.ask("a.test.", RecordType::A)), ["192.0.2.2"]);
            assert!(start.elapsed() < Duration::from_secs(3));
            assert_eq!((bad.queries(), good.queries()), (1, 1));
            // A silent one comes last afterwards.
            client.ask("b.test.", RecordType::A);
            assert_eq!(bad.queries(), if failing.is_none() { 1 } else { 2 });
        });
    }
}

#[test]
fn nobody_answers() {
    namespace(|| {
        let _silent = Upstream::start(UP[0], |_| Vec::new());
        let service = service(to(&UP[..1]));
        let client = Client::new("10.77.0.1");
        let start = Instant::now();
        assert_eq!(code(&client.ask("a.test.", RecordType::A)), ResponseCode::ServFail);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(service.dns_counters().expect("there is DNS").failed(), 1);
        // Nobody listens: at once.
        let start = Instant::now();
        let refusing = Client::new("10.77.0.1");
        service
            .reload(ServiceConfig {
                network: "test".to_owned(),
                dhcp4: None,
                dns: Some(to(&["192.0.2.99:53", UP[2]])),
                lease_file: "/nonexistent".into(),
            })
            .expect("it is taken");
        assert_eq!(code(&refusing.ask("b.test.", RecordType::A)), ResponseCode::ServFail);
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn what_does_not_match_is_ignored() {
    namespace(|| {
        let _upstream = Upstream::start(UP[0], |query| {
            let good = gives(1)(query).remove(0);
            let forged = |change: fn(&mut Message)| {
                let mut forged = gives(66)(query).remove(0);
                change(&mut forged);
                forged
            };
            vec![
                forged(|m| m.metadata.id ^= 1),
                forged(|m| {
                    let name = "evil.test.".parse().expect("a name");
                    m.queries[0].set_name(name);
                }),
                forged(|m| {
                    m.queries[0].set_query_type(RecordType::AAAA);
                }),
                forged(|m| m.queries.clear()),
                good,
            ]
        });
        let _service = service(to(&UP[..1]));
        let client = Client::new("10.77.0.1");
        assert_eq!(addresses_of(&client.ask("a.test.", RecordType::A)), ["192.0.2.1"]);
    });
}

#[test]
fn a_truncated_answer_is_fetched_over_tcp() {
    namespace(|| {
        let _upstream = Upstream::start(UP[0], |query| {
            let mut reply = reply_to(query, ResponseCode::NoError);
            for d in 0..=255 {
                reply.add_answer(a_record(query.queries[0].name(), 60, d));
            }
            vec![reply]
        });
        let _service = service(to(&UP[..1]));
        let client = Client::new("10.77.0.1");
        let answer = client.ask_message(&edns(question("big.test.", RecordType::A), 4096));
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let mut stream = connect();
        let query = question("big.test.", RecordType::A).to_vec().expect("it can be written");
        write_framed(&mut stream, &query);
        let answer = read_framed(&mut stream).expect("an answer");
        assert_eq!(addresses_of(&answer).len(), 256);
    });
}

#[test]
fn one_exchange_for_all_who_ask_the_same() {
    namespace(|| {
        let open = Arc::new(AtomicBool::new(false));
        let gate = open.clone();
        let upstream = Upstream::start(UP[0], move |query| {
            wait_for("the gate", || gate.load(Ordering::SeqCst).then_some(()));
            gives(1)(query)
        });
        let service = service(to(&UP[..1]));
        let clients: Vec<Client> = (0..30).map(|_| Client::new("10.77.0.1")).collect();
        let query = question("same.test.", RecordType::A).to_vec().expect("it can be written");
        for client in &clients {
            client.send(&query);
        }
        let counters = service.dns_counters().expect("there is DNS");
        wait_for("all questions", || (counters.queries() == 30).then_some(()));
        open.store(true, Ordering::SeqCst);
        for client in &clients {
            assert_eq!(addresses_of(&client.receive().expect("an answer")), ["192.0.2.1"]);
        }
        assert_eq!((upstream.queries(), counters.forwarded()), (1, 1));
    });
}

#[test]
fn one_client_cannot_keep_others_out() {
    namespace(|| {
        let _silent = Upstream::start(UP[0], |query| {
            let name = query.queries[0].name().to_ascii();
            if name.starts_with("dead") { Vec::new() } else { gives(1)(query) }
        });
        let service = service(to(&UP[..1]));
        let flooding = Client::new("10.77.0.2");
        for n in 0..200 {
            let query = question(&format!("dead{n}.test."), RecordType::A);
            flooding.send(&query.to_vec().expect("it can be written"));
        }
        let counters = service.dns_counters().expect("there is DNS");
        // A question is counted before what becomes of it.
        let dropped = || counters.dropped(DropReason::ClientLimit);
        wait_for("all questions", || (dropped() >= 200 - 64).then_some(()));
        assert_eq!((counters.queries(), dropped()), (200, 200 - 64));
        let start = Instant::now();
        let other = Client::new("10.77.0.1");
        assert_eq!(addresses_of(&other.ask("live.test.", RecordType::A)), ["192.0.2.1"]);
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    });
}

#[test]
fn servers_for_domains_and_none_of_our_own() {
    namespace(|| {
        let general = Upstream::start(UP[0], gives(1));
        let special = Upstream::start(UP[2], gives(3));
        let mut config = to(&["10.77.0.1:53", UP[0]]);
        config.own_addresses = OwnAddresses::default();
        config.forwarders = vec![Forwarder {
            domain: Some("corp.test".to_owned()),
            addr: Some(UP[2].parse::<SocketAddr>().expect("an address")),
        }];
        let service = service(config);
        let client = Client::new("10.77.0.1");
        assert_eq!(addresses_of(&client.ask("a.test.", RecordType::A)), ["192.0.2.1"]);
        let counters = service.dns_counters().expect("there is DNS");
        assert_eq!(counters.queries(), 1, "it did not ask itself");
        assert_eq!(addresses_of(&client.ask("a.corp.test.", RecordType::A)), ["192.0.2.3"]);
        assert_eq!((general.queries(), special.queries()), (1, 1));
    });
}

#[test]
fn resolv_conf_changes() {
    namespace(|| {
        let _one = Upstream::start(UP[0], gives(1));
        let _two = Upstream::start(UP[1], gives(2));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.53\n").expect("it can be written");
        let mut config = config();
        config.resolv_conf = Some(path.clone());
        let _service: Service = service(config);
        let client = Client::new("10.77.0.1");
        assert_eq!(addresses_of(&client.ask("a.test.", RecordType::A)), ["192.0.2.1"]);
        std::fs::write(&path, "# moved\nnameserver 192.0.2.54\n").expect("it can be written");
        let mut n = 0;
        wait_for("the other server", || {
            n += 1;
            let answer = client.ask(&format!("n{n}.test."), RecordType::A);
            (addresses_of(&answer) == ["192.0.2.2"]).then_some(())
        });
    });
}
