//! The ring against a driver that does random, legal things.

mod common;

use std::collections::VecDeque;

use common::{Driver, F_INDIRECT, F_NEXT, F_WRITE, GUEST, Guest};
use proptest::prelude::*;
use virtio_ring::{ChainBuf, Cursor, Direction, Limit, Ring};

const MEMORY: u64 = 1 << 20;
/// Each chain's buffers, and its indirect table behind them.
const SPAN: u64 = 4096;
const TABLE: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    /// Offers a chain with buffers of these lengths.
    Offer { lens: Vec<u32>, indirect: bool },
    /// The device takes at most so many, gives back every `keep`-th to last, completes the rest and publishes.
    Take { most: usize, give_back: usize },
    /// The driver reads what was used, and asks for a signal after `ahead` more.
    Reap { ahead: u16 },
    /// The device asks for a kick.
    Arm,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (prop::collection::vec(1_u32..300, 1..5), any::<bool>())
            .prop_map(|(lens, indirect)| Step::Offer { lens, indirect }),
        2 => (1_usize..70, 0_usize..4).prop_map(|(most, give_back)| Step::Take { most, give_back }),
        1 => (0_u16..6).prop_map(|ahead| Step::Reap { ahead }),
        1 => Just(Step::Arm),
    ]
}

struct Offered {
    head: u16,
    bytes: Vec<u8>,
    taken: bool,
}

