//! The limit: our rings and one copy between ports in pairs, worker on CPU 0.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_tests::process::Process;
use netns_tests::record::run;
use netns_tests::wait;
use rustix::process::Signal;

pub(super) struct Limit {
    sockets: Vec<PathBuf>,
    process: Process,
}

impl Limit {
    /// # Errors
    /// With the end of its log, when it does not come up.
    pub(super) fn start(programs: &Path, ports: usize) -> anyhow::Result<Limit> {
        let dir = run().directory("limit");
        let sockets: Vec<PathBuf> = (0..ports).map(|port| dir.join(format!("vh{port}"))).collect();
        let mut command = Command::new(programs.join("vhost-limit"));
        command.args(&sockets).stdin(Stdio::null());
        let mut process = Process::start_quiet("vhost-limit", command, &dir)?;
        wait::until("the limit's sockets", Duration::from_secs(10), || {
            sockets.iter().all(|socket| socket.exists()) || process.ended().is_some()
        })?;
        process.check_alive()?;
        Ok(Limit { sockets, process })
    }

    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.process.check_alive()?;
        self.process.signal(Signal::TERM)?;
        self.process.wait(Duration::from_secs(5)).map(drop)
    }
}
