//! A QEMU guest with two pairs of queues: frames cross on both, in both directions, whoever polls.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::guest::{Guest, Namespace, Qemu, Qmp, qemu::Nic};
use netns_tests::topology::CONFIG;
use netns_tests::{Lab, wait};
use serde_json::json;

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.6.0.1' netmask='255.255.255.0'/></network>";

/// Rings of the second pair: RX and TX of each pair in turn (virtio 1.3 §5.1.2).
const RX1: u16 = 2;
const TX1: u16 = 3;

/// Buffers that the device has used of a ring, as the index in the guest's memory says.
fn used(monitor: &mut Qmp, ring: u16) -> anyhow::Result<u16> {
    let wanted = json!({ "path": "/machine/peripheral/nic0/virtio-backend", "queue": ring });
    let status = monitor.execute("x-query-virtio-queue-status", &wanted)?;
    let address = status["vring-used"].as_u64().with_context(|| format!("no ring in {status}"))?;
    // le16 flags, then le16 idx (virtio 1.3 §2.7.8).
    monitor.read_u16(address + 2)
}

fn both_pairs_carry_frames(workers: u16) -> anyhow::Result<()> {
    let lab = Lab::with_config(&format!("{CONFIG}[datapath]\nworkers = {workers}\n"))?;
    lab.daemon.network("lan", NETWORK)?;
    let port = lab.daemon.port("lan", "qemu", &["--queues", "2"])?;
    let socket = port.socket.as_deref().context("no socket")?;
    let mut qemu = Qemu::start("qemu", &[Nic { queue_pairs: 2, ..Nic::new(socket, port.mac) }])?;
    qemu.run("ip link set eth0 up; ip addr add 10.6.0.2/24 dev eth0")?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    ns.run("ip link set eth0 up; ip addr add 10.6.0.3/24 dev eth0")?;
    let queues = qemu.run("ls /sys/class/net/eth0/queues")?;
    ensure!(
        queues.split_whitespace().eq(["rx-0", "rx-1", "tx-0", "tx-1"]),
        "the guest uses {queues}"
    );
    qemu.ping("10.6.0.3")?;

    // From the guest: each processor sends on the queue of its own number. Every request must be
    // answered, and only the second processor's move the second queue.
    let mut monitor = qemu.monitor()?;
    let echo = |qemu: &mut Qemu, mask: u8| -> anyhow::Result<()> {
        let text = qemu.run(&format!("taskset {mask} ping -c 8 -i 0.1 -W 5 10.6.0.3"))?;
        ensure!(text.contains("8 packets received"), "processor mask {mask}: {text}");
        Ok(())
    };
    let start = used(&mut monitor, TX1)?;
    echo(&mut qemu, 1)?;
    let first = used(&mut monitor, TX1)?.wrapping_sub(start);
    ensure!(first < 8, "{first} frames of processor 0 left on queue 1");
    echo(&mut qemu, 2)?;
    wait::until("8 frames on the second TX ring", Duration::from_secs(10), || {
        used(&mut monitor, TX1).is_ok_and(|now| now.wrapping_sub(start) >= 8)
    })?;

    // To the guest: flows are spread by their hash, so that of 256 some must fall on either ring.
    let stats = || lab.daemon.json::<api::PortStats>(&["port-stats", "qemu"]);
    let (start, before) = (used(&mut monitor, RX1)?, stats()?.tx_packets);
    ns.netns().enter(|| {
        for _ in 0..256 {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"flow", "10.6.0.2:9")?;
        }
        Ok(())
    })?;
    wait::until("256 frames to the guest", Duration::from_secs(10), || {
        stats().is_ok_and(|now| now.tx_packets >= before + 256)
    })?;
    let (all, second) =
        (stats()?.tx_packets - before, used(&mut monitor, RX1)?.wrapping_sub(start));
    ensure!(
        second > 0 && u64::from(second) < all,
        "{second} of {all} frames went to the second RX ring"
    );
    qemu.ping("10.6.0.3")
}

#[test]
fn one_worker_serves_both_pairs_of_a_guest() -> anyhow::Result<()> {
    both_pairs_carry_frames(1)
}

#[test]
fn two_workers_serve_both_pairs_of_a_guest() -> anyhow::Result<()> {
    both_pairs_carry_frames(2)
}
