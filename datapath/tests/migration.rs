//! Live migration as a frontend does it: pages that the dirty log names are copied in rounds while frames arrive, and what
//! was copied is the guest's memory in the end.

mod common;

common::packed::on_both_layouts! {
    pages_in_the_log_are_all_that_changes
    without_event_index_and_mergeable_buffers_too
    nothing_is_logged_before_and_after
}

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::handover::hand_over;
use common::nic::{EVENT_IDX, GUEST_BASE, MRG_RXBUF};
use common::{BROADCAST, Bench, Nic, Options, eventually, frame, introduce, mac};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const LOG_ALL: u64 = 1 << 26;
const PAGE: u64 = 4096;

/// The frontend's side of a log: a bitmap that others set bits in.
struct Log {
    file: File,
    map: *const AtomicU64,
    words: usize,
}

impl Log {
    /// For a card whose memory begins at [`GUEST_BASE`].
    fn new(memory: u64) -> Self {
        let words = usize::try_from((GUEST_BASE + memory).div_ceil(PAGE * 64)).unwrap();
        let fd = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, words as u64 * 8).unwrap();
        // SAFETY: a new mapping of the test's own, which lives as long as the process.
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                words * 8,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &fd,
                0,
            )
        };
        Self { file: File::from(fd), map: map.unwrap().cast(), words }
    }

    fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.words as u64 * 8,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Guest addresses of the marked pages; the marks are gone then.
    fn take(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for at in 0..self.words {
            // SAFETY: `at` is inside of the mapping, and both sides use atomic operations.
            let word = unsafe { &*self.map.add(at) }.swap(0, Ordering::SeqCst);
            let bits = (0..64).filter(|bit| word >> bit & 1 != 0);
            pages.extend(bits.map(|bit| (at as u64 * 64 + bit) * PAGE));
        }
        pages
    }
}

/// Another guest's memory, filled page by page.
struct Copy {
    memory: GuestMemoryMmap,
    file: Arc<File>,
}

impl Copy {
    /// Of all that the guest has now.
    fn of(source: &Nic) -> Self {
        let fd = memfd_create("destination", MemfdFlags::CLOEXEC).unwrap();
        let size = size(source);
        ftruncate(&fd, size).unwrap();
        let file = File::from(fd);
        let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(GUEST_BASE), usize::try_from(size).unwrap(), Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let copy = Self { memory, file: Arc::new(file) };
        let pages: Vec<u64> = (GUEST_BASE..GUEST_BASE + size).step_by(4096).collect();
        copy.pages(source, &pages);
        copy
    }

    fn pages(&self, source: &Nic, pages: &[u64]) {
        let mut page = [0; 4096];
        for &at in pages {
            source.file.read_exact_at(&mut page, at - GUEST_BASE).unwrap();
            self.file.write_all_at(&page, at - GUEST_BASE).unwrap();
        }
    }

    /// What the driver itself writes would be in the log of its own VMM: all but what the device writes.
    fn drivers_pages(&self, source: &Nic) {
        let device = source.written_by_device();
        let pages = (GUEST_BASE..GUEST_BASE + size(source)).step_by(4096);
        let drivers = pages.filter(|page| !device.iter().any(|range| range.contains(page)));
        self.pages(source, &drivers.collect::<Vec<_>>());
    }

    fn differences(&self, source: &Nic) -> Vec<u64> {
        let (mut ours, mut theirs) = ([0; 4096], [0; 4096]);
        let pages = (GUEST_BASE..GUEST_BASE + size(source)).step_by(4096);
        pages
            .filter(|at| {
                source.file.read_exact_at(&mut theirs, at - GUEST_BASE).unwrap();
                self.file.read_exact_at(&mut ours, at - GUEST_BASE).unwrap();
                ours != theirs
            })
            .collect()
    }
}

fn size(nic: &Nic) -> u64 {
    nic.memory.iter().next().unwrap().len()
}

/// SET_VRING_ADDR with or without VHOST_VRING_F_LOG, as a frontend repeats it.
fn log_used_rings(nic: &mut Nic, on: bool) {
    for at in 0..2 {
        let (base, size) = (nic.rings[at].base, nic.rings[at].size);
        let user = |guest| nic.memory.get_host_address(GuestAddress(guest)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: u32::from(on),
            desc_table_addr: user(base),
            used_ring_addr: user(base + 0x2000),
            avail_ring_addr: user(base + 0x1000),
            log_addr: on.then_some(base + 0x2000),
        };
        nic.frontend.set_vring_addr(at, &config).unwrap();
    }
}

/// Frames of many lengths from port 1 to whoever has the address of port 0.
fn traffic(mut from: Nic, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Nic> {
    std::thread::spawn(move || {
        let lengths = [60, 128, 300, 1500, 2036, 2037, 4000, 9000];
        for seed in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            from.send(&frame(mac(0), mac(1), lengths[seed as usize % lengths.len()], seed));
            while from.try_recv(0).is_some() {}
        }
        from
    })
}

/// Frames that the guest takes and answers for a while.
fn serve(nic: &mut Nic, frames: u32) {
    for seed in 0..frames {
        let (_, got) = nic.recv().expect("frames go on arriving");
        assert_eq!(got[..6], mac(0).0);
        if seed % 8 == 0 {
            nic.send(&frame(mac(1), mac(0), 60, seed));
        }
    }
}

