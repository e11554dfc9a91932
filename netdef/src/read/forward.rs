//! `<forward>` and what follows from the mode.

use std::net::Ipv4Addr;

use super::network::{first, mode_name, refuse_in_bridge};
use super::reader::{Node, Reader, Result, Shape, child, children, filled};
use super::values::number;
use crate::model::{Forward, ForwardMode, Nat, Network};

const FORWARD: Shape = Shape {
    attributes: &["mode", "dev"],
    once: &["nat"],
    many: &["interface", "pf", "address", "driver"],
};

/// libvirt's modes that hand real hardware to guests.
const HARDWARE: [(&str, &str); 4] = [
    (
        "private",
        "use mode='bridge' with the same interface, and <port isolated='yes'/> to keep guests apart",
    ),
    ("vepa", "use mode='bridge' with the same interface"),
    ("passthrough", "use mode='bridge' with a network per interface"),
    ("hostdev", "assign the PCI device in the guest's own definition"),
];

pub(super) fn read(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Forward> {
    let Some(node) = child(root, "forward") else { return Ok(Forward::default()) };
    let mode = match filled(node, "mode") {
        None | Some("nat") => ForwardMode::Nat,
        Some("none") => ForwardMode::Isolated,
        Some("route") => ForwardMode::Route,
        Some("open") => ForwardMode::Open,
        Some("bridge") => ForwardMode::Bridge,
        Some(other) => {
            let known = HARDWARE.iter().find(|(mode, _)| *mode == other);
            return Err(match known {
                Some((_, remedy)) => reader
                    .unsupported_at(
                        node,
                        "mode",
                        format!("forward mode '{other}' of network '{}' is not available in netloom", reader.name),
                    )
                    .remedy(*remedy),
                None => reader
                    .unsupported_at(node, "mode", format!("unknown forwarding type '{other}'"))
                    .remedy("use nat, route, open or bridge; leave <forward> out for an isolated network"),
            });
        }
    };
    if let Some(second) = children(node, "nat").nth(1) {
        let message =
            format!("Only one <nat> element is allowed in <forward> of network {}", reader.name);
        return Err(reader.xml(second, message).remedy("keep one of them"));
    }
    reader.shape(node, &FORWARD)?;
    for name in ["pf", "address", "driver"] {
        if let Some(found) = first(node, name) {
            return Err(reader
                .unsupported(
                    found,
                    format!("<{name}> in <forward> of network '{}' needs mode='hostdev', which is not available in netloom", reader.name),
                )
                .remedy("assign the PCI device in the guest's own definition"));
        }
    }
    let dev = device(reader, node, mode)?;
    let nat = match child(node, "nat") {
        None => None,
        Some(nat) if mode == ForwardMode::Nat => self::nat(reader, nat)?,
        Some(nat) => {
            let message = format!(
                "The <nat> element can only be used when <forward> 'mode' is 'nat' in network {}",
                reader.name
            );
            return Err(reader.xml(nat, message).remedy("remove <nat>, or write mode='nat'"));
        }
    };
    if mode == ForwardMode::Isolated && (dev.is_some() || node.has_children()) {
        reader
            .warn(node, "mode='none' is an isolated network: what else <forward> says is dropped");
        reader.unmodelled.retain(|kept| !kept.parent.starts_with("network/forward"));
        return Ok(Forward::default());
    }
    Ok(Forward { mode, dev, nat })
}

/// The one egress or uplink device: `dev`, or the only `<interface>`.
fn device(reader: &mut Reader<'_>, node: Node<'_>, mode: ForwardMode) -> Result<Option<String>> {
    let name = reader.name.clone();
    let mut devices: Vec<&str> = Vec::new();
    for interface in children(node, "interface") {
        reader.shape(interface, &Shape::leaf(&["dev", "connections"]))?;
        let Some(dev) = filled(interface, "dev") else {
            let message = format!(
                "Missing required dev attribute in <forward> <interface> element of network {name}"
            );
            return Err(reader.xml(interface, message));
        };
        if devices.contains(&dev) {
            let message = format!("interface '{dev}' can only be listed once in network {name}");
            return Err(reader.xml_at(interface, "dev", message).remedy("remove the second one"));
        }
        reader.interface(interface, "dev", dev, false)?;
        devices.push(dev);
        if devices.len() > 1 {
            return Err(if mode == ForwardMode::Bridge {
                reader
                    .unsupported(
                        interface,
                        format!("network '{name}' lists a pool of interfaces, netloom takes one"),
                    )
                    .remedy("define one network per interface")
            } else {
                reader
                    .xml(interface, format!("multiple forwarding interfaces specified for network '{name}', only one is supported"))
                    .remedy("keep the interface that leads outside, or none to use any")
            });
        }
    }
    let dev = filled(node, "dev");
    if let Some(dev) = dev {
        reader.interface(node, "dev", dev, false)?;
        if let Some(listed) = devices.first()
            && *listed != dev
        {
            let message = format!(
                "<forward dev='{dev}'> must match first <interface dev='{listed}'/> in network {name}"
            );
            return Err(reader
                .xml_at(node, "dev", message)
                .remedy("name the same device twice, or once"));
        }
    }
    Ok(dev.or(devices.first().copied()).map(str::to_owned))
}

fn nat(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Option<Nat>> {
    let name = reader.name.clone();
    for (element, count) in
        [("address", children(node, "address").count()), ("port", children(node, "port").count())]
    {
        if count > 1 {
            let message = format!(
                "Only one <{element}> element is allowed in <nat> in <forward> in network {name}"
            );
            return Err(reader.xml(node, message).remedy("keep one of them"));
        }
    }
    reader.shape(node, &Shape { attributes: &["ipv6"], once: &["address", "port"], many: &[] })?;
    let ipv6 = reader.yes_no(node, "ipv6")?;
    let addresses = match child(node, "address") {
        Some(node) => Some(nat_addresses(reader, node)?),
        None => None,
    };
    let ports = match child(node, "port") {
        Some(node) => nat_ports(reader, node)?,
        None => None,
    };
    let nat = Nat { ipv6, addresses, ports };
    Ok((nat != Nat::default()).then_some(nat))
}

fn nat_addresses(reader: &mut Reader<'_>, node: Node<'_>) -> Result<(Ipv4Addr, Ipv4Addr)> {
    reader.shape(node, &Shape::leaf(&["start", "end"]))?;
    let name = &reader.name;
    let bound = |which: &'static str| {
        let Some(value) = filled(node, which) else {
            let message = format!(
                "missing '{which}' attribute in <address> element in <nat> in <forward> in network {name}"
            );
            return Err(reader.xml(node, message));
        };
        value.parse::<Ipv4Addr>().map_err(|_| {
            let message = format!(
                "Bad ipv4 {which} address '{value}' in <nat> in <forward> in network '{name}'"
            );
            reader.xml_at(node, which, message).remedy("write an IPv4 address")
        })
    };
    let (start, end) = (bound("start")?, bound("end")?);
    if end < start {
        return Err(reader
            .internal(node, format!("range {start} - {end} is reversed "))
            .remedy("exchange start and end"));
    }
    if end.to_bits() - start.to_bits() > 65535 {
        return Err(reader
            .internal(node, format!("range {start} - {end} is too large (> 65535)"))
            .remedy("use fewer addresses"));
    }
    Ok((start, end))
}

fn nat_ports(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Option<(u16, u16)>> {
    reader.shape(node, &Shape::leaf(&["start", "end"]))?;
    let name = &reader.name;
    let bound = |which: &'static str| {
        filled(node, which).and_then(number::<u16>).ok_or_else(|| {
            let message = format!(
                "Missing or invalid '{which}' attribute in <port> in <nat> in <forward> in network {name}"
            );
            reader.detail_at(node, which, message).remedy("write a port number, 0 to 65535")
        })
    };
    let (start, end) = (bound("start")?, bound("end")?);
    if end < start {
        let message = format!(
            "Missing or invalid 'end' attribute in <port> in <nat> in <forward> in network {name}"
        );
        return Err(reader.detail_at(node, "end", message).remedy("exchange start and end"));
    }
    match (start, end) {
        (0, 0) => Ok(None),
        (start, end) if start == end || start == 0 => {
            let message = format!("Invalid port range '{start}-{end}'.");
            Err(reader
                .internal(node, message)
                .remedy("give a range of at least two ports above 0, or leave <port> out"))
        }
        range => Ok(Some(range)),
    }
}

/// Rules that need the whole network.
pub(super) fn check(reader: &mut Reader<'_>, root: Node<'_>, network: &Network) -> Result<()> {
    let name = &network.name;
    let mode = network.forward.mode;
    let at = child(root, "forward").unwrap_or(root);
    match mode {
        ForwardMode::Nat | ForwardMode::Route if network.ips.is_empty() => {
            let message = format!(
                "{} forwarding requested, but no IP address provided for network '{name}'",
                mode_name(mode)
            );
            Err(reader
                .xml(at, message)
                .remedy("add <ip address='192.168.100.1' netmask='255.255.255.0'/> or the like"))
        }
        ForwardMode::Open if network.forward.dev.is_some() => {
            let message =
                format!("forward dev not allowed for network '{name}' with forward mode='open'");
            Err(reader
                .xml(at, message)
                .remedy("remove dev: mode 'open' sets no rules that could use it"))
        }
        ForwardMode::Bridge => check_bridge(reader, root, at, network),
        _ => Ok(()),
    }
}

fn check_bridge(
    reader: &mut Reader<'_>,
    root: Node<'_>,
    at: Node<'_>,
    network: &Network,
) -> Result<()> {
    let name = &network.name;
    for element in ["ip", "route", "mac", "domain"] {
        if let Some(found) = first(root, element) {
            return Err(refuse_in_bridge(reader, found, element));
        }
    }
    let dns = &network.dns;
    for (element, present) in [
        ("dns", !dns.txts.is_empty()),
        ("dns", !dns.hosts.is_empty()),
        ("dns", !dns.srvs.is_empty()),
    ] {
        if present {
            return Err(refuse_in_bridge(reader, first(root, "dns").unwrap_or(root), element));
        }
    }
    match (&network.bridge.name, &network.forward.dev) {
        (Some(_), Some(_)) => {
            let message = format!(
                "A network with forward mode='bridge' can specify a bridge name or a forward dev, \
                 but not both (network '{name}')"
            );
            Err(reader.xml(at, message).remedy("keep <bridge name='…'/> for an existing Linux bridge, dev='…' for an interface"))
        }
        (None, None) => Err(reader
            .xml(at, format!("network '{name}' with forward mode='bridge' has neither a bridge name nor a forward dev"))
            .remedy("add <bridge name='br0'/> for an existing Linux bridge, or dev='eth0' to <forward>")),
        _ => Ok(()),
    }
}
