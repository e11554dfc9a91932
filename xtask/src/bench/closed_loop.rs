//! The closed loop with DPDK's own virtio driver: testpmd with two `net_virtio_user` ports sends 512 frames and passes on what comes
//! back. It ends at some 13 million frames per second by itself.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::process::Process;
use netns_tests::{record, wait};

const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

/// Frames per second, both directions together.
///
/// # Errors
/// With what testpmd said, when it tells no rates.
pub(super) fn rate(sockets: &[PathBuf], packed: bool, seconds: f64) -> anyhow::Result<f64> {
    let dir = record::run().directory("testpmd");
    let output = dir.join("testpmd.out");
    let mut command = Command::new("dpdk-testpmd");
    command.args(["-l", "0,1", "--main-lcore", "0", "--in-memory", "--single-file-segments"]);
    command.args(["--no-pci", "-m", "256", "--file-prefix", "netloom-driver"]);
    let extra = if packed { ",packed_vq=1" } else { "" };
    for (port, (socket, mac)) in sockets.iter().zip(MACS).enumerate() {
        let path = socket.display();
        command.arg("--vdev");
        command.arg(format!("net_virtio_user{port},path={path},mac={mac},queue_size=1024{extra}"));
    }
    command.args(["--", "-i", "--nb-cores=1", "--forward-mode=io", "--burst=32"]);
    command.args(["--txd=1024", "--rxd=1024", "--no-flush-rx"]);
    for (port, peer) in MACS.iter().rev().enumerate() {
        command.arg(format!("--eth-peer={port},{peer}"));
    }
    command.stdin(Stdio::piped()).stdout(std::fs::File::create(&output)?);
    let mut process = Process::start("testpmd", command, &dir)?;
    let said = || std::fs::read_to_string(&output).unwrap_or_default();
    wait::until("testpmd's prompt", Duration::from_secs(30), || {
        said().contains("testpmd>") || process.ended().is_some()
    })?;
    let mut input = process.stdin().context("testpmd's input")?;
    let mut say = |words: &str| writeln!(input, "{words}");
    say("set txpkts 64")?;
    say("start tx_first 16")?;
    std::thread::sleep(Duration::from_secs(1));
    // Rates are told of the time since the last question.
    say("show port stats all")?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    say("show port stats all")?;
    say("stop")?;
    say("quit")?;
    process.wait(Duration::from_secs(20))?;
    let said = said();
    let rates: Vec<f64> = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Rx-pps:"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    ensure!(rates.len() >= 4, "testpmd told no rates:\n{}", process.log());
    let rate: f64 = rates[rates.len() - 2..].iter().sum();
    ensure!(rate > 0.0, "no frame came through");
    Ok(rate)
}
