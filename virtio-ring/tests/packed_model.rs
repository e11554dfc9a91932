//! The packed ring against a driver that does random, legal things.

mod common;

use std::collections::VecDeque;
use std::sync::Arc;

use common::packed::{Buffer, DESC, DISABLE, ENABLE, PackedDriver, Place};
use common::{Driver, F_INDIRECT, F_WRITE, GUEST, Guest};
use proptest::prelude::*;
use virtio_ring::{Chain, ChainBuf, Cursor, Direction, GuestMemory, Limit, Ring};

const MEMORY: u64 = 1 << 20;
/// Each chain's buffers, and its indirect table behind them.
const SPAN: u64 = 4096;
const TABLE: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    /// Offers a chain with buffers of these lengths.
    Offer { lens: Vec<u32>, indirect: bool },
    /// The device takes at most so many, gives back some, completes the rest and publishes all but some.
    Take { most: usize, give_back: usize },
    /// Takes and completes in two halves, undoes the second, takes it again.
    Undo { most: usize },
    /// The driver reads what was used, and asks for a signal: after so many more descriptors, always, or never.
    Reap { event: Event },
    /// The device asks for a kick.
    Arm,
    /// The frontend sends its memory table anew.
    Rebuild,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Ahead(u16),
    Always,
    Never,
}

fn step() -> impl Strategy<Value = Step> {
    let event =
        prop_oneof![(0_u16..6).prop_map(Event::Ahead), Just(Event::Always), Just(Event::Never)];
    prop_oneof![
        4 => (prop::collection::vec(1_u32..300, 1..5), any::<bool>())
            .prop_map(|(lens, indirect)| Step::Offer { lens, indirect }),
        3 => (1_usize..70, 0_usize..4).prop_map(|(most, give_back)| Step::Take { most, give_back }),
        1 => (1_usize..70).prop_map(|most| Step::Undo { most }),
        2 => event.prop_map(|event| Step::Reap { event }),
        1 => Just(Step::Arm),
        1 => Just(Step::Rebuild),
    ]
}

struct Offered {
    id: u16,
    descriptors: u16,
    bytes: Vec<u8>,
}

struct Features {
    event_idx: bool,
    in_order: bool,
}

struct Model {
    guest: Guest,
    driver: PackedDriver,
    memory: Arc<GuestMemory>,
    ring: Ring,
    buf: ChainBuf,
    write: bool,
    features: Features,
    /// Chains that the driver has out, oldest first, and how many of them the device has published.
    out: VecDeque<Offered>,
    published: usize,
    /// Where the device's publications end.
    device: Place,
    /// IDs for chains, in the order in which they are used; with IN_ORDER it stays.
    ids: VecDeque<u16>,
    free: u16,
    serial: u8,
    event: Event,
    event_at: Place,
    signalled_before: bool,
    armed: bool,
}

impl Model {
    fn new(size: u16, start: Place, features: Features, write: bool) -> Self {
        let guest = Guest::new(MEMORY);
        let driver = PackedDriver::new(&guest, size, start);
        let memory = guest.map(1);
        let config = driver.config(features.event_idx, true, features.in_order);
        let ring = Ring::new(&memory, &config, None).unwrap();
        Self {
            guest,
            driver,
            memory,
            ring,
            buf: ChainBuf::new(),
            write,
            features,
            out: VecDeque::new(),
            published: 0,
            device: start,
            ids: (0..size).rev().collect(),
            free: size,
            serial: 0,
            event: Event::Always,
            event_at: start,
            signalled_before: false,
            armed: false,
        }
    }

    fn span(&self, id: u16) -> u64 {
        self.driver.buffers() + u64::from(id) * SPAN
    }

    fn offer(&mut self, lens: &[u32], indirect: bool) {
        let need = if indirect { 1 } else { u16::try_from(lens.len()).unwrap() };
        // No chain is longer than the ring, by whatever table (virtio 1.3 §2.8.21).
        if self.free < need || lens.len() > usize::from(self.driver.size) {
            return;
        }
        let id = self.ids.pop_front().unwrap();
        let span = self.span(id);
        let total: u32 = lens.iter().sum();
        self.serial = self.serial.wrapping_add(1);
        let bytes: Vec<u8> = (0..total)
            .map(|i| self.serial.wrapping_mul(31).wrapping_add(i.to_le_bytes()[0]))
            .collect();
        if !self.write {
            self.guest.write(span, &bytes);
        }
        let flags = if self.write { F_WRITE } else { 0 };
        let mut at = GUEST + span;
        let mut buffers: Vec<Buffer> = Vec::new();
        for &len in lens {
            buffers.push((at, len, flags));
            at += u64::from(len);
        }
        let armed_at = self.driver.avail;
        if indirect {
            for (i, &buffer) in buffers.iter().enumerate() {
                let entry = PackedDriver::descriptor(buffer, 0xbad);
                self.guest.write(span + TABLE + 16 * i as u64, &entry);
            }
            let len = u32::try_from(lens.len() * 16).unwrap();
            buffers = vec![(GUEST + span + TABLE, len, F_INDIRECT)];
        }
        self.driver.offer(&self.guest, id, &buffers);
        if std::mem::take(&mut self.armed) {
            // An armed device must be kicked for the descriptor that it named.
            let (offset, flags) = self.driver.device_event(&self.guest);
            if self.features.event_idx {
                assert_eq!((offset, flags), (armed_at.bits(), DESC));
            } else {
                assert_eq!(flags, ENABLE);
            }
            self.ring.suppress_kicks();
            assert_eq!(self.driver.device_event(&self.guest).1, DISABLE);
        }
        self.free -= need;
        self.out.push_back(Offered { id, descriptors: need, bytes });
    }

