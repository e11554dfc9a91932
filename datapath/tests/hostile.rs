//! Guests that break every rule: each is dropped or quarantined with a reason, and a stream between two others loses nothing.

mod common;

common::packed::on_both_layouts! {
    bad_chains_come_back_and_are_counted
    bad_headers_are_refused
    a_quarantined_guest_that_is_reset_starts_clean_on_the_same_connection
    a_bad_receive_ring_is_quarantined_and_its_sender_goes_on
    memory_that_is_cut_short_under_traffic_ends_only_its_port
    memory_that_is_gone_is_noticed_even_if_nothing_is_offered
    memory_tables_that_make_no_sense_are_refused
    call_descriptors_that_would_block_do_not
    a_call_descriptor_that_is_made_to_block_again_ends_its_port
    bytes_that_change_while_they_are_read_change_nothing
    random_rings_harm_nobody
    two_ports_on_the_same_memory_only_hurt_each_other
}

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use common::nic::GUEST_BASE;
use common::{BROADCAST, Bench, Nic, Options, Probe, eventually, frame, introduce, mac};
use datapath::PortState;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use switch::DropReason;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{Bytes, GuestAddress};
use wire::VirtioNetHdr;
use wire::virtio_net::{F_NEEDS_CSUM, GSO_TCPV4};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL: u64 = 0x1000;

/// An attacker on port 0, a neighbour that hears it on port 1, and a stream from port 2 to port 3.
struct Attack {
    bench: Bench,
    attacker: Nic,
    neighbour: Nic,
    probe: Option<Probe>,
}

impl Attack {
    fn new(features: u64) -> Self {
        let bench = Bench::new(4);
        let probe =
            Probe::start(bench.nic(2, &Options::new(mac(2))), bench.nic(3, &Options::new(mac(3))));
        let mut attacker = bench.nic(0, &Options { features, ..Options::new(mac(0)) });
        let mut neighbour = bench.nic(1, &Options::new(mac(1)));
        attacker.send(&frame(BROADCAST, mac(0), 60, 0));
        neighbour.recv().unwrap();
        neighbour.send(&frame(mac(0), mac(1), 60, 0));
        attacker.recv().unwrap();
        Self { bench, attacker, neighbour, probe: Some(probe) }
    }

    fn buffer(&self) -> u64 {
        self.attacker.rings[1].base + 0x1_0000
    }

    fn table(&self) -> u64 {
        self.attacker.rings[1].base
    }

    /// Offers descriptor 0 of the TX ring, and expects it to come back with a drop of this reason.
    fn expect_drop(&mut self, reason: DropReason) {
        let before = self.bench.drops(0, reason);
        self.attacker.offer(1, 0);
        let bench = &self.bench;
        assert!(
            eventually(|| bench.drops(0, reason) == before + 1),
            "{reason} expected: {:?}",
            bench.all_drops(0)
        );
        assert_eq!(self.attacker.wait(1), Some((0, 0)), "the chain comes back");
    }

    /// The attacker can still send properly.
    fn still_works(&mut self) {
        self.attacker.set_desc(self.table(), 0, self.buffer(), 72, 0, 0);
        let sent = frame(mac(1), mac(0), 60, 99);
        let mut bytes = vec![0; 12];
        bytes.extend(&sent);
        self.attacker.memory.write_slice(&bytes, GuestAddress(self.buffer())).unwrap();
        self.attacker.offer(1, 0);
        assert_eq!(self.neighbour.recv().unwrap().1, sent);
        assert_eq!(self.attacker.wait(1), Some((0, 0)));
    }

    fn expect_quarantine(&mut self, words: &str) {
        self.bench.wait_state(0, PortState::Quarantined);
        let status = self.bench.datapath.port_status(self.bench.id(0)).unwrap();
        let reason = status.reason.unwrap();
        assert!(reason.contains(words), "{reason}");
        self.neighbour.send(&frame(mac(0), mac(1), 60, 1));
    }

    fn finish(mut self) {
        self.probe.take().unwrap().finish();
    }

