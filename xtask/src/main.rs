//! Developer tasks: `cargo xtask demo`, `cargo xtask test` and what they stand on.
//!
//! Everything that a fresh Debian 12 machine with Rust and root lacks is installed or built here,
//! by name, so that a task can be run without reading anything first.

mod assets;
mod bench;
mod build;
mod capability;
mod clean;
mod dist;
mod fuzz;
mod guard;
mod packages;
mod phase;
mod run;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, tests, benchmarks", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install Debian packages and build the guests' kernels and initramfs
    Setup(Options),
    /// Define networks, attach real guests, show them talk, take everything down
    Demo(Options),
    /// Set up, build and pass every test
    Test(TestOptions),
    /// Measure against peers, in turns on this machine
    Bench(bench::Options),
    /// Run the fuzz targets under libFuzzer (needs cargo-fuzz)
    Fuzz(fuzz::Options),
    /// Count the instructions of the hot path and compare them with their limits
    Guard(guard::Options),
    /// Remove what an interrupted run left behind
    Clean,
    /// Man pages and shell completions into target/dist
    Dist,
    /// Check licences and advisories of the dependencies (needs cargo-deny)
    Audit,
}

/// What the machine may lack.
#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// Do without a capability of the machine (for local use; CI has all of them)
    #[arg(long, value_name = "CAPABILITY", value_enum)]
    without: Vec<capability::Optional>,
}

#[derive(Clone, Debug, clap::Args)]
struct TestOptions {
    #[command(flatten)]
    options: Options,
    /// Only this package
    #[arg(short, long)]
    package: Option<String>,
    /// Passed to the test binaries: a filter, `--nocapture`, ...
    #[arg(last = true)]
    args: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Setup(options) => run::setup(&options),
        Task::Demo(options) => run::demo(&options),
        Task::Test(options) => run::test(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Guard(options) => guard::run(&options),
        Task::Clean => clean::clean(),
        Task::Dist => dist::dist(),
        Task::Audit => run::audit(),
    }
}
