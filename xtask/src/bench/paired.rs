//! A process without any switch logic that moves frames between ports in pairs, on sockets that it makes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_tests::process::Process;
use netns_tests::wait;
use rustix::process::Signal;

pub(super) struct Paired {
    sockets: Vec<PathBuf>,
    process: Process,
    end: Signal,
}

impl Paired {
    /// Sockets for so many ports.
    pub(super) fn sockets_in(dir: &Path, ports: usize) -> Vec<PathBuf> {
        (0..ports).map(|port| dir.join(format!("vh{port}"))).collect()
    }

    /// `end` is what ends it.
    ///
    /// # Errors
    /// With the end of its log, when it does not come up.
    pub(super) fn new(
        mut process: Process,
        sockets: Vec<PathBuf>,
        end: Signal,
    ) -> anyhow::Result<Self> {
        wait::until("the ports' sockets", Duration::from_secs(30), || {
            sockets.iter().all(|socket| socket.exists()) || process.ended().is_some()
        })?;
        process.check_alive()?;
        Ok(Self { sockets, process, end })
    }

    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.process.check_alive()?;
        self.process.signal(self.end)?;
        self.process.wait(Duration::from_secs(5)).map(drop)
    }
}
