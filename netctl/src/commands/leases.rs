//! `net-dhcp-leases`.

use api::Lease;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use wire::MacAddr;

use super::Context;
use crate::failure::{Failure, Lead as _};
use crate::table::Table;

pub(super) async fn leases(
    context: &mut Context<'_>,
    network: &str,
    mac: Option<String>,
) -> Result<(), Failure> {
    let lead = format!("Failed to get leases info for {network}");
    let mac = match mac {
        None => None,
        Some(text) => Some(text.parse::<MacAddr>().map_err(|_| Failure::Local {
            lines: vec![lead.clone(), format!("invalid MAC address: {text}")],
            remedy: None,
        })?),
    };
    let mut leases = context.client.leases(network).await.network(network, Some(lead))?;
    leases.retain(|lease| mac.is_none_or(|mac| lease.mac == mac));
    leases.sort_by_key(|lease| (lease.mac, lease.ip));
    if context.output.is_json() {
        context.output.json(&leases)?;
    } else {
        let text = leases_text(&leases, &TimeZone::system(), context.output.is_quiet());
        context.output.text(&text)?;
    }
    Ok(())
}

fn leases_text(leases: &[Lease], zone: &TimeZone, quiet: bool) -> String {
    let mut table = Table::new(&[
        "Expiry Time",
        "MAC address",
        "Protocol",
        "IP address",
        "Hostname",
        "Client ID or DUID",
    ]);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for lease in leases {
        table.row([
            lease.expiry.map_or_else(|| "infinite".to_owned(), |expiry| local_time(expiry, zone)),
            lease.mac.to_string(),
            lease.protocol.clone(),
            format!("{}/{}", lease.ip, lease.prefix),
            or_dash(&lease.hostname),
            or_dash(&lease.client_id),
        ]);
    }
    table.render(quiet)
}

fn local_time(seconds: u64, zone: &TimeZone) -> String {
    let timestamp = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    match timestamp {
        Some(timestamp) => {
            timestamp.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
        }
        None => seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(mac: &str, ip: &str, hostname: Option<&str>, client: Option<&str>) -> Lease {
        Lease {
            expiry: Some(1_795_257_076),
            mac: mac.parse().expect("a MAC"),
            protocol: "ipv4".to_owned(),
            ip: ip.parse().expect("an address"),
            prefix: 24,
            hostname: hostname.map(str::to_owned),
            client_id: client.map(str::to_owned),
            port: None,
        }
    }

    #[test]
    fn tables_look_like_virshs() {
        let leases = [
            lease("52:54:00:00:00:01", "192.168.122.5", Some("vm1"), Some("01:52:54:00:00:00:01")),
            Lease { expiry: None, ..lease("52:54:00:00:00:aa", "192.168.122.107", None, None) },
        ];
        assert_eq!(
            leases_text(&leases, &TimeZone::UTC, false),
            concat!(
                " Expiry Time           MAC address         Protocol   IP address           Hostname   Client ID or DUID\n",
                "------------------------------------------------------------------------------------------------------------\n",
                " 2026-11-21 10:31:16   52:54:00:00:00:01   ipv4       192.168.122.5/24     vm1        01:52:54:00:00:00:01\n",
                " infinite              52:54:00:00:00:aa   ipv4       192.168.122.107/24   -          -\n",
            )
        );
    }

    #[test]
    fn host_names_are_the_guests() {
        let leases = [lease("52:54:00:00:00:01", "10.0.0.2", Some("a\x1b[2Jb"), None)];
        let text = leases_text(&leases, &TimeZone::UTC, true);
        assert!(text.contains("a\\x1b[2Jb") && !text.contains('\x1b'), "{text}");
    }
}
