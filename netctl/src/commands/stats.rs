//! `port-stats`: counters, or rates as they change. `net-stats`: counters of DHCP and DNS.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use api::{NetworkStats, PortStats};
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

pub(super) async fn network(context: &mut Context<'_>, network: &str) -> Result<(), Failure> {
    let stats = context.client.network_stats(network).await.network(network, None)?;
    if context.output.is_json() {
        context.output.json(&stats)?;
    } else {
        context.output.text(&network_text(&stats))?;
    }
    Ok(())
}

/// One line per counter, with the service before it.
fn network_text(stats: &NetworkStats) -> String {
    let mut text = String::new();
    if let Some(dhcp) = &stats.dhcp4 {
        let counters = [
            ("discovers", dhcp.discovers),
            ("offers", dhcp.offers),
            ("requests", dhcp.requests),
            ("acks", dhcp.acks),
            ("naks", dhcp.naks),
            ("releases", dhcp.releases),
            ("declines", dhcp.declines),
            ("informs", dhcp.informs),
        ];
        service(&mut text, "dhcp4", &counters, &dhcp.drops);
    }
    if let Some(dns) = &stats.dns {
        let counters = [
            ("queries", dns.queries),
            ("local", dns.local),
            ("cached", dns.cached),
            ("forwarded", dns.forwarded),
            ("refused", dns.refused),
            ("failed", dns.failed),
            ("malformed", dns.malformed),
        ];
        service(&mut text, "dns", &counters, &dns.drops);
    }
    text
}

fn service(text: &mut String, name: &str, counters: &[(&str, u64)], drops: &BTreeMap<String, u64>) {
    for (counter, value) in counters {
        let _ = writeln!(text, "{:<24} {value}", format!("{name} {counter}"));
    }
    for (reason, value) in drops {
        let _ = writeln!(text, "{:<24} {value}", format!("{name} drop {}", clean(reason, false)));
    }
}

#[cfg(test)]
mod tests {
    use api::{Dhcp4Stats, DnsStats};

    use super::*;

    #[test]
    fn services_have_a_line_per_counter_and_reason() {
        let dhcp = Dhcp4Stats {
            discovers: 2,
            acks: 1,
            drops: [("truncated".to_owned(), 3)].into(),
            ..Dhcp4Stats::default()
        };
        let dns =
            DnsStats { queries: 9, drops: [("short".to_owned(), 4)].into(), ..DnsStats::default() };
        assert_eq!(
            network_text(&NetworkStats { dhcp4: Some(dhcp), dns: Some(dns) }),
            "dhcp4 discovers          2
dhcp4 offers             0
dhcp4 requests           0
dhcp4 acks               1
dhcp4 naks               0
dhcp4 releases           0
dhcp4 declines           0
dhcp4 informs            0
dhcp4 drop truncated     3
dns queries              9
dns local                0
dns cached               0
dns forwarded            0
dns refused              0
dns failed               0
dns malformed            0
dns drop short           4
"
        );
        assert_eq!(network_text(&NetworkStats::default()), "");
    }

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
