//! The dirty log holds what the device wrote: judged by the bytes of the guest's memory before and after.

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Driver, F_NEXT, F_WRITE, GUEST, Guest};
use proptest::prelude::*;
use virtio_ring::{
    ChainBuf, Cursor, Direction, DirtyLog, GuestMemory, LOG_PAGE, Limit, MapError, Ring,
};

const ALL: Limit = Limit { chains: 64, bytes: u64::MAX };
const MEMORY: u64 = 1 << 20;
/// Covers the highest region of [`Guest::map`] with two regions.
const LOG: u64 = (GUEST + 2 * MEMORY) / LOG_PAGE / 8;

struct Log {
    file: Guest,
    map: Arc<DirtyLog>,
}

impl Log {
    /// The log does not begin with a page of its file.
    const OFFSET: u64 = 4096 + 24;

    fn new() -> Self {
        let file = Guest::new(Self::OFFSET + LOG);
        let map = DirtyLog::map(file.fd().as_fd(), Self::OFFSET, LOG).unwrap();
        Self { file, map: Arc::new(map) }
    }

    /// Guest addresses of the pages that are marked.
    fn pages(&self) -> Vec<u64> {
        let len = usize::try_from(Self::OFFSET + LOG).unwrap();
        let bytes = self.file.read(0, len);
        let (before, log) = bytes.split_at(usize::try_from(Self::OFFSET).unwrap());
        assert!(before.iter().all(|byte| *byte == 0), "marks before the log's offset");
        let marked = (0..).zip(log).filter(|(_, byte)| **byte != 0);
        let bits = marked.flat_map(|(at, byte)| {
            (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| at * 8 + bit)
        });
        bits.map(|page: u64| page * LOG_PAGE).collect()
    }
}

/// Guest addresses of the pages that differ; the guest's memory is mapped as two regions.
fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let page = usize::try_from(LOG_PAGE).unwrap();
    let pages = before.chunks(page).zip(after.chunks(page)).zip((0..).step_by(page));
    let differ = pages.filter(|((before, after), _)| before != after).map(|(_, at)| at);
    differ.map(|at: u64| GUEST + at + if at >= MEMORY / 2 { MEMORY / 2 } else { 0 }).collect()
}

/// Receives into every chain on offer, as the datapath does.
fn receive(ring: &mut Ring, memory: &GuestMemory, log: &DirtyLog, bytes: &[u8]) {
    let mut buf = ChainBuf::new();
    let chains = ring.gather(memory, Direction::Writable, ALL, &mut buf).unwrap();
    for chain in chains.as_slice() {
        let slices = chains.slices(chain);
        let written = Cursor::new(slices).write(bytes);
        log.mark_slices(memory, slices, written);
        ring.complete(chain.head, u32::try_from(written).unwrap());
    }
    let _ = ring.publish();
    ring.suppress_kicks();
    ring.arm().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_changed_page_is_marked_and_no_buffer_besides(
        start in any::<u16>(),
        event_idx in any::<bool>(),
        size in prop_oneof![Just(4_u16), Just(256), Just(1024)],
        buffers in prop::collection::vec((0..MEMORY - 9000, 1..9000_u32, 1..5000_u32), 1..4),
        len in 1..9000_usize,
    ) {
        let mut driver = Driver::new(Guest::new(MEMORY), size, start);
        let memory = driver.guest.map(2);
        let log = Log::new();
        let mut ring = Ring::new(&memory, &driver.config(event_idx, false), None).unwrap();
        ring.set_log(Some(&log.map), None);
        // Chains of two descriptors, each within one of the two regions and behind the ring.
        for (n, (at, first, second)) in (0..).zip(&buffers) {
            let inside = |at: u64, len: u32| {
                let at = at.max(driver.buffers());
                let half = MEMORY / 2;
                let at = if at < half && at + u64::from(len) > half { half } else { at };
                let at = at.min(MEMORY - u64::from(len));
                GUEST + at + if at >= half { half } else { 0 }
            };
            driver.set_desc(2 * n, inside(*at, *first), *first, F_WRITE | F_NEXT, 2 * n + 1);
            driver.set_desc(2 * n + 1, inside(at / 2, *second), *second, F_WRITE, 0);
        }
        let chains = (0..).step_by(2).take(buffers.len()).take(usize::from(size) / 2);
        chains.for_each(|head| driver.push(head));
        driver.publish();
        let whole = usize::try_from(MEMORY).unwrap();
        let before = driver.guest.read(0, whole);
        receive(&mut ring, &memory, &log.map, &vec![0xd1; len]);
        let changed = changed(&before, &driver.guest.read(0, whole));
        let marked = log.pages();
        for page in &changed {
            prop_assert!(marked.contains(page), "{page:#x} changed, marked are {marked:#x?}");
        }
        // Pages of the used ring may be written with what was there.
        let used = GUEST + driver.used..GUEST + driver.buffers();
        for page in marked.iter().filter(|page| !changed.contains(page)) {
            prop_assert!(
                used.start < page + LOG_PAGE && *page < used.end,
                "{page:#x} was marked and not written"
            );
        }
        prop_assert!(!changed.is_empty());

        // Off again: nothing more is marked.
        ring.set_log(None, None);
        driver.push(0);
        driver.publish();
        let mut buf = ChainBuf::new();
        let chains = ring.gather(&memory, Direction::Writable, ALL, &mut buf).unwrap();
        ring.complete(chains.chain(0).head, 0);
        let _ = ring.publish();
        prop_assert_eq!(log.pages(), marked);
    }
}

