//! A split ring with a hostile driver.

use std::collections::VecDeque;

use virtio_ring::{ChainBuf, Cursor, Direction, Limit, MAX_BURST, MAX_CHAIN, Ring};

use crate::guest::{Guest, SIZE};
use crate::input::Input;

/// A driver that writes anything between the device's steps, and a device that takes, gives back, completes, publishes
/// and rebuilds.
///
/// # Panics
/// When a chain is longer or holds more than its bounds, or the driver is not told exactly what was completed.
pub fn split_ring(data: &[u8]) {
    let mut input = Input(data);
    let mut guest = Guest::new();
    let config = guest.config(input.u8() & 1 != 0);
    let mut ring = Ring::new(&guest.memory, &config, None).expect("a good ring");
    let mut buf = ChainBuf::new();
    // Completed and not published: head and length.
    let mut done: VecDeque<(u16, u32)> = VecDeque::new();
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
                if !gather(&mut ring, &guest, &mut buf, direction, limit, &mut input, &mut done) {
                    return;
                }
            }
            1 => publish(&mut ring, &guest, &mut done),
            2 => {
                ring.rollback();
                done.clear();
            }
            3 => {
                // A broken ring is taken out of service.
                if ring.arm().is_err() {
                    return;
                }
                if step & 8 != 0 {
                    ring.suppress_kicks();
                }
            }
            4 if step & 0x18 == 0 => {
                publish(&mut ring, &guest, &mut done);
                ring = ring.rebuild(&guest.memory, &config).expect("it was good before");
            }
            _ => guest.scribble(&mut input),
        }
    }
}

/// False when the ring is broken.
fn gather(
    ring: &mut Ring,
    guest: &Guest,
    buf: &mut ChainBuf,
    direction: Direction,
    limit: Limit,
    input: &mut Input<'_>,
    done: &mut VecDeque<(u16, u32)>,
) -> bool {
    let mark = ring.mark();
    let Ok(chains) = ring.gather(&guest.memory, direction, limit, buf) else { return false };
    assert!(chains.len() <= limit.chains.min(MAX_BURST));
    assert!(done.len() + chains.len() <= usize::from(SIZE), "more chains than descriptors");
    for chain in chains.as_slice() {
        assert!(chain.head < SIZE);
        let slices = chains.slices(chain);
        assert!(slices.len() <= MAX_CHAIN.min(usize::from(SIZE)));
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        assert_eq!(total, chain.len as usize);
        assert!(slices.iter().all(|slice| !slice.is_empty()), "an empty slice");
        let (readable, writable) = chains.split(chain);
        match direction {
            Direction::Readable => assert!(writable.is_empty()),
            Direction::Writable => assert!(readable.is_empty()),
            Direction::Both => assert_eq!(readable.len() + writable.len(), slices.len()),
        }
        let mut bytes = [0x5a; 4096];
        let read = Cursor::new(readable).read(&mut bytes);
        let written = Cursor::new(writable).write(&bytes);
        assert!(read + written <= total);
    }
    let heads: Vec<u16> = chains.as_slice().iter().map(|chain| chain.head).collect();
    let how = input.u8();
    if how & 0x80 != 0 {
        ring.reset(mark);
        return true;
    }
    let keep = usize::from(how) % (heads.len() + 1);
    ring.unread(heads.len() - keep);
    for &head in &heads[..keep] {
        ring.complete(head, u32::from(how));
        done.push_back((head, u32::from(how)));
    }
    true
}

/// The driver sees all that was completed, in order, and nothing else.
fn publish(ring: &mut Ring, guest: &Guest, done: &mut VecDeque<(u16, u32)>) {
    let before = ring.next_index();
    let _ = ring.publish();
    let count = u32::try_from(done.len()).expect("a few");
    assert_eq!(ring.next_index(), (before + count) & 0xffff);
    if done.is_empty() {
        return;
    }
    let end = guest.used();
    assert_eq!(u32::from(end), ring.next_index());
    for (ahead, (head, len)) in (1_u16..).zip(done.drain(..).rev()) {
        assert_eq!(guest.used_entry(end.wrapping_sub(ahead)), (u32::from(head), len));
    }
}
