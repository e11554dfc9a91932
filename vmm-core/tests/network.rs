//! A guest on a network, through an independent vhost-user backend: DHCP, DNS, ping, UDP, idle
//! CPU time, and a backend that goes away and comes back.

mod common;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use common::backend::Backend;
use common::network::{Dnsmasq, GATEWAY, PREFIX, in_namespace, tap};
use common::vmm::{Vmm, field};

const MAC: &str = "52:54:00:aa:00:01";

#[test]
fn a_guest_takes_an_address_resolves_a_name_and_pings() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port");
        let tap = tap();
        let _dnsmasq = Dnsmasq::start(directory.path());
        let _backend = Backend::start(&socket, &tap);
        let net = format!("{},mac={MAC}", socket.display());
        let line = format!("hostname=vmm1 ping={GATEWAY},peer.test count=3 interval=50 once");
        let mut vmm = Vmm::boot(&line, &["--net", &net]);

        let device = vmm.line("net ");
        assert_eq!(field(&device, "mac"), MAC);
        let lease = vmm.line("dhcp ");
        assert!(field(&lease, "address").starts_with(PREFIX), "{lease}");
        assert_eq!(field(&lease, "prefix"), "24");
        assert_eq!(field(&lease, "router"), GATEWAY);
        assert_eq!(field(&lease, "dns"), GATEWAY);
        let pings = vmm.line("ping done ");
        assert_eq!(field(&pings, "target"), GATEWAY);
        assert_eq!((field(&pings, "sent"), field(&pings, "received")), ("3", "3"));
        assert_eq!(vmm.line("resolve "), format!("resolve name=peer.test address={GATEWAY}"));
        let pings = vmm.line("ping done target=peer.test");
        assert_eq!((field(&pings, "sent"), field(&pings, "received")), ("3", "3"));
        let (status, _) = vmm.wait();
        assert_eq!(status.code(), Some(0));
        let leases = std::fs::read_to_string(directory.path().join("leases")).unwrap();
        assert!(leases.contains(MAC) && leases.contains("vmm1"), "{leases}");
    });
}

/// Sends datagrams until one comes back.
fn echo(client: &UdpSocket, payload: &[u8]) {
    let deadline = Instant::now() + common::vmm::PATIENCE;
    let mut answer = [0; 2048];
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    loop {
        client.send(payload).unwrap();
        if let Ok(len) = client.recv(&mut answer) {
            assert_eq!(&answer[..len], payload);
            return;
        }
        assert!(Instant::now() < deadline, "no echo");
    }
}

/// CPU time of a process with all its threads.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_guest_echoes_sleeps_when_idle_and_survives_its_backend() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port");
        let tap = tap();
        let backend = Backend::start(&socket, &tap);
        let net = format!("{},mac={MAC},mtu=1400", socket.display());
        let line = format!("address={PREFIX}9/24");
        let mut vmm = Vmm::boot(&line, &["--net", &net]);
        assert_eq!(field(&vmm.line("net "), "mtu"), "1400");
        vmm.line("static address=10.77.0.9 prefix=24 router=none dns=none");

        let client = UdpSocket::bind((GATEWAY, 0)).unwrap();
        client.connect((format!("{PREFIX}9"), 7)).unwrap();
        for len in [1, 100, 1372] {
            echo(&client, &vec![b'x'; len]);
        }
        vmm.line("echo from=10.77.0.1:");
        // Both rings wrap several times.
        client.set_read_timeout(Some(common::vmm::PATIENCE)).unwrap();
        let mut answer = [0; 64];
        for number in 0..500_u32 {
            client.send(&number.to_le_bytes()).unwrap();
            let len = client.recv(&mut answer).unwrap();
            assert_eq!(answer[..len], number.to_le_bytes());
        }

        let (before, start) = (cpu_time(vmm.id()), Instant::now());
        std::thread::sleep(Duration::from_secs(3));
        let (used, elapsed) = (cpu_time(vmm.id()) - before, start.elapsed());
        assert!(used < elapsed / 10, "an idle guest used {used:?} in {elapsed:?}");

        backend.stop();
        vmm.line("link down");
        let _backend = Backend::start(&socket, &tap);
        vmm.line("link up");
        echo(&client, b"again");
        vmm.terminate();
        let (status, _) = vmm.wait();
        assert_eq!(status.code(), Some(0));
    });
}
