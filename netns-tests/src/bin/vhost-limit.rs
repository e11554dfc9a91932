//! The forwarder that only moves descriptors and copies frames; `cargo xtask bench vhost` measures it as the limit.

use std::path::PathBuf;

use clap::Parser;

/// Copy frames between vhost-user ports, in pairs.
#[derive(Debug, Parser)]
#[command(name = "vhost-limit")]
struct Cli {
    /// Sockets to make; the first and second are joined, the third and fourth, and so on
    #[arg(required = true, num_args = 2..)]
    sockets: Vec<PathBuf>,
    /// CPU that forwards
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    netns_tests::limit::run(&cli.sockets, cli.cpu)
}
