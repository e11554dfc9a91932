//! Frontends that are not Linux's: DPDK's `net_virtio_user`, and the bundled VMM's guest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::guest::{Guest, Namespace, Uml, Vmm};
use netns_tests::testpmd::Testpmd;
use netns_tests::{Lab, wait};

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.4.0.1' netmask='255.255.255.0'>\
    <dhcp><range start='10.4.0.10' end='10.4.0.99'/></dhcp></ip></network>";

/// Runs testpmd until both its cards have received frames.
fn testpmd(first: &Path, second: &Path, extra: &str) -> anyhow::Result<()> {
    // Without pause, so that nothing hangs on the first frames.
    let testpmd = Testpmd::start([first, second], extra, &["--forward-mode=flowgen"])?;
    let packets = |text: &str| {
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("RX-packets:"))
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .rev()
            .take(2)
            .collect::<Vec<_>>()
    };
    wait::until("frames on both ports", Duration::from_secs(60), || {
        let seen = packets(&testpmd.shown());
        seen.len() == 2 && seen.iter().all(|packets| *packets > 10_000)
    })
    .with_context(|| testpmd.shown())
}

#[test]
fn dpdk_virtio_user_passes_traffic() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let one = lab.daemon.port("lan", "one", &[])?;
    let two = lab.daemon.port("lan", "two", &[])?;
    let socket = |port: &api::PortInfo| port.socket.clone().context("no socket");
    for extra in [
        "",
        ",mrg_rxbuf=0,in_order=0",
        ",mrg_rxbuf=1,in_order=1",
        ",queue_size=1024",
        ",packed_vq=1,mrg_rxbuf=1,in_order=0",
        ",packed_vq=1,mrg_rxbuf=0,in_order=1",
        ",packed_vq=1,mrg_rxbuf=1,in_order=1,queue_size=1024",
        ",packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
    ] {
        testpmd(&socket(&one)?, &socket(&two)?, extra).with_context(|| format!("`{extra}`"))?;
    }
    Ok(())
}

/// It listens itself; and both its cards are on one hub socket.
#[test]
fn dpdk_is_connected_to_and_shares_a_hub_socket() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let path = |name: &str| lab.daemon.dir().join(name);
    let (one, two) = (path("one.sock"), path("two.sock"));
    lab.daemon.port("lan", "one", &["--connect", &one.display().to_string()])?;
    lab.daemon.port("lan", "two", &["--connect", &two.display().to_string()])?;
    testpmd(&one, &two, ",server=1").context("server=1")?;
    let hub = lab.daemon.instance().hub_socket("lan");
    testpmd(&hub, &hub, "").context("on the hub socket")?;
    Ok(())
}

/// It sets its rings up anew when it is connected to again, in the same place.
#[test]
fn dpdk_with_packed_rings_goes_on_after_a_kill() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let paths = ["one", "two"].map(|name| lab.daemon.dir().join(name));
    for (name, path) in ["one", "two"].iter().zip(&paths) {
        lab.daemon.port("lan", name, &["--connect", &path.display().to_string()])?;
    }
    let device = ",server=1,packed_vq=1,mrg_rxbuf=1,in_order=0";
    let flowgen = ["--forward-mode=flowgen"];
    let mut testpmd = Testpmd::start(paths.each_ref().map(PathBuf::as_path), device, &flowgen)?;
    for round in 0..4 {
        for port in ["one", "two"] {
            // More than the rings hold, since this daemon came.
            wait::until("frames of testpmd", Duration::from_secs(60), || {
                let stats = lab.daemon.json::<api::PortStats>(&["port-stats", port]);
                stats.is_ok_and(|stats| stats.rx_packets.min(stats.tx_packets) > 10_000)
            })
            .with_context(|| format!("round {round}, port {port}: {}", testpmd.shown()))?;
        }
        testpmd.check_alive()?;
        lab.daemon.kill()?;
        lab.daemon.up()?;
    }
    Ok(())
}

#[test]
fn the_vmm_guest_gets_a_lease_and_pings_a_linux_guest() -> anyhow::Result<()> {
    if netns_tests::without_kvm() {
        eprintln!("left out: --without kvm");
        return Ok(());
    }
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let port = lab.daemon.port("lan", "uml", &[])?;
    let mut uml = Uml::start("uml", &[port.socket.as_deref().context("no socket")?])?;
    let uml_address = uml.dhcp()?;
    let port = lab.daemon.port("lan", "vmm", &[])?;
    let socket = port.socket.as_deref().context("no socket")?;
    let cmdline = format!("hostname=vmm ping={uml_address} count=5");
    let mut vmm = Vmm::start("vmm", socket, port.mac, &cmdline)?;
    let lease = vmm.line("dhcp ", Duration::from_secs(30))?;
    vmm.ping_result(Duration::from_secs(30))?;
    let leases = lab.daemon.leases("lan")?;
    let leased = leases
        .iter()
        .find(|lease| lease.port.as_deref() == Some("vmm"))
        .context("no lease of port vmm")?;
    ensure!(lease.contains(&leased.ip.to_string()), "{lease} is not {}", leased.ip);
    ensure!(leased.mac == port.mac && leased.hostname.as_deref() == Some("vmm"), "{leased:?}");
    uml.ping("vmm")?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    ns.dhcp()?;
    ns.netns().enter(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(b"hello", (leased.ip, 7))?;
        let mut echo = [0; 16];
        let (length, _) = socket.recv_from(&mut echo).context("no UDP echo")?;
        ensure!(&echo[..length] == b"hello", "the guest's UDP echo is {:?}", &echo[..length]);
        Ok(())
    })?;
    Ok(())
}
