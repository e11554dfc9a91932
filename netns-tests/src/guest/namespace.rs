//! A network namespace as a guest: its interface is a TAP that vswitchd puts into it.

use std::path::PathBuf;
use std::time::Duration;

use super::{Guest, Ran};
use crate::daemon::Daemon;
use crate::netns::Netns;
use crate::process::Process;
use crate::record::run;

#[derive(Debug)]
pub struct Namespace {
    name: String,
    netns: Netns,
    dir: PathBuf,
}

impl Namespace {
    /// # Errors
    /// When the namespace cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let netns = Netns::new(name)?;
        let dir = run().directory(name);
        // `ip netns exec` binds this file over /etc/resolv.conf.
        let resolv = resolv_conf(&netns);
        std::fs::create_dir_all(resolv.parent().unwrap_or(&dir))?;
        std::fs::write(&resolv, "")?;
        let script = UDHCPC.replace("RESOLV", &resolv.display().to_string());
        std::fs::write(dir.join("udhcpc"), script)?;
        make_executable(&dir.join("udhcpc"))?;
        Ok(Self { name: name.to_owned(), netns, dir })
    }

    /// One whose `eth0` is a port of `network`, of the namespace's own name.
    ///
    /// # Errors
    /// When the namespace or the port cannot be made.
    pub fn on(daemon: &Daemon, network: &str, name: &str, more: &[&str]) -> anyhow::Result<Self> {
        let guest = Self::new(name)?;
        let place = ["--netns", guest.netns.name(), "--ifname", "eth0"];
        daemon.port(network, name, &[&place, more].concat())?;
        Ok(guest)
    }

    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A directory for files of clients run in it.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }
}

fn resolv_conf(netns: &Netns) -> PathBuf {
    PathBuf::from("/etc/netns").join(netns.name()).join("resolv.conf")
}

fn make_executable(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

/// Like the guests' script, but never the machine's own resolver.
const UDHCPC: &str = r#"#!/bin/sh
case $1 in
deconfig)
    ip addr flush dev $interface scope global
    ip link set $interface up
    ;;
bound|renew)
    ip addr replace $ip/$mask dev $interface
    [ -n "$mtu" ] && ip link set $interface mtu $mtu
    for gateway in $router; do ip route replace default via $gateway dev $interface; done
    : >RESOLV
    [ -n "$domain" ] && echo "search $domain" >>RESOLV
    for server in $dns; do echo "nameserver $server" >>RESOLV; done
    echo "bound $ip/$mask router=$router dns=$dns domain=$domain lease=$lease"
    ;;
esac
"#;

impl Guest for Namespace {
    fn name(&self) -> &str {
        &self.name
    }

    fn sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<Ran> {
        let output = self.dir.join("output");
        let mut sh = self.netns.command("sh");
        // Standard error is the process's log; the agent's guests print both together.
        sh.args(["-c", &format!("{{ {command}\n}} >{} 2>&1", output.display())]);
        let mut process = Process::start_quiet("sh", sh, &self.dir)?;
        let status = process.wait(limit)?;
        let text = std::fs::read_to_string(&output).unwrap_or_default();
        Ok(Ran { status: status.code().unwrap_or(-1), text })
    }

    fn udhcpc_script(&self) -> String {
        self.dir.join("udhcpc").display().to_string()
    }
}
