//! What only packed rings have: turns, buffer IDs, event suppression areas, and a position that nobody can read from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use netns_tests::frontend::hostile::{Attacker, INDIRECT, Layout, NEXT, Raw, Side, WRITE, words};
use netns_tests::wait;
use vhost_user::Request;
use vhost_user::features::virtio;

use crate::race::race;
use crate::scene::{EVIL, FRIEND, Scene, Trace};

const AT: usize = Attacker::BUFFERS;
const TABLE: usize = Attacker::BUFFERS + 0x10_0000;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const TX: Side = Side::Tx;

type Scribble = fn(&Attacker);

fn start(socket: &std::path::Path) -> anyhow::Result<Attacker> {
    Attacker::start(socket, Layout::Packed, 64)
}

/// A good frame in chain 0.
fn good_chain(attacker: &Attacker) {
    let len = attacker.write_frame(AT, FRIEND, EVIL, 200);
    attacker.describe(TX, 0, attacker.guest(AT), len, 0, 0);
}

/// Sends chain 0, which must arrive alone and come back.
fn send_good(scene: &mut Scene, attacker: &Attacker) -> anyhow::Result<()> {
    let before = attacker.used(TX);
    good_chain(attacker);
    attacker.offer(TX, 0);
    attacker.kick(TX)?;
    come_back(attacker, TX, before.wrapping_add(1))?;
    let frames = scene.harvest()?;
    ensure!(frames.len() == 1, "{} frames in place of one", frames.len());
    Ok(())
}

/// Waits until the switch has given so many chains back.
fn come_back(attacker: &Attacker, side: Side, count: u16) -> anyhow::Result<()> {
    let what = format!("{count} chains to come back");
    wait::until(&what, Duration::from_secs(10), || attacker.used(side) == count)
}

/// A descriptor of the ring itself, with any flags.
fn write_place(attacker: &Attacker, place: u16, id: u16, flags: u16) {
    let at = attacker.parts(TX).desc_at(place);
    attacker.memory.write(at, &attacker.guest(AT).to_le_bytes());
    attacker.memory.write(at + 8, &212_u32.to_le_bytes());
    attacker.memory.write(at + 12, &id.to_le_bytes());
    attacker.memory.store_u16(at + 14, flags);
}

/// AVAIL and USED that do not fit the turn: nothing is on offer, and what comes after is served.
#[test]
fn wrap_counters_that_lie() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, flags) in [
        ("descriptors of the next turn", USED),
        ("descriptors that are used already", AVAIL | USED),
        ("descriptors of no turn", 0),
    ] {
        scene.attack(name, Trace::Nothing, |scene, socket| {
            let attacker = start(socket)?;
            attacker.write_frame(AT, FRIEND, EVIL, 200);
            for place in 0..Attacker::RING {
                write_place(&attacker, place, place, flags);
            }
            attacker.kick(TX)?;
            ensure!(scene.harvest()?.is_empty(), "a frame that was not on offer was delivered");
            send_good(scene, &attacker)?;
            // The rest of the ring is for another turn still.
            ensure!(scene.harvest()?.is_empty(), "a frame that was not on offer was delivered");
            Ok(attacker)
        })?;
    }
    scene.attack("the next turn before this one has ended", Trace::Nothing, |scene, socket| {
        let attacker = start(socket)?;
        attacker.write_frame(AT, FRIEND, EVIL, 200);
        // Half of the ring on offer in this turn, the other half in the next, and all of it again.
        for place in 0..Attacker::RING {
            let flags = if place < Attacker::RING / 2 { AVAIL } else { USED };
            write_place(&attacker, place, place, flags);
        }
        attacker.kick(TX)?;
        let mut frames = 0;
        wait::until("the frames of this turn", Duration::from_secs(10), || {
            frames += scene.harvest().map_or(0, |frames| frames.len());
            frames >= usize::from(Attacker::RING / 2)
        })?;
        ensure!(frames == usize::from(Attacker::RING / 2), "{frames} frames");
        Ok(attacker)
    })?;
    scene.finish()
}

