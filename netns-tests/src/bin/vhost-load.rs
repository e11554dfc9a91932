//! Load generator for vhost-user switches; `cargo xtask bench vhost` runs it. Prints JSON.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use netns_tests::frontend::load::{self, Load};
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
    /// Send frames between two ports and print the rate
    Run {
        /// Socket of the first port
        first: PathBuf,
        /// Socket of the second port
        second: PathBuf,
        /// Length of the measurement
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Bytes of each frame, without the FCS
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        /// Address pairs
        #[arg(long, default_value_t = 1)]
        flows: u16,
        /// Only the first port sends
        #[arg(long)]
        one_way: bool,
        /// CPU of the generator
        #[arg(long, default_value_t = 1)]
        cpu: usize,
    },
    /// Print the round trip of a cache line between two CPUs, in nanoseconds
    Placement {
        #[arg(default_value_t = 0)]
        first: usize,
        #[arg(default_value_t = 1)]
        second: usize,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Run { first, second, seconds, bytes, flows, one_way, cpu } => {
            let warm_up = Duration::from_secs(1);
            let load = Load { bytes, flows, both: !one_way, warm_up, seconds, cpu };
            let rate = load::run([&first, &second], &load)?;
            println!("{}", serde_json::to_string(&rate)?);
        }
        Task::Placement { first, second } => {
            let trip = placement::round_trip(first, second)?;
            println!("{}", trip.as_nanos());
        }
    }
    Ok(())
}
