//! The limit: our rings and one copy between ports in pairs, worker on CPU 0.

use std::path::Path;
use std::process::{Command, Stdio};

use netns_tests::process::Process;
use netns_tests::record::run;
use rustix::process::Signal;

use super::paired::Paired;

/// # Errors
/// With the end of its log, when it does not come up.
pub(super) fn start(programs: &Path, ports: usize) -> anyhow::Result<Paired> {
    let dir = run().directory("limit");
    let sockets = Paired::sockets_in(&dir, ports);
    let mut command = Command::new(programs.join("vhost-limit"));
    command.args(&sockets).stdin(Stdio::null());
    let process = Process::start_quiet("vhost-limit", command, &dir)?;
    Paired::new(process, sockets, Signal::TERM)
}
