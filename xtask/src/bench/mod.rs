//! `cargo xtask bench`: how fast the switch is next to its peers, measured on this machine.
//!
//! A figure alone says little on a virtual machine: other work and the place of its CPUs move rates up
//! to six times. So switches are always measured in turns, in the same minutes, on the same CPUs, and the ratio is
//! what counts. [`cases`] says what is measured, [`turns`] does it, [`report`] sums it up.

mod cases;
mod closed_loop;
mod forwarder;
mod hugepages;
mod idle;
mod iperf;
mod limit;
mod load;
mod ovs;
mod paired;
mod peer;
mod plot;
mod report;
mod targets;
mod turns;
mod vswitchd;

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use peer::Name;
use report::Report;

/// Which benchmark.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Clone, Debug, Subcommand)]
enum Benchmark {
    /// vswitchd and its peers in turns: rates, latency, idle costs
    Vhost(VhostOptions),
    /// Put results of several runs together: table and plot
    Show(ShowOptions),
}

#[derive(Clone, Debug, Args)]
struct VhostOptions {
    /// Only these groups (a to g) or cases (c/1518); --list shows them
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these switches
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Name>,
    /// Turns of each switch
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Length of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Cargo profile of what is ours: `measure` builds faster than `release`
    #[arg(long, default_value = "release")]
    profile: String,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    result: ResultOptions,
}

#[derive(Clone, Debug, Args)]
struct ShowOptions {
    /// Files that `--save` wrote; of a case that is in several, the last one counts
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    result: ResultOptions,
}

/// What to do with the result.
#[derive(Clone, Debug, Args)]
struct ResultOptions {
    /// How to print it
    #[arg(short, long, default_value = "table")]
    output: Output,
    /// Write all runs to this file, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Draw it into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    match &options.benchmark {
        Benchmark::Vhost(options) if options.list => {
            for case in cases::all() {
                println!("{:<16} {}", case.name, case.what);
            }
            Ok(())
        }
        Benchmark::Vhost(options) => {
            crate::capability::root()?;
            finish(&turns::run(options)?, &options.result)
        }
        Benchmark::Show(options) => {
            let mut all: Option<Report> = None;
            for file in &options.files {
                let text = fs::read(file).with_context(|| file.display().to_string())?;
                let report: Report = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is no result of --save", file.display()))?;
                all = Some(all.map_or(report.clone(), |all| all.with(report)));
            }
            finish(&all.context("no files")?, &options.result)
        }
    }
}

fn finish(report: &Report, options: &ResultOptions) -> anyhow::Result<()> {
    match options.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report.with_summary())?),
    }
    if let Some(file) = &options.save {
        let text = serde_json::to_string(report)?;
        fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &options.plot {
        fs::write(file, plot::svg(report)).with_context(|| file.display().to_string())?;
    }
    let failed = report.failures.len();
    anyhow::ensure!(failed == 0, "{failed} measurements failed; logs are in /tmp/netloom-lab");
    Ok(())
}
