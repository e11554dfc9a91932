//! Man pages and completions, written by `netctl` itself.

use std::fs;
use std::process::Command;

use crate::build;
use crate::phase::{phase, quiet};

pub(crate) fn dist() -> anyhow::Result<()> {
    phase("Build", build::binaries)?;
    let dist = build::target().join("dist");
    let netctl = build::target().join("debug/netctl");
    phase("Man pages and completions", || {
        let man = dist.join("man");
        fs::create_dir_all(&man)?;
        quiet(Command::new(&netctl).arg("man").arg(&man))?;
        let completions = dist.join("completions");
        fs::create_dir_all(&completions)?;
        for shell in ["bash", "zsh", "fish"] {
            let script = quiet(Command::new(&netctl).args(["completion", shell]))?;
            fs::write(completions.join(format!("netctl.{shell}")), script)?;
        }
        Ok(())
    })?;
    println!("{}", dist.display());
    Ok(())
}