    fn complete(&mut self, most: usize, give_back: usize, skip: usize) -> usize {
        let direction = if self.write { Direction::Writable } else { Direction::Readable };
        let limit = Limit { chains: most, bytes: u64::MAX };
        let chains = self.ring.gather(&self.memory, direction, limit, &mut self.buf).unwrap();
        let waiting = self.out.len() - self.published - skip;
        assert_eq!(chains.len(), waiting.min(most).min(64));
        if chains.len() < most.min(64) {
            assert!(self.ring.is_drained());
        }
        let keep = chains.len().saturating_sub(give_back);
        let taken: Vec<Chain> = chains.as_slice()[..keep].to_vec();
        for (chain, offered) in taken.iter().zip(self.out.iter().skip(self.published + skip)) {
            assert_eq!(chain.error, None);
            assert_eq!(chain.head, offered.id);
            assert_eq!(chain.len as usize, offered.bytes.len());
            let mut cursor = Cursor::new(chains.slices(chain));
            let written = if self.write {
                u32::try_from(cursor.write(&offered.bytes)).unwrap()
            } else {
                let mut seen = vec![0; offered.bytes.len()];
                assert_eq!(cursor.read(&mut seen), seen.len());
                assert_eq!(seen, offered.bytes);
                0
            };
            self.ring.complete(chain.head, written);
        }
        self.ring.unread(chains.len() - keep);
        keep
    }

    fn publish(&mut self, keep: usize) {
        let before = self.device;
        let n: u16 = self.out.iter().skip(self.published).take(keep).map(|o| o.descriptors).sum();
        let signal = self.ring.publish();
        self.device.step(n, self.driver.size);
        self.published += keep;
        let index = u32::from(self.device.bits());
        assert_eq!(self.ring.next_index(), index | index << 16);
        let wanted = keep > 0
            && match self.event {
                Event::Always => true,
                Event::Never => false,
                // virtio 1.3 §2.8.10; the first publication signals whatever the driver names.
                Event::Ahead(_) if self.features.event_idx => {
                    let mut at = before;
                    let passed = (0..n).any(|_| {
                        let hit = at == self.event_at;
                        at.step(1, self.driver.size);
                        hit
                    });
                    !std::mem::replace(&mut self.signalled_before, true) || passed
                }
                Event::Ahead(_) => true,
            };
        assert_eq!(signal, wanted);
    }

