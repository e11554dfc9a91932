//! `cargo xtask bench`: how fast the switch is next to its peers, measured on this machine.
//!
//! A figure alone says little on a virtual machine: other work and the place of its CPUs move rates up
//! to six times. So two switches are always measured in turns, in the same minutes, and the ratio is
//! what counts.

mod hugepages;
mod ovs;
mod report;
mod vhost;
mod vswitchd;

use clap::{Args, Subcommand, ValueEnum};

/// Which benchmark.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Clone, Debug, Subcommand)]
enum Benchmark {
    /// Frames per second between two vhost-user ports: vswitchd and OVS-DPDK in turns
    Vhost(VhostOptions),
}

#[derive(Clone, Debug, Args)]
struct VhostOptions {
    /// Turns of each switch
    #[arg(long, default_value_t = 6)]
    pairs: u32,
    /// Length of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Bytes of each frame, without the FCS
    #[arg(long, default_value_t = 64)]
    bytes: u16,
    /// MAC address pairs, up to 1024
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Only one port sends
    #[arg(long)]
    one_way: bool,
    /// Only this switch
    #[arg(long, value_name = "SWITCH")]
    only: Option<report::Switch>,
    /// How to print the result
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    crate::capability::root()?;
    match &options.benchmark {
        Benchmark::Vhost(options) => vhost::run(options),
    }
}
