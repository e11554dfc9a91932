//! Memory tables that lie, and files that shrink.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use netns_tests::frontend::GUEST_BASE;
use netns_tests::frontend::hostile::{Attacker, INDIRECT, Layout, NEXT, Side, WRITE, table};
use rustix::fs::{MemfdFlags, OFlags, ftruncate, memfd_create};
use vhost_user::Request;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

on_both_layouts! { files_that_shrink memory_replaced_while_frames_move }

const MIB: u64 = 1 << 20;
const USER: u64 = 0x7000_0000_0000;

/// Sends a table and lets the backend close the connection.
fn send_table(socket: &Path, regions: &[[u64; 4]], fds: &[OwnedFd]) -> anyhow::Result<Attacker> {
    let attacker = Attacker::connect(socket, Layout::Split)?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    attacker.raw.send(Request::SET_MEM_TABLE, 0, &table(regions), &fds)?;
    attacker.raw.closed()?;
    Ok(attacker)
}

fn memfd(len: u64) -> anyhow::Result<OwnedFd> {
    let fd = memfd_create("evil", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, len)?;
    Ok(fd)
}

#[test]
fn memory_tables_that_lie() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let good = [0, MIB, USER, 0];
    for (name, second, said) in [
        ("regions that overlap for the guest", [MIB / 2, MIB, USER + 2 * MIB, 0], "overlap"),
        ("regions that overlap for the frontend", [MIB, MIB, USER + MIB / 2, 0], "overlap"),
        ("an empty region", [MIB, 0, USER + MIB, 0], "empty"),
        ("a region around the end of addresses", [u64::MAX - 4095, MIB, USER + MIB, 0], "overflow"),
        ("an offset around the end of files", [MIB, MIB, USER + MIB, u64::MAX - 4095], "overflow"),
        ("a region beyond its file", [MIB, 2 * MIB, USER + MIB, 0], "needs"),
        ("an offset beyond its file", [MIB, MIB, USER + MIB, MIB], "needs"),
    ] {
        scene.attack(name, Trace::Reason(said), |_, socket| {
            send_table(socket, &[good, second], &[memfd(MIB)?, memfd(MIB)?])
        })?;
    }
    scene.attack("fewer descriptors than regions", Trace::Reason("descriptors"), |_, socket| {
        send_table(socket, &[good, [MIB, MIB, USER + MIB, 0]], &[memfd(MIB)?])
    })?;

    let disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR"))?;
    disk.set_len(MIB)?;
    let zero = File::options().read(true).write(true).open("/dev/zero")?;
    let (pipe, _end) = rustix::pipe::pipe()?;
    let writable = memfd(MIB)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writable));
    let read_only = rustix::fs::open(path, OFlags::RDONLY, rustix::fs::Mode::empty())?;
    for (name, fd, said) in [
        ("a file on disk", OwnedFd::from(disk), "only memory files"),
        ("a device as memory", zero.into(), "only memory files"),
        ("a pipe as memory", pipe, "region"),
        ("memory that cannot be written", read_only, "region"),
    ] {
        scene.attack(name, Trace::Reason(said), |_, socket| send_table(socket, &[good], &[fd]))?;
    }
    scene.finish()
}

/// Rings in pages that are there, buffers in pages that go away.
const CUT: usize = Attacker::BUFFERS + 4096;

fn files_that_shrink(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let cut = Trace::Quarantined("cut short");
    scene.attack("frames to send in pages that are gone", cut, |_, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        for slot in 0..32 {
            let at = CUT + usize::from(slot) * 4096;
            let len = attacker.write_frame(at, FRIEND, EVIL, 200);
            attacker.describe(Side::Tx, slot, attacker.guest(at), len, 0, 0);
        }
        ftruncate(&*attacker.memory, CUT as u64)?;
        (0..32).for_each(|slot| attacker.offer(Side::Tx, slot));
        attacker.kick(Side::Tx)?;
        Ok(attacker)
    })?;
    scene.attack("only the end of a frame is gone", cut, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let at = CUT - 212;
        attacker.write_frame(at, FRIEND, EVIL, 1400);
        attacker.describe(Side::Tx, 0, attacker.guest(at), 212, NEXT, 1);
        attacker.describe(Side::Tx, 1, attacker.guest(CUT), 1200, 0, 0);
        ftruncate(&*attacker.memory, CUT as u64)?;
        attacker.offer(Side::Tx, 0);
        attacker.kick(Side::Tx)?;
        let frames = scene.harvest()?;
        anyhow::ensure!(frames.is_empty(), "a frame whose end is gone was delivered");
        Ok(attacker)
    })?;
    scene.attack("receive buffers in pages that are gone", cut, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        ftruncate(&*attacker.memory, CUT as u64)?;
        scene.befriend(20)?;
        Ok(attacker)
    })?;
    scene.attack("an indirect table in pages that are gone", cut, |_, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        attacker.describe(Side::Tx, 0, attacker.guest(CUT), 32, INDIRECT, 0);
        ftruncate(&*attacker.memory, CUT as u64)?;
        attacker.offer(Side::Tx, 0);
        attacker.kick(Side::Tx)?;
        Ok(attacker)
    })?;
    scene.attack("the rings themselves are gone", cut, |_, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        ftruncate(&*attacker.memory, 0)?;
        attacker.kick(Side::Tx)?;
        Ok(attacker)
    })?;
    scene.attack("the receive ring is gone and frames come", cut, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        ftruncate(&*attacker.memory, 0)?;
        scene.befriend(20)?;
        Ok(attacker)
    })?;
    scene.finish()
}

/// Legal, but rarely done: the table is replaced while frames move in both directions.
fn memory_replaced_while_frames_move(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("500 memory tables under load", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let at = Attacker::BUFFERS;
        let len = attacker.write_frame(at, FRIEND, EVIL, 200);
        attacker.describe(Side::Tx, 0, attacker.guest(at), len, 0, 0);
        for round in 0..500 {
            for _ in 0..16 {
                attacker.offer(Side::Tx, 0);
            }
            attacker.kick(Side::Tx)?;
            if round % 50 == 0 {
                scene.befriend(5)?;
                // The friend's own buffers must not run out.
                scene.harvest()?;
            }
            anyhow::ensure!(attacker.share(Attacker::MEMORY as u64)? == 0, "a good table refused");
        }
        Ok(attacker)
    })?;
    scene.attack("a region removed from under the rings", Trace::Nothing, |_, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let far = [GUEST_BASE << 2, MIB, attacker.memory.user_addr() + (1 << 40), 0];
        let other = memfd(MIB)?;
        attacker.raw.ack(Request::SET_MEM_TABLE, &table(&[far]), &[other.as_fd()])?;
        attacker.kick(Side::Tx)?;
        Ok(attacker)
    })?;
    scene.attack(
        "buffers outside of a smaller table",
        Trace::Drops(&["guest-memory"]),
        |_, socket| {
            let attacker = Attacker::start(socket, layout, 0)?;
            anyhow::ensure!(attacker.share(Attacker::BUFFERS as u64)? == 0);
            let outside = attacker.guest(Attacker::BUFFERS);
            attacker.describe(Side::Tx, 0, outside, 200, 0, 0);
            attacker.describe(Side::Rx, 0, outside, 2048, WRITE, 0);
            attacker.offer(Side::Rx, 0);
            attacker.offer(Side::Tx, 0);
            attacker.kick(Side::Tx)?;
            Ok(attacker)
        },
    )?;
    scene.finish()
}
