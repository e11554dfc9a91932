//! What the machine must be able to do. A missing capability fails with what to do about it.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use anyhow::{bail, ensure};

use crate::phase::quiet;

/// Capabilities that `--without` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Optional {
    /// `/dev/kvm`: the VMM's tests and guest
    Kvm,
}

/// # Errors
/// Names the first missing capability and how to get it.
pub(crate) fn root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this task makes network namespaces, TAPs and nftables rules: run it as root"
    );
    Ok(())
}

/// Checked after the packages are there.
///
/// # Errors
/// Names the first missing capability and how to get it.
pub(crate) fn all(without: &[Optional]) -> anyhow::Result<()> {
    device("/dev/net/tun", "load the tun module (modprobe tun) or allow it in the container")?;
    if !without.contains(&Optional::Kvm) {
        device(
            "/dev/kvm",
            "enable virtualization or nested virtualization and load kvm_amd or kvm_intel; \
             for local use, --without kvm leaves the VMM's tests out",
        )?;
    }
    let probe = "nft add table inet probe && nft add chain inet probe c \
                 '{ type nat hook postrouting priority 100; }' && \
                 nft add rule inet probe c masquerade";
    if let Err(error) = quiet(Command::new("unshare").args(["--net", "sh", "-c", probe])) {
        bail!(
            "nftables with NAT does not work in a new network namespace; the kernel needs \
             CONFIG_NF_TABLES, CONFIG_NFT_NAT and CONFIG_NFT_MASQ, and this process \
             CAP_SYS_ADMIN and CAP_NET_ADMIN\n{error:#}"
        );
    }
    Ok(())
}

fn device(path: &str, remedy: &str) -> anyhow::Result<()> {
    ensure!(Path::new(path).exists(), "{path} is missing: {remedy}");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
        bail!("{path} cannot be opened ({error}): {remedy}");
    }
    Ok(())
}
