//! Round trips of single frames: from the first port to the second and back, on one clock, because one thread has both.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::port::Port;
use super::{BURST, Load, TAKE, attach, learn, next, rate};
use crate::frontend::placement::pin;

/// When the frames are sent.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Silence before each frame, or time between two of them under load.
    pub gap: Duration,
    pub samples: u32,
    /// Share of what the switch can forward that is forwarded at the same time, both directions alike. 0: nothing.
    pub load: f64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub median_ns: f64,
    pub p99_ns: f64,
    pub samples: u32,
    pub lost: u32,
    /// Frames per second that were forwarded at the same time.
    pub load: f64,
}

/// Marks the number of a probe frame.
const MARK: u64 = 1 << 63;
/// After this a probe frame is lost.
const PATIENCE: Duration = Duration::from_millis(50);
/// Time in which the switch's own rate is measured, for the load.
const RATE_SECONDS: f64 = 0.5;

/// Measures round trips between the first two ports of a switch.
///
/// # Errors
/// When a port does not come up, or most probe frames are lost.
pub fn run(sockets: &[PathBuf], load: &Load, probe: &Probe) -> anyhow::Result<Latency> {
    pin(load.cpu)?;
    let mut ports = attach(sockets, load)?;
    let mut number = 0;
    learn(&mut ports, load, &mut number)?;
    let (trips, forwarded) = if probe.load > 0.0 {
        let load = Load { seconds: RATE_SECONDS, ..load.clone() };
        let most = rate::measure(&mut ports, &load, &mut number).frames_per_second;
        let [one, other] = pair(&mut ports)?;
        drain(one, other);
        let each = most * probe.load / 2.0;
        (under_load(one, other, probe, each, &mut number), each * 2.0)
    } else {
        let [one, other] = pair(&mut ports)?;
        drain(one, other);
        (in_silence(one, other, probe), 0.0)
    };
    let mut trips: Vec<Duration> = trips;
    trips.sort();
    let samples = u32::try_from(trips.len())?;
    ensure!(samples * 2 > probe.samples, "only {samples} of {} frames came back", probe.samples);
    let at = |share: usize| trips[(trips.len() - 1) * share / 100].as_secs_f64() * 1e9;
    Ok(Latency {
        median_ns: at(50),
        p99_ns: at(99),
        samples,
        lost: probe.samples - samples,
        load: forwarded,
    })
}

fn pair(ports: &mut [Port]) -> anyhow::Result<[&mut Port; 2]> {
    let [one, other, ..] = ports else { anyhow::bail!("two ports are needed") };
    Ok([one, other])
}

/// Takes what is still on its way.
fn drain(one: &mut Port, other: &mut Port) {
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(20) {
        if one.receive(TAKE, |_| {}).frames + other.receive(TAKE, |_| {}).frames > 0 {
            last = Instant::now();
        }
    }
}

fn in_silence(one: &mut Port, other: &mut Port, probe: &Probe) -> Vec<Duration> {
    let mut trips = Vec::new();
    for number in 0..u64::from(probe.samples) {
        let wait = Instant::now();
        while wait.elapsed() < probe.gap {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        if pass(one, other, MARK | number, start) && pass(other, one, MARK | number, start) {
            trips.push(start.elapsed());
        }
    }
    trips
}

/// One frame from here to there. False when it is lost.
fn pass(here: &mut Port, there: &mut Port, number: u64, start: Instant) -> bool {
    if here.free() == 0 {
        return false;
    }
    here.send(1, || number);
    here.kick_tx();
    loop {
        let mut arrived = false;
        there.receive(TAKE, |seen| arrived |= seen == number);
        if arrived {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
    }
}

fn under_load(
    one: &mut Port,
    other: &mut Port,
    probe: &Probe,
    each: f64,
    number: &mut u64,
) -> Vec<Duration> {
    let mut trips = Vec::new();
    let (start, mut launched, mut turns) = (Instant::now(), Instant::now(), 0_u32);
    let mut sent = [0_u64; 2];
    let mut under_way: Option<u64> = None;
    let mut back: Option<u64> = None;
    while trips.len() < probe.samples as usize && turns < probe.samples * 2 {
        let now = Instant::now();
        let due = now.duration_since(start).as_secs_f64() * each;
        for (port, sent) in [&mut *one, &mut *other].into_iter().zip(&mut sent) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of frames"
            )]
            let behind = (due as u64).saturating_sub(*sent).min(u64::from(BURST));
            let count = u16::try_from(behind).unwrap_or(BURST).min(port.free());
            // A switch that is put aside for a while is not made to catch up.
            *sent += behind;
            if count > 0 {
                port.send(count, || next(number));
                port.kick_tx();
            }
        }
        if under_way.is_none() && now.duration_since(launched) >= probe.gap && one.free() > 0 {
            turns += 1;
            launched = Instant::now();
            under_way = Some(MARK | u64::from(turns));
            one.send(1, || MARK | u64::from(turns));
            one.kick_tx();
        }
        other.receive(TAKE, |seen| {
            if Some(seen) == under_way {
                back = Some(seen);
            }
        });
        if let Some(mark) = back
            && other.free() > 0
        {
            other.send(1, || mark);
            other.kick_tx();
            back = None;
        }
        let mut returned = false;
        one.receive(TAKE, |seen| returned |= Some(seen) == under_way);
        if returned {
            trips.push(launched.elapsed());
            under_way = None;
        } else if under_way.is_some() && launched.elapsed() > PATIENCE {
            under_way = None;
        }
    }
    trips
}
