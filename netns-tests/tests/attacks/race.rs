//! A guest that sends while another thread of it changes what it sends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_tests::frontend::hostile::{Attacker, Side};

use crate::scene::{EVIL, FRIEND, Scene};

/// Offers the sending ring's chains without pause while `change` runs again and again. Returns what reached the friend:
/// only what is for the friend, and with the Ethertype that was sent.
pub(crate) fn race(
    attacker: &Attacker,
    scene: &mut Scene,
    time: Duration,
    change: impl Fn() + Sync,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let stop = AtomicBool::new(false);
    let end = Instant::now() + time;
    let delivered = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                change();
            }
        });
        let delivered = send_until(attacker, scene, end);
        stop.store(true, Ordering::Relaxed);
        delivered
    })?;
    let foreign = delivered.iter().find(|frame| frame[..6] != FRIEND.0);
    anyhow::ensure!(foreign.is_none(), "delivered to the wrong guest: {foreign:02x?}");
    let torn = delivered.iter().find(|frame| frame[12..14] != [0x88, 0xb6]);
    anyhow::ensure!(torn.is_none(), "a header of two halves: {torn:02x?}");
    Ok(delivered)
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
