//! Load for measuring a vhost-user switch: any number of ports, one thread, as little work as possible.
//!
//! Frames are written once: each slot of a sending ring keeps its frame, each slot of a receiving ring its buffer. A frame costs one
//! cache line written when it is sent and one read when it arrives, so that the switch and not this program is what is
//! measured. It is a closed loop: a slot is sent again as soon as the switch has given it back.
//!
//! Sent slots are reused in order, without a look at which descriptors came back: all known network
//! backends give them back in order, and one that does not only sends a number twice.

mod buffers;
mod frames;
pub mod latency;
mod packed;
mod port;
mod rate;
mod split;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use frames::{Frame, MSS, TCP_HEADERS};
use port::{Port, Shape};
pub use rate::{Rate, run};

/// Frames of a burst, and the most that one look at a receiving ring takes.
const BURST: u16 = 32;
const TAKE: u16 = 64;
/// Bytes of a frame that stands for segments: 45 of them.
pub const TSO_BYTES: usize = TCP_HEADERS + 45 * MSS as usize;

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// The first and second port to each other, the third and fourth, and so on.
    Pairs,
    /// As pairs, but only the first of each sends.
    OneWay,
    /// Every port to every other one in turn.
    AllToAll,
    /// The first two ports to each other; the others are attached and silent.
    Busy,
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    pub pattern: Pattern,
    /// Bytes of each frame without FCS; 60 to 1,518. Ignored with `tso`.
    pub bytes: usize,
    /// MAC and IP address pairs, 1 to 1,024.
    pub flows: u16,
    /// Addresses that each silent port makes known beforehand.
    pub addresses: u32,
    pub packed: bool,
    pub mergeable: bool,
    /// Frames of 64 KiB to be segmented; implies `mergeable`.
    pub tso: bool,
    /// The switch connects to the sockets, which the generator makes.
    pub listen: bool,
    pub warm_up: Duration,
    pub seconds: f64,
    /// CPU of the generator.
    pub cpu: usize,
}

impl Load {
    fn frame_bytes(&self) -> usize {
        if self.tso { TSO_BYTES } else { self.bytes }
    }

    fn sends(&self, port: usize) -> bool {
        match self.pattern {
            Pattern::Pairs | Pattern::AllToAll => true,
            Pattern::OneWay => port.is_multiple_of(2),
            Pattern::Busy => port < 2,
        }
    }

    /// What the slots of a port hold, in turn.
    fn frames(&self, port: usize, ports: usize) -> anyhow::Result<Vec<Frame>> {
        let from = u8::try_from(port)?;
        if self.pattern == Pattern::AllToAll {
            let others = (0..ports).filter(|other| *other != port);
            return others.map(|to| Ok(Frame { flow: 0, from, to: u8::try_from(to)? })).collect();
        }
        if self.pattern == Pattern::Busy && port >= 2 {
            return Ok(vec![Frame { flow: 0, from, to: 0 }]);
        }
        Ok((0..self.flows).map(|flow| Frame { flow, from, to: from ^ 1 }).collect())
    }
}

/// Attaches all ports.
fn attach(sockets: &[PathBuf], load: &Load) -> anyhow::Result<Vec<Port>> {
    let count = sockets.len();
    ensure!((1..=256).contains(&count), "1 to 256 ports");
    ensure!((60..=1518).contains(&load.bytes), "frames of 60 to 1518 bytes");
    ensure!((1..=1024).contains(&load.flows), "1 to 1024 flows");
    let shape = Shape {
        ring: 1024,
        packed: load.packed,
        mergeable: load.mergeable || load.tso,
        tso: load.tso,
        bytes: load.frame_bytes(),
        listen: load.listen,
    };
    let attach = |(at, socket): (usize, &PathBuf)| {
        let frames = load.frames(at, count)?;
        // Many ports have small rings, or their memory would be what is measured.
        let alone = count == 2 || load.pattern == Pattern::Busy && at < 2;
        let shape = Shape { ring: if alone { 1024 } else { 256 }, ..shape };
        Port::new(socket, shape, &frames).with_context(|| format!("port {}", socket.display()))
    };
    sockets.iter().enumerate().map(attach).collect()
}

/// Ports that neither send nor receive. Only to be held.
pub struct Silent(Vec<Port>);

impl std::fmt::Debug for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Silent({} ports)", self.0.len())
    }
}

/// Attaches ports and lets the switch learn their stations, then sends nothing more.
///
/// # Errors
/// When a port does not come up.
pub fn attach_silent(sockets: &[PathBuf], load: &Load) -> anyhow::Result<Silent> {
    let ports = attach(sockets, load)?;
    ports.iter().for_each(Port::kick);
    Ok(Silent(ports))
}

/// Lets the switch learn where the stations are: until each port has received some rings of frames.
fn learn(ports: &mut [Port], load: &Load, number: &mut u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut arrived = vec![0_u64; ports.len()];
    let busy = |port: usize| load.pattern != Pattern::Busy || port < 2;
    let wanted = if ports.len() > 2 || load.tso { 512 } else { 3 * 1024 };
    while arrived.iter().enumerate().any(|(port, count)| busy(port) && *count < wanted) {
        ensure!(
            Instant::now() < deadline,
            "frames do not get through: {arrived:?} arrived of {wanted} at each port"
        );
        for (at, (port, count)) in ports.iter_mut().zip(&mut arrived).enumerate() {
            if busy(at) {
                let free = port.free().min(BURST);
                port.send(free, || next(number));
            }
            port.kick();
            *count += port.receive(TAKE, |_| {}).frames;
        }
        std::thread::yield_now();
    }
    Ok(())
}

#[inline]
fn next(number: &mut u64) -> u64 {
    *number += 1;
    *number
}