    /// After quarantine: whoever connects next starts clean.
    fn finish_with_a_new_frontend(self) {
        let Self { bench, attacker, mut neighbour, probe } = self;
        drop(attacker);
        let mut good = bench.nic(0, &Options::new(mac(0)));
        good.send(&frame(mac(1), mac(0), 60, 5));
        // What the attacker has sent before may still be there.
        while neighbour.recv().unwrap().1 != frame(mac(1), mac(0), 60, 5) {}
        probe.unwrap().finish();
    }
}

fn bad_chains_come_back_and_are_counted() {
    let mut a = Attack::new((1 << 28) | (1 << 29));
    let (table, buffer) = (a.table(), a.buffer());
    let ring_end = GUEST_BASE + (32 << 20);
    // (address, length, flags, next) of descriptors 0 and 1.
    type Desc = (u64, u32, u16, u16);
    let chains: &[([Desc; 2], DropReason)] = &[
        ([(buffer, 72, F_NEXT, 0), (0, 0, 0, 0)], DropReason::BadDescriptor),
        ([(buffer, 72, F_NEXT, 1), (buffer, 72, F_NEXT, 0)], DropReason::BadDescriptor),
        ([(buffer, 72, F_NEXT, 64), (0, 0, 0, 0)], DropReason::BadDescriptor),
        ([(buffer, 0, 0, 0), (0, 0, 0, 0)], DropReason::BadDescriptor),
        ([(buffer, 72, F_WRITE, 0), (0, 0, 0, 0)], DropReason::BadDescriptor),
        ([(buffer, 72, F_NEXT, 1), (buffer, 72, F_WRITE, 0)], DropReason::BadDescriptor),
        ([(buffer, 17, F_INDIRECT, 0), (0, 0, 0, 0)], DropReason::BadDescriptor),
        ([(buffer, 1 << 20, F_INDIRECT, 0), (0, 0, 0, 0)], DropReason::BadDescriptor),
        ([(ring_end, 16, F_INDIRECT, 0), (0, 0, 0, 0)], DropReason::GuestMemory),
        ([(ring_end - 8, 72, 0, 0), (0, 0, 0, 0)], DropReason::GuestMemory),
        ([(0, 72, 0, 0), (0, 0, 0, 0)], DropReason::GuestMemory),
        ([(u64::MAX, u32::MAX, 0, 0), (0, 0, 0, 0)], DropReason::GuestMemory),
        ([(buffer, 1, 0, 0), (0, 0, 0, 0)], DropReason::TooShort),
        ([(buffer, 12, 0, 0), (0, 0, 0, 0)], DropReason::TooShort),
        ([(buffer, 25, 0, 0), (0, 0, 0, 0)], DropReason::TooShort),
        ([(buffer, 100_000, 0, 0), (0, 0, 0, 0)], DropReason::TooLong),
    ];
    // A packed ring's chains name no next descriptor, and one without an end breaks the ring.
    let chains = if a.attacker.is_packed() { &chains[3..] } else { chains };
    for (descs, reason) in chains {
        for (at, &(addr, len, flags, next)) in (0..).zip(descs) {
            a.attacker.set_desc(table, at, addr, len, flags, next);
        }
        a.expect_drop(*reason);
    }
    a.still_works();
    a.finish();
}

fn bad_headers_are_refused() {
    let mut a = Attack::new((1 << 29) | (1 << 15));
    a.attacker.set_desc(a.table(), 0, a.buffer(), 72, 0, 0);
    let good = VirtioNetHdr::default();
    let headers = [
        // Not negotiated by this driver.
        VirtioNetHdr { flags: F_NEEDS_CSUM, csum_start: 34.into(), csum_offset: 6.into(), ..good },
        VirtioNetHdr { gso_type: GSO_TCPV4, gso_size: 1000.into(), ..good },
        VirtioNetHdr {
            flags: F_NEEDS_CSUM,
            csum_start: 0xffff.into(),
            csum_offset: 0xffff.into(),
            ..good
        },
        VirtioNetHdr { gso_type: 0x7f, ..good },
    ];
    for header in headers {
        let mut bytes = zerocopy::IntoBytes::as_bytes(&header).to_vec();
        bytes.extend(frame(mac(1), mac(0), 60, 1));
        a.attacker.memory.write_slice(&bytes, GuestAddress(a.buffer())).unwrap();
        a.expect_drop(DropReason::BadOffload);
    }
    // DATA_VALID is a word of ours, not of a guest.
    let header = VirtioNetHdr { flags: 2, ..good };
    let mut bytes = zerocopy::IntoBytes::as_bytes(&header).to_vec();
    bytes.extend(frame(mac(1), mac(0), 60, 1));
    a.attacker.memory.write_slice(&bytes, GuestAddress(a.buffer())).unwrap();
    a.attacker.offer(1, 0);
    assert_eq!(a.neighbour.recv().unwrap().0.flags, 0);
    a.attacker.wait(1).unwrap();
    a.still_works();
    a.finish();
}

