//! What a switch costs while nobody sends.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::load::Silent;
use super::peer::Peer;

/// Between attaching and measuring: polling has ended by then.
const SETTLE: Duration = Duration::from_secs(2);

/// Share of a core, and own memory in bytes (RssAnon), with silent frontends on all ports.
///
/// # Errors
/// When a frontend cannot attach.
pub(super) fn cost(peer: &mut Peer, programs: &Path, seconds: f64) -> anyhow::Result<(f64, f64)> {
    let silent = Silent::attach(programs, peer.sockets())?;
    std::thread::sleep(SETTLE);
    let process = peer.process();
    let (start, before) = (Instant::now(), on_cpu(process.id())?);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let used = on_cpu(process.id())?.saturating_sub(before);
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    process.check_alive()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    drop(silent);
    Ok((share, kib.context("RssAnon in /proc")? * 1024.0))
}

/// Time on a CPU of all threads, to the nanosecond: ticks would miss short wake-ups.
fn on_cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok());
        total += nanos.unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}
