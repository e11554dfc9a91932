//! Headers that lie, and headers that change while they are read.

use std::time::Duration;

use netns_tests::frontend::hostile::{Attacker, Layout, Side};
use wire::MacAddr;
use wire::virtio_net::{
    F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_LEN, VirtioNetHdr,
};
use zerocopy::IntoBytes;

use crate::race::race;
use crate::scene::{EVIL, FRIEND, Scene, Trace};

on_both_layouts! { headers_that_change_while_they_are_read }

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
            let attacker = Attacker::start(socket, Layout::Split, 64)?;
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
fn headers_that_change_while_they_are_read(layout: Layout) -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("swapped bytes", LIE, |scene, socket| {
        let attacker = Attacker::start(socket, layout, 64)?;
        let len = attacker.write_frame(AT, FRIEND, EVIL, 200);
        for slot in 0..Attacker::RING {
            attacker.describe(Side::Tx, slot, attacker.guest(AT), len, 0, 0);
        }
        let delivered = race(&attacker, scene, Duration::from_secs(3), || swap(&attacker, len))?;
        anyhow::ensure!(!delivered.is_empty(), "no frame came through at all");
        Ok(attacker)
    })?;
    scene.finish()
}

/// Swaps once, and back.
fn swap(attacker: &Attacker, len: u32) {
    let good = VirtioNetHdr::default();
    let bad = header(F_NEEDS_CSUM, GSO_TCPV4, [65535, 1, 65535, 65535]);
    let parts = attacker.parts(Side::Tx);
    let memory = &attacker.memory;
    let [good_to, bad_to] = [FRIEND, OTHER].map(|to| {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&to.0);
        bytes[6..].copy_from_slice(&EVIL.0[..2]);
        u64::from_ne_bytes(bytes)
    });
    for (header, to, len) in [(bad, bad_to, u32::MAX), (good, good_to, len)] {
        memory.write(AT, header.as_bytes());
        // The frame begins 4 bytes after a multiple of 8: two halves, as a hostile guest would.
        memory.write(AT + HDR_LEN, &to.to_ne_bytes());
        for slot in [3, 7] {
            memory.write(parts.desc_at(slot) + 8, &len.to_le_bytes());
        }
    }
}
