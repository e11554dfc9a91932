//! Frontends that come, go and change their minds, while others go on undisturbed.

mod common;

common::packed::on_both_layouts! {
    a_frontend_reconnects_on_the_same_socket
    a_new_frontend_takes_over_from_one_that_died_without_notice
    rings_go_on_where_they_were_after_a_reconnect
    rings_go_on_where_they_were_after_a_crash
    a_ring_is_stopped_and_started_where_it_was
    frames_to_a_stopped_or_disabled_ring_are_dropped_with_a_reason
    memory_is_replaced_under_traffic_without_losing_a_frame
    regions_come_and_go_one_by_one
    disconnecting_in_the_middle_of_bursts_disturbs_nobody
    ports_come_and_go_under_traffic
    several_workers_lose_nothing
}

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{BROADCAST, Bench, Nic, Options, Probe, eventually, frame, introduce, mac};
use datapath::{BridgeSpec, Config, Error, PortState};
use switch::DropReason;
use vhost::vhost_user::VhostUserFrontend;

fn a_frontend_reconnects_on_the_same_socket() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    for _ in 0..20 {
        let mut a = bench.nic(0, &Options::new(mac(0)));
        introduce(&mut [&mut a, &mut b]);
        drop(a);
        bench.wait_state(0, PortState::Listening);
    }
}

fn a_new_frontend_takes_over_from_one_that_died_without_notice() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut a = bench.nic(0, &Options::new(mac(0)));
    introduce(&mut [&mut a, &mut b]);
    // The second connects while the first is there, and is served when that goes.
    let (path, options) = (bench.path(0), Options::new(mac(0)));
    let waiting = std::thread::spawn(move || Nic::connect(&path, &options));
    a.send(&frame(b.mac, a.mac, 60, 1));
    b.recv().unwrap();
    assert!(!waiting.is_finished());
    drop(a);
    let mut a = waiting.join().unwrap();
    introduce(&mut [&mut a, &mut b]);
}

fn rings_go_on_where_they_were_after_a_reconnect() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut a = bench.nic(0, &Options { start: 65_000, ..Options::new(mac(0)) });
    introduce(&mut [&mut a, &mut b]);
    for seed in 0..300 {
        a.send(&frame(b.mac, a.mac, 60, seed));
        b.recv().unwrap();
        b.send(&frame(a.mac, b.mac, 60, seed));
        a.recv().unwrap();
    }
    let mut a = reconnect(&bench, 0, a);
    for seed in 0..300 {
        a.send(&frame(b.mac, a.mac, 60, seed));
        assert_eq!(b.recv().unwrap().1, frame(b.mac, a.mac, 60, seed));
        b.send(&frame(a.mac, b.mac, 60, seed));
        assert_eq!(a.recv().unwrap().1, frame(a.mac, b.mac, 60, seed));
    }
}

/// What a frontend does that connects again.
fn reconnect(bench: &Bench, port: usize, nic: Nic) -> Nic {
    let adopt = Some((nic.memory.clone(), Arc::clone(&nic.file), nic.rings.clone()));
    drop(nic);
    // It says where the rings began, as QEMU does; they know better.
    bench.nic(port, &Options { adopt, ..Options::new(mac(port)) })
}

fn rings_go_on_where_they_were_after_a_crash() {
    let mut bench = Bench::new(2);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut a, &mut b]);
    for round in 0..10 {
        let seeds = |n| round * 100..round * 100 + n;
        for seed in seeds(50) {
            a.send(&frame(b.mac, a.mac, 60, seed));
            assert_eq!(b.recv().unwrap().1, frame(b.mac, a.mac, 60, seed));
            b.send(&frame(a.mac, b.mac, 60, seed));
            assert_eq!(a.recv().unwrap().1, frame(a.mac, b.mac, 60, seed));
        }
        bench.crash();
        // Some wait while there is nobody.
        for seed in seeds(20) {
            a.send(&frame(b.mac, a.mac, 60, seed));
        }
        b = reconnect(&bench, 1, b);
        a = reconnect(&bench, 0, a);
        for seed in seeds(20) {
            assert_eq!(b.recv().unwrap().1, frame(b.mac, a.mac, 60, seed));
        }
        assert!(eventually(|| a.is_reaped(0)));
        assert!(b.try_recv(0).is_none(), "a frame came twice");
    }
}

fn a_ring_is_stopped_and_started_where_it_was() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut a = bench.nic(0, &Options { start: 65_530, ..Options::new(mac(0)) });
    introduce(&mut [&mut a, &mut b]);
    for seed in 0..50 {
        a.send(&frame(b.mac, a.mac, 60, seed));
        b.recv().unwrap();
        for at in 0..2 {
            let base = a.stop_ring(at);
            if at == 1 {
                a.reap(0);
                let ring = &a.rings[1];
                let used = if a.is_packed() { ring.packed.used.bits() } else { ring.used };
                assert_eq!(base, used, "everything before is complete");
            }
            a.start_ring(at, base);
        }
        b.send(&frame(a.mac, b.mac, 60, seed));
        assert_eq!(a.recv().unwrap().1, frame(a.mac, b.mac, 60, seed));
    }
}

