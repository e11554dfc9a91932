//! More of everything than anybody needs.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_tests::frontend::hostile::{Attacker, Layout, NEED_REPLY, Raw, Side, words};
use netns_tests::wait;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vhost_user::Request;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

on_both_layouts! { kicks_without_frames settings_without_end }

/// Ten thousand in all, 250 to a message, from connections that each end with their first.
#[test]
fn ten_thousand_descriptors() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    let many: Vec<BorrowedFd<'_>> = vec![event.as_fd(); 250];
    scene.attack("10,000 descriptors", Trace::Reason("descriptors"), |_, socket| {
        for _ in 0..40 {
            let raw = Raw::connect(socket)?;
            let mut bytes = words([Request::SET_MEM_TABLE.0, 1, 8]);
            bytes.extend([0; 8]);
            raw.send_bytes(&bytes, &many)?;
            raw.closed()?;
        }
        Ok(())
    })?;
    scene.attack("one descriptor with each byte of a header", Trace::Nothing, |_, socket| {
        let raw = Raw::connect(socket)?;
        for byte in words([Request::SET_OWNER.0, 1, 0]) {
            if raw.send_bytes(&[byte], &[event.as_fd()]).is_err() {
                break;
            }
        }
        raw.closed()?;
        Ok(raw)
    })?;
    scene.attack("a region more than there are slots", Trace::Reason("regions"), |_, socket| {
        let attacker = Attacker::connect(socket, Layout::Split)?;
        let memory = memfd_create("evil", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, 4096)?;
        for slot in 0_u64..1000 {
            let place = slot << 20;
            let mut payload = words([0_u64]);
            payload.extend(words([place, 4096, 0x7000_0000_0000 + place, 0]));
            let request = Request::ADD_MEM_REG;
            if attacker.raw.ack(request, &payload, &[memory.as_fd()])? != 0 {
                anyhow::ensure!(slot >= 8, "refused the region number {slot}");
                return Ok(attacker);
            }
        }
        anyhow::bail!("1,000 regions were accepted")
    })?;
    scene.attack("10,000 notifiers for one ring", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, Layout::Split, 64)?;
        for round in 0..5_000_u32 {
            let (kick, call) = (event.as_fd(), event.as_fd());
            let ring = words([u64::from(round % 2)]);
            attacker.raw.send(Request::SET_VRING_KICK, 0, &ring, &[kick])?;
            attacker.raw.send(Request::SET_VRING_CALL, 0, &ring, &[call])?;
        }
        scene.newcomer()?;
        Ok(attacker)
    })?;
    scene.finish()
}

/// Kicks without frames, as fast as two threads can; then with a frame now and then, which is still served.
fn kicks_without_frames(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("a flood of kicks", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let len = attacker.write_frame(Attacker::BUFFERS, FRIEND, EVIL, 100);
        attacker.describe(Side::Tx, 0, attacker.guest(Attacker::BUFFERS), len, 0, 0);
        let stop = AtomicBool::new(false);
        let end = Instant::now() + Duration::from_secs(4);
        let (mut sent, mut arrived) = (0, 0);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..64 {
                        let _ = attacker.kick(Side::Tx);
                        let _ = attacker.kick(Side::Rx);
                    }
                    // The machine has few processors, and the attack is not to be theirs.
                    std::thread::yield_now();
                }
            });
            let result = (|| {
                while Instant::now() < end {
                    attacker.offer(Side::Tx, 0);
                    sent += 1;
                    arrived += scene.harvest()?.len();
                }
                scene.newcomer()
            })();
            stop.store(true, Ordering::Relaxed);
            result
        })?;
        arrived += scene.harvest()?.len();
        anyhow::ensure!(arrived == sent, "{arrived} of {sent} frames between the kicks arrived");
        Ok(attacker)
    })?;
    scene.finish()
}

/// Sizes, addresses and switches that change without end, of rings that run and of rings that do not.
fn settings_without_end(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("1,000 sizes for a running ring", Trace::Reason("runs"), |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        for round in 0..1000_u32 {
            let size = 1 << (round % 16);
            let status = attacker.raw.ack(Request::SET_VRING_NUM, &words([1_u32, size]), &[])?;
            anyhow::ensure!(status != 0, "a running ring became {size} descriptors long");
        }
        scene.newcomer()?;
        // The last of them without asking for an answer: the connection is over.
        attacker.raw.send(Request::SET_VRING_NUM, 0, &words([1_u32, 64]), &[])?;
        attacker.raw.closed()?;
        Ok(attacker)
    })?;
    scene.attack("a ring that stops and starts under load", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let len = attacker.write_frame(Attacker::BUFFERS, FRIEND, EVIL, 100);
        attacker.describe(Side::Tx, 0, attacker.guest(Attacker::BUFFERS), len, 0, 0);
        for round in 0..200 {
            for _ in 0..8 {
                attacker.offer(Side::Tx, 0);
            }
            attacker.kick(Side::Tx)?;
            attacker.stop(Side::Tx)?;
            attacker.run(Side::Tx)?;
            if round % 20 == 0 {
                scene.harvest_now()?;
            }
        }
        scene.harvest()?;
        Ok(attacker)
    })?;
    scene.attack("interrupts asked for at any index", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let parts = attacker.parts(Side::Rx);
        // used_event behind a split ring's avail ring, and its flags; the driver's area of a packed ring.
        let place = match layout {
            Layout::Split => parts.avail_at(0) + 2 * usize::from(Attacker::RING),
            Layout::Packed => parts.avail + 2,
        };
        for event in (0..=u16::MAX).step_by(997) {
            attacker.memory.store_u16(place, event);
            attacker.memory.store_u16(parts.avail, event);
            scene.befriend(1)?;
        }
        scene.harvest_now()?;
        Ok(attacker)
    })?;
    let trace = Trace::Reason("left unread");
    scene.attack("settings whose acknowledgements are never read", trace, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        attacker.raw.stream().set_nonblocking(true)?;
        let before = scene.resident()?;
        let mut sent = 0_u32;
        // Until the switch listens no more, and then until it has had enough.
        let full = |error| matches!(error, Errno::AGAIN);
        let gone = |error| matches!(error, Errno::PIPE | Errno::CONNRESET);
        let mut switch = || {
            let mut message = words([Request::SET_VRING_ENABLE.0, 1 | NEED_REPLY, 8]);
            message.extend(words([1, sent % 2]));
            sent += 1;
            rustix::io::write(attacker.raw.stream(), &message)
        };
        while switch().is_ok() {}
        scene.newcomer()?;
        anyhow::ensure!(scene.info()?.name == "evil", "the API answers meanwhile");
        wait::until("the switch to end the connection", Duration::from_secs(30), || {
            loop {
                match switch() {
                    Ok(_) => {}
                    Err(error) if full(error) => return false,
                    Err(error) => return gone(error),
                }
            }
        })?;
        let grown = scene.resident()?.saturating_sub(before);
        anyhow::ensure!(grown < 8 << 10, "{sent} settings made the switch grow by {grown} KiB");
        Ok(attacker)
    })?;
    scene.finish()
}
