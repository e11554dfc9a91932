//! Debian packages, installed by name with their services kept from starting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::phase::quiet;

/// Guests, clients and tools of the lab.
pub(crate) const LAB: &[&str] = &[
    "bind9-dnsutils",
    "busybox-static",
    "checkpolicy",
    "cpio",
    "dnsmasq-base",
    "dpdk-dev",
    "iproute2",
    "iperf3",
    "iptables",
    "isc-dhcp-client",
    "kmod",
    "nftables",
    "procps",
    "qemu-system-x86",
    "systemd",
    "user-mode-linux",
];

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Install what is missing of `names`. A service of a package is not started.
///
/// # Errors
/// When apt fails; its output is in the error.
pub(crate) fn install(names: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let _policy = KeepServicesDown::new()?;
    quiet(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing);
    quiet(&mut apt).context("cannot install Debian packages (is this Debian 12, run as root?)")?;
    Ok(())
}

fn installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", name])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// While it lives, `invoke-rc.d` refuses to start services. An existing policy is left alone.
struct KeepServicesDown {
    ours: bool,
}

impl KeepServicesDown {
    fn new() -> anyhow::Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").context(POLICY)?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).context(POLICY)?;
        }
        Ok(Self { ours })
    }
}

impl Drop for KeepServicesDown {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
