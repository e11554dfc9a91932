//! User-mode Linux: a real kernel with the real `virtio_net` driver in a process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::console::Console;
use super::{Guest, Ran};
use crate::process::Process;
use crate::record::run;

#[derive(Debug)]
pub struct Uml {
    name: String,
    console: Console,
    process: Process,
}

impl Uml {
    /// Boot with one network card per socket; returns when the agent answers.
    ///
    /// # Errors
    /// When the kernel does not come up within a minute.
    pub fn start(name: &str, sockets: &[&Path]) -> anyhow::Result<Self> {
        let dir = run().directory(name);
        let mut command = Command::new("linux.uml");
        command
            .arg("mem=128M")
            .arg(format!("initrd={}", super::super::asset("uml.initramfs")?.display()))
            .args(["rdinit=/init", "con=null", "con0=fd:0,fd:1", "quiet"])
            .arg(format!("uml_dir={}", dir.display()))
            // Its memory file is deleted as soon as it is made; it must be on tmpfs.
            .env("TMPDIR", "/dev/shm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for socket in sockets {
            command.arg(format!("virtio_uml.device={}:1", socket.display()));
        }
        let mut process = Process::start(name, command, &dir)?;
        let pipes = process.take_pipes().context("pipes")?;
        let mut console = Console::new(pipes, &dir.join("console"))?;
        console.ready(Duration::from_secs(60)).with_context(|| format!("booting {name}"))?;
        let mut uml = Self { name: name.to_owned(), console, process };
        uml.run(&format!("hostname {name}"))?;
        Ok(uml)
    }

    /// The kernel's own process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Guest for Uml {
    fn name(&self) -> &str {
        &self.name
    }

    fn sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<Ran> {
        self.console.sh(command, limit)
    }
}

impl Drop for Uml {
    fn drop(&mut self) {
        // User-mode Linux runs guest processes as children; halting it ends them all.
        let _ = self.console.sh("poweroff -f", Duration::from_millis(1));
        let _ = self.process.wait(Duration::from_secs(3));
    }
}
