//! Guests as values. All Linux guests run the same agent on their console ([`console`]), so a
//! test says what to run inside and does not care which kind of guest it is.

mod console;
mod files;
mod namespace;
pub mod qemu;
mod qmp;
mod slot;
mod uml;
mod vmm;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, ensure};

pub use files::Files;
pub use namespace::Namespace;
pub use qemu::Qemu;
pub use qmp::Qmp;
pub use uml::Uml;
pub use vmm::Vmm;

/// What a command run inside a guest gave.
#[derive(Clone, Debug)]
pub struct Ran {
    pub status: i32,
    pub text: String,
}

impl Ran {
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// A Linux guest: a kernel of its own, or at least a network stack of its own.
pub trait Guest {
    fn name(&self) -> &str;

    /// Run a shell command inside.
    ///
    /// # Errors
    /// When the guest does not answer within `limit`. A failing command is not an error.
    fn sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<Ran>;

    /// Run a shell command that must succeed; returns what it printed.
    ///
    /// # Errors
    /// With its output when it fails.
    fn run(&mut self, command: &str) -> anyhow::Result<String> {
        let ran = self.sh(command, Duration::from_secs(30))?;
        ensure!(ran.ok(), "{}: `{command}` gave {}:\n{}", self.name(), ran.status, ran.text);
        Ok(ran.text)
    }

    /// Get an address for eth0 with udhcpc; returns it.
    ///
    /// # Errors
    /// When no lease is obtained.
    fn dhcp(&mut self) -> anyhow::Result<Ipv4Addr> {
        let name = self.name().to_owned();
        let text = self.run(&format!(
            "ip link set eth0 up; busybox udhcpc -i eth0 -f -q -n -t 10 -T 1 -x hostname:{name} -s {} 2>&1",
            self.udhcpc_script()
        ))?;
        let bound = text
            .lines()
            .find_map(|line| line.strip_prefix("bound "))
            .with_context(|| format!("{name}: udhcpc did not say what it was bound to:\n{text}"))?;
        let (address, _) = bound.split_once('/').context("udhcpc's address")?;
        Ok(address.parse()?)
    }

    /// Where the udhcpc script is, seen from inside.
    fn udhcpc_script(&self) -> String {
        "/udhcpc".to_owned()
    }

    /// One echo request that must be answered, within a few tries while ARP and learning settle.
    ///
    /// # Errors
    /// When no reply comes.
    fn ping(&mut self, target: &str) -> anyhow::Result<()> {
        let command =
            format!("for try in 1 2 3; do busybox ping -c 1 -W 2 {target} && exit 0; done; exit 1");
        let ran = self.sh(&command, Duration::from_secs(20))?;
        ensure!(ran.ok(), "{} cannot ping {target}:\n{}", self.name(), ran.text);
        Ok(())
    }

    /// Whether an echo request is answered; waits a second for it.
    ///
    /// # Errors
    /// When the guest does not answer at all.
    fn reaches(&mut self, target: IpAddr) -> anyhow::Result<bool> {
        Ok(self.sh(&format!("busybox ping -c 1 -W 1 {target}"), Duration::from_secs(10))?.ok())
    }
}
