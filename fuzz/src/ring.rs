//! A ring with a hostile driver, in either layout.

use std::collections::VecDeque;

use virtio_ring::{Chain, ChainBuf, Cursor, Direction, Limit, MAX_BURST, MAX_CHAIN, Ring};

use crate::guest::{Guest, Layout, Place, SIZE};
use crate::input::Input;

/// A driver that writes anything between the device's steps, and a device that takes, gives back, completes, publishes
/// and rebuilds.
///
/// # Panics
/// When a chain is longer or holds more than its bounds, or the driver is not told exactly what was completed.
pub fn split_ring(data: &[u8]) {
    let mut input = Input(data);
    let event_idx = input.u8() & 1 != 0;
    drive(Guest::new(Layout::Split), event_idx, false, 0, input);
}

/// The same, and a device that is killed between its steps and goes on by its record.
///
/// # Panics
/// As [`split_ring`].
pub fn packed_ring(data: &[u8]) {
    let mut input = Input(data);
    let features = input.u8();
    let base = match features >> 2 & 3 {
        // A new ring, as frontends say it that know packed rings, and as others do.
        0 => u32::from(Place::default().bits()),
        1 => 0,
        _ => u32::from(Place::new(input.u8()).bits()),
    };
    let (event_idx, in_order) = (features & 1 != 0, features & 2 != 0);
    drive(Guest::new(Layout::Packed), event_idx, in_order, base, input);
}

/// A chain that was taken and not published.
struct Taken {
    head: u16,
    len: u32,
    /// Of a packed ring: where it begins, and where the next one does.
    place: Place,
    end: Place,
}

/// The device's side.
struct Device {
    guest: Guest,
    ring: Ring,
    buf: ChainBuf,
    in_order: bool,
    /// Not completed.
    open: VecDeque<Taken>,
    done: VecDeque<Taken>,
}

fn drive(guest: Guest, event_idx: bool, in_order: bool, base: u32, mut input: Input<'_>) {
    let config = guest.config(event_idx, in_order, base);
    let ring = Ring::new(&guest.memory, &config, guest.record()).expect("a good ring");
    let mut device = Device {
        guest,
        ring,
        buf: ChainBuf::new(),
        in_order,
        open: VecDeque::new(),
        done: VecDeque::new(),
    };
    while !input.is_empty() {
        let step = input.u8();
        match step % 8 {
            0 => {
                let limit = Limit {
                    chains: usize::from(step >> 5) * 9 + 1,
                    bytes: if step & 16 == 0 { u64::MAX } else { 600 },
                };
                let direction = match step >> 3 & 3 {
                    0 => Direction::Readable,
                    1 => Direction::Writable,
                    _ => Direction::Both,
                };
                if !device.gather(direction, limit, &mut input) {
                    return;
                }
            }
            1 => device.publish(),
            2 => {
                device.ring.rollback();
                device.forget();
            }
            3 => {
                // A broken ring is taken out of service.
                if device.ring.arm().is_err() {
                    return;
                }
                if step & 8 != 0 {
                    device.ring.suppress_kicks();
                }
            }
            4 if step & 0x18 == 0 => {
                device.publish();
                let rebuilt = device.ring.rebuild(&device.guest.memory, &config);
                device.ring = rebuilt.expect("it was good before");
                device.forget();
            }
            4 if step & 0x18 == 0x18 && config.packed => {
                // As after a kill: what was taken is not known any more.
                device.forget();
                let record = device.guest.record();
                device.ring = Ring::new(&device.guest.memory, &config, record).expect("as before");
                let (low, high) =
                    (device.ring.next_index() & 0xffff, device.ring.next_index() >> 16);
                assert_eq!(low, high, "nothing is in flight");
                assert!(low & 0x7fff < u32::from(SIZE), "{low:#x} is no place of the ring");
            }
            _ => device.guest.scribble(&mut input),
        }
    }
}

impl Device {
    fn forget(&mut self) {
        self.open.clear();
        self.done.clear();
    }