    fn reap(&mut self, event: Event) {
        while let Some((id, len, flags)) = self.driver.peek(&self.guest) {
            // In order one descriptor may stand for several chains.
            loop {
                let offered = self.out.pop_front().expect("nothing is used twice");
                assert!(self.published > 0, "only what was published is used");
                self.published -= 1;
                self.driver.used.step(offered.descriptors, self.driver.size);
                self.free += offered.descriptors;
                self.ids.push_back(offered.id);
                if self.write {
                    assert_eq!(flags & F_WRITE, F_WRITE);
                    assert_eq!(len as usize, offered.bytes.len());
                    let seen = self.guest.read(self.span(offered.id), offered.bytes.len());
                    assert_eq!(seen, offered.bytes);
                } else {
                    assert_eq!(len, 0);
                }
                if offered.id == id {
                    break;
                }
                assert!(self.features.in_order && !self.write, "used in ring order");
            }
        }
        assert_eq!(self.published, 0, "everything published is used");
        assert_eq!(self.driver.used, self.device);
        self.event = event;
        self.event_at = self.driver.used;
        match event {
            Event::Ahead(n) => {
                self.event_at.step(n.min(self.driver.size), self.driver.size);
                self.driver.set_event(&self.guest, self.event_at.bits(), DESC);
            }
            Event::Always => self.driver.set_event(&self.guest, 0x1234, ENABLE),
            Event::Never => self.driver.set_event(&self.guest, 0x4321, DISABLE),
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Offer { ref lens, indirect } => self.offer(lens, indirect),
            Step::Take { most, give_back } => {
                let keep = self.complete(most, give_back, 0);
                if self.published == 0 {
                    assert_eq!(self.driver.peek(&self.guest), None, "nothing before publish");
                }
                self.publish(keep);
            }
            Step::Undo { most } => {
                let first = self.complete(most, 0, 0);
                self.complete(most, 1, first);
                self.ring.rollback();
                let keep = self.complete(most, 0, 0);
                if most % 2 == 0 {
                    self.publish(keep);
                } else {
                    self.ring.rollback();
                    assert!(!self.ring.publish());
                }
            }
            Step::Reap { event } => self.reap(event),
            Step::Arm => {
                let more = self.ring.arm().unwrap();
                assert_eq!(more, self.out.len() > self.published);
                self.armed = !more;
                if more {
                    self.ring.suppress_kicks();
                }
            }
            Step::Rebuild => {
                self.memory = self.guest.map(1);
                let Features { event_idx, in_order } = self.features;
                let config = self.driver.config(event_idx, true, in_order);
                self.ring = self.ring.rebuild(&self.memory, &config).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_chain_comes_back_once_in_order_with_its_bytes(
        steps in prop::collection::vec(step(), 1..200),
        size in prop::sample::select(vec![1_u16, 2, 3, 5, 8, 32, 63, 64]),
        at in any::<u16>(),
        wrap in any::<bool>(),
        event_idx in any::<bool>(),
        in_order in any::<bool>(),
        write in any::<bool>(),
    ) {
        let start = Place { at: at % size, wrap };
        let mut model = Model::new(size, start, Features { event_idx, in_order }, write);
        for step in &steps {
            model.run(step);
        }
        model.run(&Step::Take { most: 64, give_back: 0 });
        model.run(&Step::Reap { event: Event::Always });
    }
}

#[test]
fn rings_of_the_largest_size_turn() {
    let size = 32_768;
    let guest = Guest::new(MEMORY);
    let mut driver = PackedDriver::new(&guest, size, Place { at: size - 2, wrap: false });
    let memory = guest.map(1);
    let mut ring = Ring::new(&memory, &driver.config(true, false, false), None).unwrap();
    let mut buf = ChainBuf::new();
    for id in [7, 8, 9, 0xffff] {
        driver.offer(&guest, id, &[(GUEST + driver.buffers(), 60, 0)]);
        let limit = Limit { chains: 64, bytes: u64::MAX };
        let chains = ring.gather(&memory, Direction::Readable, limit, &mut buf).unwrap();
        let heads: Vec<u16> = chains.as_slice().iter().map(|chain| chain.head).collect();
        assert_eq!(heads, [id], "any ID is the driver's to choose");
        ring.complete(id, 0);
        let _ = ring.publish();
        assert_eq!(driver.peek(&guest).map(|used| used.0), Some(id));
        driver.used.step(1, size);
    }
    assert_eq!(ring.next_index() & 0xffff, 0x8002);
}

#[test]
fn in_order_tells_of_a_batch_with_one_descriptor() {
    let guest = Guest::new(MEMORY);
    let start = Place { at: 5, wrap: true };
    let mut driver = PackedDriver::new(&guest, 8, start);
    let memory = guest.map(1);
    let mut ring = Ring::new(&memory, &driver.config(false, false, true), None).unwrap();
    let mut buf = ChainBuf::new();
    for id in 0..4 {
        driver.offer(&guest, id, &[(GUEST + driver.buffers(), 60, 0)]);
    }
    let limit = Limit { chains: 64, bytes: u64::MAX };
    let n = ring.gather(&memory, Direction::Readable, limit, &mut buf).unwrap().len();
    assert_eq!(n, 4);
    (0..4).for_each(|id| ring.complete(id, 0));
    let _ = ring.publish();
    assert_eq!(driver.peek(&guest).map(|used| used.0), Some(3), "the last one's ID");
    for at in [6, 7, 0] {
        let flags = driver.flags(&guest, at);
        let turn = [common::packed::F_AVAIL, common::packed::F_USED].map(|bit| flags & bit != 0);
        assert_ne!(turn[0], turn[1], "descriptor {at} stays as the driver wrote it");
    }
    driver.used.step(4, 8);
    assert_eq!(ring.next_index() & 0xffff, u32::from(driver.used.bits()));
    // The split layout alike: one entry, at the first one's place.
    let mut driver = Driver::new(Guest::new(MEMORY), 8, 6);
    let memory = driver.guest.map(1);
    let config = virtio_ring::RingConfig { in_order: true, ..driver.config(false, false) };
    let mut ring = Ring::new(&memory, &config, None).unwrap();
    for id in 0..4 {
        driver.set_desc(id, GUEST + driver.buffers(), 60, 0, 0);
        driver.push(id);
    }
    driver.publish();
    let n = ring.gather(&memory, Direction::Readable, limit, &mut buf).unwrap().len();
    assert_eq!(n, 4);
    (0..4).for_each(|id| ring.complete(id, 0));
    let _ = ring.publish();
    assert_eq!((driver.used_idx(), driver.pop()), (10, Some((3, 0))));
    assert_eq!(driver.pop(), Some((0, 0)), "never written");
}
