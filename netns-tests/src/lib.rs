//! The lab that the end-to-end tests and the demo stand on.
//!
//! A [`Lab`] is a small world in network namespaces: `host`, where vswitchd runs; `inet`, the
//! outside (203.0.113.0/24 and 2001:db8:113::/64) with a web and a DNS server; and one namespace
//! per client. Guests are values: a [`guest::Uml`] kernel, a [`guest::Qemu`] machine, the VMM's
//! own test guest, a namespace. What a value made goes away when it is dropped, on a panic and on
//! Ctrl-C; what a SIGKILL leaves is in the run's record and `cargo xtask clean` removes it.
//!
//! Waits are on conditions with deadlines ([`wait`]); nothing sleeps to be lucky. Everything that a
//! run writes is in one directory under `/tmp/netloom-lab`, which is kept when a test fails.

pub mod capture;
pub mod daemon;
pub mod document;
pub mod frontend;
pub mod guest;
pub mod inet;
pub mod limit;
pub mod netns;
pub mod pinger;
pub mod process;
pub mod record;
pub mod snapshot;
pub mod streams;
pub mod systemd;
pub mod testpmd;
pub mod topology;
pub mod wait;

pub use daemon::Daemon;
pub use netns::Netns;
pub use topology::Lab;

use std::path::PathBuf;

use anyhow::ensure;

/// A kernel or image that `cargo xtask setup` made.
///
/// # Errors
/// When set-up has not been run.
pub fn asset(name: &str) -> anyhow::Result<PathBuf> {
    found("NETLOOM_LAB_ASSETS", "lab", name, "run `cargo xtask setup`")
}

/// A program of the workspace.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    found("NETLOOM_LAB_BIN", "debug", name, "run `cargo build --workspace --bins`")
}

/// The VMM's freestanding guest.
///
/// # Errors
/// When it has not been built.
pub fn vmm_guest() -> anyhow::Result<PathBuf> {
    let remedy = "`cargo xtask test` and `cargo xtask demo` build it";
    found("NETLOOM_LAB_VMM_GUEST", "vmm-guest/release", "netloom-guest", remedy)
}

/// `--without kvm` was given: tests that need `/dev/kvm` are not to be run.
#[must_use]
pub fn without_kvm() -> bool {
    std::env::var_os("NETLOOM_LAB_WITHOUT").is_some_and(|without| without == "kvm")
}

/// xtask says where things are; without it they are looked for in cargo's target directory, of
/// which test and program files tell by their own place (`target/debug/deps/…`).
fn found(variable: &str, place: &str, name: &str, remedy: &str) -> anyhow::Result<PathBuf> {
    let dir = match std::env::var_os(variable) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let program = std::env::current_exe()?;
            let profile = program.ancestors().find(|dir| dir.ends_with("debug"));
            profile.and_then(std::path::Path::parent).unwrap_or(&program).join(place)
        }
    };
    let path = dir.join(name);
    ensure!(path.exists(), "{} is missing: {remedy}", path.display());
    Ok(path)
}
