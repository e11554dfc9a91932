//! The instance's nftables table as libnftables JSON: a pure function of the active networks.
//!
//! ```text
//!  forward      iifname vmap @forward_from ─► from-IF   may this source leave its network?
//!               oifname vmap @forward_to   ─► to-IF     may it enter the destination network?
//!  input        iifname vmap @input_from   ─► host-IF   may this source talk to the host?
//!  postrouting  iifname vmap @nat_from     ─► nat-IF    how is its source translated?
//! ```
//!
//! In the forward stages allowed is `return`, so that the next stage (and other tables) still
//! have their say; only a refusal ends the evaluation. A packet that claims a source outside its
//! network is dropped silently: an ICMP error would carry the guest's bytes to the address that
//! it forged. Interface names are only ever map keys and strings, so a name may be an nft keyword.

use std::net::IpAddr;

use ipnet::IpNet;
use netdef::model::{ForwardMode, Nat};
use serde_json::{Value, json};

/// An active network, as the firewall sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallNetwork {
    /// For the comment on its chains.
    pub name: String,
    /// The gateway interface.
    pub interface: String,
    pub mode: ForwardMode,
    /// Subnets that belong to the network: of its `<ip>`s, and of `<route>`s behind its guests.
    pub nets: Vec<IpNet>,
    /// The gateway's own addresses.
    pub gateway: Vec<IpAddr>,
    /// `<nat>` of mode `nat`.
    pub nat: Option<Nat>,
    /// The only way out, and in, when given.
    pub forward_dev: Option<String>,
    /// What the host serves to the network's guests.
    pub dns: bool,
    pub dhcp: bool,
    pub tftp: bool,
}

impl FirewallNetwork {
    /// `bridge` networks have no gateway interface and are not routed here.
    fn is_routed(&self) -> bool {
        self.mode != ForwardMode::Bridge
    }

    /// `open` networks are forwarded without rules.
    fn is_filtered(&self) -> bool {
        matches!(self.mode, ForwardMode::Nat | ForwardMode::Route | ForwardMode::Isolated)
    }
}

/// Whether a network has anything to do with the firewall.
pub(super) fn needs_rules(network: &FirewallNetwork) -> bool {
    network.is_routed()
}

/// One transaction that replaces the table by the rules for `networks`.
pub(super) fn replace(table: &str, networks: &[FirewallNetwork]) -> Value {
    let mut rules = Ruleset { table, commands: remove_commands(table) };
    rules.add("table", json!({}));
    let of = |keep: fn(&FirewallNetwork) -> bool| -> Vec<&FirewallNetwork> {
        networks.iter().filter(|network| keep(network)).collect()
    };
    forward(&mut rules, &of(FirewallNetwork::is_filtered));
    input(&mut rules, &of(FirewallNetwork::is_routed));
    source_nat(&mut rules, &of(|network| network.mode == ForwardMode::Nat));
    transaction(rules.commands)
}

/// One transaction that removes the table, whether it is there or not.
pub(super) fn remove(table: &str) -> Value {
    transaction(remove_commands(table))
}

fn transaction(commands: Vec<Value>) -> Value {
    let mut transaction = json!({});
    transaction["nftables"] = commands.into();
    transaction
}

/// Adding first makes the deletion succeed in any state.
fn remove_commands(table: &str) -> Vec<Value> {
    let table = json!({ "table": { "family": "inet", "name": table } });
    vec![json!({ "add": table }), json!({ "delete": table })]
}

fn forward(rules: &mut Ruleset<'_>, networks: &[&FirewallNetwork]) {
    for network in networks {
        let from = rules.chain(&format!("from-{}", network.interface));
        forward_from(rules, &from, network);
        let to = rules.chain(&format!("to-{}", network.interface));
        forward_to(rules, &to, network);
    }
    rules.verdict_map("forward_from", "from-", networks);
    rules.verdict_map("forward_to", "to-", networks);
    rules.base_chain("forward", "filter", "forward", 0);
    rules.rule("forward", vec![vmap("iifname", "forward_from")]);
    rules.rule("forward", vec![vmap("oifname", "forward_to")]);
}

