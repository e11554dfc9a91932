//! The hot functions, called so often with so many frames that callgrind can count their instructions: `cargo xtask guard`
//! compares those with `datapath/hot-path.limits`. Counts do not depend on the machine's mood.
//!
//! Only what runs inside [`measured`] is collected. Drivers write the rings with system calls in between.

mod driver;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use datapath::hot_path::HotPath;
use datapath::{BridgeSpec, Config, Datapath, PortIo, PortSpec, VhostSocket};
use switch::{Bridge, BridgeConfig, Fdb, PortConfig, PortIndex, Role, Seconds, Verdict, VlanMode};
use uuid::Uuid;
use virtio_ring::{ChainBuf, Direction, Limit, Ring};
use wire::MacAddr;

use driver::{BURST, Guest, Kind};

/// Bursts that are measured. `xtask` divides by these and by [`BURST`].
const ROUNDS: usize = 500;

/// What callgrind's `--toggle-collect` names.
#[inline(never)]
fn measured(mut work: impl FnMut()) {
    work();
}

fn main() -> anyhow::Result<()> {
    let scenario = std::env::args().nth(1).context("which scenario?")?;
    match scenario.as_str() {
        "ring-split" => ring(Kind::Split)?,
        "ring-packed" => ring(Kind::Packed)?,
        "decide" => decide()?,
        "burst-split" => burst(Kind::Split, 64)?,
        "burst-packed" => burst(Kind::Packed, 64)?,
        "burst-split-1518" => burst(Kind::Split, 1518)?,
        _ => bail!("no scenario is called {scenario}"),
    }
    println!("{}", ROUNDS * BURST);
    Ok(())
}

/// Chains taken, completed and published, without a look at their bytes.
fn ring(kind: Kind) -> anyhow::Result<()> {
    let mut guest = Guest::new(kind, 64)?;
    let memory = guest.map()?;
    let mut ring = Ring::new(&memory, &guest.config(driver::TX), None)?;
    let mut buf = ChainBuf::new();
    let limit = Limit { chains: BURST, bytes: u64::MAX };
    for _ in 0..ROUNDS {
        guest.offer(driver::TX)?;
        let mut taken = Ok(0);
        measured(|| {
            taken = ring.gather(&memory, Direction::Readable, limit, &mut buf).map(|chains| {
                for chain in chains.as_slice() {
                    ring.complete(chain.head, 0);
                }
                chains.len()
            });
            black_box(ring.publish());
        });
        ensure!(taken? == BURST, "a burst was not whole");
    }
    Ok(())
}

/// The switch's decision for known stations.
fn decide() -> anyhow::Result<()> {
    let fdb = Arc::new(Fdb::new(Fdb::DEFAULT_MAX_ENTRIES));
    let ports = [0, 1].map(|index| (PortIndex(index), PortConfig::new(Role::Guest)));
    let bridge = Bridge::new(BridgeConfig::default(), &ports, fdb);
    let frames = [driver::frame(64, 0), driver::frame(64, 1)];
    for (ingress, frame) in (0..).zip(&frames) {
        bridge.decide(PortIndex(ingress), frame, Seconds(1));
    }
    let mut forwarded = 0;
    for _ in 0..ROUNDS {
        measured(|| {
            for _ in 0..BURST {
                let decision = bridge.decide(PortIndex(0), black_box(&frames[0]), Seconds(1));
                forwarded += usize::from(matches!(decision.verdict, Verdict::Unicast(_)));
            }
        });
    }
    ensure!(forwarded == ROUNDS * BURST, "a known station was not found");
    Ok(())
}

/// A worker's whole burst from one guest to another.
fn burst(kind: Kind, bytes: usize) -> anyhow::Result<()> {
    let (datapath, _events) =
        Datapath::start(Config { spin: Duration::ZERO, ..Config::default() })?;
    let bridge = Uuid::new_v4();
    datapath.add_bridge(bridge, "guard", BridgeSpec::default())?;
    let mut ports = Vec::new();
    let mut guests = Vec::new();
    for side in 0..2_u8 {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let id = Uuid::new_v4();
        datapath.add_port(PortSpec {
            id,
            name: format!("port{side}"),
            bridge,
            mac: MacAddr::ZERO,
            role: Role::Guest,
            vlan: VlanMode::transparent(),
            isolated: false,
            mtu: 1500,
            io: PortIo::VhostUser { socket: VhostSocket::Connected(ours), queue_pairs: 1 },
        })?;
        let mut guest = Guest::new(kind, bytes)?;
        guest.fill(side)?;
        guest.attach(theirs)?;
        ports.push(id);
        guests.push(guest);
    }
    for guest in &guests {
        // From then on it waits for a kick, which never comes.
        guest.wait_armed()?;
    }
    let mut path = HotPath::new(&datapath);
    let mut done = 0;
    for round in 0..ROUNDS + 2 {
        // The first two bursts tell the switch where both stations are.
        let from = usize::from(round == 0);
        guests[from].offer(driver::TX)?;
        guests[1 - from].offer(driver::RX)?;
        let mut taken = 0;
        if round < 2 {
            taken += path.burst(ports[from]);
        } else {
            measured(|| taken += path.burst(ports[from]));
            done += taken;
        }
        ensure!(taken == BURST, "burst {round} had {taken} frames of {BURST}");
        ensure!(guests[from].is_used(driver::TX)?, "burst {round} was not given back");
        ensure!(guests[1 - from].is_used(driver::RX)?, "burst {round} did not arrive");
    }
    ensure!(done == ROUNDS * BURST, "{done} frames");
    datapath.stop();
    Ok(())
}