/// VHOST_VRING_F_LOG: the used ring is noted where the frontend says, also outside of its memory table.
#[test]
fn the_used_ring_is_noted_at_the_address_that_was_given() {
    let mut driver = Driver::new(Guest::new(MEMORY), 8, 0);
    let memory = driver.guest.map(1);
    let log = Log::new();
    let mut ring = Ring::new(&memory, &driver.config(true, false), None).unwrap();
    for (addr, marked) in [(0x7_5000, &[0x7_5000][..]), (0x9_9ffd, &[0x7_5000, 0x9_9000, 0x9_a000])]
    {
        ring.set_log(Some(&log.map), Some(addr));
        driver.set_desc(0, GUEST + MEMORY / 2, 8, F_WRITE, 0);
        driver.push(0);
        driver.publish();
        let mut buf = ChainBuf::new();
        let chains = ring.gather(&memory, Direction::Writable, ALL, &mut buf).unwrap();
        ring.complete(chains.chain(0).head, 0);
        let _ = ring.publish();
        assert_eq!(log.pages(), marked);
    }
    // No address can be outside of the log's mapping.
    for addr in [u64::MAX, u64::MAX - 3, LOG * 8 * LOG_PAGE, LOG * 8 * LOG_PAGE - 1] {
        log.map.mark(addr, u64::MAX);
        log.map.mark(addr, 0);
        log.map.mark(addr, 70_000);
    }
    assert_eq!(log.pages().last(), Some(&((LOG * 8 - 1) * LOG_PAGE)));
}

/// The frontend fetches and clears while two workers mark: no mark is lost.
#[test]
fn marks_are_not_lost_beside_a_frontend_that_clears() {
    const ROUNDS: u64 = 2000;
    let log = Log::new();
    // SAFETY: a mapping of the test's own, as a frontend has one, which lives as long as the process.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            8192,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::SHARED,
            log.file.fd(),
            0,
        )
    };
    let at = base.unwrap().cast::<u8>().wrapping_add(usize::try_from(Log::OFFSET).unwrap());
    // SAFETY: the byte is mapped, and both sides use atomic operations.
    let byte = unsafe { AtomicU8::from_ptr(at) };
    // Each worker marks its page again when the frontend has taken the last mark.
    let taken = [AtomicU64::new(0), AtomicU64::new(0)];
    let work = |worker: usize| {
        for round in 0..ROUNDS {
            log.map.mark(worker as u64 * LOG_PAGE, 1);
            let deadline = Instant::now() + Duration::from_secs(20);
            while taken[worker].load(Ordering::Acquire) == round {
                assert!(Instant::now() < deadline, "mark {round} of worker {worker} is lost");
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = [0, 1].map(|worker| scope.spawn(move || work(worker)));
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let bits = byte.swap(0, Ordering::SeqCst);
            for (worker, taken) in taken.iter().enumerate() {
                taken.fetch_add(u64::from(bits >> worker & 1), Ordering::Release);
            }
            std::thread::yield_now();
        }
    });
    assert!(taken.iter().all(|taken| taken.load(Ordering::Relaxed) == ROUNDS));
}

#[test]
fn a_log_that_shrinks_is_poisoned_and_kills_nobody() {
    let log = Log::new();
    log.map.mark(GUEST, 1);
    assert!(!log.map.is_poisoned());
    log.file.shrink(0);
    log.map.mark(GUEST, 100 * LOG_PAGE);
    assert!(log.map.is_poisoned());
}

#[test]
fn a_log_must_lie_in_its_file_on_a_memory_file_system() {
    let file = Guest::new(8192);
    let map = |offset, size| DirtyLog::map(file.fd().as_fd(), offset, size);
    assert!(map(0, 8192).is_ok());
    assert!(matches!(map(0, 8193), Err(MapError::FileTooSmall { .. })));
    assert!(matches!(map(8192, 1), Err(MapError::FileTooSmall { .. })));
    assert!(matches!(map(u64::MAX, 2), Err(MapError::Size { .. })));
    assert!(matches!(map(0, 0), Err(MapError::Size { .. })));
    let disk = std::fs::File::open("/proc/self/exe").unwrap();
    let disk = DirtyLog::map(disk.as_fd(), 0, 1);
    assert!(matches!(disk, Err(MapError::FileSystem { .. })), "{disk:?}");
}
