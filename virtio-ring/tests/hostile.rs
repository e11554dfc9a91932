//! Rings of a driver that breaks every rule.

mod common;

use std::sync::Arc;

use common::{Driver, F_INDIRECT, F_NEXT, F_WRITE, GUEST, Guest, USER};
use proptest::prelude::*;
use virtio_ring::{
    Chain, ChainBuf, ChainError, Cursor, Direction, GuestMemory, Limit, MapError, MappedRegion,
    MemoryError, RegionSpec, Ring, RingError,
};

const ALL: Limit = Limit { chains: 64, bytes: u64::MAX };
const MEMORY: u64 = 1 << 20;

struct Setup {
    driver: Driver,
    memory: Arc<GuestMemory>,
    ring: Ring,
    buf: ChainBuf,
}

fn setup(size: u16) -> Setup {
    let driver = Driver::new(Guest::new(MEMORY), size, 0);
    let memory = driver.guest.map(1);
    let ring = Ring::new(&memory, &driver.config(false, true), None).unwrap();
    Setup { driver, memory, ring, buf: ChainBuf::new() }
}

impl Setup {
    fn buffer(&self) -> u64 {
        GUEST + self.driver.buffers()
    }

    /// Offers the chain at descriptor 0 and takes it.
    fn take(&mut self, direction: Direction) -> Chain {
        self.driver.push(0);
        self.driver.publish();
        let chains = self.ring.gather(&self.memory, direction, ALL, &mut self.buf).unwrap();
        assert_eq!(chains.len(), 1);
        let chain = chains.chain(0);
        if chain.error.is_some() {
            assert!(chains.slices(&chain).is_empty(), "a bad chain has no slices");
        }
        self.ring.complete(chain.head, 0);
        let _ = self.ring.publish();
        assert_eq!(self.driver.pop(), Some((0, 0)), "a bad chain comes back");
        chain
    }

    fn error(&mut self) -> Option<ChainError> {
        self.take(Direction::Readable).error
    }
}

#[test]
fn a_loop_ends() {
    let mut s = setup(8);
    let at = s.buffer();
    s.driver.set_desc(0, at, 10, F_NEXT, 1);
    s.driver.set_desc(1, at, 10, F_NEXT, 0);
    assert_eq!(s.error(), Some(ChainError::TooLong));
    s.driver.set_desc(0, at, 10, F_NEXT, 0);
    assert_eq!(s.error(), Some(ChainError::TooLong));
}

#[test]
fn a_chain_is_bounded_by_the_ring_and_by_256() {
    let mut s = setup(4);
    let table = s.buffer();
    let entries: Vec<u8> = (1..=5)
        .flat_map(|next| Driver::descriptor(table, 8, if next < 5 { F_NEXT } else { 0 }, next))
        .collect();
    s.driver.guest.write(s.driver.buffers(), &entries);
    s.driver.set_desc(0, table, 5 * 16, F_INDIRECT, 0);
    assert_eq!(s.error(), Some(ChainError::Indirect));
    let mut s = setup(1024);
    let at = s.buffer();
    for i in 0..300 {
        s.driver.set_desc(i, at, 8, F_NEXT, i + 1);
    }
    assert_eq!(s.error(), Some(ChainError::TooLong));
    s.driver.set_desc(255, at, 8, 0, 0);
    let chain = s.take(Direction::Readable);
    assert_eq!((chain.error, chain.len), (None, 256 * 8));
}

#[test]
fn descriptors_outside_memory_are_refused() {
    let mut s = setup(8);
    let end = GUEST + MEMORY;
    for (addr, len) in [
        (end, 1),
        (end - 1, 2),
        (GUEST - 1, 2),
        (0, 1),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (GUEST, u32::MAX),
        (USER, 8),
    ] {
        s.driver.set_desc(0, addr, len, 0, 0);
        assert_eq!(s.error(), Some(ChainError::Memory), "{addr:#x}+{len:#x}");
    }
    s.driver.set_desc(0, end - 16, 16, 0, 0);
    assert_eq!(s.error(), None);
}

