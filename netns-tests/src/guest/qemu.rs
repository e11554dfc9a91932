//! QEMU with TCG: Debian's stock cloud kernel behind QEMU's vhost-user frontend.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use wire::MacAddr;

use super::console::Console;
use super::slot::Slot;
use super::{Guest, Ran};
use crate::process::Process;
use crate::record::run;

#[derive(Debug)]
pub struct Qemu {
    name: String,
    console: Console,
    process: Process,
    _slot: Slot,
}

/// A network card: its port's socket, its MAC, its pairs of queues.
#[derive(Clone, Copy, Debug)]
pub struct Nic<'a> {
    pub socket: &'a Path,
    pub mac: MacAddr,
    pub queue_pairs: u16,
}

impl Qemu {
    /// Boot with these cards; returns when the agent answers. Waits for a free slot first.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn start(name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        Self::boot(name, nics, ",reconnect=1")
    }

    /// Like [`Self::start`], with QEMU listening on the cards' sockets.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn listening(name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        Self::boot(name, nics, ",server=on,wait=off")
    }

    /// Like [`Self::start`], with cards that are lost for good when their connection ends.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn start_without_reconnect(name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        Self::boot(name, nics, "")
    }

    fn boot(name: &str, nics: &[Nic<'_>], role: &str) -> anyhow::Result<Self> {
        let slot = Slot::take()?;
        let dir = run().directory(name);
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "pc,accel=tcg,memory-backend=m"])
            .args(["-object", "memory-backend-memfd,id=m,size=256M,share=on"])
            .args(["-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio"])
            .args(["-monitor", "none"])
            .arg("-kernel")
            .arg(super::super::asset("vmlinuz")?)
            .arg("-initrd")
            .arg(super::super::asset("qemu.initramfs")?)
            .args(["-append", "console=ttyS0 rdinit=/init quiet panic=-1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for (n, nic) in nics.iter().enumerate() {
            let queues = nic.queue_pairs;
            command
                .arg("-chardev")
                .arg(format!("socket,id=c{n},path={}{role}", nic.socket.display()))
                .arg("-netdev")
                .arg(format!("vhost-user,id=n{n},chardev=c{n},queues={queues}"))
                .arg("-device")
                // MSI-X with vhost-user crashes this QEMU under TCG.
                .arg(format!(
                    "virtio-net-pci,netdev=n{n},mac={},romfile=,vectors=0,mq={}",
                    nic.mac,
                    if queues > 1 { "on" } else { "off" }
                ));
        }
        let mut process = Process::start(name, command, &dir)?;
        let pipes = process.take_pipes().context("pipes")?;
        let mut console = Console::new(pipes, &dir.join("console"))?;
        console.ready(Duration::from_secs(120)).with_context(|| {
            format!("booting {name} ({:?}; {})", process.ended(), process.log().trim())
        })?;
        let mut qemu = Self { name: name.to_owned(), console, process, _slot: slot };
        qemu.run(&format!("hostname {name}"))?;
        Ok(qemu)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Guest for Qemu {
    fn name(&self) -> &str {
        &self.name
    }

    fn sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<Ran> {
        self.console.sh(command, limit)
    }
}
