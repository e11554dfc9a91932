//! The tasks that run things: set-up, demo, test, audit.

use std::process::Command;

use anyhow::Context;

use crate::build::{self, cargo};
use crate::capability::{self, Optional};
use crate::phase::{loud, phase};
use crate::{Options, TestOptions, assets, guard, packages};

pub(crate) fn setup(options: &Options) -> anyhow::Result<()> {
    capability::root()?;
    phase("Debian packages", || packages::install(packages::LAB))?;
    phase("Capabilities of the machine", || capability::all(&options.without))?;
    phase("Guest kernels and initramfs", assets::make)
}

pub(crate) fn demo(options: &Options) -> anyhow::Result<()> {
    setup(options)?;
    phase("Build", build::binaries)?;
    phase("Build the VMM's guest", build::vmm_guest)?;
    let mut demo = Command::new(build::target().join("debug/netloom-demo"));
    lab(&mut demo, options);
    loud(&mut demo)
}

pub(crate) fn test(options: &TestOptions) -> anyhow::Result<()> {
    setup(&options.options)?;
    phase("Build", build::binaries)?;
    phase("Build the VMM's guest", build::vmm_guest)?;
    phase("Build the tests", || {
        for words in selections(options) {
            loud(cargo().args(["test", "--quiet", "--no-run"]).args(words))?;
        }
        Ok(())
    })?;
    phase("Tests", || {
        for words in selections(options) {
            let mut test = cargo();
            test.arg("test").args(words).arg("--no-fail-fast").arg("--").args(&options.args);
            lab(&mut test, &options.options);
            loud(&mut test)?;
        }
        Ok(())
    })?;
    if options.package.is_none() {
        guard::run(&guard::Options::default())?;
    }
    // What a passed run leaves are logs that nobody needs.
    netns_tests::record::remove_stale().map(drop)
}

/// What to hand to `cargo test`, once for each of its runs.
fn selections(options: &TestOptions) -> Vec<Vec<&str>> {
    if let Some(package) = &options.package {
        return vec![vec!["--package", package]];
    }
    if options.options.without.contains(&Optional::Kvm) {
        // The VMM's own integration tests start machines.
        let rest = vec!["--package", "vmm-core", "--lib", "--bins"];
        return vec![vec!["--workspace", "--exclude", "vmm-core"], rest];
    }
    vec![vec!["--workspace"]]
}

/// What the lab must know about this run.
fn lab(command: &mut Command, options: &Options) {
    command.env("NETLOOM_LAB_ASSETS", assets::directory());
    command.env("NETLOOM_LAB_BIN", build::target().join("debug"));
    command.env("NETLOOM_LAB_VMM_GUEST", build::target().join("vmm-guest/release"));
    if options.without.contains(&Optional::Kvm) {
        command.env("NETLOOM_LAB_WITHOUT", "kvm");
    }
}

pub(crate) fn audit() -> anyhow::Result<()> {
    loud(cargo().args(["deny", "check"]))
        .context("cargo-deny: install it with `cargo install cargo-deny`")
}