#[test]
fn a_range_over_a_hole_is_refused() {
    let driver = Driver::new(Guest::new(MEMORY), 8, 0);
    let memory = driver.guest.map(2);
    let mut ring = Ring::new(&memory, &driver.config(false, false), None).unwrap();
    let mut driver = driver;
    driver.set_desc(0, GUEST + MEMORY / 2 - 8, 16, 0, 0);
    driver.set_desc(1, GUEST + MEMORY / 2, 1, 0, 0);
    driver.set_desc(2, GUEST + MEMORY, 1, 0, 0);
    for head in 0..3 {
        driver.push(head);
    }
    driver.publish();
    let mut buf = ChainBuf::new();
    let chains = ring.gather(&memory, Direction::Readable, ALL, &mut buf).unwrap();
    let errors: Vec<_> = chains.as_slice().iter().map(|chain| chain.error).collect();
    assert_eq!(errors, [Some(ChainError::Memory), Some(ChainError::Memory), None]);
}

#[test]
fn empty_and_misdirected_descriptors_are_refused() {
    let mut s = setup(8);
    let at = s.buffer();
    s.driver.set_desc(0, at, 0, 0, 0);
    assert_eq!(s.error(), Some(ChainError::Empty));
    s.driver.set_desc(0, at, 8, F_NEXT, 1);
    s.driver.set_desc(1, u64::MAX, 0, 0, 0);
    assert_eq!(s.error(), Some(ChainError::Empty));
    s.driver.set_desc(0, at, 8, F_WRITE, 0);
    assert_eq!(s.error(), Some(ChainError::Direction));
    s.driver.set_desc(0, at, 8, 0, 0);
    assert_eq!(s.take(Direction::Writable).error, Some(ChainError::Direction));
    s.driver.set_desc(0, at, 8, F_NEXT, 8);
    assert_eq!(s.error(), Some(ChainError::Next));
    s.driver.set_desc(0, at, 8, F_NEXT | F_WRITE, 1);
    s.driver.set_desc(1, at, 8, 0, 0);
    assert_eq!(s.take(Direction::Both).error, Some(ChainError::Direction));
    s.driver.set_desc(0, at, u32::MAX, 0, 0);
    assert_eq!(s.error(), Some(ChainError::Memory));
}

#[test]
fn readable_and_writable_parts_are_told_apart() {
    let mut s = setup(8);
    let at = s.buffer();
    s.driver.set_desc(0, at, 8, F_NEXT, 1);
    s.driver.set_desc(1, at + 8, 24, F_NEXT, 2);
    s.driver.set_desc(2, at + 32, 1, F_WRITE, 0);
    s.driver.push(0);
    s.driver.publish();
    let chains = s.ring.gather(&s.memory, Direction::Both, ALL, &mut s.buf).unwrap();
    let (request, answer) = chains.split(&chains.chain(0));
    assert_eq!(Cursor::new(request).skip(usize::MAX), 32);
    assert_eq!(Cursor::new(answer).skip(usize::MAX), 1);
}

#[test]
fn indirect_tables_follow_the_rules() {
    let mut s = setup(8);
    let (offset, at) = (s.driver.buffers(), s.buffer());
    s.driver.guest.write(offset, &Driver::descriptor(at, 8, 0, 0));
    for (len, flags) in
        [(0, F_INDIRECT), (15, F_INDIRECT), (17, F_INDIRECT), (16, F_INDIRECT | F_NEXT)]
    {
        s.driver.set_desc(0, at, len, flags, 1);
        assert_eq!(s.error(), Some(ChainError::Indirect), "{len} {flags}");
    }
    s.driver.set_desc(0, GUEST + MEMORY - 8, 16, F_INDIRECT, 0);
    assert_eq!(s.error(), Some(ChainError::Memory));
    s.driver.set_desc(0, at, 16, F_INDIRECT, 0);
    assert_eq!(s.error(), None);
    s.driver.guest.write(offset, &Driver::descriptor(at, 16, F_INDIRECT, 0));
    assert_eq!(s.error(), Some(ChainError::Indirect), "nested");
    s.driver.guest.write(offset, &Driver::descriptor(at, 16, F_NEXT, 1));
    assert_eq!(s.error(), Some(ChainError::Next), "behind the table");
    let mut ring = Ring::new(&s.memory, &s.driver.config(false, false), None).unwrap();
    s.driver.push(0);
    s.driver.publish();
    let chains = ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).unwrap();
    assert_eq!(chains.chain(0).error, Some(ChainError::Indirect), "not negotiated");
}

