//! The tasks that run things: set-up, demo, test, audit.

use std::process::Command;

use anyhow::Context;

use crate::build::{self, cargo};
use crate::capability::{self, Optional};
use crate::phase::{loud, phase};
use crate::{Options, TestOptions, assets, packages};

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
        loud(select(cargo().args(["test", "--quiet", "--no-run"]), options))
    })?;
    let mut test = cargo();
    select(test.arg("test"), options);
    test.arg("--no-fail-fast").arg("--").args(&options.args);
    lab(&mut test, &options.options);
    phase("Tests", || loud(&mut test))
}

fn select<'a>(command: &'a mut Command, options: &TestOptions) -> &'a mut Command {
    match &options.package {
        Some(package) => command.args(["--package", package]),
        None => command.arg("--workspace"),
    }
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
