//! `show`, the tree of everything, in the layout of Open vSwitch.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::{ClientError, Code, InstanceInfo, NetworkInfo, NetworkStats, PortInfo};
use serde_json::json;
use uuid::Uuid;

use super::Context;
use super::networks::hub_guests;
use super::ports::{kind_word, state_word, target, vlan_text};
use crate::failure::{Failure, Lead as _};
use crate::output::{clean, state};

pub(super) async fn show(context: &mut Context<'_>) -> Result<(), Failure> {
    let lead = "Failed to show the instance";
    let instance = context.client.instance().await.lead(lead)?;
    let mut networks = context.client.networks().await.lead(lead)?;
    let mut ports = context.client.ports().await.lead(lead)?;
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    let mut stats = BTreeMap::new();
    for network in networks.iter().filter(|network| network.active) {
        match context.client.network_stats(&network.uuid.to_string()).await {
            Ok(of_network) => drop(stats.insert(network.uuid, of_network)),
            // It has ceased to exist since.
            Err(ClientError::Problem(problem)) if problem.code == Code::NetworkNotFound => {}
            Err(error) => return Err(error).lead(lead),
        }
    }
    if context.output.is_json() {
        let value =
            json!({ "instance": instance, "networks": networks, "ports": ports, "stats": stats });
        context.output.json(&value)?;
    } else {
        let colour = context.output.colour();
        context.output.text(&tree(&instance, &networks, &ports, &stats, colour))?;
    }
    Ok(())
}

fn tree(
    instance: &InstanceInfo,
    networks: &[NetworkInfo],
    ports: &[PortInfo],
    stats: &BTreeMap<Uuid, NetworkStats>,
    colour: bool,
) -> String {
    let mut text = format!("{}\n", instance.name);
    for network in networks {
        let _ = writeln!(text, "    Network {}", quoted(&network.name));
        let word = if network.active { "active" } else { "inactive" };
        let _ = writeln!(text, "        mode: {}", network.mode);
        let _ = writeln!(text, "        state: {}", state(word, colour));
        if let Some(bridge) = &network.bridge {
            let _ = writeln!(text, "        bridge: {}", clean(bridge, false));
        }
        services(&mut text, stats.get(&network.uuid));
        if let Some(hub) = &network.hub {
            let socket = clean(&hub.socket.to_string_lossy(), false);
            let _ = writeln!(text, "        hub: {socket}");
            let _ = writeln!(text, "        guests on it: {}", hub_guests(hub));
        }
        for port in ports.iter().filter(|port| port.network == network.name) {
            let _ = writeln!(text, "        Port {}", quoted(&port.name));
            if let Some(vlan) = &port.profile.vlan {
                let _ = writeln!(text, "            vlan: {}", vlan_text(vlan));
            }
            let _ = writeln!(text, "            type: {}", kind_word(&port.port));
            let _ = writeln!(text, "            target: {}", clean(&target(port), false));
            let _ = writeln!(text, "            mac: {}", port.mac);
            let _ = writeln!(text, "            state: {}", state(state_word(port.state), colour));
            if let Some(reason) = &port.reason {
                let _ = writeln!(text, "            error: {}", quoted(reason));
            }
        }
    }
    let _ = writeln!(text, "    version: {}", quoted(&instance.version));
    text
}

/// A line for each service; `net-stats` has the reasons.
fn services(text: &mut String, stats: Option<&NetworkStats>) {
    if let Some(dhcp) = stats.and_then(|stats| stats.dhcp4.as_ref()) {
        let dropped: u64 = dhcp.drops.values().sum();
        let _ = writeln!(text, "        dhcp4: {} acks, {dropped} dropped", dhcp.acks);
    }
    if let Some(dns) = stats.and_then(|stats| stats.dns.as_ref()) {
        let dropped: u64 = dns.drops.values().sum();
        let _ = writeln!(
            text,
            "        dns: {} queries, {} malformed, {dropped} dropped",
            dns.queries, dns.malformed
        );
    }
}

/// Quotes where a reader needs them, as `ovs-vsctl` does.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let letter = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if letter && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("\"{}\"", clean(text, false).replace('"', "\\\""))
    }
}

#[cfg(test)]
mod tests {
    use api::{Dhcp4Stats, DnsStats, HubInfo, PortKind, PortProfile, PortState, Vlan};

    use super::*;

    #[test]
    fn the_tree_has_networks_and_their_ports() {
        let network = NetworkInfo {
            name: "default".to_owned(),
            uuid: Uuid::nil(),
            title: None,
            active: true,
            persistent: true,
            autostart: false,
            mode: "nat".to_owned(),
            bridge: Some("virbr0".to_owned()),
            ports: 1,
            warnings: Vec::new(),
            hub: Some(HubInfo {
                socket: "/run/netloom/hub/default.sock".into(),
                guests: 1,
                limit: 64,
                refused: 0,
            }),
        };
        let port = PortInfo {
            name: "1web".to_owned(),
            uuid: Uuid::nil(),
            network: "default".to_owned(),
            port: PortKind::Namespace { netns: "red".to_owned(), ifname: "eth0".to_owned() },
            mac: "52:54:00:12:34:56".parse().expect("a MAC"),
            profile: PortProfile { vlan: Some(Vlan::Access(7)), ..PortProfile::default() },
            state: PortState::Gone,
            reason: Some("namespace was deleted".to_owned()),
            socket: None,
            mtu: 1500,
        };
        let instance = InstanceInfo {
            name: "netloom".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 1,
            revision: 1,
            workers: 1,
        };
        let dhcp = Dhcp4Stats {
            acks: 4,
            drops: [("hops".to_owned(), 1), ("bootp".to_owned(), 2)].into(),
            ..Dhcp4Stats::default()
        };
        let dns = DnsStats { queries: 9, malformed: 1, ..DnsStats::default() };
        let stats = NetworkStats { dhcp4: Some(dhcp), dns: Some(dns) };
        let stats = BTreeMap::from([(network.uuid, stats)]);
        assert_eq!(
            tree(&instance, &[network], &[port], &stats, false),
            "netloom
    Network default
        mode: nat
        state: active
        bridge: virbr0
        dhcp4: 4 acks, 3 dropped
        dns: 9 queries, 1 malformed, 0 dropped
        hub: /run/netloom/hub/default.sock
        guests on it: 1 of 64
        Port \"1web\"
            vlan: 7
            type: namespace
            target: red:eth0
            mac: 52:54:00:12:34:56
            state: gone
            error: \"namespace was deleted\"
    version: \"0.1.0\"
"
        );
    }
}
