//! Descriptors that loop, lie and point elsewhere.

use std::time::Duration;

use netns_tests::frontend::hostile::{Attacker, INDIRECT, Layout, NEXT, Side, WRITE};
use netns_tests::wait;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

on_both_layouts! { sending good_chains_beside_bad_ones receiving }

const AT: usize = Attacker::BUFFERS;
const TABLE: usize = Attacker::BUFFERS + 0x10_0000;
const BAD: Trace = Trace::Drops(&["bad-descriptor"]);
const OUTSIDE: Trace = Trace::Drops(&["guest-memory"]);
const HEADER: Trace = Trace::Drops(&["too-short"]);
const UNUSABLE: Trace = Trace::Quarantined("receive buffer");
const BROKEN: Trace = Trace::Quarantined("avail");

type Scribble = fn(&Attacker);
type Case = (&'static str, Trace, Scribble);

fn describe(attacker: &Attacker, index: u16, len: u32, flags: u16, next: u16) {
    attacker.describe(Side::Tx, index, attacker.guest(AT), len, flags, next);
}

/// One chain of so many buffers of the same length.
fn pieces(attacker: &Attacker, count: u16, len: u32) {
    for index in 0..count {
        describe(attacker, index, len, if index + 1 < count { NEXT } else { 0 }, index + 1);
    }
}

/// Chains that do not end. A split ring's can be given back; where a packed ring goes on is in the end that is missing.
const ENDLESS: &[(&str, Scribble)] = &[
    ("a descriptor that is its own next", |a| describe(a, 0, 100, NEXT, 0)),
    ("two descriptors in a circle", |a| {
        describe(a, 0, 100, NEXT, 1);
        describe(a, 1, 100, NEXT, 0);
    }),
    ("a circle through the whole ring", |a| {
        for index in 0..Attacker::RING {
            describe(a, index, 64, NEXT, (index + 1) % Attacker::RING);
        }
    }),
];

/// The same of the receiving ring.
const ENDLESS_BUFFER: Scribble = |a| a.describe(Side::Rx, 0, a.guest(AT), 100, WRITE | NEXT, 0);

/// What is wrong in either layout.
const SENDING: &[Case] = &[
    // No longer than a segmented frame may be; the friend has no room for it.
    ("a frame of 65,535 bytes in 255 pieces", Trace::Nothing, |a| pieces(a, 255, 257)),
    ("a frame of 76,800 bytes in 256 pieces", Trace::Drops(&["too-long"]), |a| pieces(a, 256, 300)),
    ("an empty descriptor", BAD, |a| describe(a, 0, 0, 0, 0)),
    ("an empty descriptor in the middle", BAD, |a| {
        describe(a, 0, 100, NEXT, 1);
        describe(a, 1, 0, NEXT, 2);
        describe(a, 2, 100, 0, 0);
    }),
    (
        "an empty descriptor that points nowhere",
        Trace::Drops(&["bad-descriptor", "guest-memory"]),
        |a| {
            a.describe(Side::Tx, 0, u64::MAX, 0, 0, 0);
        },
    ),
    ("a buffer at address 0", OUTSIDE, |a| a.describe(Side::Tx, 0, 0, 200, 0, 0)),
    ("a buffer behind the memory", OUTSIDE, |a| {
        a.describe(Side::Tx, 0, a.guest(Attacker::MEMORY), 200, 0, 0);
    }),
    ("a buffer across the end of the memory", OUTSIDE, |a| {
        a.describe(Side::Tx, 0, a.guest(Attacker::MEMORY - 100), 200, 0, 0);
    }),
    ("a buffer across the end of addresses", OUTSIDE, |a| {
        a.describe(Side::Tx, 0, u64::MAX - 50, 200, 0, 0);
    }),
    ("a buffer of 4 GiB", OUTSIDE, |a| describe(a, 0, u32::MAX, 0, 0)),
    ("a user address in place of a guest address", OUTSIDE, |a| {
        a.describe(Side::Tx, 0, a.memory.user_addr() + AT as u64, 200, 0, 0);
    }),
    ("a writable buffer to send from", BAD, |a| describe(a, 0, 200, WRITE, 0)),
    ("an indirect table longer than the ring", BAD, |a| {
        let entries = 4000;
        for entry in 0..entries {
            let next = u16::try_from(entry + 1).unwrap_or_default();
            a.describe_at(TABLE + entry * 16, a.guest(AT), 1, NEXT, next);
        }
        a.describe(Side::Tx, 0, a.guest(TABLE), 4000 * 16, INDIRECT, 0);
    }),
    ("an indirect table of 4 GiB", Trace::Drops(&["bad-descriptor", "guest-memory"]), |a| {
        a.describe(Side::Tx, 0, a.guest(TABLE), !15, INDIRECT, 0);
    }),
    ("an indirect table of 17 bytes", BAD, |a| {
        a.describe(Side::Tx, 0, a.guest(TABLE), 17, INDIRECT, 0);
    }),
    ("an empty indirect table", BAD, |a| {
        a.describe(Side::Tx, 0, a.guest(TABLE), 0, INDIRECT, 0);
    }),
    ("an indirect table outside of the memory", OUTSIDE, |a| {
        a.describe(Side::Tx, 0, a.guest(Attacker::MEMORY - 8), 32, INDIRECT, 0);
    }),
    ("an indirect table in an indirect table", BAD, |a| {
        a.describe_at(TABLE, a.guest(TABLE), 16, INDIRECT, 0);
        a.describe(Side::Tx, 0, a.guest(TABLE), 16, INDIRECT, 0);
    }),
    ("an indirect descriptor with a next", BAD, |a| {
        a.describe_at(TABLE, a.guest(AT), 100, 0, 0);
        a.describe(Side::Tx, 0, a.guest(TABLE), 16, INDIRECT | NEXT, 1);
        describe(a, 1, 100, 0, 0);
    }),
    ("a chain shorter than the virtio header", HEADER, |a| describe(a, 0, 11, 0, 0)),
    ("a virtio header without a frame", HEADER, |a| describe(a, 0, 12, 0, 0)),
    ("a frame without a whole Ethernet header", HEADER, |a| describe(a, 0, 12 + 13, 0, 0)),
    ("a frame of 70,000 bytes", Trace::Drops(&["too-long"]), |a| describe(a, 0, 12 + 70_000, 0, 0)),
    ("a frame of one MiB", Trace::Drops(&["too-long", "bad-descriptor"]), |a| {
        describe(a, 0, 1 << 20, 0, 0);
    }),
];

/// Only a split ring's descriptors name the next one, or another head.
const SENDING_SPLIT: &[Case] = &[
    ("a next index outside of the ring", BAD, |a| describe(a, 0, 100, NEXT, Attacker::RING)),
    ("the highest next index", BAD, |a| describe(a, 0, 100, NEXT, u16::MAX)),
    ("an indirect table that loops", BAD, |a| {
        a.describe_at(TABLE, a.guest(AT), 100, NEXT, 1);
        a.describe_at(TABLE + 16, a.guest(AT), 100, NEXT, 0);
        a.describe(Side::Tx, 0, a.guest(TABLE), 32, INDIRECT, 0);
    }),
    ("an indirect table that leads out of itself", BAD, |a| {
        a.describe_at(TABLE, a.guest(AT), 100, NEXT, 200);
        a.describe(Side::Tx, 0, a.guest(TABLE), 32, INDIRECT, 0);
    }),
];

/// Of a split ring, and nothing else is on offer.
const INDICES: &[Case] = &[
    ("a head outside of the ring", BROKEN, |a| a.offer(Side::Tx, Attacker::RING)),
    ("the highest head", BROKEN, |a| a.offer(Side::Tx, u16::MAX)),
    ("an available index too far ahead", BROKEN, |a| {
        a.set_avail(Side::Tx, Attacker::RING * 2 + 5);
    }),
    ("an available index that goes back", BROKEN, |a| a.set_avail(Side::Tx, u16::MAX)),
];

fn sending(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let endless = match layout {
        Layout::Split => BAD,
        Layout::Packed => Trace::Quarantined("does not end"),
    };
    for (name, scribble) in ENDLESS {
        send_bad(&mut scene, layout, &(name, endless, *scribble), true)?;
    }
    for case in SENDING {
        send_bad(&mut scene, layout, case, true)?;
    }
    if layout == Layout::Split {
        for case in SENDING_SPLIT {
            send_bad(&mut scene, layout, case, true)?;
        }
        for case in INDICES {
            send_bad(&mut scene, layout, case, false)?;
        }
    }
    scene.finish()
}

/// One case, with chain 0 on offer when it says so.
fn send_bad(scene: &mut Scene, layout: Layout, case: &Case, offer: bool) -> anyhow::Result<()> {
    let &(name, trace, scribble) = case;
    scene.attack(name, trace, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        attacker.write_frame(AT, FRIEND, EVIL, 200);
        scribble(&attacker);
        if offer {
            attacker.offer(Side::Tx, 0);
        }
        attacker.kick(Side::Tx)?;
        let frames = scene.harvest()?;
        anyhow::ensure!(frames.is_empty(), "{} bad frames were delivered", frames.len());
        Ok(attacker)
    })
}