fn frames_to_a_stopped_or_disabled_ring_are_dropped_with_a_reason() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut a, &mut b]);
    b.frontend.set_vring_enable(0, false).unwrap();
    a.send(&frame(b.mac, a.mac, 60, 1));
    assert!(eventually(|| bench.drops(1, DropReason::PortDown) == 1));
    b.frontend.set_vring_enable(0, true).unwrap();
    a.send(&frame(b.mac, a.mac, 60, 2));
    assert_eq!(b.recv().unwrap().1, frame(b.mac, a.mac, 60, 2));
    // A disabled TX ring's frames are consumed.
    b.frontend.set_vring_enable(1, false).unwrap();
    b.send(&frame(a.mac, b.mac, 60, 3));
    assert!(eventually(|| bench.drops(1, DropReason::PortDown) == 2));
    b.frontend.set_vring_enable(1, true).unwrap();
    b.send(&frame(a.mac, b.mac, 60, 4));
    assert_eq!(a.recv().unwrap().1, frame(a.mac, b.mac, 60, 4));
    drop(b);
    bench.wait_state(1, PortState::Listening);
    a.send(&frame(mac(1), a.mac, 60, 5));
    assert!(eventually(|| bench.drops(1, DropReason::PortDown) == 3));
}

fn memory_is_replaced_under_traffic_without_losing_a_frame() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut a = bench.nic(0, &Options::new(mac(0)));
    introduce(&mut [&mut a, &mut b]);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // A second card's thread sends without pause; the first changes its memory table between receiving.
    let (datapath, ports) = (bench.datapath.clone(), [bench.id(0), bench.id(1)]);
    let sender = std::thread::spawn(move || {
        let mut seed = 0;
        while !stopped.load(Ordering::Relaxed) {
            b.send(&frame(mac(0), b.mac, 300, seed));
            let (_, got) = b.recv().unwrap_or_else(|| {
                panic!("echo {seed} is lost: {:?}", ports.map(|port| datapath.port_stats(port)))
            });
            assert_eq!(got, frame(b.mac, mac(0), 300, seed));
            seed += 1;
        }
        seed
    });
    for round in 0..200 {
        a.set_mem_table();
        let (_, got) = a.recv().expect("a frame arrives");
        let seed = u32::from_be_bytes(got[14..18].try_into().unwrap());
        assert_eq!(got, frame(a.mac, mac(1), 300, seed));
        if round % 2 == 0 {
            a.set_mem_table();
        }
        a.send(&frame(mac(1), a.mac, 300, seed));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(eventually(|| {
        if let Some((_, got)) = a.try_recv(0) {
            let seed = u32::from_be_bytes(got[14..18].try_into().unwrap());
            a.send(&frame(mac(1), a.mac, 300, seed));
        }
        sender.is_finished()
    }));
    assert!(sender.join().unwrap() >= 200);
    assert_eq!(bench.all_drops(0), []);
    assert_eq!(bench.all_drops(1), []);
}

fn regions_come_and_go_one_by_one() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut a = bench.nic(0, &Options::new(mac(0)));
    introduce(&mut [&mut a, &mut b]);
    let other = bench_region();
    for seed in 0..20 {
        a.frontend.add_mem_region(&other.0).unwrap();
        a.send(&frame(b.mac, a.mac, 60, seed));
        b.recv().unwrap();
        a.frontend.remove_mem_region(&other.0).unwrap();
        a.send(&frame(b.mac, a.mac, 60, seed));
        b.recv().unwrap();
    }
    assert_eq!(bench.all_drops(0), []);
}

fn bench_region() -> (vhost::VhostUserMemoryRegionInfo, std::os::fd::OwnedFd) {
    let fd = rustix::fs::memfd_create("more", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 1 << 20).unwrap();
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 0x1_0000_0000_0000,
        memory_size: 1 << 20,
        userspace_addr: 0x1000_0000,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&fd),
    };
    (region, fd)
}

fn disconnecting_in_the_middle_of_bursts_disturbs_nobody() {
    let bench = Bench::new(4);
    let probe =
        Probe::start(bench.nic(2, &Options::new(mac(2))), bench.nic(3, &Options::new(mac(3))));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    b.send(&frame(BROADCAST, b.mac, 60, 0));
    for round in 0..30 {
        let mut a = bench.nic(0, &Options::new(mac(0)));
        for seed in 0..50 {
            a.send(&frame(mac(1), a.mac, 1000, round * 50 + seed));
        }
        drop(a);
        while b.try_recv(0).is_some() {}
    }
    probe.finish();
}