    /// False when the ring is broken.
    fn gather(&mut self, direction: Direction, limit: Limit, input: &mut Input<'_>) -> bool {
        let Self { guest, ring, buf, open, done, .. } = self;
        let Ok(chains) = ring.gather(&guest.memory, direction, limit, buf) else { return false };
        assert!(chains.len() <= limit.chains.min(MAX_BURST));
        let before = done.len() + open.len();
        assert!(before + chains.len() <= usize::from(SIZE), "more chains than descriptors");
        for chain in chains.as_slice() {
            assert!(guest.layout == Layout::Packed || chain.head < SIZE);
            let slices = chains.slices(chain);
            assert!(slices.len() <= MAX_CHAIN.min(usize::from(SIZE)));
            let total: usize = slices.iter().map(|slice| slice.len()).sum();
            assert_eq!(total, chain.len as usize);
            assert!(slices.iter().all(|slice| !slice.is_empty()), "an empty slice");
            assert!(chain.error.is_none() || slices.is_empty(), "a bad chain with slices");
            let (readable, writable) = chains.split(chain);
            match direction {
                Direction::Readable => assert!(writable.is_empty()),
                Direction::Writable => assert!(readable.is_empty()),
                Direction::Both => assert_eq!(readable.len() + writable.len(), slices.len()),
            }
        }
        let end = open.back().or(done.back()).map(|chain| chain.end);
        let new =
            places(guest, end.unwrap_or(Place::from_bits(ring.next_index())), chains.as_slice());
        for chain in chains.as_slice() {
            let (readable, writable) = chains.split(chain);
            let mut bytes = [0x5a; 4096];
            let read = Cursor::new(readable).read(&mut bytes);
            let written = Cursor::new(writable).write(&bytes);
            assert!(read + written <= chain.len as usize);
        }
        let how = input.u8();
        if how & 0x80 != 0 {
            ring.unread(chains.len());
            return true;
        }
        open.extend(new);
        let keep = usize::from(how & 0x1f) % (open.len() + 1);
        // Nothing was written into these chains, or something into each.
        let len = u32::from(how >> 6) * u32::from(how);
        for mut chain in open.drain(..keep) {
            chain.len = len;
            ring.complete(chain.head, len);
            done.push_back(chain);
        }
        // The others are given back, or stay for the next time.
        if how & 0x20 == 0 {
            ring.unread(open.len());
            open.clear();
        }
        true
    }

    fn publish(&mut self) {
        match self.guest.layout {
            Layout::Split => self.publish_split(),
            Layout::Packed => self.publish_packed(),
        }
    }

    /// The driver sees all that was completed, in order, and nothing else.
    fn publish_split(&mut self) {
        let Self { guest, ring, done, .. } = self;
        let before = ring.next_index();
        let _ = ring.publish();
        let count = u32::try_from(done.len()).expect("a few");
        assert_eq!(ring.next_index(), (before + count) & 0xffff);
        if done.is_empty() {
            return;
        }
        let end = guest.used();
        assert_eq!(u32::from(end), ring.next_index());
        for (ahead, Taken { head, len, .. }) in (1_u16..).zip(done.drain(..).rev()) {
            assert_eq!(guest.used_entry(end.wrapping_sub(ahead)), (u32::from(head), len));
        }
    }

    /// The driver finds a used descriptor at the first place of each chain, or one for all of them.
    fn publish_packed(&mut self) {
        let Self { guest, ring, in_order, done, .. } = self;
        let before = ring.next_index();
        let _ = ring.publish();
        let Some(first) = done.front().map(|chain| chain.place) else {
            assert_eq!(ring.next_index(), before);
            return;
        };
        assert_eq!(before & 0xffff, u32::from(first.bits()));
        let after = ring.next_index();
        assert!(after & 0x7fff < u32::from(SIZE) && after & 0xffff == after >> 16, "{after:#x}");
        if *in_order && done.iter().all(|chain| chain.len == 0) {
            let last = done.drain(..).next_back().expect("there is one");
            assert_eq!(guest.used_descriptor(first), Some((last.head, 0)));
            return;
        }
        for Taken { head, len, place, .. } in done.drain(..) {
            assert_eq!(guest.used_descriptor(place), Some((head, len)), "at {place:?}");
        }
    }
}

/// The chains that were just taken, and where they are, `end` on. The driver does not run meanwhile, so its descriptors
/// are still what the device has read.
fn places(guest: &Guest, mut end: Place, chains: &[Chain]) -> Vec<Taken> {
    let next = |chain: &Chain| {
        let place = end;
        if guest.layout == Layout::Packed {
            end = guest.behind(place);
        }
        Taken { head: chain.head, len: 0, place, end }
    };
    chains.iter().map(next).collect()
}
