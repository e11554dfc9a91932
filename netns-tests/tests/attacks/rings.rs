//! Descriptors that loop, lie and point elsewhere.

use netns_tests::frontend::hostile::{Attacker, INDIRECT, NEXT, Side, WRITE};

use crate::scene::{EVIL, FRIEND, Scene, Trace};

const AT: usize = Attacker::BUFFERS;
const TABLE: usize = Attacker::BUFFERS + 0x10_0000;
const BAD: Trace = Trace::Drops(&["bad-descriptor"]);
const OUTSIDE: Trace = Trace::Drops(&["guest-memory"]);
const HEADER: Trace = Trace::Drops(&["too-short"]);
const UNUSABLE: Trace = Trace::Quarantined("receive buffer");
const BROKEN: Trace = Trace::Quarantined("avail");

type Scribble = fn(&Attacker);

fn describe(attacker: &Attacker, index: u16, len: u32, flags: u16, next: u16) {
    attacker.describe(Side::Tx, index, attacker.guest(AT), len, flags, next);
}

/// What is scribbled over the sending ring; chain 0 is then on offer.
const SENDING: &[(&str, Trace, Scribble)] = &[
    ("a descriptor that is its own next", BAD, |a| describe(a, 0, 100, NEXT, 0)),
    ("two descriptors in a circle", BAD, |a| {
        describe(a, 0, 100, NEXT, 1);
        describe(a, 1, 100, NEXT, 0);
    }),
    ("a circle through the whole ring", BAD, |a| {
        for index in 0..Attacker::RING {
            describe(a, index, 64, NEXT, (index + 1) % Attacker::RING);
        }
    }),
    ("a next index outside of the ring", BAD, |a| describe(a, 0, 100, NEXT, Attacker::RING)),
    ("the highest next index", BAD, |a| describe(a, 0, 100, NEXT, u16::MAX)),
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
    ("an indirect table that loops", BAD, |a| {
        a.describe_at(TABLE, a.guest(AT), 100, NEXT, 1);
        a.describe_at(TABLE + 16, a.guest(AT), 100, NEXT, 0);
        a.describe(Side::Tx, 0, a.guest(TABLE), 32, INDIRECT, 0);
    }),
    ("an indirect table that leads out of itself", BAD, |a| {
        a.describe_at(TABLE, a.guest(AT), 100, NEXT, 200);
        a.describe(Side::Tx, 0, a.guest(TABLE), 32, INDIRECT, 0);
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
    ("a head outside of the ring", BROKEN, |a| a.offer(Side::Tx, Attacker::RING)),
    ("the highest head", BROKEN, |a| a.offer(Side::Tx, u16::MAX)),
    ("an available index too far ahead", BROKEN, |a| {
        a.set_avail(Side::Tx, Attacker::RING * 2 + 5);
    }),
    ("an available index that goes back", BROKEN, |a| a.set_avail(Side::Tx, u16::MAX)),
];

#[test]
fn sending() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, trace, scribble) in SENDING {
        scene.attack(name, *trace, |scene, socket| {
            let attacker = Attacker::start(socket, 64)?;
            attacker.write_frame(AT, FRIEND, EVIL, 200);
            scribble(&attacker);
            if !matches!(trace, Trace::Quarantined(_)) {
                attacker.offer(Side::Tx, 0);
            }
            attacker.kick(Side::Tx)?;
            let frames = scene.harvest()?;
            anyhow::ensure!(frames.is_empty(), "{} bad frames were delivered", frames.len());
            Ok(attacker)
        })?;
    }
    scene.finish()
}

/// Bad chains between good ones: the good ones get through, in order, and all come back.
#[test]
fn good_chains_beside_bad_ones() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("every second chain is bad", BAD, |scene, socket| {
        let attacker = Attacker::start(socket, 64)?;
        let chains = 100_u16;
        for index in 0..chains {
            let at = AT + usize::from(index) * 2048;
            let len = attacker.write_frame(at, FRIEND, EVIL, 100 + usize::from(index));
            let (flags, next) = if index % 2 == 0 { (0, 0) } else { (NEXT, index) };
            attacker.describe(Side::Tx, index, attacker.guest(at), len, flags, next);
            attacker.offer(Side::Tx, index);
        }
        attacker.kick(Side::Tx)?;
        let frames = scene.harvest()?;
        let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
        let expected: Vec<usize> = (0..100).filter(|n| n % 2 == 0).map(|n| 100 + n).collect();
        anyhow::ensure!(lengths == expected, "{lengths:?}");
        anyhow::ensure!(attacker.used(Side::Tx) == chains, "not all chains came back");
        Ok(attacker)
    })?;
    scene.finish()
}

/// What is scribbled over the receiving ring; chain 0 is then on offer and frames come.
const RECEIVING: &[(&str, Trace, Scribble)] = &[
    ("a read-only buffer to receive into", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(AT), 2048, 0, 0);
    }),
    ("a receive chain that loops", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(AT), 100, WRITE | NEXT, 0);
    }),
    ("a receive buffer outside of the memory", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(Attacker::MEMORY), 2048, WRITE, 0);
    }),
    ("a receive buffer across the end of the memory", UNUSABLE, |a| {
        a.describe(Side::Rx, 0, a.guest(Attacker::MEMORY - 8), 2048, WRITE, 0);
    }),
    ("a receive buffer over the ring itself", Trace::Nothing, |a| {
        let layout = a.layout(Side::Rx);
        a.describe(Side::Rx, 0, a.guest(layout.desc), 2048, WRITE, 0);
    }),
    ("an empty receive buffer", UNUSABLE, |a| a.describe(Side::Rx, 0, a.guest(AT), 0, WRITE, 0)),
    (
        "receive buffers shorter than the header",
        Trace::Drops(&["rx-ring-full", "rx-buffer-too-small"]),
        |a| {
            a.describe(Side::Rx, 0, a.guest(AT), 4, WRITE, 0);
        },
    ),
    ("a receive ring without buffers", Trace::Drops(&["rx-ring-full"]), |a| {
        a.set_avail(Side::Rx, 0);
    }),
    ("a receive head outside of the ring", BROKEN, |a| {
        a.set_avail(Side::Rx, 0);
        a.offer(Side::Rx, Attacker::RING);
    }),
    ("an available index of the receive ring too far ahead", BROKEN, |a| {
        a.set_avail(Side::Rx, Attacker::RING + 9);
    }),
];

#[test]
fn receiving() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, trace, scribble) in RECEIVING {
        scene.attack(name, *trace, |scene, socket| {
            let attacker = Attacker::start(socket, 0)?;
            for _ in 0..8 {
                attacker.offer(Side::Rx, 0);
            }
            scribble(&attacker);
            attacker.kick(Side::Rx)?;
            scene.befriend(20)?;
            Ok(attacker)
        })?;
    }
    scene.finish()
}