#[test]
fn impossible_indices_break_the_ring() {
    let mut s = setup(8);
    s.driver.guest.set_u16(s.driver.avail + 2, 1);
    let at = s.buffer();
    s.driver.set_desc(0, at, 8, 0, 0);
    s.ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).unwrap();
    for idx in [9, 0, 0x8000, 0xffff] {
        s.driver.guest.set_u16(s.driver.avail + 2, idx);
        let broken = s.ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).map(|_| ());
        assert!(matches!(broken, Err(RingError::AvailIndex { .. })), "{idx:#x}");
        assert!(s.ring.arm().is_err());
    }
}

#[test]
fn a_head_outside_the_table_breaks_the_ring_after_the_good_ones() {
    let mut s = setup(8);
    let at = s.buffer();
    s.driver.set_desc(3, at, 8, 0, 0);
    s.driver.push(3);
    s.driver.push(8);
    s.driver.publish();
    let chains = s.ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).unwrap();
    assert_eq!(chains.len(), 1);
    let broken = s.ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).map(|_| ());
    assert_eq!(broken, Err(RingError::Head(8)));
}

#[test]
fn the_used_index_is_where_a_ring_resumes() {
    let mut s = setup(8);
    let at = s.buffer();
    s.driver.set_desc(0, at, 8, 0, 0);
    // A driver that has had 70,000 frames before, with a frontend that says 0.
    s.driver.guest.set_u16(s.driver.used + 2, 4464);
    s.driver.guest.set_u16(s.driver.avail + 2, 4466);
    let chains = s.ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).unwrap();
    assert_eq!(chains.len(), 2);
    // One whose used index makes no sense: the frontend's word counts.
    s.driver.guest.set_u16(s.driver.used + 2, 1000);
    let config = virtio_ring::RingConfig { base: 4465, ..s.driver.config(false, false) };
    let mut ring = Ring::new(&s.memory, &config, None).unwrap();
    let chains = ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).unwrap();
    assert_eq!(chains.len(), 1);
    assert_eq!(ring.next_index(), 4465);
    let config = virtio_ring::RingConfig { base: 9, ..config };
    let mut ring = Ring::new(&s.memory, &config, None).unwrap();
    assert!(ring.gather(&s.memory, Direction::Readable, ALL, &mut s.buf).is_err());
}

#[test]
fn ring_addresses_must_be_aligned_and_inside() {
    let s = setup(8);
    let good = s.driver.config(false, false);
    let bad = [
        virtio_ring::RingConfig { desc: good.desc + 8, ..good },
        virtio_ring::RingConfig { avail: good.avail + 1, ..good },
        virtio_ring::RingConfig { used: good.used + 2, ..good },
        virtio_ring::RingConfig { desc: USER + MEMORY - 16, ..good },
        virtio_ring::RingConfig { avail: USER + MEMORY - 16, ..good },
        virtio_ring::RingConfig { used: USER + MEMORY - 64, ..good },
        virtio_ring::RingConfig { used: GUEST, ..good },
        virtio_ring::RingConfig { desc: u64::MAX - 15, ..good },
    ];
    for config in bad {
        let result = Ring::new(&s.memory, &config, None);
        assert!(matches!(result, Err(RingError::Address { .. })), "{config:?}");
    }
    for size in [0, 3, 1000, 0xffff] {
        let config = virtio_ring::RingConfig { size, ..good };
        assert!(matches!(Ring::new(&s.memory, &config, None), Err(RingError::Size(_))));
    }
}

