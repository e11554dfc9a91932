//! The agent on a guest's console: `ID COMMAND` in; `@@begin ID`, output, `@@end ID STATUS` out
//! (the other half is the `init` that xtask puts into the initramfs).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Ran;

#[derive(Debug, Default)]
struct Transcript {
    lines: Vec<String>,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Console {
    stdin: ChildStdin,
    shared: Arc<(Mutex<Transcript>, Condvar)>,
    next: u32,
    read: usize,
}

impl Console {
    /// Everything the guest prints also goes to `transcript`.
    pub(super) fn new(
        (stdin, stdout): (ChildStdin, ChildStdout),
        transcript: &Path,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new((Mutex::new(Transcript::default()), Condvar::new()));
        let mut file = File::create(transcript).context("cannot write the console's transcript")?;
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut raw = Vec::new();
            while stdout.read_until(b'\n', &mut raw).is_ok_and(|n| n > 0) {
                let _ = file.write_all(&raw);
                let line = String::from_utf8_lossy(&raw).trim_end_matches(['\r', '\n']).to_owned();
                raw.clear();
                sink.0.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
                sink.1.notify_all();
            }
            sink.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
            sink.1.notify_all();
        });
        Ok(Self { stdin, shared, next: 1, read: 0 })
    }

    /// Wait for a line that `wanted` maps to a value; returns it and the lines before it.
    pub(super) fn line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> anyhow::Result<(T, Vec<String>)> {
        let deadline = Instant::now() + limit;
        let mut before = Vec::new();
        let mut transcript = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while self.read < transcript.lines.len() {
                let line = transcript.lines[self.read].clone();
                self.read += 1;
                if let Some(value) = wanted(&line) {
                    return Ok((value, before));
                }
                before.push(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if transcript.closed || left.is_zero() {
                let why = if transcript.closed { "the guest ended" } else { "time is up" };
                let tail = before.iter().rev().take(15).rev().cloned().collect::<Vec<_>>();
                bail!("waiting for {what}: {why}; its console ends with\n{}", tail.join("\n"));
            }
            transcript = self
                .shared
                .1
                .wait_timeout(transcript, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub(super) fn ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        self.line("the guest's agent", limit, |line| line.ends_with("@@ready").then_some(()))?;
        Ok(())
    }

    pub(super) fn sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<Ran> {
        let id = self.next;
        self.next += 1;
        let command = command.replace('\n', "; ");
        writeln!(self.stdin, "{id} {command}").context("the guest's console is closed")?;
        self.stdin.flush()?;
        let what = format!("`{command}`");
        let begin = format!("@@begin {id}");
        self.line(&what, limit, |line| line.ends_with(&begin).then_some(()))?;
        let end = format!("@@end {id} ");
        let (status, lines) = self.line(&what, limit, |line| {
            line.split_once(&end).and_then(|(_, status)| status.parse().ok())
        })?;
        Ok(Ran { status, text: lines.join("\n") })
    }
}
