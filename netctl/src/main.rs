//! `netctl`: networks, ports and what the switch knows, from the command line.
//!
//! The `net-*` verbs are virsh's, with its messages, columns and exit codes, so that scripts and
//! habits carry over; the others are netloom's own. Everything goes through the control API of
//! one instance's daemon. Rules about networks are the daemon's: what is checked here is only
//! what the daemon never sees, the command line and files.
//!
//! - `cli` is the command line, `usage` words its errors as virsh does, `complete` asks the daemon
//!   for names while the shell completes;
//! - `commands` has a file per group of verbs: each asks the API and renders the answer;
//! - `output` and `table` know how text, JSON and virsh's tables look; `failure` how errors do.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod complete;
mod failure;
mod output;
mod table;
mod usage;

use std::io;
use std::process::ExitCode;

use clap_complete::CompleteEnv;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    CompleteEnv::with_factory(cli::command).complete();
    let cli = match usage::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => return usage.report(),
    };
    let mut output = Output::new(cli.output, cli.quiet);
    match run(cli, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has enough: not an error of ours.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            failure.report(&output);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, output: &mut Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(commands::run(cli, output));
    // virsh ends every command that it understood with an empty line, failed ones too.
    let ended = output.end();
    result.and(ended.map_err(Failure::from))
}
