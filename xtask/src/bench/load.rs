//! The generator: runs `vhost-load` and reads its answer.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::frontend::load::Rate;
use netns_tests::frontend::load::latency::Latency;
use netns_tests::process::Process;
use netns_tests::record;

use crate::phase::quiet;

/// What a generator may take beside its measurement, and what each port may take to attach: Open vSwitch reconfigures itself for each.
const GRACE: f64 = 60.0;
const ATTACH: f64 = 0.5;

pub(super) fn rate(
    programs: &Path,
    sockets: &[PathBuf],
    options: &[&str],
    seconds: f64,
) -> anyhow::Result<Rate> {
    let seconds_text = seconds.to_string();
    let options = [options, &["--seconds", &seconds_text]].concat();
    answer(programs, "run", sockets, &options, seconds)
}

pub(super) fn latency(
    programs: &Path,
    sockets: &[PathBuf],
    options: &[&str],
) -> anyhow::Result<Latency> {
    answer(programs, "latency", sockets, options, 10.0)
}

fn answer<T: serde::de::DeserializeOwned>(
    programs: &Path,
    task: &str,
    sockets: &[PathBuf],
    options: &[&str],
    seconds: f64,
) -> anyhow::Result<T> {
    let dir = record::run().directory("load");
    let answer = dir.join("answer.json");
    let mut command = Command::new(programs.join("vhost-load"));
    command.arg(task).args(sockets).args(options);
    command.stdin(Stdio::null()).stdout(File::create(&answer)?);
    let mut generator = Process::start("vhost-load", command, &dir)?;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let limit = seconds + GRACE + ATTACH * sockets.len() as f64;
    // It ends by itself; a switch that hangs must not hang the benchmark.
    let status = generator.wait(Duration::from_secs_f64(limit))?;
    ensure!(status.success(), "the generator failed ({status}): {}", generator.log().trim());
    serde_json::from_slice(&fs::read(answer)?).context("the generator's answer")
}

/// Frontends on all sockets that do nothing; they go with the value.
pub(super) struct Silent {
    _generator: Process,
}

impl Silent {
    /// # Errors
    /// When one cannot attach.
    pub(super) fn attach(programs: &Path, sockets: &[PathBuf]) -> anyhow::Result<Silent> {
        let dir = record::run().directory("load");
        let mut command = Command::new(programs.join("vhost-load"));
        command.arg("attach").args(sockets).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut generator = Process::start("vhost-load", command, &dir)?;
        let output = generator.stdout().context("the generator's output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == "attached", "the generator failed: {}", generator.log().trim());
        Ok(Silent { _generator: generator })
    }
}

/// Round trip of a cache line between the CPUs of worker and generator.
pub(super) fn round_trip(programs: &Path) -> anyhow::Result<Duration> {
    let text = quiet(Command::new(programs.join("vhost-load")).args(["placement", "0", "1"]))?;
    Ok(Duration::from_nanos(text.trim().parse().context("the placement probe's answer")?))
}