/// The device only gives an ID back: it may be any, and the same for all.
#[test]
fn buffer_ids_that_lie() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, id) in [
        ("the first ID behind the ring", Attacker::RING),
        ("the highest ID", u16::MAX),
        ("an ID that is in flight, 64 times", 7),
    ] {
        scene.attack(name, Trace::Nothing, |scene, socket| {
            let attacker = start(socket)?;
            good_chain(&attacker);
            let count = if id == 7 { 64 } else { 1 };
            (0..count).for_each(|_| attacker.offer_as(TX, 0, id));
            attacker.kick(TX)?;
            come_back(&attacker, TX, count)?;
            let frames = scene.harvest()?;
            ensure!(frames.len() == usize::from(count), "{} frames", frames.len());
            for place in 0..count {
                let at = attacker.parts(TX).desc_at(place);
                let back = attacker.memory.load_u16(at + 12);
                ensure!(back == id, "chain {id} came back as {back}");
            }
            Ok(attacker)
        })?;
    }
    scene.attack(
        "receive buffers of one ID behind the ring",
        Trace::Nothing,
        |scene, socket| {
            let attacker = Attacker::start(socket, Layout::Packed, 0)?;
            attacker.describe(Side::Rx, 0, attacker.guest(TABLE), 2048, WRITE, 0);
            (0..64).for_each(|_| attacker.offer_as(Side::Rx, 0, u16::MAX));
            scene.befriend(20)?;
            send_good(scene, &attacker)?;
            wait::until("a frame", Duration::from_secs(10), || attacker.used(Side::Rx) > 0)?;
            Ok(attacker)
        },
    )?;
    scene.finish()
}

/// Chains that are longer than they may be, or end where nobody meant them to.
#[test]
fn chains_that_run_on() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let endless = Trace::Quarantined("does not end");
    scene.attack(
        "a chain around the end of the ring that does not end",
        endless,
        |scene, socket| {
            let attacker = start(socket)?;
            for _ in 0..3 {
                send_good(scene, &attacker)?;
            }
            attacker.describe(TX, 0, attacker.guest(AT), 1, NEXT, 0);
            attacker.offer(TX, 0);
            attacker.kick(TX)?;
            Ok(attacker)
        },
    )?;
    let bad = Trace::Drops(&["bad-descriptor"]);
    scene.attack("a chain that goes on in descriptors of no turn", bad, |scene, socket| {
        let attacker = start(socket)?;
        attacker.write_frame(AT, FRIEND, EVIL, 200);
        write_place(&attacker, 0, 0, AVAIL | NEXT);
        attacker.kick(TX)?;
        ensure!(scene.harvest()?.is_empty(), "half a chain was delivered");
        Ok(attacker)
    })?;
    scene.attack("an indirect descriptor in the middle of a chain", bad, |scene, socket| {
        let attacker = start(socket)?;
        attacker.write_frame(AT, FRIEND, EVIL, 200);
        attacker.describe_at(TABLE, attacker.guest(AT), 100, 0, 0);
        attacker.describe(TX, 0, attacker.guest(AT), 100, NEXT, 1);
        attacker.describe(TX, 1, attacker.guest(TABLE), 16, INDIRECT, 0);
        attacker.offer(TX, 0);
        attacker.kick(TX)?;
        ensure!(scene.harvest()?.is_empty(), "it was delivered");
        send_good(scene, &attacker)?;
        Ok(attacker)
    })?;
    // NEXT and the ID mean nothing there (virtio 1.3 §2.8.7).
    scene.attack("an indirect table with flags of a ring", Trace::Nothing, |scene, socket| {
        let attacker = start(socket)?;
        attacker.write_frame(AT, FRIEND, EVIL, 200);
        attacker.describe_at(TABLE, attacker.guest(AT), 100, NEXT | AVAIL, 200);
        attacker.describe_at(TABLE + 16, attacker.guest(AT + 100), 112, NEXT | USED, 0);
        attacker.describe(TX, 0, attacker.guest(TABLE), 32, INDIRECT, 0);
        attacker.offer(TX, 0);
        attacker.kick(TX)?;
        come_back(&attacker, TX, 1)?;
        ensure!(scene.harvest()?.len() == 1, "it was not delivered");
        Ok(attacker)
    })?;
    scene.finish()
}

