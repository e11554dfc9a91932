//! DPDK's testpmd with two `net_virtio_user` cards that send to each other through the switch.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::Process;
use crate::record::run;

#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    shown: PathBuf,
}

impl Testpmd {
    /// `device` goes to both cards, `forward` to testpmd. Its memory is a memfd, so that no hugepages are needed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(sockets: [&Path; 2], device: &str, forward: &[&str]) -> anyhow::Result<Self> {
        let dir = run().directory("testpmd");
        let shown = dir.join("stdout");
        let mut command = Command::new("dpdk-testpmd");
        command.args(["-l", "0,1", "--no-huge", "--no-shconf", "-m", "256"]);
        command.args(["--no-pci", "--no-telemetry"]);
        for (n, socket) in sockets.iter().enumerate() {
            let (socket, mac) = (socket.display(), n + 1);
            command.arg(format!(
                "--vdev=net_virtio_user{n},path={socket},mac=02:00:00:00:00:0{mac}{device}"
            ));
        }
        command
            .args(["--", "--nb-cores=1", "--no-flush-rx"])
            .args(forward)
            .args(["--total-num-mbufs=8192", "--stats-period=1"])
            .args(["--eth-peer=0,02:00:00:00:00:02", "--eth-peer=1,02:00:00:00:00:01"])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&shown)?);
        Ok(Self { process: Process::start("testpmd", command, &dir)?, shown })
    }

    /// What it has printed: its statistics, every second.
    #[must_use]
    pub fn shown(&self) -> String {
        std::fs::read_to_string(&self.shown).unwrap_or_default()
    }

    /// # Errors
    /// With the end of its log when it has ended.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        self.process.check_alive()
    }
}
