//! `netloom-vmm`: runs one virtual machine on netloom ports until it ends.

mod args;
mod network;

use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use vmm_core::boot::BootSource;
use vmm_core::machine::{Machine, MachineConfig, Outcome, StopSignals};

use crate::args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("NETLOOM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(args) {
        Ok(outcome) => {
            match &outcome {
                Outcome::Crashed(place) => eprintln!("netloom-vmm: the guest crashed {place}"),
                Outcome::Failed(why) => eprintln!("netloom-vmm: the vCPU failed: {why}"),
                Outcome::Guest(_) | Outcome::Stopped => {}
            }
            ExitCode::from(outcome.exit_code())
        }
        Err(error) => {
            eprintln!("netloom-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<Outcome> {
    let stop = StopSignals::new().context("cannot set up signals")?;
    let instance = args.instance()?;
    let nets = args
        .net
        .iter()
        .map(|net| network::resolve(net, &instance))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let machine = Machine::start(MachineConfig {
        memory: args.memory.0,
        boot: BootSource { kernel: args.kernel, initrd: args.initrd, command_line: args.cmdline },
        nets,
        console: args.console,
    })?;
    Ok(machine.run(stop.as_fd())?)
}
