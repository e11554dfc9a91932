//! The runs: each peer in turn, round after round; each measurement with the placement of the CPUs before and after it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use netns_tests::frontend::placement::{Placement, real_time};
use netns_tests::record;

use super::cases::{self, Case, Kind, RateUnit};
use super::hugepages::Hugepages;
use super::peer::{Name, Peer};
use super::report::{Figure, Metric, Report, Run, Setting};
use super::{VhostOptions, closed_loop, idle, iperf, load};
use crate::phase::{loud, phase};
use crate::{build, packages};

/// DPDK's own memory and the generator's, in 2 MiB pages.
const PAGES: u64 = 1024;
/// How often a measurement is repeated because the CPUs moved.
const TRIES: u32 = 3;

/// Cases with one set-up, of one peer in one turn.
struct Turn {
    peer: Name,
    cases: Vec<Case>,
}

pub(super) fn run(options: &VhostOptions) -> anyhow::Result<Report> {
    ensure!(options.runs > 0, "--runs must be at least 1");
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "one CPU for the worker and one for the generator are needed, {cpus} found");
    let chosen = cases::chosen(&options.only)?;
    let turns = turns(&chosen, &options.peers);
    ensure!(!turns.is_empty(), "none of these switches is measured in these cases");
    let peers: BTreeSet<Name> = turns.iter().map(|turn| turn.peer).collect();
    let mut names: Vec<&str> = peers.iter().flat_map(|peer| peer.packages()).copied().collect();
    let iperf = chosen.iter().any(|case| matches!(case.kind, Kind::Iperf));
    let driver = chosen.iter().any(|case| matches!(case.kind, Kind::ClosedLoop { .. }));
    names.extend(iperf.then_some(["iperf3", "ethtool", "iputils-ping"]).into_iter().flatten());
    names.extend(driver.then_some("dpdk-dev"));
    phase("Debian packages", || packages::install(&names))?;
    let programs = phase("Build", || binaries(&options.profile))?;
    let _pages = phase("Hugepages", || Hugepages::reserve(PAGES))?;
    let setting = setting(options, &programs, &peers)?;
    // Whatever else runs on this machine waits while a switch is measured: switches and generator inherit this. The
    // kernel leaves others 5 % of each CPU.
    real_time()?;

    let (mut runs, mut failures) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for round in 1..=options.runs {
        for turn in &turns {
            let group = turn.cases.first().map_or("", |case| case.name);
            let title =
                format!("Round {round} of {}: {group} …, {}", options.runs, turn.peer.title());
            let before = runs.len();
            let done = phase(&title, || take(turn, &programs, options, round, &mut runs));
            for run in &runs[before..] {
                eprintln!("         {:>5.0} s  {run}", start.elapsed().as_secs_f64());
            }
            if let Err(error) = done {
                // The others are measured all the same.
                eprintln!("         {error:#}");
                failures.push(format!("{error:#}"));
            }
        }
    }
    if failures.is_empty() {
        record::run().finish();
    } else {
        record::run().keep();
    }
    Ok(Report { setting, runs, failures })
}

/// Peers in the order in which they are to be measured, with the cases that share a set-up.
fn turns(cases: &[Case], peers: &[Name]) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    let alike = |one: &Case, other: &Case| {
        // The first letter is the group.
        one.setup == other.setup && one.name[..1] == other.name[..1]
    };
    let mut at = 0;
    while let Some(first) = cases.get(at) {
        let group: Vec<&Case> = cases[at..].iter().take_while(|case| alike(case, first)).collect();
        let names: BTreeSet<Name> = group.iter().flat_map(|case| case.peers).copied().collect();
        for peer in names {
            let cases = group.iter().filter(|case| case.peers.contains(&peer));
            let cases: Vec<Case> = cases.map(|&case| case.clone()).collect();
            if peers.is_empty() || peers.contains(&peer) {
                turns.push(Turn { peer, cases });
            }
        }
        at += group.len();
    }
    turns
}

/// All of ours, always the same, so that cargo does not build dependencies anew for another selection.
fn binaries(profile: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = build::cargo();
    cargo.args(["build", "--quiet", "--profile", profile]);
    cargo.args(["-p", "netns-tests", "--bin", "vhost-load", "--bin", "vhost-limit"]);
    cargo.args(["-p", "vswitchd", "--bin", "vswitchd", "-p", "netctl", "--bin", "netctl"]);
    loud(&mut cargo)?;
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(build::target().join(directory))
}