/// Stage 1: what guests of `network` may send.
fn forward_from(rules: &mut Ruleset<'_>, chain: &str, network: &FirewallNetwork) {
    rules.rule(chain, vec![meta("oifname", &network.interface), returns()]);
    for net in &network.nets {
        if network.mode != ForwardMode::Isolated {
            let mut allowed = vec![ip("saddr", net)];
            allowed.extend(network.forward_dev.as_deref().map(|dev| meta("oifname", dev)));
            allowed.push(returns());
            rules.rule(chain, allowed);
        }
        if network.mode == ForwardMode::Isolated || network.forward_dev.is_some() {
            rules.rule(chain, vec![ip("saddr", net), reject()]);
        }
    }
    rules.rule(chain, vec![drops()]);
}

/// Stage 2: what may be sent to guests of `network`.
fn forward_to(rules: &mut Ruleset<'_>, chain: &str, network: &FirewallNetwork) {
    rules.rule(chain, vec![meta("iifname", &network.interface), returns()]);
    let dev = network.forward_dev.as_deref().map(|dev| meta("iifname", dev));
    match network.mode {
        ForwardMode::Nat => {
            let mut allowed = vec![established()];
            allowed.extend(dev);
            allowed.push(returns());
            rules.rule(chain, allowed);
        }
        ForwardMode::Route => {
            for net in &network.nets {
                let mut allowed = vec![ip("daddr", net)];
                allowed.extend(dev.clone());
                allowed.push(returns());
                rules.rule(chain, allowed);
            }
        }
        ForwardMode::Isolated | ForwardMode::Open | ForwardMode::Bridge => {}
    }
    rules.rule(chain, vec![reject()]);
}

fn input(rules: &mut Ruleset<'_>, networks: &[&FirewallNetwork]) {
    for network in networks {
        let chain = rules.chain(&format!("host-{}", network.interface));
        if network.mode == ForwardMode::Isolated {
            input_isolated(rules, &chain, network);
        } else {
            for (protocol, port) in services(network) {
                rules.rule(&chain, vec![port_is(protocol, port), accept()]);
            }
        }
    }
    rules.verdict_map("input_from", "host-", networks);
    rules.base_chain("input", "filter", "input", 0);
    rules.rule("input", vec![vmap("iifname", "input_from")]);
}

/// Ports that the host serves to the network, with their protocols.
fn services(network: &FirewallNetwork) -> Vec<(&'static str, u16)> {
    let has = |v4: bool| network.gateway.iter().any(|ip| ip.is_ipv4() == v4);
    let mut services = Vec::new();
    if network.dhcp && has(true) {
        services.push(("udp", 67));
    }
    if network.dhcp && has(false) {
        services.push(("udp", 547));
    }
    if network.dns {
        services.extend([("udp", 53), ("tcp", 53)]);
    }
    if network.tftp {
        services.push(("udp", 69));
    }
    services
}