#[test]
fn regions_must_lie_in_their_file_on_a_memory_file_system() {
    let guest = Guest::new(MEMORY);
    let good = RegionSpec { guest_addr: GUEST, size: MEMORY, user_addr: USER, mmap_offset: 0 };
    let fd = guest.fd();
    let map = |spec| MappedRegion::map(spec, std::os::fd::AsFd::as_fd(&fd));
    assert!(map(good).is_ok());
    let small = map(RegionSpec { size: MEMORY + 1, ..good });
    assert!(matches!(small, Err(MemoryError::Region { error: MapError::FileTooSmall { .. }, .. })));
    let beyond = map(RegionSpec { mmap_offset: 4096, ..good });
    assert!(matches!(
        beyond,
        Err(MemoryError::Region { error: MapError::FileTooSmall { .. }, .. })
    ));
    for spec in [
        RegionSpec { size: 0, ..good },
        RegionSpec { mmap_offset: u64::MAX, ..good },
        RegionSpec { guest_addr: u64::MAX - 4096, ..good },
        RegionSpec { user_addr: u64::MAX - 4096, ..good },
    ] {
        assert!(
            matches!(map(spec), Err(MemoryError::Region { error: MapError::Size { .. }, .. })),
            "{spec:?}"
        );
    }
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let disk = MappedRegion::map(good, std::os::fd::AsFd::as_fd(&file));
    assert!(
        matches!(disk, Err(MemoryError::Region { error: MapError::FileSystem { .. }, .. })),
        "{disk:?}"
    );
    let part = RegionSpec { size: MEMORY / 2, ..good };
    let one = Arc::new(map(part).unwrap());
    let overlapping = RegionSpec { guest_addr: GUEST + MEMORY / 2 - 1, ..part };
    let two = Arc::new(map(overlapping).unwrap());
    assert!(matches!(GuestMemory::new(vec![one, two]), Err(MemoryError::Overlap { .. })));
}

#[test]
fn an_offset_that_is_no_multiple_of_a_page_is_honoured() {
    let guest = Guest::new(MEMORY);
    guest.write(4096 + 24, b"here");
    let spec =
        RegionSpec { guest_addr: GUEST, size: 8192, user_addr: USER, mmap_offset: 4096 + 16 };
    let region = MappedRegion::map(spec, std::os::fd::AsFd::as_fd(&guest.fd())).unwrap();
    let memory = Arc::new(GuestMemory::new(vec![Arc::new(region)]).unwrap());
    // The ring lies in another file's region, which is where its addresses point.
    let driver = Driver::new(Guest::new(MEMORY), 8, 0);
    let ring_memory = driver.guest.map(1);
    let mut ring = Ring::new(&ring_memory, &driver.config(false, false), None).unwrap();
    let mut driver = driver;
    driver.set_desc(0, GUEST + 8, 4, 0, 0);
    driver.push(0);
    driver.publish();
    let mut buf = ChainBuf::new();
    let chains = ring.gather(&memory, Direction::Readable, ALL, &mut buf).unwrap();
    let mut bytes = [0; 4];
    Cursor::new(chains.slices(&chains.chain(0))).read(&mut bytes);
    assert_eq!(&bytes, b"here");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the table holds, gathering ends, stays inside memory and keeps its bounds.
    #[test]
    fn random_tables_do_no_harm(
        table in prop::collection::vec(any::<u8>(), 16 * 16),
        near in prop::collection::vec((0_u64..MEMORY, 0_u32..5000, 0_u16..8, 0_u16..20), 16),
        wild in any::<u16>(),
        avail in prop::collection::vec(0_u16..17, 16),
        idx in 0_u16..18,
        direction in prop::sample::select(vec![Direction::Readable, Direction::Writable, Direction::Both]),
    ) {
        let mut s = setup(16);
        s.driver.guest.write(0, &table);
        for (i, (offset, len, flags, next)) in (0_u16..).zip(near) {
            if wild >> i & 1 == 0 {
                s.driver.set_desc(i, GUEST + offset, len, flags, next);
            }
        }
        for (i, head) in (0_u64..).zip(avail) {
            s.driver.guest.set_u16(s.driver.avail + 4 + 2 * i, head);
        }
        s.driver.guest.set_u16(s.driver.avail + 2, idx);
        for _ in 0..20 {
            let Ok(chains) = s.ring.gather(&s.memory, direction, ALL, &mut s.buf) else { return Ok(()) };
            if chains.is_empty() {
                break;
            }
            for chain in chains.as_slice() {
                let slices = chains.slices(chain);
                prop_assert!(slices.len() <= 16);
                let total: usize = slices.iter().map(|slice| slice.len()).sum();
                prop_assert_eq!(total, chain.len as usize);
                let mut bytes = vec![0; total];
                prop_assert_eq!(Cursor::new(slices).read(&mut bytes), total);
                s.ring.complete(chain.head, 0);
            }
            let _ = s.ring.publish();
        }
    }
}