#[test]
fn an_impossible_avail_index_is_quarantined() {
    let mut a = Attack::new(1 << 29);
    let ahead = a.attacker.rings[1].avail.wrapping_add(1000);
    a.attacker.set_u16(1, AVAIL + 2, ahead);
    a.attacker.rings[1].kick.write(1).unwrap();
    a.expect_quarantine("avail index");
    a.finish_with_a_new_frontend();
}

#[test]
fn a_head_outside_the_table_is_quarantined() {
    let mut a = Attack::new(1 << 29);
    a.attacker.offer(1, 64);
    a.expect_quarantine("avail entry 64");
    a.finish_with_a_new_frontend();
}

/// One is served while the others wait, and then all have ended.
#[test]
fn connections_that_end_while_they_wait_are_passed_over() {
    let bench = Bench::new(1);
    let waiting: Vec<_> =
        (0..600).map(|_| UnixStream::connect(bench.path(0)).expect("room to wait")).collect();
    drop(waiting);
    bench.nic(0, &Options::new(mac(0)));
}

fn a_quarantined_guest_that_is_reset_starts_clean_on_the_same_connection() {
    let mut a = Attack::new(1 << 29);
    if a.attacker.is_packed() {
        a.attacker.set_desc(a.table(), 0, a.buffer(), 72, F_NEXT, 0);
        a.attacker.offer(1, 0);
        a.expect_quarantine("does not end");
    } else {
        a.attacker.offer(1, 64);
        a.expect_quarantine("avail entry 64");
    }
    for at in 0..2 {
        a.attacker.stop_ring(at);
    }
    for at in 0..2 {
        a.attacker.restart_ring(at);
    }
    a.bench.wait_state(0, PortState::Up);
    a.still_works();
    a.finish();
}

fn a_bad_receive_ring_is_quarantined_and_its_sender_goes_on() {
    for (addr, len, flags) in [(0, 2048, F_WRITE), (GUEST_BASE, 2048, 0), (GUEST_BASE, 0, F_WRITE)]
    {
        let mut a = Attack::new(1 << 29);
        let rx = a.attacker.rings[0].base;
        for at in 0..128 {
            if a.attacker.is_packed() {
                let owner = a.attacker.u16(0, 16 * u64::from(at) + 14) & !F_WRITE;
                a.attacker.write_desc(rx + 16 * u64::from(at), addr, len, [at, owner | flags]);
            } else {
                a.attacker.set_desc(rx, at, addr, len, flags, 0);
            }
        }
        a.neighbour.send(&frame(mac(0), mac(1), 60, 1));
        a.expect_quarantine("receive buffer");
        a.finish_with_a_new_frontend();
    }
}

fn memory_that_is_cut_short_under_traffic_ends_only_its_port() {
    for _ in 0..5 {
        let mut a = Attack::new((1 << 29) | (1 << 15));
        for seed in 0..30 {
            a.attacker.send(&frame(mac(1), mac(0), 1000, seed));
        }
        rustix::fs::ftruncate(&*a.attacker.file, 4096).unwrap();
        // Touches what is gone.
        a.attacker.rings[1].kick.write(1).unwrap();
        a.neighbour.send(&frame(mac(0), mac(1), 1000, 1));
        a.bench.wait_state(0, PortState::Quarantined);
        let status = a.bench.datapath.port_status(a.bench.id(0)).unwrap();
        assert!(status.reason.unwrap().contains("cut short"));
        rustix::fs::ftruncate(&*a.attacker.file, 64 << 20).unwrap();
        a.finish_with_a_new_frontend();
    }
}

