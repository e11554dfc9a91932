//! Frontends that go away at the worst moment.

use std::os::fd::AsFd;

use netns_tests::frontend::hostile::{Attacker, Layout, Raw, Side, table, words};
use vhost_user::Request;
use vhost_user::features::protocol;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

on_both_layouts! { in_the_middle_of_a_burst after_any_message }

fn in_the_middle_of_a_burst(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack(
        "a disconnect in the middle of a burst, 50 times",
        Trace::Nothing,
        |scene, socket| {
            for round in 0..50_u16 {
                let attacker = Attacker::start(socket, layout, 256)?;
                for slot in 0..Attacker::RING {
                    let at = Attacker::BUFFERS + usize::from(slot) * 2048;
                    let len = attacker.write_frame(at, FRIEND, EVIL, 1400);
                    attacker.describe(Side::Tx, slot, attacker.guest(at), len, 0, 0);
                    attacker.offer(Side::Tx, slot);
                }
                attacker.kick(Side::Tx)?;
                // At another moment each time.
                while attacker.used(Side::Tx) < round * 5 {
                    std::hint::spin_loop();
                }
                drop(attacker);
                scene.harvest_now()?;
            }
            Ok(())
        },
    )?;
    scene.attack(
        "rings that change while the guest disconnects",
        Trace::Nothing,
        |scene, socket| {
            for _ in 0..20 {
                let attacker = Attacker::start(socket, layout, 256)?;
                scene.befriend(10)?;
                for enable in [0_u32, 1, 0, 1] {
                    let payload = words([1, enable]);
                    attacker.raw.send(Request::SET_VRING_ENABLE, 0, &payload, &[])?;
                }
                attacker.raw.send(Request::GET_VRING_BASE, 0, &words([1_u32, 0]), &[])?;
                drop(attacker);
                scene.harvest_now()?;
            }
            Ok(())
        },
    )?;
    scene.finish()
}

/// After each message of a good start, and in the middle of each.
fn after_any_message(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("a disconnect after any message", Trace::Nothing, |_, socket| {
        for half in [false, true] {
            for last in 0..MESSAGES {
                let attacker = Attacker::connect(socket, layout)?;
                for number in 0..=last {
                    say(&attacker, number, half && number == last)?;
                }
            }
        }
        Ok(())
    })?;
    scene.finish()
}

const MESSAGES: usize = 12;

/// One of the messages of a good start; `half` without its last byte.
fn say(attacker: &Attacker, number: usize, half: bool) -> anyhow::Result<()> {
    let memory = &attacker.memory;
    let parts = attacker.parts(Side::Tx);
    let user = |at: usize| memory.user_addr() + at as u64;
    let region = [1 << 30, Attacker::MEMORY as u64, memory.user_addr(), 0];
    let mut addresses = words([1_u32, 0]);
    addresses.extend(words([user(parts.desc), user(parts.used), user(parts.avail), 0]));
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let (with_event, with_memory) = ([event.as_fd()], [memory.as_fd()]);
    let (request, payload, fds) = match number {
        0 => (Request::SET_OWNER, vec![], &[][..]),
        1 => (Request::SET_PROTOCOL_FEATURES, words([protocol::REPLY_ACK]), &[][..]),
        2 => (
            Request::SET_FEATURES,
            words([Attacker::features(attacker.layout()) & !(1 << 28)]),
            &[][..],
        ),
        3 => (Request::SET_VRING_CALL, words([1_u64]), &with_event[..]),
        4 => (Request::SET_MEM_TABLE, table(&[region]), &with_memory[..]),
        5 => (Request::SET_VRING_NUM, words([1_u32, 256]), &[][..]),
        6 => (Request::SET_VRING_BASE, words([1_u32, 0]), &[][..]),
        7 => (Request::SET_VRING_ADDR, addresses, &[][..]),
        8 => (Request::SET_VRING_KICK, words([1_u64]), &with_event[..]),
        9 => (Request::SET_VRING_ENABLE, words([1_u32, 1]), &[][..]),
        10 => (Request::GET_VRING_BASE, words([1_u32, 0]), &[][..]),
        _ => (Request::SET_MEM_TABLE, table(&[]), &[][..]),
    };
    if half {
        let size = u32::try_from(payload.len())?;
        let mut bytes = words([request.0, 1, size]);
        bytes.extend(payload);
        bytes.pop();
        attacker.raw.send_bytes(&bytes, fds)
    } else {
        attacker.raw.send(request, 0, &payload, fds)
    }
}

/// Many connections at once: one is served, the others wait or are refused, and all may go.
#[test]
fn many_at_once() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("100 connections to one socket", Trace::Nothing, |_, socket| {
        let mut connections = Vec::new();
        for _ in 0..100 {
            match Raw::connect(socket) {
                Ok(raw) => {
                    let _ = raw.send(Request::GET_FEATURES, 0, &[], &[]);
                    connections.push(raw);
                }
                Err(_) => break,
            }
        }
        Ok(connections)
    })?;
    scene.finish()
}
