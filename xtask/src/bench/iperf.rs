//! One TCP stream from namespace to namespace.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use netns_tests::process::Process;
use netns_tests::{Netns, record};

use super::ovs::Ovs;
use super::peer::{Name, Setup};
use super::vswitchd::Vswitchd;

const NONE: Setup = Setup { ports: 0, tso: false };

/// Bits per second that arrive, over this switch's own kind of port: TAPs of vswitchd, veths of the others.
///
/// # Errors
/// When something cannot be set up, or iperf3 fails.
pub(super) fn rate(peer: Name, programs: &Path, seconds: f64) -> anyhow::Result<f64> {
    let ends = [Netns::new("one")?, Netns::new("two")?];
    match peer {
        Name::LinuxBridge => {
            let bridge = Netns::new("bridge")?;
            bridge.ip("link add br0 type bridge")?;
            bridge.ip("link set br0 up")?;
            for (port, end) in ["p0", "p1"].into_iter().zip(&ends) {
                bridge.join(port, end, "eth0")?;
                bridge.ip(&format!("link set {port} master br0"))?;
            }
            stream(&ends, seconds)
        }
        Name::OvsDpdk => {
            let ovs = Ovs::start(NONE, false)?;
            for (port, end) in ["p0", "p1"].into_iter().zip(&ends) {
                ovs.add_veth(port, end)?;
            }
            let rate = stream(&ends, seconds);
            ovs.stop()?;
            rate
        }
        _ => {
            let switch = Vswitchd::start(programs, 0)?;
            for (port, end) in ["p0", "p1"].into_iter().zip(&ends) {
                switch.add_tap(port, end)?;
            }
            let rate = stream(&ends, seconds);
            switch.stop()?;
            rate
        }
    }
}

fn stream([server, client]: &[Netns; 2], seconds: f64) -> anyhow::Result<f64> {
    for (end, address) in [(server, "10.9.0.1/24"), (client, "10.9.0.2/24")] {
        end.ip(&format!("address add {address} dev eth0"))?;
        end.ip("link set eth0 up")?;
    }
    client.run(&["ping", "-c", "1", "-W", "5", "10.9.0.1"])?;
    let dir = record::run().directory("iperf");
    let mut command = server.command("iperf3");
    command.args(["--server", "--one-off"]).stdin(Stdio::null());
    let mut listener = Process::start_quiet("iperf3", command, &dir)?;
    std::thread::sleep(Duration::from_millis(500));
    listener.check_alive()?;
    let time = seconds.ceil().to_string();
    let text = client.run(&["iperf3", "--client", "10.9.0.1", "--time", &time, "--json"])?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    answer["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's answer")
}
