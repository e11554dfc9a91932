//! The DHCP thread: group commit, events, and no acknowledgement without a lease on disk.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use dhcpd::dhcp4::DropReason;
use dhcpd::lease::Store;
use dhcpd::{Egress, Ingress, LeaseEvent, Service, ServiceConfig, ServiceError};
use uuid::Uuid;

use crate::common::*;
use crate::io::{self, Network};
use crate::support;

fn start(lease_file: &Path) -> (Service, Network, Receiver<LeaseEvent>) {
    let (io, network) = io::pair();
    let (sender, events) = channel();
    let config = ServiceConfig {
        network: "test".to_owned(),
        dhcp4: Some(config()),
        dns: None,
        lease_file: lease_file.to_owned(),
    };
    let events_of = move |event| {
        // A test that is over does not listen.
        let _ = sender.send(event);
    };
    let service = Service::start(config, Some(Box::new(io)), events_of).expect("it starts");
    (service, network, events)
}

fn send(network: &Network, port: Uuid, message: &Message) {
    let frame = message.frame();
    network.frames.send(Ingress { port, vlan: 0, frame }).expect("the service runs");
}

fn answer(egress: &Egress) -> Answer {
    Answer::parse(true, &egress.frame)
}

fn lease(network: &Network, port: Uuid, n: u8) -> std::net::Ipv4Addr {
    send(network, port, &Message::new(DISCOVER, mac(n)));
    let offer = network.answer().expect("an offer");
    assert_eq!(offer.port, port);
    let ip = answer(&offer).yiaddr();
    send(network, port, &Message::new(REQUEST, mac(n)).requested(ip).server(SERVER));
    let ack = answer(&network.answer().expect("an answer"));
    assert_eq!((ack.kind(), ack.yiaddr()), (ACK, ip));
    ip
}

#[test]
fn an_exchange_through_the_thread() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (service, network, events) = start(&path);
    let ip = lease(&network, port(1), 1);
    // The lease was on disk when the ACK left.
    let copy = dir.path().join("copy");
    std::fs::copy(&path, &copy).expect("it can be copied");
    let stored = Store::open(&copy).expect("it opens").leases;
    assert_eq!((stored[0].ip, stored[0].mac), (ip, mac(1)));
    assert_eq!(service.leases().len(), 1);
    assert!(matches!(events.recv(), Ok(LeaseEvent::Added(lease)) if lease.ip == ip));
    service.port_removed(port(1));
    assert!(matches!(events.recv(), Ok(LeaseEvent::Removed { lease, .. }) if lease.ip == ip));
    assert_eq!(service.leases(), []);
    assert_eq!(service.dhcp4_counters().expect("there is DHCP").acks, 1);
    service.stop();
    assert!(events.recv().is_err(), "the thread is gone");
}

#[test]
fn leases_survive_the_service() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (service, network, _) = start(&path);
    let ips: Vec<_> = (1..=9).map(|n| lease(&network, port(u128::from(n)), n)).collect();
    service.stop();
    let (service, network, _) = start(&path);
    assert_eq!(service.leases().len(), ips.len());
    for (n, ip) in (1..=9).zip(ips) {
        let renew = Message::new(REQUEST, mac(n)).ciaddr(ip).unicast(ip);
        send(&network, port(u128::from(n)), &renew);
        let ack = answer(&network.answer().expect("an answer"));
        assert_eq!((ack.kind(), ack.yiaddr()), (ACK, ip));
    }
    drop(service);
}

#[test]
fn a_damaged_file_fails_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    std::fs::write(&path, "expiry-time mac\n").expect("it can be written");
    let (io, _network) = io::pair();
    let config = ServiceConfig {
        network: "test".to_owned(),
        dhcp4: Some(config()),
        dns: None,
        lease_file: path,
    };
    let result = Service::start(config, Some(Box::new(io)), |_| ());
    assert!(matches!(result, Err(ServiceError::Store(_))));
}

