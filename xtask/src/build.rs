//! Cargo builds: the workspace's binaries and the VMM's freestanding guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::phase::loud;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    // xtask is a folder of the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// vswitchd, netctl, netloom-dhcpd, netloom-vmm and the lab's own programs.
///
/// # Errors
/// When cargo fails.
pub(crate) fn binaries() -> anyhow::Result<()> {
    loud(cargo().args(["build", "--quiet", "--workspace", "--bins"]))
}

/// The guest is outside the workspace: `no_std`, with the link flags of its own configuration.
///
/// # Errors
/// When cargo fails.
pub(crate) fn vmm_guest() -> anyhow::Result<PathBuf> {
    let target = target().join("vmm-guest");
    loud(
        cargo().current_dir(root().join("vmm-core/guest")).env("CARGO_TARGET_DIR", &target).args([
            "build",
            "--quiet",
            "--release",
        ]),
    )?;
    Ok(target.join("release"))
}
