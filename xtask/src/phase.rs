//! Progress: one line per phase with its elapsed time, counting while it runs on a terminal.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Run `work`, showing `title` and how long it takes.
///
/// # Errors
/// What `work` returns; the phase is then shown as failed.
pub(crate) fn phase<T>(title: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let running = Arc::new(AtomicBool::new(true));
    let ticker = terminal.then(|| {
        let (running, title) = (Arc::clone(&running), title.to_owned());
        std::thread::spawn(move || {
            while running.load(Ordering::Relaxed) {
                eprint!("\r\x1b[2K  {title} … {:.0} s", start.elapsed().as_secs_f64());
                let _ = std::io::stderr().flush();
                std::thread::park_timeout(Duration::from_secs(1));
            }
        })
    });
    let result = work();
    running.store(false, Ordering::Relaxed);
    if let Some(ticker) = ticker {
        ticker.thread().unpark();
        let _ = ticker.join();
        eprint!("\r\x1b[2K");
    }
    let (mark, colour) = if result.is_ok() { ("ok", "32") } else { ("FAILED", "31") };
    let elapsed = start.elapsed().as_secs_f64();
    if terminal {
        eprintln!("  \x1b[{colour}m{mark:<6}\x1b[0m {title} ({elapsed:.1} s)");
    } else {
        eprintln!("  {mark:<6} {title} ({elapsed:.1} s)");
    }
    result
}

/// Run a command quietly; its output is shown only when it fails.
///
/// # Errors
/// When it cannot be started or ends non-zero.
pub(crate) fn quiet(command: &mut Command) -> anyhow::Result<String> {
    let name = format!("{command:?}").replace('"', "");
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Run a command with its output passed through.
///
/// # Errors
/// When it cannot be started or ends non-zero.
pub(crate) fn loud(command: &mut Command) -> anyhow::Result<()> {
    let name = format!("{command:?}").replace('"', "");
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}
