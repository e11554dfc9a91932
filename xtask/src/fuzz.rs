//! Long runs of the fuzz targets under libFuzzer; see `fuzz/README.md`.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::build::{cargo, root, target};
use crate::phase::{loud, phase};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// One target; all of them, one after the other, when absent
    target: Option<String>,
    /// For each target
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Put inputs that reached new code into the repository's corpus
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let probe =
        cargo().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(
        probe.is_ok_and(|status| status.success()),
        "cargo-fuzz is not installed: `cargo install cargo-fuzz`, then again"
    );
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/corpus")).context("fuzz/corpus")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if let Some(only) = &options.target {
        ensure!(names.contains(only), "no fuzz target {only}; there are {}", names.join(", "));
        names.retain(|name| name == only);
    }
    for name in &names {
        phase(&format!("Fuzz {name} for {} min", options.minutes), || one(name, options))?;
    }
    Ok(())
}

fn one(name: &str, options: &Options) -> anyhow::Result<()> {
    let corpus = root().join("fuzz/corpus").join(name);
    let grown = target().join("fuzz-corpus").join(name);
    let artifacts = target().join("fuzz-artifacts");
    for directory in [&grown, &artifacts] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let mut run = cargo_fuzz(name);
    run.args([&grown, &corpus]).args(["--", "-max_len=4096", "-timeout=10"]);
    run.arg(format!("-max_total_time={}", options.minutes * 60));
    run.arg(format!("-artifact_prefix={}/{name}-", artifacts.display()));
    loud(&mut run)?;
    if options.keep {
        // By the code that they reach, not by how often: a few small files, which every test run replays.
        let few = ["--", "-merge=1", "-use_counters=0", "-max_len=1024"];
        loud(cargo_fuzz(name).args([&corpus, &grown]).args(few))?;
    }
    Ok(())
}

/// Instrumentation is a nightly option; the toolchain is the one that everything else is built with.
fn cargo_fuzz(name: &str) -> Command {
    let mut command = cargo();
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", target().join("fuzz"));
    command.args(["fuzz", "run", "--fuzz-dir", "fuzz/libfuzzer", name]);
    command
}