#[test]
fn no_acknowledgement_while_the_disk_is_full() {
    support::isolated(|| {
        let dir = tempfile::tempdir().expect("a directory");
        support::small_disk(dir.path(), 32 << 10);
        let path = dir.path().join("leases");
        let (service, network, events) = start(&path);
        let held = lease(&network, port(1), 1);
        let filler = dir.path().join("filler");
        let mut size = 32 << 10;
        while size > 0 && std::fs::write(&filler, vec![0; size]).is_err() {
            size -= 1024;
        }
        // Renewals fill what is left of the file's last page.
        let renew = Message::new(REQUEST, mac(1)).ciaddr(held).unicast(held);
        let failed = support::wait_for("a full disk", || {
            send(&network, port(1), &renew);
            support::wait_for("an answer or a drop", || {
                let dropped =
                    service.dhcp4_counters().expect("there is DHCP").dropped(DropReason::Store);
                (dropped > 0 || network.answers.try_recv().is_ok()).then_some(dropped)
            });
            Some(service.dhcp4_counters().expect("there is DHCP").dropped(DropReason::Store))
                .filter(|count| *count > 0)
        });
        assert_eq!(failed, 1);
        let told = |event: LeaseEvent| matches!(event, LeaseEvent::StoreFailed(_));
        assert!(events.try_iter().any(told));
        // An offer promises nothing; a lease would.
        send(&network, port(2), &Message::new(DISCOVER, mac(2)));
        let offer = answer(&network.answer().expect("an offer"));
        let request = Message::new(REQUEST, mac(2)).requested(offer.yiaddr()).server(SERVER);
        send(&network, port(2), &request);
        support::wait_for("the request's drop", || {
            (service.dhcp4_counters().expect("there is DHCP").dropped(DropReason::Store) == 2)
                .then_some(())
        });
        assert!(network.answers.try_recv().is_err());
        assert_eq!(events.try_iter().count(), 0, "nothing is told that is not on disk");
        // The client asks again when there is room.
        std::fs::remove_file(&filler).expect("it is there");
        send(&network, port(2), &request);
        let ack = answer(&network.answer().expect("an answer"));
        assert_eq!((ack.kind(), ack.yiaddr()), (ACK, offer.yiaddr()));
        let told: Vec<LeaseEvent> = support::wait_for("events", || {
            let told: Vec<_> = events.try_iter().collect();
            (!told.is_empty()).then_some(told)
        });
        assert_eq!(told[0], LeaseEvent::StoreRecovered);
        service.stop();
        assert_eq!(Store::open(&path).expect("it opens").leases.len(), 2);
    });
}

#[test]
fn a_crowd_shares_one_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let (service, network, _) = start(&dir.path().join("leases"));
    // Everything is queued before the thread is told of it by the first frame's arrival.
    for n in 0..9 {
        let request = Message::new(REQUEST, mac(n)).requested(ip(1, 10 + n));
        send(&network, port(u128::from(n)), &request);
    }
    for _ in 0..9 {
        assert_eq!(answer(&network.answer().expect("an answer")).kind(), ACK);
    }
    assert_eq!(service.leases().len(), 9);
}

#[test]
fn reload() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (service, network, _) = start(&path);
    let held = lease(&network, port(1), 1);
    let mut changed = config();
    changed.ranges.clear();
    let with = |dhcp4| ServiceConfig {
        network: "test".to_owned(),
        dhcp4,
        dns: None,
        lease_file: path.clone(),
    };
    service.reload(with(Some(changed))).expect("it is taken");
    let renew = Message::new(REQUEST, mac(1)).ciaddr(held).unicast(held);
    send(&network, port(1), &renew);
    assert_eq!(answer(&network.answer().expect("an answer")).kind(), NAK);
    assert!(matches!(service.reload(with(None)), Err(ServiceError::NotReloadable)));
    let mut wrong = config();
    wrong.server = ip(0, 0);
    assert!(matches!(service.reload(with(Some(wrong))), Err(ServiceError::Dhcp4(_))));
}
