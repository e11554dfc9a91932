//! A Linux guest whose driver says over the control queue which frames it wants: its own kernel sets modes, addresses
//! and VLANs, as it does on any card.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::frontend::{Nic, Options};
use netns_tests::guest::{Guest, Namespace, Uml};
use netns_tests::{Lab, wait};
use wire::MacAddr;

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.9.0.1' netmask='255.255.255.0'/></network>";
const LIMIT: Duration = Duration::from_secs(10);
const SENDER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 9, 9]);
const GROUP: MacAddr = MacAddr([1, 0, 0x5e, 0, 9, 9]);

/// Frames for a stranger and for a group, and their bytes: more than everything else that is sent meanwhile.
const FRAMES: u64 = 40;
const LEN: usize = 1400;
const BYTES: u64 = FRAMES * LEN as u64;

struct World {
    lab: Lab,
    linux: Uml,
    sender: Nic,
}

impl World {
    fn socket(lab: &Lab, name: &str) -> anyhow::Result<PathBuf> {
        lab.daemon.port("lan", name, &[])?.socket.context("a vhost-user port without a socket")
    }

    fn new() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        lab.daemon.network("lan", NETWORK)?;
        let linux = Uml::start("linux", &[&Self::socket(&lab, "linux")?])?;
        let sender = Nic::connect(&Self::socket(&lab, "sender")?, Options::new(SENDER))?;
        Ok(Self { lab, linux, sender })
    }

    fn namespace(
        &self,
        name: &str,
        addresses: &[&str],
        more: &[&str],
    ) -> anyhow::Result<Namespace> {
        let mut guest = Namespace::on(&self.lab.daemon, "lan", name, more)?;
        up(&mut guest, "eth0", addresses)?;
        Ok(guest)
    }

    fn filtered(&self) -> anyhow::Result<u64> {
        let stats: api::PortStats = self.lab.daemon.json(&["port-stats", "linux"])?;
        Ok(stats.drops.get("rx-filtered").copied().unwrap_or_default())
    }

    fn received(&mut self) -> anyhow::Result<u64> {
        Ok(self.linux.run("cat /sys/class/net/eth0/statistics/rx_bytes")?.trim().parse()?)
    }

    /// Sends what is flooded and nobody asked for. Whether the guest has got it; else it was filtered.
    fn is_flooded(&mut self) -> anyhow::Result<bool> {
        let before = (self.filtered()?, self.received()?);
        for n in 0..FRAMES {
            let to = if n % 2 == 0 { STRANGER } else { GROUP };
            let mut frame = [&to.0[..], &SENDER.0, &[0x88, 0xb5]].concat();
            frame.resize(LEN, 0);
            self.sender.send(&frame, Instant::now() + LIMIT)?;
        }
        let (filtered, received) = wait::some("all frames to go one way", LIMIT, || {
            let filtered = self.filtered().ok()? - before.0;
            let received = self.received().ok()? - before.1;
            (received >= BYTES || filtered >= FRAMES).then_some((filtered, received))
        })?;
        let came = received >= BYTES;
        let both = if came { filtered >= FRAMES } else { received >= BYTES / 2 };
        ensure!(!both, "{received} bytes came, {filtered} frames filtered");
        Ok(came)
    }
}

fn up(guest: &mut dyn Guest, interface: &str, addresses: &[&str]) -> anyhow::Result<()> {
    let accept_dad = format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad");
    guest.run(&format!("echo 0 > {accept_dad}; ip link set {interface} up"))?;
    for address in addresses {
        guest.run(&format!("ip addr add {address} dev {interface}"))?;
    }
    Ok(())
}

/// Asks everybody, and the guest answers: over broadcast and over the multicast group of its address.
fn finds(peer: &mut Namespace) -> anyhow::Result<()> {
    for target in ["10.9.0.10", "fd00:9::10"] {
        peer.run("ip neigh flush dev eth0")?;
        peer.ping(target)?;
    }
    Ok(())
}

#[test]
fn a_linux_guest_gets_what_it_asks_for_and_nothing_else() -> anyhow::Result<()> {
    let mut world = World::new()?;
    up(&mut world.linux, "eth0", &["10.9.0.10/24", "fd00:9::10/64"])?;
    let mut peer = world.namespace("peer", &["10.9.0.11/24", "fd00:9::11/64"], &[])?;
    let mut tagged = world.namespace("tagged", &["10.9.7.11/24"], &["--vlan", "7"])?;
    finds(&mut peer)?;
    ensure!(!world.is_flooded()?, "what nobody asked for came");

    // A bridge in the guest wants everything.
    world
        .linux
        .run("ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0")?;
    ensure!(world.is_flooded()?, "a bridge does not get what is flooded");
    world.linux.run("ip link set eth0 nomaster; ip link del br0")?;
    ensure!(!world.is_flooded()?, "what nobody asked for came after the bridge");
    finds(&mut peer)?;

    // A VLAN that the guest does not have is not for it.
    let before = world.filtered()?;
    ensure!(!tagged.reaches("10.9.7.10".parse()?)?, "nobody has this address");
    wait::until("a request in another VLAN to be filtered", LIMIT, || {
        world.filtered().is_ok_and(|filtered| filtered > before)
    })?;
    world.linux.run("ip link add link eth0 name eth0.7 type vlan id 7")?;
    up(&mut world.linux, "eth0.7", &["10.9.7.10/24"])?;
    tagged.ping("10.9.7.10")?;

    // Another daemon knows what the guest does not say again.
    world.lab.daemon.take_over()?;
    ensure!(!world.is_flooded()?, "a hand-over forgot what the driver wants");
    finds(&mut peer)?;
    tagged.run("ip neigh flush dev eth0")?;
    tagged.ping("10.9.7.10")
}
