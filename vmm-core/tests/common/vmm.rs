//! `netloom-vmm` as a process, its console read line by line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Enough for a busy machine; nothing waits this long when it works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Vmm {
    child: Child,
    lines: Receiver<String>,
    /// Every console line so far.
    pub(crate) seen: Vec<String>,
}

pub(crate) fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_netloom-vmm"))
}

impl Vmm {
    /// Boots the test guest with `line` as its command line and the further arguments.
    pub(crate) fn boot(line: &str, args: &[&str]) -> Self {
        super::require_kvm();
        let mut command = command();
        command.arg("--kernel").arg(super::guest()).args(["--cmdline", line]).args(args);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("netloom-vmm starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next console line that starts with `start`.
    pub(crate) fn line(&mut self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.starts_with(start) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no line {start:?} in {PATIENCE:?}; the console: {:#?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the guest ended before {start:?}; the console: {:#?}", self.seen)
                }
            }
        }
    }

    pub(crate) fn terminate(&self) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: a signal to a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }

    /// Waits for the end; returns the status and the whole console.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "netloom-vmm does not end; {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut seen = std::mem::take(&mut self.seen);
        seen.extend(self.lines.iter());
        (status, seen)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs netloom-vmm to its end; returns its status and what it said on stderr.
pub(crate) fn run_to_end(mut command: Command) -> (ExitStatus, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("netloom-vmm starts");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    (child.wait().expect("our child"), said)
}

/// `value` of the word `key=value` in a line.
pub(crate) fn field<'a>(line: &'a str, key: &str) -> &'a str {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("{line:?} has no {key}"))
}