/// Bad chains between good ones: the good ones get through, in order, and all come back.
fn good_chains_beside_bad_ones(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("every second chain is bad", BAD, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let chains = 100_u16;
        for index in 0..chains {
            let at = AT + usize::from(index) * 2048;
            let len = attacker.write_frame(at, FRIEND, EVIL, 100 + usize::from(index));
            let flags = if index % 2 == 0 { 0 } else { WRITE };
            attacker.describe(Side::Tx, index, attacker.guest(at), len, flags, 0);
            attacker.offer(Side::Tx, index);
        }
        attacker.kick(Side::Tx)?;
        wait::until("all chains to come back", Duration::from_secs(10), || {
            attacker.used(Side::Tx) == chains
        })?;
        let frames = scene.harvest()?;
        let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
        let expected: Vec<usize> = (0..100).filter(|n| n % 2 == 0).map(|n| 100 + n).collect();
        anyhow::ensure!(lengths == expected, "{lengths:?}");
        Ok(attacker)
    })?;
    scene.attack("a header in twelve pieces", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        attacker.write_frame(AT, FRIEND, EVIL, 200);
        for index in 0..12 {
            let at = attacker.guest(AT + usize::from(index));
            attacker.describe(Side::Tx, index, at, 1, NEXT, index + 1);
        }
        attacker.describe(Side::Tx, 12, attacker.guest(AT + 12), 200, 0, 0);
        attacker.offer(Side::Tx, 0);
        attacker.kick(Side::Tx)?;
        wait::until("the chain to come back", Duration::from_secs(10), || {
            attacker.used(Side::Tx) == 1
        })?;
        let frames = scene.harvest()?;
        anyhow::ensure!(frames.len() == 1 && frames[0].len() == 200, "{frames:02x?}");
        Ok(attacker)
    })?;
    scene.finish()
}

