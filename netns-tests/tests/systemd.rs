//! vswitchd under a real systemd, by the unit file that is shipped.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::frontend::{Nic, Options, Probe};
use netns_tests::guest::{Guest, Uml};
use netns_tests::systemd::Systemd;
use netns_tests::{Daemon, Netns, wait};
use wire::MacAddr;

const LIMIT: Duration = Duration::from_secs(20);
const NETWORK: &str = "<network>
  <name>lan</name>
  <ip address='10.8.0.1' netmask='255.255.255.0'>
    <dhcp><range start='10.8.0.10' end='10.8.0.100'/></dhcp>
  </ip>
</network>";

/// `systemctl restart` through the manager's own store of descriptors: every frame of 10,000 a second comes once, and a guest that cannot
/// reconnect goes on.
#[test]
fn systemctl_restart_is_not_an_outage() -> anyhow::Result<()> {
    let host = Arc::new(Netns::new("host")?);
    let mut daemon = Daemon::start(&host, "systemd", "")?;
    let systemd = Systemd::new(&mut daemon, "")?;
    systemd.unit(&["start"])?;
    daemon.network("lan", NETWORK)?;
    let socket = |name: &str| -> anyhow::Result<_> {
        daemon.port("lan", name, &[])?.socket.context("a vhost-user port without a socket")
    };
    let mut uml = Uml::start("uml", &[&socket("uml")?])?;
    let address = uml.dhcp()?;
    let options = Options { ring: 1024, ..Options::new(MacAddr([2, 0, 0, 0, 0, 1])) };
    let mut first = Nic::connect(&socket("first")?, options.clone())?;
    let other = Options { mac: MacAddr([2, 0, 0, 0, 0, 2]), ..options };
    let mut second = Nic::connect(&socket("second")?, other)?;

    let mut gaps = Vec::new();
    for round in 1..=5 {
        let before = systemd.property("MainPID")?;
        let probe = Probe::start(first, second, 10_000)?;
        probe.run(300, LIMIT)?;
        systemd.unit(&["restart"])?;
        probe.run(300, LIMIT).with_context(|| format!("round {round}"))?;
        let report;
        (report, first, second) = probe.finish()?;
        ensure!(systemd.property("MainPID")? != before, "the same daemon runs on");
        ensure!(systemd.property("NFileDescriptorStore")? == "0", "something stays in the store");
        ensure!(report.duplicates == 0 && report.reordered == 0, "{report:?}");
        let stats: api::PortStats = daemon.json(&["port-stats", "second"])?;
        let full = stats.drops.get("rx-ring-full").copied().unwrap_or_default();
        ensure!(report.lost.len() as u64 <= full, "lost without a reason: {report:?}, {stats:?}");
        uml.ping("10.8.0.1").with_context(|| format!("round {round}"))?;
        gaps.push(report.slowest);
    }
    gaps.sort();
    println!("gap of {:?} (median), {:?} to {:?}", gaps[2], gaps[0], gaps[4]);
    ensure!(uml.dhcp()? == address, "another address");

    // A crash is a restart as well, though one that is noticed.
    systemd.unit(&["kill", "--signal=KILL"])?;
    wait::until("the daemon to be there again", LIMIT, || {
        daemon.wait_port("first", api::PortState::Listening).is_ok()
    })?;
    ensure!(systemd.property("NRestarts")? == "1");
    systemd.unit(&["stop"])?;
    ensure!(systemd.property("Result")? == "success", "{}", systemd.property("Result")?);
    Ok(())
}
