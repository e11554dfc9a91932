//! Dirty logs that lie, shrink or come by the thousand.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::ensure;
use netns_tests::frontend::GUEST_BASE;
use netns_tests::frontend::hostile::{Attacker, Layout, NEED_REPLY, Side, words};
use rustix::fs::{MemfdFlags, OFlags, ftruncate, memfd_create};
use vhost_user::Request;
use vhost_user::features::virtio;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

on_both_layouts! { logs_that_shrink logs_by_the_thousand }

/// Bytes of a log that covers the attacker's memory.
const ENOUGH: u64 = (GUEST_BASE + Attacker::MEMORY as u64).div_ceil(4096 * 8);

fn memfd(len: u64) -> anyhow::Result<OwnedFd> {
    let fd = memfd_create("log", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, len)?;
    Ok(fd)
}

/// SET_LOG_BASE; does not wait for an answer.
fn send_log(attacker: &Attacker, size: u64, offset: u64, fd: &OwnedFd) -> anyhow::Result<()> {
    attacker.raw.send(Request::SET_LOG_BASE, 0, &words([size, offset]), &[fd.as_fd()])
}

/// A good log; it is answered without being asked to.
fn set_log(attacker: &Attacker, fd: &OwnedFd) -> anyhow::Result<()> {
    send_log(attacker, ENOUGH, 0, fd)?;
    ensure!(attacker.raw.reply()?.request == Request::SET_LOG_BASE);
    Ok(())
}

fn log_all(attacker: &Attacker) -> anyhow::Result<u64> {
    attacker.raw.ack(
        Request::SET_FEATURES,
        &words([Attacker::features(attacker.layout()) | virtio::F_LOG_ALL]),
        &[],
    )
}

/// A frame to the friend, from a slot that was not used before.
fn transmit(attacker: &Attacker, slot: u16) -> anyhow::Result<()> {
    let at = Attacker::BUFFERS + usize::from(slot) * 4096;
    let len = attacker.write_frame(at, FRIEND, EVIL, 200);
    attacker.describe(Side::Tx, slot, attacker.guest(at), len, 0, 0);
    attacker.offer(Side::Tx, slot);
    attacker.kick(Side::Tx)
}

#[test]
fn dirty_logs_that_lie() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, size, offset, said) in [
        ("an empty log", 0, 0, "empty"),
        ("a log of all bytes there are", u64::MAX, 0, "too large"),
        ("a log around the end of addresses", ENOUGH, u64::MAX - 4095, "overflows"),
        ("a log around the end of files", ENOUGH, i64::MAX.unsigned_abs(), "overflows"),
        ("a log that does not cover the memory", ENOUGH - 4096, 0, "the guest's memory at"),
        ("a log longer than its file", 2 * ENOUGH, 0, "needs"),
        ("a log beyond its file", ENOUGH, ENOUGH.next_multiple_of(4096), "needs"),
    ] {
        scene.attack(name, Trace::Reason(said), |_, socket| {
            let attacker = Attacker::start(socket, Layout::Split, 64)?;
            send_log(&attacker, size, offset, &memfd(ENOUGH)?)?;
            attacker.raw.closed()?;
            Ok(attacker)
        })?;
    }
    let disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR"))?;
    disk.set_len(ENOUGH)?;
    let zero = File::options().read(true).write(true).open("/dev/zero")?;
    let (pipe, _end) = rustix::pipe::pipe()?;
    let writable = memfd(ENOUGH)?;
    let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
    let read_only = rustix::fs::open(path, OFlags::RDONLY, rustix::fs::Mode::empty())?;
    for (name, fd, said) in [
        ("a log on disk", OwnedFd::from(disk), "only memory files"),
        ("a device as log", zero.into(), "only memory files"),
        ("a pipe as log", pipe, "dirty log"),
        ("a log that cannot be written", read_only, "dirty log"),
    ] {
        scene.attack(name, Trace::Reason(said), |_, socket| {
            let attacker = Attacker::start(socket, Layout::Split, 64)?;
            send_log(&attacker, ENOUGH, 0, &fd)?;
            attacker.raw.closed()?;
            Ok(attacker)
        })?;
    }
    scene.attack("a log without a descriptor", Trace::Reason("descriptors"), |_, socket| {
        let attacker = Attacker::start(socket, Layout::Split, 64)?;
        attacker.raw.send(Request::SET_LOG_BASE, NEED_REPLY, &words([ENOUGH, 0]), &[])?;
        attacker.raw.closed()?;
        Ok(attacker)
    })?;
    scene.finish()
}

