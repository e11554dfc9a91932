//! `port-stats`: counters, or rates as they change.

use std::fmt::Write as _;
use std::time::Duration;

use api::PortStats;
use tokio::time::{Instant, sleep_until};

use super::Context;
use crate::failure::{Failure, Lead as _};
use crate::output::{Output, clean};

pub(super) async fn stats(
    context: &mut Context<'_>,
    port: &str,
    interval: Option<u64>,
    count: Option<u64>,
) -> Result<(), Failure> {
    let mut before = context.client.port_stats(port).await.port(port, None)?;
    let Some(seconds) = interval else {
        if context.output.is_json() {
            context.output.json(&before)?;
        } else {
            context.output.text(&stats_text(&before))?;
        }
        return Ok(());
    };
    let period = Duration::from_secs(seconds);
    let mut due = Instant::now();
    let mut lines = 0;
    header(context.output)?;
    while count.is_none_or(|count| lines < count) {
        due += period;
        sleep_until(due).await;
        let after = context.client.port_stats(port).await.port(port, None)?;
        if context.output.is_json() {
            context.output.json_line(&after)?;
        } else {
            context.output.line(&rates(&before, &after, seconds))?;
        }
        before = after;
        lines += 1;
    }
    Ok(())
}

fn header(output: &mut Output) -> std::io::Result<()> {
    if output.is_json() || output.is_quiet() {
        return Ok(());
    }
    let header = format!(
        "{:>12} {:>12} {:>12} {:>12} {:>10}",
        "rx packets/s", "rx kbit/s", "tx packets/s", "tx kbit/s", "drops/s"
    );
    output.line(&header)
}

/// One line of rates. Counters that went back were started anew.
fn rates(before: &PortStats, after: &PortStats, seconds: u64) -> String {
    let rate = |before: u64, after: u64| after.checked_sub(before).unwrap_or(after) / seconds;
    let drops = |stats: &PortStats| stats.drops.values().sum::<u64>();
    format!(
        "{:>12} {:>12} {:>12} {:>12} {:>10}",
        rate(before.rx_packets, after.rx_packets),
        rate(before.rx_bytes, after.rx_bytes) * 8 / 1000,
        rate(before.tx_packets, after.tx_packets),
        rate(before.tx_bytes, after.tx_bytes) * 8 / 1000,
        rate(drops(before), drops(after)),
    )
}

/// `rx` is from the guest, `tx` to it.
fn stats_text(stats: &PortStats) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("rx_packets", stats.rx_packets),
        ("rx_bytes", stats.rx_bytes),
        ("tx_packets", stats.tx_packets),
        ("tx_bytes", stats.tx_bytes),
    ] {
        let _ = writeln!(text, "{name:<24} {value}");
    }
    for (reason, value) in &stats.drops {
        let _ = writeln!(text, "{:<24} {value}", format!("drop {}", clean(reason, false)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> PortStats {
        PortStats {
            rx_packets: 10,
            rx_bytes: 6400,
            tx_packets: 3,
            tx_bytes: 192,
            drops: [("malformed".to_owned(), 2), ("rx-ring-full".to_owned(), 5)].into(),
        }
    }

    #[test]
    fn counters_and_reasons() {
        assert_eq!(
            stats_text(&stats()),
            "rx_packets               10
rx_bytes                 6400
tx_packets               3
tx_bytes                 192
drop malformed           2
drop rx-ring-full        5
"
        );
    }

    #[test]
    fn rates_are_per_second_and_survive_a_restart() {
        let later = PortStats { rx_packets: 2010, rx_bytes: 1_006_400, ..stats() };
        let line = rates(&stats(), &later, 2);
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields, ["1000", "4000", "0", "0", "0"]);
        let line = rates(&later, &stats(), 1);
        assert_eq!(line.split_whitespace().next(), Some("10"));
    }
}
