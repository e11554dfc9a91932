//! The peer without any switch logic: DPDK's testpmd in io mode between `net_vhost` ports, in pairs; one copy in, one out.

use std::process::{Command, Stdio};

use anyhow::ensure;
use netns_tests::process::Process;
use netns_tests::record::run;
use rustix::process::Signal;

use super::paired::Paired;
use crate::phase::quiet;

/// Ports that Debian's DPDK can have.
pub(super) const MAX_PORTS: usize = 32;

/// # Errors
/// With the end of its log, when it does not come up.
pub(super) fn start(ports: usize) -> anyhow::Result<Paired> {
    ensure!(ports <= MAX_PORTS, "DPDK has at most {MAX_PORTS} ports");
    let dir = run().directory("forwarder");
    let sockets = Paired::sockets_in(&dir, ports);
    let mut command = Command::new("dpdk-testpmd");
    command.args(["-l", "0,1", "--main-lcore", "1", "--in-memory", "--single-file-segments"]);
    command.args(["--no-pci", "-m", "512", "--file-prefix", "netloom-forwarder"]);
    for (port, socket) in sockets.iter().enumerate() {
        command.arg("--vdev").arg(format!("net_vhost{port},iface={}", socket.display()));
    }
    command.args(["--", "-i", "--nb-cores=1", "--forward-mode=io", "--auto-start"]);
    command.args(["--burst=32", "--txd=1024", "--rxd=1024"]);
    // It reads commands, and ends with its input.
    command.stdin(Stdio::piped());
    let log = std::fs::File::create(dir.join("testpmd.out"))?;
    command.stdout(log);
    let process = Process::start("testpmd", command, &dir)?;
    // It tells nothing that is needed when it is ended in order.
    Paired::new(process, sockets, Signal::KILL)
}

pub(super) fn version() -> anyhow::Result<String> {
    let words = ["-W", "-f", "${Version}", "dpdk-dev"];
    Ok(format!("DPDK {}", quiet(Command::new("dpkg-query").args(words))?.trim()))
}