fn ports_come_and_go_under_traffic() {
    let mut bench = Bench::new(2);
    let probe =
        Probe::start(bench.nic(0, &Options::new(mac(0))), bench.nic(1, &Options::new(mac(1))));
    for round in 0..30 {
        let at = bench.add(common::PortOptions::default());
        let mut nic = bench.nic(at, &Options::new(mac(at)));
        nic.send(&frame(BROADCAST, nic.mac, 60, round));
        assert!(eventually(|| bench.stats(at).rx_packets == 1));
        bench.datapath.remove_port(bench.id(at)).unwrap();
        assert!(bench.datapath.port_status(bench.id(at)).is_none());
        assert!(bench.datapath.fdb(bench.bridge).iter().all(|entry| entry.port != bench.id(at)));
    }
    probe.finish();
}

fn several_workers_lose_nothing() {
    let config = Config { workers: 3, ..Config::default() };
    let bench =
        Bench::with(config, BridgeSpec::default(), &vec![common::PortOptions::default(); 4]);
    let mut nics: Vec<Nic> = (0..4).map(|at| bench.nic(at, &Options::new(mac(at)))).collect();
    let mut all: Vec<&mut Nic> = nics.iter_mut().collect();
    introduce(&mut all);
    // Three cards on different workers send to the fourth. A worker gives up on a ring whose holder the kernel has put
    // aside, which a busy machine makes happen, but then it says so.
    let (mut sent, mut received) = (0, 0);
    let mut next = [0; 3];
    let [one, two, three, receiver] = &mut nics[..] else { unreachable!() };
    for seed in 0..2000 {
        for from in [&mut *one, &mut *two, &mut *three] {
            from.send(&frame(mac(3), from.mac, 100, seed));
            sent += 1;
        }
        assert!(
            eventually(|| {
                while let Some((_, got)) = receiver.try_recv(0) {
                    let from = usize::from(got[11]);
                    let seed = u32::from_be_bytes(got[14..18].try_into().unwrap());
                    assert_eq!(got, frame(mac(3), mac(from), 100, seed));
                    assert!(seed >= next[from], "in order");
                    next[from] = seed + 1;
                    received += 1;
                }
                received + bench.drops(3, DropReason::TxContended) == sent
            }),
            "{received} of {sent}: {:?}",
            bench.all_drops(3)
        );
    }
    assert!(received > sent / 2);
}

#[test]
fn garbage_ends_the_connection_and_the_next_one_works() {
    let bench = Bench::new(2);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    ] {
        let mut stream = UnixStream::connect(bench.path(0)).unwrap();
        let _ = stream.write_all(garbage);
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        let end = std::io::Read::read(&mut stream, &mut [0; 16]);
        assert!(
            matches!(end, Ok(0))
                || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        );
        let reason = || bench.datapath.port_status(bench.id(0)).unwrap().reason;
        assert!(eventually(|| reason().is_some()), "the operator learns why");
    }
    let mut a = bench.nic(0, &Options::new(mac(0)));
    introduce(&mut [&mut a, &mut b]);
}

#[test]
fn a_silent_connection_holds_nobody_up() {
    let bench = Bench::new(3);
    let _silent = UnixStream::connect(bench.path(0)).unwrap();
    let mut half = UnixStream::connect(bench.path(1)).unwrap();
    half.write_all(&[1, 0, 0]).unwrap();
    let mut c = bench.nic(2, &Options::new(mac(2)));
    c.send(&frame(BROADCAST, c.mac, 60, 1));
    assert!(eventually(|| bench.stats(2).rx_packets == 1));
}

#[test]
fn calls_are_refused_with_their_reason() {
    let mut bench = Bench::new(1);
    let (port, bridge) = (bench.id(0), bench.bridge);
    let nobody = uuid::Uuid::new_v4();
    let datapath = bench.datapath.clone();
    assert!(matches!(datapath.remove_port(nobody), Err(Error::NoPort(id)) if id == nobody));
    assert!(matches!(datapath.remove_bridge(bridge), Err(Error::BridgeInUse(_))));
    assert!(matches!(datapath.remove_bridge(nobody), Err(Error::NoBridge(_))));
    assert!(matches!(
        datapath.add_bridge(bridge, "again", BridgeSpec::default()),
        Err(Error::BridgeExists(_))
    ));
    assert!(matches!(datapath.fdb_add(bridge, BROADCAST, 0, port), Err(Error::Static { .. })));
    assert!(matches!(datapath.fdb_add(bridge, mac(1), 4095, port), Err(Error::Vlan(4095))));
    assert!(matches!(datapath.fdb_add(bridge, mac(1), 0, nobody), Err(Error::NoPort(_))));
    datapath.remove_port(port).unwrap();
    let at = bench.add(common::PortOptions::default());
    datapath.remove_port(bench.id(at)).unwrap();
    datapath.remove_bridge(bridge).unwrap();
    assert!(datapath.port_stats(port).is_none());
}