fn memory_that_is_gone_is_noticed_even_if_nothing_is_offered() {
    for _ in 0..20 {
        let a = Attack::new((1 << 29) | (1 << 15));
        rustix::fs::ftruncate(&*a.attacker.file, 0).unwrap();
        a.attacker.rings[1].kick.write(1).unwrap();
        a.bench.wait_state(0, PortState::Quarantined);
        let status = a.bench.datapath.port_status(a.bench.id(0)).unwrap();
        assert!(status.reason.unwrap().contains("cut short"));
        a.finish();
    }
}

fn memory_tables_that_make_no_sense_are_refused() {
    let mut a = Attack::new(1 << 29);
    let good = a.attacker.region();
    let bad: [Vec<VhostUserMemoryRegionInfo>; 5] = [
        vec![VhostUserMemoryRegionInfo { memory_size: 1 << 40, ..good }],
        vec![VhostUserMemoryRegionInfo { mmap_offset: 1 << 40, ..good }],
        vec![VhostUserMemoryRegionInfo { memory_size: 0, ..good }],
        vec![VhostUserMemoryRegionInfo { mmap_offset: u64::MAX - 10, ..good }],
        vec![good, VhostUserMemoryRegionInfo { userspace_addr: 0x1000, ..good }],
    ];
    for table in bad {
        assert!(a.attacker.frontend.set_mem_table(&table).is_err());
    }
    // What was there before goes on.
    a.still_works();
    // Rings that are not in memory.
    a.attacker.frontend.get_vring_base(1).unwrap();
    let config = vhost::VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    let _ = a.attacker.frontend.set_vring_addr(1, &config);
    assert!(a.attacker.frontend.set_vring_kick(1, &a.attacker.rings[1].kick).is_err());
    let reason = || a.bench.datapath.port_status(a.bench.id(0)).unwrap().reason;
    assert!(
        eventually(|| reason().is_some_and(|reason| reason.contains("ring 1"))),
        "{:?}",
        reason()
    );
    // A file on disk could hold whoever closes it, so it ends the connection.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let mmap_handle = std::os::fd::AsRawFd::as_raw_fd(&file);
    let disk = VhostUserMemoryRegionInfo { mmap_handle, memory_size: 4096, ..good };
    assert!(a.attacker.frontend.set_mem_table(&[disk]).is_err());
    assert!(
        eventually(|| reason().is_some_and(|reason| reason.contains("only memory files"))),
        "{:?}",
        reason()
    );
    a.finish();
}

fn call_descriptors_that_would_block_do_not() {
    let mut a = Attack::new(1 << 15);
    // A blocking eventfd at its limit, and a pipe that is full.
    let full = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    a.attacker.frontend.set_vring_call(0, &full).unwrap();
    for seed in 0..50 {
        a.neighbour.send(&frame(mac(0), mac(1), 60, seed));
    }
    assert!(eventually(|| a.bench.stats(0).tx_packets >= 51));
    a.still_works();
    a.finish();
}

fn a_call_descriptor_that_is_made_to_block_again_ends_its_port() {
    let mut a = Attack::new(1 << 15);
    let full = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    a.attacker.frontend.set_vring_call(0, &full).unwrap();
    // SAFETY: the descriptor is open as long as `full`.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&full)) };
    rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::RDWR).unwrap();
    full.write(u64::MAX - 2).unwrap();
    // One more fits, the next blocks.
    for seed in 0..3 {
        a.neighbour.send(&frame(mac(0), mac(1), 60, seed));
        assert!(eventually(|| a.bench.stats(1).rx_packets >= u64::from(seed) + 2));
    }
    a.expect_quarantine("block");
    a.finish_with_a_new_frontend();
}

