//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Poll `condition` until it holds, at most for `limit`.
///
/// # Errors
/// Says what was waited for when the time is up.
pub fn until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    some(what, limit, || condition().then_some(()))
}

/// Poll until `probe` gives a value.
///
/// # Errors
/// Says what was waited for when the time is up.
pub fn some<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {:.1} s in vain: {what}", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