/// Descriptors that change after they were put on offer, while the device reads them and before it has used them.
#[test]
fn descriptors_that_change_while_they_are_read() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let outside = Trace::Drops(&["guest-memory"]);
    scene.attack("addresses and lengths between avail and used", outside, |scene, socket| {
        let attacker = start(socket)?;
        let len = prepare(&attacker);
        let good = attacker.guest(AT).to_le_bytes();
        let delivered = race(&attacker, scene, Duration::from_secs(2), || {
            for (addr, len) in [(u64::MAX.to_le_bytes(), u32::MAX), (good, len)] {
                for place in (0..Attacker::RING).step_by(5) {
                    let at = attacker.parts(TX).desc_at(place);
                    attacker.memory.write(at, &addr);
                    attacker.memory.write(at + 8, &len.to_le_bytes());
                }
            }
        })?;
        ensure!(!delivered.is_empty(), "no frame came through at all");
        Ok(attacker)
    })?;
    // Which of them are on offer is then up to chance, and so is what the port says of it.
    let kinds =
        [AVAIL, USED, AVAIL | USED, AVAIL | NEXT, USED | WRITE, AVAIL | INDIRECT, u16::MAX, 0];
    scene.attack("flags that flip while they are read", Trace::Nothing, |scene, socket| {
        for round in 0..8_u32 {
            let attacker = start(socket)?;
            prepare(&attacker);
            let turn = AtomicU32::new(round);
            race(&attacker, scene, Duration::from_millis(300), || {
                let n = turn.fetch_add(1, Ordering::Relaxed).wrapping_mul(2_654_435_761) >> 8;
                let [place, kind, ..] = n.to_le_bytes();
                let at = attacker.parts(TX).desc_at(u16::from(place));
                attacker.memory.store_u16(at + 14, kinds[usize::from(kind) % kinds.len()]);
            })?;
        }
        Ok(())
    })?;
    scene.attack("used descriptors that go back on offer", Trace::Nothing, |scene, socket| {
        let attacker = start(socket)?;
        let len = prepare(&attacker);
        let good = attacker.guest(AT).to_le_bytes();
        // The device never runs out; it works in bursts all the same.
        race(&attacker, scene, Duration::from_secs(1), || {
            for place in 0..Attacker::RING {
                let at = attacker.parts(TX).desc_at(place);
                let used = attacker.memory.load_u16(at + 14) & (AVAIL | USED);
                attacker.memory.write(at, &good);
                attacker.memory.write(at + 8, &len.to_le_bytes());
                attacker.memory.store_u16(at + 14, if used == 0 { AVAIL } else { USED });
            }
        })?;
        scene.newcomer()?;
        Ok(attacker)
    })?;
    scene.finish()
}

/// The same good frame in every chain; returns its length.
fn prepare(attacker: &Attacker) -> u32 {
    let len = attacker.write_frame(AT, FRIEND, EVIL, 200);
    for slot in 0..Attacker::RING {
        attacker.describe(TX, slot, attacker.guest(AT), len, 0, 0);
    }
    len
}

/// Event suppression areas that make no sense. Frames move whatever they say.
#[test]
fn event_areas_that_make_no_sense() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, event_idx) in [
        ("an event suppression area of any bytes", 0),
        ("an event suppression area of any place", virtio::F_EVENT_IDX),
    ] {
        scene.attack(name, Trace::Nothing, |scene, socket| {
            let attacker = Attacker::connect(socket, Layout::Packed)?;
            let features = words([Attacker::features(Layout::Packed) | event_idx]);
            ensure!(attacker.raw.ack(Request::SET_FEATURES, &features, &[])? == 0);
            ensure!(attacker.share(Attacker::MEMORY as u64)? == 0, "SET_MEM_TABLE");
            attacker.run(TX)?;
            good_chain(&attacker);
            let parts = attacker.parts(TX);
            let mut sent = 0_u16;
            let words = [0, 1, 2, 3, 0x7fff, 0x8000, 0x80ff, 0x8100, 0xffff];
            for (offset, flags) in words.iter().flat_map(|o| words.map(|f| (*o, f))) {
                // Its own area, and the device's.
                for area in [parts.avail, parts.used] {
                    attacker.memory.store_u16(area, offset);
                    attacker.memory.store_u16(area + 2, flags);
                }
                for _ in 0..2 {
                    attacker.offer(TX, 0);
                    sent += 1;
                    attacker.kick(TX)?;
                }
            }
            come_back(&attacker, TX, sent)?;
            let frames = scene.harvest()?.len();
            ensure!(frames == usize::from(sent), "{frames} of {sent} frames arrived");
            Ok(attacker)
        })?;
    }
    scene.finish()
}