#[test]
fn logging_without_a_log() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("logging without a log", Trace::Reason("SET_LOG_BASE"), |_, socket| {
        let attacker = Attacker::start(socket, Layout::Split, 64)?;
        ensure!(log_all(&attacker)? == 1, "accepted");
        Ok(attacker)
    })?;
    scene.attack("rings that start before their log", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::connect(socket, Layout::Split)?;
        ensure!(log_all(&attacker)? == 0, "SET_FEATURES before the rings");
        ensure!(attacker.share(Attacker::MEMORY as u64)? == 0);
        attacker.run(Side::Rx)?;
        attacker.run(Side::Tx)?;
        transmit(&attacker, 0)?;
        scene.befriend(20)?;
        ensure!(scene.harvest()?.is_empty(), "a ring ran without the log that it must write");
        ensure!(attacker.used(Side::Tx) == 0);
        set_log(&attacker, &memfd(ENOUGH)?)?;
        ensure!(scene.harvest()?.len() == 1, "the ring did not start with its log");
        Ok(attacker)
    })?;
    scene.finish()
}

fn logs_that_shrink(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let cut = Trace::Quarantined("the dirty log was cut short");
    scene.attack("a log that is gone when frames come", cut, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let log = memfd(ENOUGH)?;
        set_log(&attacker, &log)?;
        ensure!(log_all(&attacker)? == 0);
        ftruncate(&log, 0)?;
        scene.befriend(20)?;
        Ok(attacker)
    })?;
    scene.attack("a log that is gone when frames are sent", cut, |_, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let log = memfd(ENOUGH)?;
        set_log(&attacker, &log)?;
        ensure!(log_all(&attacker)? == 0);
        ftruncate(&log, 0)?;
        transmit(&attacker, 0)?;
        Ok(attacker)
    })?;
    scene.attack("a log that shrinks and grows while frames move", cut, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let log = memfd(ENOUGH)?;
        set_log(&attacker, &log)?;
        ensure!(log_all(&attacker)? == 0);
        for slot in 0..32 {
            transmit(&attacker, slot)?;
            scene.befriend(1)?;
            scene.harvest_now()?;
            ftruncate(&log, 0)?;
            ftruncate(&log, ENOUGH)?;
        }
        ftruncate(&log, 0)?;
        for slot in 32..64 {
            transmit(&attacker, slot)?;
        }
        Ok(attacker)
    })?;
    scene.finish()
}

fn logs_by_the_thousand(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("3,000 logs while frames move", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let logs = [memfd(ENOUGH)?, memfd(ENOUGH)?];
        for round in 0..3000_u16 {
            set_log(&attacker, &logs[usize::from(round % 2)])?;
            if round == 0 {
                ensure!(log_all(&attacker)? == 0);
            }
            if round % 16 == 0 {
                transmit(&attacker, (round / 16) % Attacker::RING)?;
            }
            if round % 300 == 0 {
                scene.befriend(5)?;
                scene.harvest_now()?;
            }
        }
        Ok(attacker)
    })?;
    scene.attack("logging on and off 3,000 times", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let log = memfd(ENOUGH)?;
        for round in 0..3000_u16 {
            set_log(&attacker, &log)?;
            ensure!(log_all(&attacker)? == 0);
            let off = words([Attacker::features(layout)]);
            ensure!(attacker.raw.ack(Request::SET_FEATURES, &off, &[])? == 0);
            if round % 300 == 0 {
                scene.befriend(5)?;
                scene.harvest_now()?;
            }
        }
        Ok(attacker)
    })?;
    scene.attack("used rings logged outside of everything", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let log = memfd(ENOUGH)?;
        set_log(&attacker, &log)?;
        ensure!(log_all(&attacker)? == 0);
        for (slot, addr) in (0..).zip([u64::MAX, u64::MAX - 2, ENOUGH * 8 * 4096, 1 << 63, 1]) {
            for side in [Side::Rx, Side::Tx] {
                let parts = attacker.parts(side);
                let user = |at: usize| attacker.memory.user_addr() + at as u64;
                let mut payload = words([side as u32, 1]);
                payload.extend(words([
                    user(parts.desc),
                    user(parts.used),
                    user(parts.avail),
                    addr,
                ]));
                ensure!(attacker.raw.ack(Request::SET_VRING_ADDR, &payload, &[])? == 0);
            }
            transmit(&attacker, slot)?;
            scene.befriend(2)?;
        }
        ensure!(scene.harvest()?.len() == 5);
        Ok(attacker)
    })?;
    scene.finish()
}
