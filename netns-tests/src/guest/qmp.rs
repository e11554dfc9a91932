//! QEMU's control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::wait;

/// A conversation; QEMU holds one at a time.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// # Errors
    /// When nobody answers there within a minute.
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = wait::some("QEMU's control socket", Duration::from_secs(60), || {
            UnixStream::connect(socket).ok()
        })?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.message().context("no greeting")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; returns what it returned.
    ///
    /// # Errors
    /// With QEMU's words when it refuses.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_ref(), "{message}")?;
        loop {
            let mut answer = self.message().with_context(|| command.to_owned())?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            // Others are events.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Two bytes of the guest's memory.
    ///
    /// # Errors
    /// When QEMU does not show them.
    pub fn read_u16(&mut self, address: u64) -> anyhow::Result<u16> {
        let line = json!({ "command-line": format!("xp /1hx {address:#x}") });
        let answer = self.execute("human-monitor-command", &line)?;
        let text = answer.as_str().unwrap_or_default();
        let word = text.split_whitespace().last().and_then(|word| word.strip_prefix("0x"));
        let value = word.and_then(|word| u16::from_str_radix(word, 16).ok());
        value.with_context(|| format!("memory at {address:#x} shows as {text:?}"))
    }

    fn message(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU has closed its control socket");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