fn migrate(features: u64) {
    let mut bench = Bench::new(3);
    let options = Options { features, ..Options::new(mac(0)) };
    let mut source = bench.nic(0, &options);
    let mut peer = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut source, &mut peer]);
    let stop = Arc::new(AtomicBool::new(false));
    let peer = traffic(peer, Arc::clone(&stop));
    serve(&mut source, 50);

    let mut log = Log::new(size(&source));
    source.frontend.set_log_base(0, Some(log.region())).unwrap();
    source.frontend.set_features(source.features | LOG_ALL).unwrap();
    log_used_rings(&mut source, true);
    let copy = Copy::of(&source);
    let mut rounds = Vec::new();
    for round in 0..20 {
        serve(&mut source, 20);
        if round % 5 == 4 {
            // Another log in its place; the old one is fetched once more after the answer.
            let next = Log::new(size(&source));
            source.frontend.set_log_base(0, Some(next.region())).unwrap();
            copy.pages(&source, &log.take());
            log = next;
        }
        if round % 5 == 2 {
            // The memory is mapped anew.
            source.set_mem_table();
        }
        if round % 5 == 3 {
            // The switch is replaced.
            hand_over(&mut bench, |_| {});
        }
        let dirty = log.take();
        rounds.push(dirty.len());
        copy.pages(&source, &dirty);
    }
    assert!(rounds.iter().sum::<usize>() > 100, "{rounds:?}");
    // The guest stops. After the answers nothing is written.
    let bases = [0, 1].map(|at| source.stop_ring(at));
    copy.pages(&source, &log.take());
    copy.drivers_pages(&source);
    assert_eq!(copy.differences(&source), Vec::<u64>::new());
    assert_eq!(log.take(), Vec::<u64>::new(), "marks after the rings were stopped");

    // It goes on elsewhere, where it has all that it was sent.
    let rings = source.rings.clone();
    let adopt = Some((copy.memory, copy.file, rings));
    drop(source);
    let mut moved = bench.nic(2, &Options { adopt, bases: bases.to_vec(), ..options });
    moved.announce();
    let entry = || bench.datapath.fdb(bench.bridge).into_iter().find(|entry| entry.mac == mac(0));
    assert!(eventually(|| entry().is_some_and(|entry| entry.port == bench.id(2))), "{:?}", entry());
    serve(&mut moved, 200);
    stop.store(true, Ordering::Relaxed);
    peer.join().unwrap();
}

fn pages_in_the_log_are_all_that_changes() {
    migrate(MRG_RXBUF | EVENT_IDX);
}

fn without_event_index_and_mergeable_buffers_too() {
    migrate(0);
}

fn nothing_is_logged_before_and_after() {
    let bench = Bench::new(2);
    let mut guest = bench.nic(0, &Options::new(mac(0)));
    let mut peer = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut guest, &mut peer]);
    let log = Log::new(size(&guest));
    let mut exchange = |guest: &mut Nic| {
        peer.send(&frame(mac(0), mac(1), 60, 0));
        guest.recv().unwrap();
        guest.send(&frame(mac(1), mac(0), 60, 0));
        peer.recv().unwrap();
    };
    guest.frontend.set_log_base(0, Some(log.region())).unwrap();
    exchange(&mut guest);
    assert_eq!(log.take(), Vec::<u64>::new());
    guest.frontend.set_features(guest.features | LOG_ALL).unwrap();
    exchange(&mut guest);
    // Used rings, or packed ones, and a receive buffer; not what the guest sent.
    let written = [guest.written_by_device(), guest.written_by_both()].concat();
    let ring = if guest.is_packed() { guest.rings[1].base } else { guest.rings[1].base + 0x2000 };
    assert!(eventually(|| {
        let marked = log.take();
        assert!(marked.iter().all(|page| written.iter().any(|range| range.contains(page))));
        marked.contains(&ring)
    }));
    guest.frontend.set_features(guest.features).unwrap();
    log.take();
    exchange(&mut guest);
    assert_eq!(log.take(), Vec::<u64>::new());
}

/// A guest that cannot announce itself: the switch does it, for its own table and for all who listen.
#[test]
fn an_announcement_reaches_everybody_and_moves_the_entry() {
    let bench = Bench::new(3);
    let mut old = bench.nic(0, &Options::new(mac(0)));
    let mut peer = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut old, &mut peer]);
    let mut new = bench.nic(2, &Options::new(mac(0)));
    peer.send(&frame(mac(0), mac(1), 60, 1));
    assert_eq!(old.recv().unwrap().1, frame(mac(0), mac(1), 60, 1));
    // A copy of the introduction that was still on its way when it came.
    while new.try_recv(0).is_some() {}
    new.announce();
    for listener in [&mut old, &mut peer] {
        let (_, rarp) = listener.recv().unwrap();
        assert_eq!(
            (&rarp[..6], &rarp[6..12], &rarp[12..14]),
            (&BROADCAST.0[..], &mac(0).0[..], &[0x80, 0x35][..])
        );
        assert_eq!(rarp.len(), 60);
    }
    peer.send(&frame(mac(0), mac(1), 60, 2));
    assert_eq!(new.recv().unwrap().1, frame(mac(0), mac(1), 60, 2));
    assert!(old.try_recv(0).is_none());
}