/// What is wrong in either layout; chain 0 is then on offer and frames come.
const RECEIVING: &[Case] = &[
    ("a read-only buffer to receive into", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(AT), 2048, 0, 0);
    }),
    ("a receive buffer outside of the memory", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(Attacker::MEMORY), 2048, WRITE, 0);
    }),
    ("a receive buffer across the end of the memory", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(Attacker::MEMORY - 8), 2048, WRITE, 0);
    }),
    ("a receive buffer over the ring itself", Trace::Nothing, |a| {
        let parts = a.parts(Side::Rx);
        a.describe(Side::Rx, 0, a.guest(parts.desc), 2048, WRITE, 0);
    }),
    ("a receive buffer over all of the ring's parts", Trace::Nothing, |a| {
        let parts = a.parts(Side::Rx);
        a.describe(Side::Rx, 0, a.guest(parts.avail - 64), 0x4000, WRITE, 0);
    }),
    ("an empty receive buffer", UNUSABLE, |a| a.describe(Side::Rx, 0, a.guest(AT), 0, WRITE, 0)),
    (
        "receive buffers shorter than the header",
        Trace::Drops(&["rx-ring-full", "rx-buffer-too-small"]),
        |a| {
            a.describe(Side::Rx, 0, a.guest(AT), 4, WRITE, 0);
        },
    ),
];

/// Nothing good is on offer.
const WITHOUT_BUFFERS: Case =
    ("a receive ring without buffers", Trace::Drops(&["rx-ring-full"]), |_| {});

/// Of a split ring.
const RECEIVING_INDICES: &[Case] = &[
    ("a receive head outside of the ring", BROKEN, |a| a.offer(Side::Rx, Attacker::RING)),
    ("an available index of the receive ring too far ahead", BROKEN, |a| {
        a.set_avail(Side::Rx, Attacker::RING + 9);
    }),
];

fn receiving(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let endless = match layout {
        Layout::Split => UNUSABLE,
        Layout::Packed => Trace::Quarantined("does not end"),
    };
    let case = ("a receive chain that loops", endless, ENDLESS_BUFFER);
    receive_badly(&mut scene, layout, &case, 1)?;
    for case in RECEIVING {
        receive_badly(&mut scene, layout, case, 8)?;
    }
    receive_badly(&mut scene, layout, &WITHOUT_BUFFERS, 0)?;
    if layout == Layout::Split {
        for case in RECEIVING_INDICES {
            receive_badly(&mut scene, layout, case, 0)?;
        }
    }
    scene.finish()
}

/// One case, with chain 0 on offer so many times.
fn receive_badly(scene: &mut Scene, layout: Layout, case: &Case, times: u16) -> anyhow::Result<()> {
    let &(name, trace, scribble) = case;
    scene.attack(name, trace, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 0)?;
        scribble(&attacker);
        (0..times).for_each(|_| attacker.offer(Side::Rx, 0));
        attacker.kick(Side::Rx)?;
        scene.befriend(20)?;
        Ok(attacker)
    })
}