fn run(steps: Vec<Step>, size: u16, start: u16, event_idx: bool, write: bool, regions: u64) {
    let mut driver = Driver::new(Guest::new(MEMORY), size, start);
    let memory = driver.guest.map(regions);
    let mut ring = Ring::new(&memory, &driver.config(event_idx, true), None).unwrap();
    let mut buf = ChainBuf::new();
    // Chains that the driver has out, oldest first, and descriptors that it may use.
    let mut out: VecDeque<Offered> = VecDeque::new();
    let mut published = 0_usize;
    let mut free: Vec<u16> = (0..size).collect();
    let mut serial = 0_u8;
    let mut used_event = start;
    driver.set_used_event(used_event);
    let mut armed = false;
    let mut signalled_before = false;
    let direction = if write { Direction::Writable } else { Direction::Readable };
    let write_flag = if write { F_WRITE } else { 0 };
    // Buffers of descriptor `d` lie in its own span, in the last region.
    let part = MEMORY / regions;
    let last = regions - 1;
    let span = |head: u16| {
        let offset = last * part + part / 2 + u64::from(head) * SPAN;
        (offset, GUEST + offset + last * part)
    };
    for step in steps {
        match step {
            Step::Offer { lens, indirect } => {
                let need = if indirect { 1 } else { lens.len() };
                if free.len() < need {
                    continue;
                }
                let descs = free.split_off(free.len() - need);
                let head = descs[0];
                let (offset, addr) = span(head);
                let total: u32 = lens.iter().sum();
                serial = serial.wrapping_add(1);
                let bytes: Vec<u8> = (0..total)
                    .map(|i| serial.wrapping_mul(31).wrapping_add(i.to_le_bytes()[0]))
                    .collect();
                if !write {
                    driver.guest.write(offset, &bytes);
                }
                let mut at = 0;
                for (i, len) in lens.iter().enumerate() {
                    let more = i + 1 < lens.len();
                    let flags = write_flag | if more { F_NEXT } else { 0 };
                    let buffer = addr + u64::from(at);
                    let i = u16::try_from(i).unwrap();
                    if indirect {
                        let entry = Driver::descriptor(buffer, *len, flags, i + 1);
                        driver.guest.write(offset + TABLE + 16 * u64::from(i), &entry);
                    } else {
                        let next = descs.get(usize::from(i) + 1).copied().unwrap_or(0xffff);
                        driver.set_desc(descs[usize::from(i)], buffer, *len, flags, next);
                    }
                    at += len;
                }
                if indirect {
                    let len = u32::try_from(lens.len() * 16).unwrap();
                    driver.set_desc(head, addr + TABLE, len, F_INDIRECT, 0);
                }
                driver.push(head);
                driver.publish();
                // A device that is armed must be kicked for the entry that it named.
                if armed && event_idx {
                    assert_eq!(driver.avail_event(), driver.avail_idx.wrapping_sub(1));
                }
                if armed && !event_idx {
                    assert_eq!(driver.used_flags(), 0, "kicks are wanted");
                }
                if armed {
                    ring.suppress_kicks();
                    armed = false;
                }
                out.push_back(Offered { head, bytes, taken: false });
                // The descriptors behind the head come back with it.
                free.retain(|d| !descs.contains(d));
            }
            Step::Take { most, give_back } => {
                let waiting = out.len() - published;
                let chains = ring
                    .gather(&memory, direction, Limit { chains: most, bytes: u64::MAX }, &mut buf)
                    .unwrap();
                assert_eq!(chains.len(), waiting.min(most).min(64));
                let keep = chains.len().saturating_sub(give_back);
                let before = driver.used_idx();
                for (chain, offered) in
                    chains.as_slice()[..keep].iter().zip(out.iter_mut().skip(published))
                {
                    assert_eq!(chain.error, None);
                    assert_eq!(chain.head, offered.head);
                    assert_eq!(chain.len as usize, offered.bytes.len());
                    let mut cursor = Cursor::new(chains.slices(chain));
                    let written = if write {
                        u32::try_from(cursor.write(&offered.bytes)).unwrap()
                    } else {
                        let mut seen = vec![0; offered.bytes.len()];
                        assert_eq!(cursor.read(&mut seen), seen.len());
                        assert_eq!(seen, offered.bytes);
                        0
                    };
                    offered.taken = true;
                    ring.complete(chain.head, written);
                }
                ring.unread(chains.len() - keep);
                assert_eq!(driver.used_idx(), before, "nothing is visible before publish");
                let signal = ring.publish();
                published += keep;
                let after = driver.used_idx();
                assert_eq!(after, before.wrapping_add(u16::try_from(keep).unwrap()));
                if keep > 0 && event_idx {
                    // virtio 1.3 §2.7.7.2; the first publication signals whatever the driver says.
                    let passed =
                        after.wrapping_sub(used_event).wrapping_sub(1) < after.wrapping_sub(before);
                    assert_eq!(signal, passed || !signalled_before);
                    signalled_before = true;
                } else {
                    assert_eq!(signal, keep > 0);
                }
                assert_eq!(ring.next_index(), u32::from(after));
            }
            Step::Reap { ahead } => {
                while let Some((head, len)) = driver.pop() {
                    let offered = out.pop_front().unwrap();
                    published -= 1;
                    assert!(offered.taken);
                    assert_eq!(head, u32::from(offered.head), "used in ring order");
                    if write {
                        assert_eq!(len as usize, offered.bytes.len());
                        let (offset, _) = span(offered.head);
                        assert_eq!(driver.guest.read(offset, offered.bytes.len()), offered.bytes);
                    } else {
                        assert_eq!(len, 0);
                    }
                }
                // All descriptors of chains that came back are free again.
                if out.is_empty() {
                    free = (0..size).collect();
                }
                used_event = driver.used_seen.wrapping_add(ahead);
                driver.set_used_event(used_event);
            }
            Step::Arm => {
                let more = ring.arm().unwrap();
                assert_eq!(more, out.len() > published);
                armed = !more;
                if more {
                    ring.suppress_kicks();
                    if !event_idx {
                        assert_eq!(driver.used_flags(), 1);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_chain_comes_back_once_in_order_with_its_bytes(
        steps in prop::collection::vec(step(), 1..200),
        size in prop::sample::select(vec![4_u16, 8, 32, 64]),
        start in prop_oneof![Just(0_u16), Just(65_530), any::<u16>()],
        event_idx in any::<bool>(),
        write in any::<bool>(),
        regions in 1_u64..3,
    ) {
        run(steps, size, start, event_idx, write, regions);
    }
}
