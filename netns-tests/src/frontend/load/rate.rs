//! As many frames as the switch takes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use wire::virtio_net::HDR_LEN;

use super::port::{Came, Port};
use super::{BURST, Load, Pattern, TAKE, attach, learn, next};
use crate::frontend::placement::pin;

/// What was measured, all ports together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// Frames received per second.
    pub frames_per_second: f64,
    /// Bits of those, from the Ethernet header on.
    pub bits_per_second: f64,
    pub sent: u64,
    pub received: u64,
    /// Share of all rounds in which nothing could be sent and nothing came: the switch was the slower.
    pub idle: f64,
}

/// Runs the load between the ports of a switch.
///
/// # Errors
/// When a port does not come up, no frame gets through, or frames do not arrive whole.
pub fn run(sockets: &[PathBuf], load: &Load) -> anyhow::Result<Rate> {
    pin(load.cpu)?;
    ensure!(sockets.len().is_multiple_of(2), "ports come in pairs");
    let mut ports = attach(sockets, load)?;
    let mut number = 0;
    learn(&mut ports, load, &mut number)?;
    if load.addresses > 0 {
        super::frames::announce(&mut ports, load.addresses)?;
        learn(&mut ports, load, &mut number)?;
    }
    let rate = measure(&mut ports, load, &mut number);
    ensure!(rate.received > 0, "no frame came through");
    Ok(rate)
}

/// The loop itself, from the time when it has been warm for long enough.
pub(super) fn measure(ports: &mut [Port], load: &Load, number: &mut u64) -> Rate {
    // Silent ports are not looked at: their rings would be what is measured.
    let active = if load.pattern == Pattern::Busy { 2 } else { ports.len() };
    let ports = &mut ports[..active];
    let mut total = Came::default();
    let (mut sent, mut idle, mut rounds) = (0_u64, 0_u64, 0_u64);
    let mut start = Instant::now();
    let mut warm = false;
    let looks = (2048 / ports.len()).max(8);
    loop {
        for _ in 0..looks {
            let mut moved = 0;
            for (at, port) in ports.iter_mut().enumerate() {
                if load.sends(at) {
                    // In eights, so that whole cache lines of the ring are not shared.
                    let free = port.free().min(BURST) & !7;
                    if free > 0 {
                        port.send(free, || next(number));
                        moved += u64::from(free);
                    }
                }
            }
            sent += moved;
            for port in ports.iter_mut() {
                let came = port.receive(TAKE, |_| {});
                moved += came.frames;
                total.frames += came.frames;
                total.bytes += came.bytes;
                total.sum = total.sum.wrapping_add(came.sum);
            }
            rounds += 1;
            idle += u64::from(moved == 0);
            if rounds.is_multiple_of(64) {
                ports.iter().for_each(Port::kick);
            }
        }
        let elapsed = start.elapsed();
        if !warm && elapsed >= load.warm_up {
            warm = true;
            total = Came::default();
            (sent, idle, rounds) = (0, 0, 0);
            start = Instant::now();
        } else if warm && elapsed.as_secs_f64() >= load.seconds {
            break;
        }
    }
    let elapsed: Duration = start.elapsed();
    std::hint::black_box(total.sum);
    let payload = total.bytes.saturating_sub(total.frames * HDR_LEN as u64);
    #[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
    Rate {
        frames_per_second: total.frames as f64 / elapsed.as_secs_f64(),
        bits_per_second: payload as f64 * 8.0 / elapsed.as_secs_f64(),
        sent,
        received: total.frames,
        idle: idle as f64 / rounds as f64,
    }
}
