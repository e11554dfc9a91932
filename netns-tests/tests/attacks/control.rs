//! A control queue whose requests make no sense.

use netns_tests::frontend::hostile::{Attacker, INDIRECT, Layout, NEXT, Side, WRITE};
use netns_tests::wait;
use std::time::Duration;

use crate::scene::{Scene, Trace};

on_both_layouts! { requests_that_make_no_sense a_control_ring_that_makes_no_sense }

const AT: usize = Attacker::BUFFERS;
const TABLE: usize = Attacker::BUFFERS + 0x10_0000;
const ANSWER: usize = AT + 0x1000;
const CONTROL: Side = Side::Control;

type Scribble = fn(&Attacker);

fn part(attacker: &Attacker, index: u16, at: usize, len: u32, flags: u16, next: u16) {
    attacker.describe(CONTROL, index, attacker.guest(at), len, flags, next);
}

/// A request of these bytes with room for its answer.
fn request(attacker: &Attacker, bytes: &[u8]) {
    attacker.memory.write(AT, bytes);
    part(attacker, 0, AT, u32::try_from(bytes.len()).unwrap_or(0), NEXT, 1);
    part(attacker, 1, ANSWER, 1, WRITE, 0);
}

/// Chains that do not end: a split ring's come back, a packed ring is broken by them.
const ENDLESS: &[(&str, Scribble)] = &[
    ("a control chain that loops", |a| part(a, 0, AT, 2, NEXT, 0)),
    ("a control chain through the whole ring", |a| {
        for index in 0..Attacker::RING {
            part(a, index, AT, 2, NEXT, (index + 1) % Attacker::RING);
        }
    }),
];

/// Chain 0 is then on offer, and must come back.
const REQUESTS: &[(&str, Scribble)] = &[
    ("a control request outside of the memory", |a| {
        part(a, 0, Attacker::MEMORY, 2, NEXT, 1);
        part(a, 1, ANSWER, 1, WRITE, 0);
    }),
    ("a control request without room for an answer", |a| part(a, 0, AT, 2, 0, 0)),
    ("room for an answer without a control request", |a| part(a, 0, ANSWER, 1, WRITE, 0)),
    ("an answer before its control request", |a| {
        part(a, 0, ANSWER, 1, WRITE | NEXT, 1);
        part(a, 1, AT, 2, 0, 0);
    }),
    ("a control request of one byte", |a| request(a, &[4])),
    ("an unknown control request", |a| request(a, &[200, 200, 1, 2, 3])),
    ("no queue pairs", |a| request(a, &[4, 0, 0, 0])),
    ("65,535 queue pairs", |a| request(a, &[4, 0, 0xff, 0xff])),
    ("a table of 4 billion addresses", |a| request(a, &[1, 0, 0xff, 0xff, 0xff, 0xff])),
    ("a table of addresses that ends early", |a| request(a, &[1, 0, 3, 0, 0, 0, 1, 2, 3, 4, 5, 6])),
    ("a control request in an indirect table in itself", |a| {
        a.describe_at(TABLE, a.guest(TABLE), 16, INDIRECT, 0);
        a.describe(CONTROL, 0, a.guest(TABLE), 16, INDIRECT, 0);
    }),
    ("a control request of 1 MiB in a circle of 256", |a| {
        for entry in 0..256_u16 {
            let at = TABLE + usize::from(entry) * 16;
            a.describe_at(at, a.guest(AT), 4096, NEXT, entry + 1);
        }
        a.describe(CONTROL, 0, a.guest(TABLE), 4096, INDIRECT, 0);
    }),
];

fn requests_that_make_no_sense(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let endless = if layout == Layout::Split { ENDLESS } else { &[] };
    for (name, scribble) in endless.iter().chain(REQUESTS) {
        scene.attack(name, Trace::Nothing, |scene, socket| {
            let attacker = Attacker::start(socket, layout, 64)?;
            attacker.run(CONTROL)?;
            scribble(&attacker);
            attacker.offer(CONTROL, 0);
            attacker.kick(CONTROL)?;
            wait::until("the control chain to come back", Duration::from_secs(10), || {
                attacker.used(CONTROL) == 1
            })?;
            scene.newcomer()?;
            Ok(attacker)
        })?;
    }
    scene.finish()
}

/// What breaks a split ring.
const INDICES: &[(&str, Scribble)] = &[
    ("a control head outside of the ring", |a| a.offer(CONTROL, Attacker::RING)),
    ("a control index too far ahead", |a| a.set_avail(CONTROL, Attacker::RING + 1)),
];

fn a_control_ring_that_makes_no_sense(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let (cases, broken) = match layout {
        Layout::Split => (INDICES, Trace::Quarantined("control queue: avail")),
        Layout::Packed => (ENDLESS, Trace::Quarantined("control queue: a chain")),
    };
    for (name, scribble) in cases {
        scene.attack(name, broken, |_, socket| {
            let attacker = Attacker::start(socket, layout, 64)?;
            attacker.run(CONTROL)?;
            scribble(&attacker);
            if layout == Layout::Packed {
                attacker.offer(CONTROL, 0);
            }
            attacker.kick(CONTROL)?;
            Ok(attacker)
        })?;
    }
    scene.attack("control requests without end", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        attacker.run(CONTROL)?;
        request(&attacker, &[4, 0, 1, 0]);
        let mut offered = 0_u16;
        for round in 0..2000 {
            // Each has two descriptors.
            let free = Attacker::RING / 2 - offered.wrapping_sub(attacker.used(CONTROL));
            for _ in 0..free {
                attacker.offer(CONTROL, 0);
                offered = offered.wrapping_add(1);
            }
            attacker.kick(CONTROL)?;
            if round % 500 == 0 {
                scene.newcomer()?;
            }
        }
        Ok(attacker)
    })?;
    scene.finish()
}
