//! A QEMU guest whose driver has packed rings (`packed=on`): it goes on after a hand-over, and after SIGKILL of the daemon.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::guest::{Guest, Namespace, Qemu, qemu::Nic};
use netns_tests::pinger::Pinger;
use netns_tests::streams::Streams;
use netns_tests::{Daemon, Lab, wait};
use wire::MacAddr;

const NETWORK: &str = "<network>
  <name>lan</name>
  <bridge name='lan0'/>
  <ip address='10.7.0.1' netmask='255.255.0.0'>
    <dhcp><range start='10.7.1.1' end='10.7.100.250'/></dhcp>
  </ip>
</network>";

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 7, 7, 7]);
/// More than the rings have descriptors (256).
const ENOUGH: u64 = 600;
const INTERVAL: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(60);

/// Where the guest's card is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Port,
    Hub,
}

struct World {
    lab: Lab,
    deb: Qemu,
    /// The guest's port.
    port: String,
    ns: Namespace,
    /// The guest's, and the namespace's.
    addresses: [Ipv4Addr; 2],
}

impl World {
    fn new(socket: Socket) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        lab.daemon.network("lan", NETWORK)?;
        let (socket, mac) = match socket {
            Socket::Port => {
                let port = lab.daemon.port("lan", "deb", &[])?;
                (port.socket.context("no socket")?, port.mac)
            }
            Socket::Hub => (lab.daemon.instance().hub_socket("lan"), MAC),
        };
        let mut deb = Qemu::start("deb", &[Nic { packed: true, ..Nic::new(&socket, mac) }])?;
        let ports: Vec<api::PortInfo> = lab.daemon.json(&["port-list", "lan"])?;
        let port = ports.first().context("the guest's port")?.name.clone();
        let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
        let addresses = [deb.dhcp()?, ns.dhcp()?];
        // Feature bits from the lowest on; VIRTIO_F_RING_PACKED is bit 34.
        let features = deb.run("cat /sys/bus/virtio/devices/virtio0/features")?;
        ensure!(features.as_bytes().get(34) == Some(&b'1'), "the rings are split: {features}");
        let mut world = Self { lab, deb, port, ns, addresses };
        world.talk()?;
        Ok(world)
    }

    /// Frames pass in both directions.
    fn talk(&mut self) -> anyhow::Result<()> {
        self.deb.ping(&self.addresses[1].to_string())?;
        self.ns.ping(&self.addresses[0].to_string())
    }

    /// Replaces the daemon under load, again and again; `in_flight` requests may be lost when it ends, and those that are
    /// sent while there is none.
    ///
    /// The driver looks for used descriptors at one place at a time, so that one that never comes back ends the ring within a
    /// turn, and refuses one that comes back twice.
    fn under_load(
        &mut self,
        replace: fn(&mut Daemon) -> anyhow::Result<()>,
        in_flight: u32,
    ) -> anyhow::Result<()> {
        let [guest, peer] = self.addresses;
        let streams = Streams::start((self.ns.netns(), peer), (&mut self.deb, guest))?;
        for round in 0..5 {
            let pinger = Pinger::start(self.ns.netns(), guest, INTERVAL)?;
            self.moved(ENOUGH)?;
            let ended = pinger.sent();
            let start = Instant::now();
            let before = self.drops()?;
            replace(&mut self.lab.daemon)?;
            self.lab.daemon.wait_port(&self.port, api::PortState::Up)?;
            // Where counters begin anew there were fewer.
            let before = before.min(self.drops()?);
            // The guest's link is up a little later.
            let answers = pinger.received();
            wait::until("an answer", LIMIT, || pinger.received() > answers)?;
            let (outage, took) = (ended.saturating_sub(in_flight)..pinger.sent(), start.elapsed());
            self.moved(ENOUGH)?;
            let report = pinger.finish()?;
            let dropped = self.drops()? - before;
            println!("round {round}: up after {took:?}, {outage:?}, {dropped} dropped, {report:?}");
            ensure!(report.duplicates == 0, "round {round}: {report:?}");
            let lost = report.lost.iter().cloned().flatten();
            let lost = lost.filter(|number| in_flight == 0 || !outage.contains(number)).count();
            ensure!(
                lost as u64 <= dropped,
                "round {round}: {lost} lost, {dropped} dropped, {report:?}"
            );
        }
        let [down, up] = streams.finish(&mut self.deb)?;
        println!("streams: {} KiB to the guest, {} KiB from it, whole", down >> 10, up >> 10);
        self.talk()
    }

    /// Frames that the switch had no place for, in the guest or on the other side.
    fn drops(&self) -> anyhow::Result<u64> {
        let dropped = |port: &str| -> anyhow::Result<u64> {
            let stats: api::PortStats = self.lab.daemon.json(&["port-stats", port])?;
            Ok(stats.drops.values().sum())
        };
        Ok(dropped(&self.port)? + dropped("ns")?)
    }

    /// Waits until so many frames more came from the guest, and to it.
    fn moved(&self, frames: u64) -> anyhow::Result<()> {
        let stats = || self.lab.daemon.json::<api::PortStats>(&["port-stats", &self.port]);
        let before = stats()?;
        wait::until("frames in both directions", LIMIT, || {
            stats().is_ok_and(|now| {
                now.rx_packets >= before.rx_packets + frames
                    && now.tx_packets >= before.tx_packets + frames
            })
        })
    }
}

#[test]
fn a_guest_with_packed_rings_goes_on_after_a_hand_over() -> anyhow::Result<()> {
    World::new(Socket::Port)?.under_load(Daemon::take_over, 0)
}

fn kill(daemon: &mut Daemon) -> anyhow::Result<()> {
    daemon.kill()?;
    daemon.up()
}

/// What a ring holds.
const RING: u32 = 256;

#[test]
fn a_guest_with_packed_rings_goes_on_after_a_kill() -> anyhow::Result<()> {
    World::new(Socket::Port)?.under_load(kill, RING)
}

/// The next daemon makes the port anew.
#[test]
fn a_guest_with_packed_rings_on_a_hub_socket_goes_on_after_a_kill() -> anyhow::Result<()> {
    World::new(Socket::Hub)?.under_load(kill, RING)
}