/// Guests of an isolated network reach their own gateway address, for DHCP, DNS, TFTP and ping,
/// and nothing else of the host. The host may reach them, so answers come in. A forged source
/// is not answered: the answer would leave the network.
fn input_isolated(rules: &mut Ruleset<'_>, chain: &str, network: &FirewallNetwork) {
    if network.dhcp {
        // From 0.0.0.0 or a link-local address: neither is ever answered outside the link.
        rules.rule(chain, vec![meta_family("ipv4"), port_is("udp", 67), accept()]);
        rules.rule(chain, vec![meta_family("ipv6"), port_is("udp", 547), accept()]);
    }
    rules.rule(chain, vec![established(), accept()]);
    if network.gateway.iter().any(IpAddr::is_ipv6) {
        let discovery = json!([
            "nd-neighbor-solicit",
            "nd-neighbor-advert",
            "nd-router-solicit",
            "mld-listener-report",
            "mld-listener-done",
            "mld2-listener-report"
        ]);
        rules.rule(chain, vec![icmp_type("icmpv6", &discovery), accept()]);
    }
    let link_local: IpNet = LINK_LOCAL.into();
    for gateway in &network.gateway {
        let host = IpNet::from(*gateway);
        let v6 = gateway.is_ipv6();
        let mut sources: Vec<IpNet> =
            network.nets.iter().filter(|net| net.addr().is_ipv6() == v6).copied().collect();
        if v6 {
            sources.push(link_local);
        }
        let icmp = if v6 { "icmpv6" } else { "icmp" };
        for source in &sources {
            let between = [ip("saddr", source), ip("daddr", &host)];
            let mut permit = |matches: Value| {
                let [from, to] = between.clone();
                rules.rule(chain, vec![from, to, matches, accept()]);
            };
            permit(icmp_type(icmp, &json!("echo-request")));
            for (protocol, port) in services(network) {
                if !matches!(port, 67 | 547) {
                    permit(port_is(protocol, port));
                }
            }
        }
        if v6 {
            let both = vec![
                ip("saddr", &link_local),
                ip("daddr", &link_local),
                icmp_type("icmpv6", &json!("echo-request")),
                accept(),
            ];
            rules.rule(chain, both);
        }
    }
    for net in &network.nets {
        rules.rule(chain, vec![ip("saddr", net), reject()]);
    }
    rules.rule(chain, vec![drops()]);
}

const LINK_LOCAL: ipnet::Ipv6Net =
    ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

fn source_nat(rules: &mut Ruleset<'_>, networks: &[&FirewallNetwork]) {
    if networks.is_empty() {
        // A NAT chain would make the kernel track every connection of the host.
        return;
    }
    for network in networks {
        let chain = rules.chain(&format!("nat-{}", network.interface));
        let nat = network.nat.clone().unwrap_or_default();
        let translated =
            network.nets.iter().filter(|net| net.addr().is_ipv4() || nat.ipv6 == Some(true));
        for net in translated {
            translate(rules, &chain, network, &nat, net);
        }
    }
    rules.verdict_map("nat_from", "nat-", networks);
    rules.base_chain("postrouting", "nat", "postrouting", 100);
    rules.rule("postrouting", vec![vmap("iifname", "nat_from")]);
}

/// Sources of `net` get the host's address on the way out. Source ports stay unprivileged, as
/// servers that trust privileged ports expect; multicast and broadcast stay what they are.
fn translate(
    rules: &mut Ruleset<'_>,
    chain: &str,
    network: &FirewallNetwork,
    nat: &Nat,
    net: &IpNet,
) {
    let groups: &[&str] =
        if net.addr().is_ipv4() { &["224.0.0.0/4", "255.255.255.255/32"] } else { &["ff00::/8"] };
    for group in groups.iter().filter_map(|group| group.parse().ok()) {
        rules.rule(chain, vec![ip("saddr", net), ip("daddr", &group), returns()]);
    }
    let mut leaving = vec![ip("saddr", net), ip_not("daddr", net)];
    leaving.push(meta_not("oifname", &network.interface));
    leaving.extend(network.forward_dev.as_deref().map(|dev| meta("oifname", dev)));

    let (first, last) = nat.ports.filter(|&ports| ports != (0, 0)).unwrap_or((1024, 65535));
    let ports = if first == last { json!(first) } else { json!({ "range": [first, last] }) };
    let target = |ports: Option<&Value>| match (nat.addresses, net) {
        (Some((start, end)), IpNet::V4(_)) => {
            let addr = if start == end {
                json!(start.to_string())
            } else {
                json!({ "range": [start.to_string(), end.to_string()] })
            };
            let mut snat = json!({ "family": "ip", "addr": addr });
            if let Some(ports) = ports {
                snat["port"] = ports.clone();
            }
            json!({ "snat": snat })
        }
        _ => json!({ "masquerade": ports.map(|ports| json!({ "port": ports })) }),
    };
    for protocol in ["tcp", "udp"] {
        let mut rule = leaving.clone();
        rule.extend([meta("l4proto", protocol), target(Some(&ports))]);
        rules.rule(chain, rule);
    }
    leaving.push(target(None));
    rules.rule(chain, leaving);
}