/// SET_VRING_BASE, sizes and layouts that cannot be, or could be of another ring.
#[test]
fn positions_that_lie() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, base) in [
        ("a position behind the ring", 256_u32),
        ("a position behind the ring in the first turn", 0x8100),
        ("the highest position", 0xffff_ffff),
    ] {
        scene.attack(name, Trace::Reason("index"), |_, socket| {
            let attacker = start(socket)?;
            attacker.stop(TX)?;
            attacker.raw.send(Request::SET_VRING_BASE, 0, &words([1, base]), &[])?;
            attacker.raw.closed()?;
            Ok(attacker)
        })?;
    }
    for (name, size) in [
        ("a packed ring of 0 descriptors", 0_u32),
        ("a packed ring of 32,769 descriptors", 32_769),
        ("a packed ring of 2^31 descriptors", 1 << 31),
    ] {
        scene.attack(name, Trace::Reason("descriptors"), |_, socket| {
            let raw = Raw::connect(socket)?;
            raw.negotiate(Attacker::features(Layout::Packed))?;
            raw.send(Request::SET_VRING_NUM, 0, &words([0, size]), &[])?;
            raw.closed()?;
            Ok(raw)
        })?;
    }
    scene.attack(
        "a ring that becomes smaller than its position",
        Trace::Reason("ring"),
        |_, socket| {
            let attacker = start(socket)?;
            attacker.stop(TX)?;
            ensure!(attacker.raw.ack(Request::SET_VRING_BASE, &words([1_u32, 200]), &[])? == 0);
            attacker.raw.send(Request::SET_VRING_NUM, 0, &words([1_u32, 16]), &[])?;
            let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
            let fd = std::os::fd::AsFd::as_fd(&kick);
            let _ = attacker.raw.send(Request::SET_VRING_KICK, 0, &words([1_u64]), &[fd]);
            attacker.raw.closed()?;
            Ok(attacker)
        },
    )?;
    scene.attack("the other layout while a ring runs", Trace::Reason("run"), |_, socket| {
        let attacker = start(socket)?;
        let split = words([Attacker::features(Layout::Split)]);
        attacker.raw.send(Request::SET_FEATURES, 0, &split, &[])?;
        attacker.raw.closed()?;
        Ok(attacker)
    })?;
    scene.attack("a position of another turn", Trace::Nothing, |scene, socket| {
        let attacker = start(socket)?;
        send_good(scene, &attacker)?;
        let place = attacker.stop(TX)?;
        // 1 in the turn of all descriptors that the ring does not have on offer.
        let lie = place ^ 0x8000_8000;
        attacker.run_at(TX, lie)?;
        attacker.offer(TX, 0);
        attacker.kick(TX)?;
        ensure!(scene.harvest()?.is_empty(), "a frame of another turn was delivered");
        ensure!(attacker.stop(TX)? & 0xffff == lie & 0xffff, "the ring moved");
        Ok(attacker)
    })?;
    scene.attack(
        "1,000 positions of a ring with something on offer",
        Trace::Nothing,
        |scene, socket| {
            let attacker = start(socket)?;
            prepare(&attacker);
            for round in 0..1000_u32 {
                let place = round.wrapping_mul(0x9e37_79b9) >> 16;
                let base = place & 0x80ff | place << 16;
                attacker.stop(TX)?;
                attacker.run_at(TX, base)?;
                attacker.offer(TX, 0);
                attacker.kick(TX)?;
                if round % 50 == 0 {
                    scene.harvest_now()?;
                }
            }
            let end = attacker.stop(TX)?;
            ensure!(end & 0x7fff < u32::from(Attacker::RING), "{end:#x} is no place of the ring");
            ensure!(end >> 16 == end & 0xffff, "{end:#x}: two places");
            scene.harvest()?;
            Ok(attacker)
        },
    )?;
    scene.finish()
}

/// The switch's own record of a ring, beside memory that says something else when the frontend comes again.
#[test]
fn rings_that_contradict_their_record() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let cases: &[(&str, Scribble)] = &[
        ("a ring as it was left", |_| {}),
        ("a device area of zeros", |a| {
            let parts = a.parts(TX);
            a.memory.store_u16(parts.used, 0);
            a.memory.store_u16(parts.used + 2, 0);
        }),
        ("a device area that the switch never wrote", |a| {
            let parts = a.parts(TX);
            a.memory.store_u16(parts.used, 0x1234);
            a.memory.store_u16(parts.used + 2, 0x5678);
        }),
        ("descriptors that all are used", |a| {
            (0..Attacker::RING).for_each(|place| write_place(a, place, place, AVAIL | USED));
        }),
        ("descriptors that all are on offer", |a| {
            (0..Attacker::RING).for_each(|place| write_place(a, place, place, AVAIL));
        }),
        ("descriptors that all go on", |a| {
            (0..Attacker::RING).for_each(|place| write_place(a, place, place, AVAIL | NEXT));
        }),
    ];
    for (name, scribble) in cases {
        scene.attack(name, Trace::Nothing, |scene, socket| {
            let attacker = start(socket)?;
            for _ in 0..3 {
                send_good(scene, &attacker)?;
            }
            scribble(&attacker);
            let memory = Arc::clone(&attacker.memory);
            drop(attacker);
            let again = Attacker::over(socket, Layout::Packed, memory)?;
            ensure!(again.share(Attacker::MEMORY as u64)? == 0, "SET_MEM_TABLE");
            again.run_at(TX, 0x8000_8000)?;
            again.kick(TX)?;
            scene.harvest()?;
            let place = again.stop(TX)?;
            ensure!(place & 0x7fff < u32::from(Attacker::RING), "{place:#x} is no place");
            // From there on it is a ring like any other, once it is clean.
            (0..Attacker::RING).for_each(|at| {
                let used = if place & 0x8000 == 0 { AVAIL | USED } else { 0 };
                write_place(&again, at, 0, used);
            });
            again.run(TX)?;
            send_good(scene, &again)?;
            Ok(again)
        })?;
    }
    scene.finish()
}
