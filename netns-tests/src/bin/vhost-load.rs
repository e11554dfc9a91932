//! Load generator for vhost-user switches; `cargo xtask bench vhost` runs it. Prints JSON.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use netns_tests::frontend::load::latency::{self, Probe};
use netns_tests::frontend::load::{self, Load, Pattern};
use netns_tests::frontend::placement;

/// Measure a vhost-user switch from one thread.
#[derive(Debug, Parser)]
#[command(name = "vhost-load")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Send as many frames as the switch takes and print the rate
    Run {
        #[command(flatten)]
        driver: Driver,
        /// Length of the measurement
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        #[arg(long, value_enum, default_value_t)]
        pattern: PatternName,
        /// Addresses that each silent port makes known beforehand (with --pattern busy)
        #[arg(long, default_value_t = 0)]
        addresses: u32,
    },
    /// Print the round trip of single frames
    Latency {
        #[command(flatten)]
        driver: Driver,
        /// Silence before each frame, in microseconds
        #[arg(long)]
        gap: u64,
        #[arg(long)]
        samples: u32,
        /// Share of the switch's own rate that is sent meanwhile
        #[arg(long, default_value_t = 0.0)]
        load: f64,
    },
    /// Attach silent ports and stay until standard input ends; prints a line when all are there
    Attach {
        #[command(flatten)]
        driver: Driver,
    },
    /// Print the round trip of a cache line between two CPUs, in nanoseconds
    Placement {
        #[arg(default_value_t = 0)]
        first: usize,
        #[arg(default_value_t = 1)]
        second: usize,
    },
}

#[derive(Debug, Args)]
struct Driver {
    /// Sockets of the ports
    #[arg(required = true)]
    sockets: Vec<PathBuf>,
    /// Bytes of each frame, without the FCS
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Address pairs
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Packed rings
    #[arg(long)]
    packed: bool,
    /// Mergeable receive buffers
    #[arg(long)]
    mergeable: bool,
    /// Frames of 64 KiB to be segmented
    #[arg(long)]
    tso: bool,
    /// Make the sockets and wait for the switch to connect to them
    #[arg(long)]
    listen: bool,
    /// CPU of the generator
    #[arg(long, default_value_t = 1)]
    cpu: usize,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PatternName {
    #[default]
    Pairs,
    OneWay,
    AllToAll,
    Busy,
}

impl Driver {
    fn load(&self) -> Load {
        Load {
            pattern: Pattern::Pairs,
            bytes: self.bytes,
            flows: self.flows,
            addresses: 0,
            packed: self.packed,
            mergeable: self.mergeable,
            tso: self.tso,
            listen: self.listen,
            warm_up: Duration::from_millis(500),
            seconds: 0.0,
            cpu: self.cpu,
        }
    }
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Run { driver, seconds, pattern, addresses } => {
            let pattern = match pattern {
                PatternName::Pairs => Pattern::Pairs,
                PatternName::OneWay => Pattern::OneWay,
                PatternName::AllToAll => Pattern::AllToAll,
                PatternName::Busy => Pattern::Busy,
            };
            let load = Load { seconds, pattern, addresses, ..driver.load() };
            let rate = load::run(&driver.sockets, &load)?;
            println!("{}", serde_json::to_string(&rate)?);
        }
        Task::Latency { driver, gap, samples, load: share } => {
            let probe = Probe { gap: Duration::from_micros(gap), samples, load: share };
            let latency = latency::run(&driver.sockets, &driver.load(), &probe)?;
            println!("{}", serde_json::to_string(&latency)?);
        }
        Task::Attach { driver } => {
            let ports = load::attach_silent(&driver.sockets, &driver.load())?;
            println!("attached");
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            drop(ports);
        }
        Task::Placement { first, second } => {
            let trip = placement::round_trip(first, second)?;
            println!("{}", trip.as_nanos());
        }
    }
    Ok(())
}