/// The commands of one transaction, in order.
struct Ruleset<'a> {
    table: &'a str,
    commands: Vec<Value>,
}

impl Ruleset<'_> {
    fn add(&mut self, kind: &str, mut object: Value) {
        object["family"] = json!("inet");
        object[if kind == "table" { "name" } else { "table" }] = json!(self.table);
        self.commands.push(json!({ "add": { kind: object } }));
    }

    fn chain(&mut self, name: &str) -> String {
        self.add("chain", json!({ "name": name }));
        name.to_owned()
    }

    fn base_chain(&mut self, name: &str, kind: &str, hook: &str, priority: i32) {
        let chain = json!({
            "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        });
        self.add("chain", chain);
    }

    fn rule(&mut self, chain: &str, expressions: Vec<Value>) {
        let mut rule = json!({ "chain": chain });
        rule["expr"] = expressions.into();
        self.add("rule", rule);
    }

    /// Interface name → jump to the network's chain.
    fn verdict_map(&mut self, name: &str, prefix: &str, networks: &[&FirewallNetwork]) {
        let mut map = json!({ "name": name, "type": "ifname", "map": "verdict" });
        if !networks.is_empty() {
            let element = |network: &&FirewallNetwork| {
                let target = format!("{prefix}{}", network.interface);
                json!([network.interface, { "jump": { "target": target } }])
            };
            map["elem"] = networks.iter().map(element).collect();
        }
        self.add("map", map);
    }
}

fn matches(operator: &str, left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": operator, "left": left, "right": right } })
}

fn vmap(key: &str, map: &str) -> Value {
    json!({ "vmap": { "key": { "meta": { "key": key } }, "data": format!("@{map}") } })
}

fn meta(key: &str, value: &str) -> Value {
    matches("==", &json!({ "meta": { "key": key } }), &json!(value))
}

fn meta_not(key: &str, value: &str) -> Value {
    matches("!=", &json!({ "meta": { "key": key } }), &json!(value))
}

fn meta_family(family: &str) -> Value {
    meta("nfproto", family)
}

/// `ip saddr 192.0.2.0/24` or `ip6 …`, by the family of `net`.
fn ip(field: &str, net: &IpNet) -> Value {
    address("==", field, net)
}

fn ip_not(field: &str, net: &IpNet) -> Value {
    address("!=", field, net)
}

fn address(operator: &str, field: &str, net: &IpNet) -> Value {
    let protocol = if net.addr().is_ipv4() { "ip" } else { "ip6" };
    let net = net.trunc();
    let right = if net.prefix_len() == net.max_prefix_len() {
        json!(net.addr().to_string())
    } else {
        json!({ "prefix": { "addr": net.addr().to_string(), "len": net.prefix_len() } })
    };
    matches(operator, &json!({ "payload": { "protocol": protocol, "field": field } }), &right)
}

fn port_is(protocol: &str, port: u16) -> Value {
    let field = json!({ "payload": { "protocol": protocol, "field": "dport" } });
    matches("==", &field, &json!(port))
}

fn icmp_type(protocol: &str, types: &Value) -> Value {
    let field = json!({ "payload": { "protocol": protocol, "field": "type" } });
    let types = if types.is_array() { json!({ "set": types }) } else { types.clone() };
    matches("==", &field, &types)
}

fn established() -> Value {
    matches("in", &json!({ "ct": { "key": "state" } }), &json!(["established", "related"]))
}

fn accept() -> Value {
    json!({ "accept": null })
}

fn returns() -> Value {
    json!({ "return": null })
}

fn drops() -> Value {
    json!({ "drop": null })
}

/// The answer that routers give for a filtered destination, in both families.
fn reject() -> Value {
    json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } })
}
