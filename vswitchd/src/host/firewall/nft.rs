//! Running `nft` in the namespace of the calling thread.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::host::error::{Doing, Error, Result};

/// Applies one JSON transaction: all of it or nothing.
pub(super) fn apply(transaction: &Value) -> Result<()> {
    run(&["-j", "-f", "-"], Some(transaction.to_string().as_bytes())).map(drop)
}

/// `nft -j list …`, as text. `None`: there is no such object.
pub(super) fn list(what: &[&str]) -> Result<Option<String>> {
    let arguments: Vec<&str> = ["-j", "list"].iter().chain(what).copied().collect();
    match run(&arguments, None) {
        Ok(listing) => Ok(Some(listing)),
        Err(Error::Nft { message }) if message.contains("No such file or directory") => Ok(None),
        Err(e) => Err(e),
    }
}

fn run(arguments: &[&str], input: Option<&[u8]>) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NftMissing,
            _ => Error::System { action: "run nft".into(), source: e },
        })?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // nft reads all of its input before it writes; an early exit shows in its status.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().doing(|| "run nft".into())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("rror")).take(3).collect();
    let message = if lines.is_empty() {
        stderr.lines().next().map_or_else(|| output.status.to_string(), str::to_owned)
    } else {
        lines.join("; ")
    };
    Err(Error::Nft { message })
}
