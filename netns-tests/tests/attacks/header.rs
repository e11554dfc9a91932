//! Headers that lie, and headers that change while they are read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_tests::frontend::hostile::{Attacker, Side};
use wire::MacAddr;
use wire::virtio_net::{
    F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_LEN, VirtioNetHdr,
};
use zerocopy::IntoBytes;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

const AT: usize = Attacker::BUFFERS;
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const LIE: Trace = Trace::Drops(&["bad-offload", "malformed"]);

fn header(flags: u8, gso_type: u8, numbers: [u16; 4]) -> VirtioNetHdr {
    let [hdr_len, gso_size, csum_start, csum_offset] = numbers.map(Into::into);
    VirtioNetHdr {
        flags,
        gso_type,
        hdr_len,
        gso_size,
        csum_start,
        csum_offset,
        num_buffers: 0.into(),
    }
}

/// None of this was negotiated, and most of it could not be done anyway.
#[test]
fn headers_that_lie() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (name, header) in [
        ("a checksum that was not negotiated", header(F_NEEDS_CSUM, 0, [0, 0, 34, 6])),
        ("a checksum behind the frame", header(F_NEEDS_CSUM, 0, [0, 0, 60_000, 60_000])),
        ("a checksum at the frame's last byte", header(F_NEEDS_CSUM, 0, [0, 0, 199, 0])),
        ("a checksum whose place overflows", header(F_NEEDS_CSUM, 0, [0, 0, 65535, 65535])),
        ("TCP segments of 0 bytes", header(F_NEEDS_CSUM, GSO_TCPV4, [54, 0, 34, 16])),
        ("segments of what is not TCP", header(F_NEEDS_CSUM, GSO_TCPV4, [54, 100, 34, 16])),
        ("segments without a checksum", header(0, GSO_TCPV6, [74, 100, 0, 0])),
        ("fragments of UDP", header(F_NEEDS_CSUM, GSO_UDP, [42, 8, 34, 6])),
        ("UDP segments", header(F_NEEDS_CSUM, GSO_UDP_L4, [42, 8, 34, 6])),
        ("an unknown segmentation", header(0, 0x7f, [0, 100, 0, 0])),
    ] {
        scene.attack(name, LIE, |scene, socket| {
            let attacker = Attacker::start(socket, 64)?;
            let len = attacker.write_frame(AT, FRIEND, EVIL, 200);
            attacker.memory.write(AT, header.as_bytes());
            attacker.describe(Side::Tx, 0, attacker.guest(AT), len, 0, 0);
            attacker.offer(Side::Tx, 0);
            attacker.kick(Side::Tx)?;
            let frames = scene.harvest()?;
            anyhow::ensure!(frames.is_empty(), "it was delivered");
            Ok(attacker)
        })?;
    }
    scene.finish()
}

/// One thread sends without pause while another swaps the destination, the virtio header and the
/// descriptor. Whatever is delivered is what was checked: to the friend only what is for the friend.
#[test]
fn headers_that_change_while_they_are_read() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("swapped bytes", LIE, |scene, socket| {
        let attacker = Attacker::start(socket, 64)?;
        let len = attacker.write_frame(AT, FRIEND, EVIL, 200);
        for slot in 0..Attacker::RING {
            attacker.describe(Side::Tx, slot, attacker.guest(AT), len, 0, 0);
        }
        let stop = AtomicBool::new(false);
        let end = Instant::now() + Duration::from_secs(3);
        let delivered = std::thread::scope(|scope| {
            scope.spawn(|| swap(&attacker, len, &stop));
            let delivered = send_until(&attacker, scene, end);
            stop.store(true, Ordering::Relaxed);
            delivered
        })?;
        let foreign = delivered.iter().find(|frame| frame[..6] != FRIEND.0);
        anyhow::ensure!(foreign.is_none(), "delivered to the wrong guest: {foreign:02x?}");
        let torn = delivered.iter().find(|frame| frame[12..14] != [0x88, 0xb6]);
        anyhow::ensure!(torn.is_none(), "a header of two halves: {torn:02x?}");
        anyhow::ensure!(!delivered.is_empty(), "no frame came through at all");
        Ok(attacker)
    })?;
    scene.finish()
}

/// Swaps until told to stop.
fn swap(attacker: &Attacker, len: u32, stop: &AtomicBool) {
    let good = VirtioNetHdr::default();
    let bad = header(F_NEEDS_CSUM, GSO_TCPV4, [65535, 1, 65535, 65535]);
    let layout = attacker.layout(Side::Tx);
    let memory = &attacker.memory;
    let [good_to, bad_to] = [FRIEND, OTHER].map(|to| {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&to.0);
        bytes[6..].copy_from_slice(&EVIL.0[..2]);
        u64::from_ne_bytes(bytes)
    });
    while !stop.load(Ordering::Relaxed) {
        for (header, to, len) in [(bad, bad_to, u32::MAX), (good, good_to, len)] {
            memory.write(AT, header.as_bytes());
            // The frame begins 4 bytes after a multiple of 8: two halves, as a hostile guest would.
            memory.write(AT + HDR_LEN, &to.to_ne_bytes());
            for slot in [3, 7] {
                memory.write(layout.desc_at(slot) + 8, &len.to_le_bytes());
            }
        }
    }
}

/// Keeps the ring full and collects what reaches the friend.
fn send_until(
    attacker: &Attacker,
    scene: &mut Scene,
    end: Instant,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut offered = 0_u16;
    let mut delivered = Vec::new();
    while Instant::now() < end {
        let free = Attacker::RING - offered.wrapping_sub(attacker.used(Side::Tx));
        for _ in 0..free.min(32) {
            attacker.offer(Side::Tx, offered % Attacker::RING);
            offered = offered.wrapping_add(1);
        }
        attacker.kick(Side::Tx)?;
        while let Some(received) = scene.friend.try_receive()? {
            if received.frame.get(6..12) == Some(&EVIL.0) {
                delivered.push(received.frame);
            }
        }
    }
    delivered.extend(scene.harvest()?);
    Ok(delivered)
}
