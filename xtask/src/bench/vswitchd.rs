//! Our own switch: one network, vhost-user or TAP ports, worker on CPU 0.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use netns_tests::process::Process;
use netns_tests::record::run;
use netns_tests::{Netns, wait};

use crate::phase::quiet;

const NETWORK: &str = "<network><name>bench</name></network>\n";
const INSTANCE: &str = "bench";

/// Running; it ends with the value.
pub(super) struct Vswitchd {
    programs: PathBuf,
    root: PathBuf,
    sockets: Vec<PathBuf>,
    process: Process,
    netns: Netns,
}

impl Vswitchd {
    /// `programs`: directory of vswitchd and netctl.
    ///
    /// # Errors
    /// With the end of its log, when it does not come up.
    pub(super) fn start(programs: &Path, ports: usize) -> anyhow::Result<Vswitchd> {
        let netns = Netns::new("bench")?;
        let dir = run().directory("vswitchd");
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        let mut command = netns.command(&programs.join("vswitchd").display().to_string());
        command.args(["--instance", INSTANCE, "--root"]).arg(&root);
        command.args(["--workers", "1", "--cpus", "0"]);
        let process = Process::start_quiet("vswitchd", command, &dir)?;
        let mut switch =
            Vswitchd { programs: programs.to_owned(), root, sockets: Vec::new(), process, netns };
        let socket = api::Instance::new(INSTANCE, &switch.root)?.api_socket();
        wait::until("vswitchd's API", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
                || switch.process.ended().is_some()
        })?;
        switch.process.check_alive()?;
        let file = dir.join("bench.xml");
        fs::write(&file, NETWORK)?;
        switch.netctl(&["net-define", &file.display().to_string()])?;
        switch.netctl(&["net-start", "bench"])?;
        for port in 0..ports {
            let name = format!("vh{port}");
            let text = switch.netctl(&["-o", "json", "port-add", "bench", &name])?;
            let port: api::PortInfo = serde_json::from_str(&text).context(text)?;
            switch.sockets.push(port.socket.context("a port without a socket")?);
        }
        Ok(switch)
    }

    /// A TAP in a namespace, named `eth0` there.
    ///
    /// # Errors
    /// What netctl says.
    pub(super) fn add_tap(&self, name: &str, netns: &Netns) -> anyhow::Result<()> {
        let netns = netns.name();
        let words = ["port-add", "bench", name, "--netns", netns, "--ifname", "eth0"];
        self.netctl(&words).map(drop)
    }

    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Destroys the network and ends the daemon.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.process.check_alive()?;
        self.netctl(&["net-destroy", "bench"])?;
        self.process.signal(rustix::process::Signal::TERM)?;
        self.process.wait(Duration::from_secs(10))?;
        Ok(())
    }

    fn netctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = self.netns.command(&self.programs.join("netctl").display().to_string());
        command.args(["--instance", INSTANCE, "--root"]).arg(&self.root);
        quiet(command.args(words))
    }
}

/// What it says of itself.
pub(super) fn version(programs: &Path) -> anyhow::Result<String> {
    let text = quiet(Command::new(programs.join("vswitchd")).arg("--version"))?;
    Ok(text.trim().to_owned())
}
