//! netloom-vmm with its freestanding test guest on the machine's KVM.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use wire::MacAddr;

use super::console::Console;
use crate::process::Process;
use crate::record::run;

#[derive(Debug)]
pub struct Vmm {
    console: Console,
    process: Process,
}

impl Vmm {
    /// Start on a port's socket; `cmdline` says what the guest does.
    ///
    /// # Errors
    /// When the VMM cannot be started.
    pub fn start(name: &str, socket: &Path, mac: MacAddr, cmdline: &str) -> anyhow::Result<Self> {
        let dir = run().directory(name);
        let mut command = Command::new(crate::program("netloom-vmm")?);
        command
            .arg("--kernel")
            .arg(crate::vmm_guest()?)
            .args(["--cmdline", cmdline, "--net", &format!("{},mac={mac}", socket.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(name, command, &dir)?;
        let pipes = process.take_pipes().context("pipes")?;
        let console = Console::new(pipes, &dir.join("console"))?;
        Ok(Self { console, process })
    }

    /// Wait for a line of the guest's console that starts with `start`; returns the rest of it.
    ///
    /// # Errors
    /// With the end of the console when it does not come in time.
    pub fn line(&mut self, start: &str, limit: Duration) -> anyhow::Result<String> {
        let result = self
            .console
            .line(start, limit, |line| line.strip_prefix(start).map(|rest| rest.trim().to_owned()));
        Ok(result.with_context(|| self.process.log())?.0)
    }

    /// Wait until the guest has ended its pings, and require an answer to each.
    ///
    /// # Errors
    /// When replies are missing or the line does not come in time.
    pub fn ping_result(&mut self, limit: Duration) -> anyhow::Result<()> {
        let result = self.line("ping done ", limit)?;
        let field = |name: &str| {
            result.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
        };
        anyhow::ensure!(
            field("sent=").is_some() && field("sent=") == field("received="),
            "the guest's pings: {result}"
        );
        Ok(())
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