/// One turn: the peer is started, measured in each case, and ended.
fn take(
    turn: &Turn,
    programs: &Path,
    options: &VhostOptions,
    round: u32,
    runs: &mut Vec<Run>,
) -> anyhow::Result<()> {
    let Some(first) = turn.cases.first() else { return Ok(()) };
    if matches!(first.kind, Kind::Iperf) {
        let probe = || load::round_trip(programs);
        let figures = || {
            let bits = iperf::rate(turn.peer, programs, options.seconds)?;
            Ok(vec![Figure { metric: Metric::Gbit, value: bits / 1e9 }])
        };
        runs.push(steady(turn.peer, first, round, probe, figures)?);
        return Ok(());
    }
    let peer = Peer::start(turn.peer, first.setup, programs)?;
    let peer = std::cell::RefCell::new(peer);
    let mut result = Ok(());
    for case in &turn.cases {
        let probe = || peer.borrow_mut().paused(|| load::round_trip(programs));
        let figures = || measure(case, &mut peer.borrow_mut(), programs, options.seconds);
        match steady(turn.peer, case, round, probe, figures) {
            Ok(run) => runs.push(run),
            Err(error) => {
                result = Err(error.context(format!("{} of {}", case.name, turn.peer.title())));
            }
        }
    }
    peer.into_inner().stop()?;
    result
}

/// Measures until the CPUs stay where they are, a few times at most.
fn steady(
    peer: Name,
    case: &Case,
    round: u32,
    mut probe: impl FnMut() -> anyhow::Result<Duration>,
    mut figures: impl FnMut() -> anyhow::Result<Vec<Figure>>,
) -> anyhow::Result<Run> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut tries = 0;
    loop {
        tries += 1;
        let before = probe()?;
        let figures = figures()?;
        let after = probe()?;
        let placement = Placement::between(before, after);
        if placement.is_some() || tries == TRIES {
            let round_trip_ns = [nanos(before), nanos(after)];
            let case = case.name.to_owned();
            return Ok(Run { case, peer, round, round_trip_ns, placement, figures });
        }
    }
}

fn measure(
    case: &Case,
    peer: &mut Peer,
    programs: &Path,
    seconds: f64,
) -> anyhow::Result<Vec<Figure>> {
    let figure = |metric, value| Figure { metric, value };
    Ok(match case.kind {
        Kind::Rate { options, unit } => {
            let listen: &[&str] = if peer.connects() { &["--listen"] } else { &[] };
            let options = [options, listen].concat();
            let rate = load::rate(programs, peer.sockets(), &options, seconds)?;
            let figure = match unit {
                RateUnit::Mpps => figure(Metric::Mpps, rate.frames_per_second / 1e6),
                RateUnit::Gbit => figure(Metric::Gbit, rate.bits_per_second / 1e9),
            };
            vec![figure, Figure { metric: Metric::GeneratorIdle, value: rate.idle * 100.0 }]
        }
        Kind::Latency { options } => {
            let latency = load::latency(programs, peer.sockets(), options)?;
            vec![
                figure(Metric::MedianMicros, latency.median_ns / 1e3),
                figure(Metric::P99Micros, latency.p99_ns / 1e3),
            ]
        }
        Kind::ClosedLoop { packed } => {
            let rate = closed_loop::rate(peer.sockets(), packed, seconds)?;
            vec![figure(Metric::Mpps, rate / 1e6)]
        }
        Kind::Idle => {
            let (share, bytes) = idle::cost(peer, programs, seconds.max(5.0))?;
            vec![figure(Metric::CpuPercent, share * 100.0), figure(Metric::RssAnonMb, bytes / 1e6)]
        }
        Kind::Iperf => Vec::new(),
    })
}

fn setting(
    options: &VhostOptions,
    programs: &Path,
    peers: &BTreeSet<Name>,
) -> anyhow::Result<Setting> {
    let mut versions = Vec::new();
    for peer in peers {
        versions.extend(peer.version(programs)?.filter(|version| !versions.contains(version)));
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    Ok(Setting {
        seconds: options.seconds,
        profile: options.profile.clone(),
        cpu: model.map_or("unknown CPU", |model| model.trim_matches([' ', ':', '\t'])).to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        versions,
    })
}