/// What was checked is what arrives, however often the sender rewrites it meanwhile.
fn bytes_that_change_while_they_are_read_change_nothing() {
    let a = Attack::new((1 << 29) | (1 << 15));
    let Attack { bench, mut attacker, mut neighbour, probe } = a;
    let (table, buffer) = (attacker.rings[1].base, attacker.rings[1].base + 0x1_0000);
    attacker.set_desc(table, 0, buffer, 72, 0, 0);
    let stop = AtomicBool::new(false);
    let memory = attacker.memory.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Flips between two stations, one of which must never be spoofed half-way: source and
            // destination belong together only by chance, but a frame to nobody's address never leaves as another.
            let mut one = vec![0; 12];
            one.extend(frame(mac(1), mac(0), 60, 1));
            let mut two = vec![0xff; 12];
            two.extend(frame(mac(2), mac(0), 60, 2));
            while !stop.load(Ordering::Relaxed) {
                memory.write_slice(&one, GuestAddress(buffer)).unwrap();
                memory.write_slice(&two, GuestAddress(buffer)).unwrap();
            }
        });
        for _ in 0..3000 {
            attacker.offer(1, 0);
            assert_eq!(attacker.wait(1), Some((0, 0)));
            while let Some((header, got)) = neighbour.try_recv(0) {
                if got[6..12] == mac(0).0 && got[..6] != [0xff; 6] {
                    assert_eq!(
                        got[..6],
                        mac(1).0,
                        "decided for this station, and it is what arrived"
                    );
                    assert_eq!((header.flags, header.gso_type), (0, 0), "the header is ours");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(bench.stats(0));
    probe.unwrap().finish();
}

fn random_rings_harm_nobody() {
    let mut a = Attack::new((1 << 28) | (1 << 29));
    let mut runner = TestRunner::deterministic();
    let descs = prop::collection::vec(
        (0_u64..(40 << 20), prop_oneof![0_u32..3000, any::<u32>()], 0_u16..8, 0_u16..70),
        64,
    );
    for round in 0..200 {
        let table = descs.new_tree(&mut runner).unwrap().current();
        for (at, (offset, len, flags, next)) in (0..).zip(table) {
            // A packed ring's chains follow each other, and must not fill it.
            let (flags, next) = match a.attacker.is_packed() {
                true if at % 16 == 15 => (flags & !F_NEXT, 0),
                true => (flags, at + 1),
                false => (flags, next),
            };
            a.attacker.set_desc(a.table(), at, GUEST_BASE + offset, len, flags, next);
        }
        let burst = if a.attacker.is_packed() { 4 } else { 32 };
        for heads in (0..32).collect::<Vec<u16>>().chunks(burst) {
            for head in heads {
                a.attacker.offer(1, (head * 7 + round) % 64);
            }
            a.attacker.rings[1].kick.write(1).unwrap();
            for _ in heads {
                a.attacker.wait(1).expect("every chain comes back");
            }
        }
        while a.neighbour.try_recv(0).is_some() {}
        while a.attacker.try_recv(0).is_some() {}
    }
    a.finish();
}

fn two_ports_on_the_same_memory_only_hurt_each_other() {
    let bench = Bench::new(4);
    let probe =
        Probe::start(bench.nic(2, &Options::new(mac(2))), bench.nic(3, &Options::new(mac(3))));
    let mut one = bench.nic(0, &Options::new(mac(0)));
    let mut two = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut one, &mut two]);
    // The second's buffers are the first's now: copies overlap with themselves.
    let (from, to) = (one.rings[1].base + 0x1_0000, one.rings[1].base + 0x1_0010);
    two.memory = one.memory.clone();
    two.file = std::sync::Arc::clone(&one.file);
    for at in 0..2 {
        two.stop_ring(at);
        two.rings[at].base = one.rings[at].base + 0x80_0000;
    }
    two.set_mem_table();
    for at in 0..2 {
        two.restart_ring(at);
    }
    for _ in 0..100 {
        two.set_desc(two.rings[0].base, 0, to, 3000, F_WRITE, 0);
        two.offer(0, 0);
        let mut bytes = vec![0; 12];
        bytes.extend(frame(mac(1), mac(0), 2000, 1));
        one.memory.write_slice(&bytes, GuestAddress(from)).unwrap();
        one.set_desc(one.rings[1].base, 0, from, 2012, 0, 0);
        one.offer(1, 0);
        assert_eq!(one.wait(1), Some((0, 0)));
        assert!(two.wait(0).is_some());
    }
    probe.finish();
}
