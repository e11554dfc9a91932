//! Bulk data between guests of different kinds: every byte arrives, whatever was offloaded.

use std::time::Duration;

use anyhow::ensure;
use netns_tests::Lab;
use netns_tests::guest::{Guest, Namespace, Qemu, Uml, qemu::Nic};

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.5.0.1' netmask='255.255.255.0'/>\
    <ip family='ipv6' address='fd00:5::1' prefix='64'/></network>";

/// A few megabytes that differ in every block.
const MAKE: &str = "seq 1 300000";
const LIMIT: Duration = Duration::from_secs(90);

fn join(guest: &mut dyn Guest, host: u8) -> anyhow::Result<()> {
    guest.run(&format!(
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up; \
         ip addr add 10.5.0.{host}/24 dev eth0; ip -6 addr add fd00:5::{host}/64 dev eth0"
    ))?;
    guest.ping("10.5.0.1")
}

/// One transfer over TCP; what arrives must be what was sent.
fn send(from: &mut dyn Guest, to: &mut dyn Guest, address: &str) -> anyhow::Result<()> {
    let name = to.name().to_owned();
    // The receiver's own input stays open: at its end BusyBox's nc would hang up.
    to.run(&format!(
        "(sleep 60 | busybox nc -l -p 5000 | {{ md5sum >/tmp/sum; mv /tmp/sum /tmp/sum.{name}; }}) \
         >/dev/null 2>&1 &"
    ))?;
    // Port and state as the kernel prints them: 5000, LISTEN.
    let listening = "grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6";
    let ran = to.sh(
        &format!("for n in $(seq 100); do {listening} && exit 0; sleep 0.1; done; exit 1"),
        LIMIT,
    )?;
    ensure!(ran.ok(), "{name} does not listen: {}", ran.text);
    let sent = from.sh(&format!("{MAKE} | tee /dev/null | md5sum"), LIMIT)?.text;
    let ran = from.sh(&format!("{MAKE} | busybox nc -w 20 {address} 5000"), LIMIT)?;
    ensure!(ran.ok(), "{} to {}: {}", from.name(), to.name(), ran.text);
    let got = to
        .sh(
            &format!("for n in $(seq 100); do [ -s /tmp/sum.{name} ] && break; sleep 0.1; done; cat /tmp/sum.{name}; rm -f /tmp/sum.{name}"),
            LIMIT,
        )?
        .text;
    ensure!(
        sent.trim() == got.trim(),
        "{} to {} at {address}: sent {sent}, got {got}",
        from.name(),
        to.name()
    );
    Ok(())
}

#[test]
fn tcp_between_uml_qemu_namespace_and_host() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let port = lab.daemon.port("lan", "qemu", &[])?;
    let socket = port.socket.as_deref().ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut qemu = Qemu::start("qemu", &[Nic::new(socket, port.mac)])?;
    let port = lab.daemon.port("lan", "uml", &[])?;
    let socket = port.socket.as_deref().ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut uml = Uml::start("uml", &[socket])?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    join(&mut qemu, 2)?;
    join(&mut uml, 3)?;
    join(&mut ns, 4)?;

    send(&mut uml, &mut qemu, "10.5.0.2")?;
    send(&mut qemu, &mut uml, "10.5.0.3")?;
    send(&mut ns, &mut uml, "10.5.0.3")?;
    send(&mut uml, &mut ns, "10.5.0.4")?;
    send(&mut ns, &mut qemu, "fd00:5::2")?;
    send(&mut qemu, &mut ns, "fd00:5::4")?;
    // Large frames crossed the switch as they were: segments on the wire would be thousands more.
    let stats: api::PortStats = lab.daemon.json(&["port-stats", "ns"])?;
    ensure!(
        stats.rx_bytes / stats.rx_packets > 500,
        "no large frames: {} bytes in {} frames",
        stats.rx_bytes,
        stats.rx_packets
    );
    Ok(())
}

#[test]
fn a_receiver_without_offloads_gets_segments_with_checksums() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    join(&mut ns, 4)?;
    // A host interface is a packet port; what leaves on it has no vnet header on the other side.
    let mut outside = Namespace::new("outside")?;
    outside.netns().join("eth0", &lab.host, "uplink")?;
    outside.run("busybox ip link set eth0 up")?;
    lab.daemon.port("lan", "uplink", &["--dev", "uplink"])?;
    join(&mut outside, 5)?;
    send(&mut ns, &mut outside, "10.5.0.5")?;
    send(&mut outside, &mut ns, "10.5.0.4")?;
    send(&mut ns, &mut outside, "fd00:5::5")?;
    Ok(())
}
