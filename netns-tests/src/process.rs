//! Child processes that never outlive the run.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::record::{run, start_time};
use crate::wait;

/// A running program; killed on drop. Its standard error goes to a log in the run's directory.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// Children get a signal when the *thread* that made them ends, so one thread that lives as long
/// as the process makes them all.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // SAFETY: prctl is async-signal-safe and touches no memory of this process.
                unsafe {
                    command.pre_exec(|| {
                        set_parent_process_death_signal(Some(Signal::KILL))?;
                        Ok(())
                    });
                }
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, child) = channel();
    let gone = || std::io::Error::other("the spawning thread has ended");
    spawner.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

impl Process {
    /// Start with standard input and output as set in `command`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let stderr =
            File::options().create(true).append(true).open(&log).context("cannot write a log")?;
        command.stderr(stderr);
        let shown = format!("{command:?}");
        let child = spawn(command).with_context(|| format!("cannot start {shown}"))?;
        if let Some(start) = start_time(child.id()) {
            run().add(&format!("process {} {start}", child.id()));
        }
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Start with nothing to read, its output in the log too.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_quiet(name: &str, mut command: Command, dir: &Path) -> anyhow::Result<Self> {
        let stdout = File::options()
            .create(true)
            .append(true)
            .open(dir.join(format!("{name}.log")))
            .context("cannot write a log")?;
        command.stdin(Stdio::null()).stdout(stdout);
        Self::start(name, command, dir)
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it reads, where that was to be a pipe, once. It sees the end of its input when this is dropped.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What it writes, where that was to be a pipe, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(crate) fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// The one process that it started itself.
    pub(crate) fn only_child(&self) -> Option<u32> {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.trim().parse().ok()
    }

    /// Ends it at once, and waits for that.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// The status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// # Errors
    /// With the end of its log, when it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let name = format!("{} to end", self.name);
        wait::some(&name, limit, || self.ended())
    }

    /// CPU time used so far by all threads, user and system.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every Linux that people run.
        Duration::from_millis(ticks * 10)
    }

    /// What the program logged.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// # Errors
    /// With the end of its log, when it has ended.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.ended() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{} ended by itself ({status})\n{}", self.name, tail.join("\n"));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
