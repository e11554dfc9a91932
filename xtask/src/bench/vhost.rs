//! `cargo xtask bench vhost`: two switches in turns, each between two ports of one light generator.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::frontend::load::Rate;
use netns_tests::frontend::placement::Placement;
use netns_tests::process::Process;
use netns_tests::record;

use super::hugepages::Hugepages;
use super::ovs::{self, Ovs};
use super::report::{Report, Run, Setting, Switch};
use super::vswitchd::{self, Vswitchd};
use super::{Output, VhostOptions};
use crate::phase::{loud, phase, quiet};
use crate::{build, packages};

/// DPDK's own memory and the generator's, in 2 MiB pages.
const PAGES: u64 = 1024;
const PACKAGES: &[&str] = &["iproute2", "nftables", "openvswitch-switch-dpdk"];

pub(super) fn run(options: &VhostOptions) -> anyhow::Result<()> {
    ensure!(options.pairs > 0, "--pairs must be at least 1");
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "one CPU for the worker and one for the generator are needed, {cpus} found");
    let switches: Vec<Switch> = match options.only {
        Some(switch) => vec![switch],
        None => vec![Switch::Vswitchd, Switch::OvsDpdk],
    };
    phase("Debian packages", || packages::install(PACKAGES))?;
    let programs = phase("Build for release", || binaries(&switches))?;
    let _pages = phase("Hugepages", || Hugepages::reserve(PAGES))?;

    let mut runs = Vec::new();
    for round in 1..=options.pairs {
        for switch in &switches {
            let title = format!("Round {round} of {}: {}", options.pairs, switch.name());
            let run = phase(&title, || measure(&programs, options, round, *switch))?;
            let place = match run.placement {
                Some(Placement::Near) => "two threads of one core",
                Some(Placement::Far) => "two cores",
                None => "the CPUs moved, does not count",
            };
            let rate = run.frames_per_second / 1e6;
            eprintln!(
                "         {rate:.2} Mpps, {place} ({:?} ns), generator waits {:.0} %",
                run.round_trip_ns,
                run.generator_idle * 100.0
            );
            runs.push(run);
        }
    }
    let report = Report::new(setting(options, &programs, &switches)?, runs);
    match options.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    record::run().finish();
    Ok(())
}

/// The generator and what is ours to be measured; returns their directory.
fn binaries(switches: &[Switch]) -> anyhow::Result<PathBuf> {
    let mut cargo = build::cargo();
    cargo.args(["build", "--quiet", "--release", "-p", "netns-tests", "--bin", "vhost-load"]);
    if switches.contains(&Switch::Vswitchd) {
        cargo.args(["-p", "vswitchd", "--bin", "vswitchd", "-p", "netctl", "--bin", "netctl"]);
    }
    loud(&mut cargo)?;
    Ok(build::target().join("release"))
}

/// One turn of one switch. The placement is probed while it does not run: a worker that spins would
/// bias it.
fn measure(
    programs: &Path,
    options: &VhostOptions,
    round: u32,
    switch: Switch,
) -> anyhow::Result<Run> {
    let before = round_trip(programs)?;
    let rate = match switch {
        Switch::Vswitchd => {
            let running = Vswitchd::start(programs)?;
            let rate = load(programs, options, &running.sockets());
            running.stop()?;
            rate?
        }
        Switch::OvsDpdk => {
            let running = Ovs::start()?;
            let rate = load(programs, options, &running.sockets());
            running.stop()?;
            rate?
        }
    };
    let after = round_trip(programs)?;
    let placement = Placement::of(before);
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Ok(Run {
        round,
        switch,
        round_trip_ns: [nanos(before), nanos(after)],
        placement: (placement == Placement::of(after)).then_some(placement),
        frames_per_second: rate.frames_per_second,
        generator_idle: rate.idle,
    })
}

fn load(programs: &Path, options: &VhostOptions, sockets: &[PathBuf; 2]) -> anyhow::Result<Rate> {
    let dir = record::run().directory("load");
    let answer = dir.join("rate.json");
    let mut command = Command::new(programs.join("vhost-load"));
    command.arg("run").args(sockets).stdin(Stdio::null()).stdout(File::create(&answer)?);
    command.args(["--seconds", &options.seconds.to_string()]);
    command.args(["--bytes", &options.bytes.to_string()]);
    command.args(["--flows", &options.flows.to_string()]);
    if options.one_way {
        command.arg("--one-way");
    }
    let mut generator = Process::start("vhost-load", command, &dir)?;
    // It ends by itself; a switch that hangs must not hang the benchmark.
    let status = generator.wait(Duration::from_secs_f64(options.seconds + 40.0))?;
    ensure!(status.success(), "the generator failed ({status}): {}", generator.log());
    serde_json::from_slice(&fs::read(answer)?).context("the generator's answer")
}

fn round_trip(programs: &Path) -> anyhow::Result<Duration> {
    let text = quiet(Command::new(programs.join("vhost-load")).args(["placement", "0", "1"]))?;
    Ok(Duration::from_nanos(text.trim().parse().context("the placement probe's answer")?))
}

fn setting(
    options: &VhostOptions,
    programs: &Path,
    switches: &[Switch],
) -> anyhow::Result<Setting> {
    let mut versions = Vec::new();
    for switch in switches {
        versions.push(match switch {
            Switch::Vswitchd => vswitchd::version(programs)?,
            Switch::OvsDpdk => ovs::version()?,
        });
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    Ok(Setting {
        bytes: options.bytes,
        flows: options.flows,
        both_directions: !options.one_way,
        seconds: options.seconds,
        cpu: model.map_or("unknown CPU", |model| model.trim_matches([' ', ':', '\t'])).to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        versions,
    })
}
