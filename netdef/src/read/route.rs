//! `<route>`: static routes of the host through a guest.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ip::{Netmask, netmask_length};
use super::reader::{Node, Reader, Result, Shape, children, filled};
use crate::model::{Ip, PrefixNotation, Route};

const ROUTE: Shape = Shape::leaf(&["family", "address", "netmask", "prefix", "gateway", "metric"]);

pub(super) fn read(reader: &mut Reader<'_>, root: Node<'_>, ips: &[Ip]) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for node in children(root, "route") {
        let route = route(reader, node)?;
        if !ips.iter().any(|ip| ip.net.contains(&route.gateway)) {
            let message = format!(
                "unreachable static route gateway '{}' specified for network '{}'",
                route.gateway, reader.name
            );
            return Err(reader
                .unsupported_at(node, "gateway", message)
                .remedy("name an address inside one of the network's own <ip> subnets"));
        }
        if route.net.prefix_len() == 0 {
            reader.warn(node, "this is a default route for the host itself, through a guest");
        }
        routes.push(route);
    }
    Ok(routes)
}

fn route(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Route> {
    reader.shape(node, &ROUTE)?;
    let name = reader.name.clone();
    let Some(address_text) = filled(node, "address") else {
        let message = format!("{name}: Missing required address attribute in route definition");
        return Err(reader.xml(node, message));
    };
    let Some(gateway_text) = filled(node, "gateway") else {
        let message = format!("{name}: Missing required gateway attribute in route definition");
        return Err(reader.xml(node, message));
    };
    let message =
        format!("XML error: {name}: Bad network address '{address_text}' in route definition");
    let address = reader.address(node, "address", address_text, message)?;
    let message =
        format!("XML error: {name}: Bad gateway address '{gateway_text}' in route definition");
    let gateway = reader.address(node, "gateway", gateway_text, message)?;
    check_family(reader, node, address, address_text, gateway)?;
    let (length, notation) = prefix(reader, node, address, address_text)?;
    let net = match address {
        IpAddr::V4(v4) => Ipv4Net::new(v4, length).map(IpNet::V4),
        IpAddr::V6(v6) => Ipv6Net::new(v6, length).map(IpNet::V6),
    }
    .ok()
    .filter(|net| net.trunc() == *net);
    let Some(net) = net else {
        let message = format!(
            "{name}: Address '{address_text}' in route definition is not a network address"
        );
        return Err(reader
            .xml_at(node, "address", message)
            .remedy("clear the host bits, and give netmask or prefix"));
    };
    let metric = reader.number::<u32>(node, "metric")?;
    if metric == Some(0) {
        let message =
            "Invalid value for attribute 'metric' in element 'route': Zero is not permitted";
        return Err(reader
            .xml_at(node, "metric", message)
            .remedy("write 1 or more, or leave it out"));
    }
    let family_written = filled(node, "family").is_some();
    Ok(Route { net, notation, family_written, gateway, metric })
}

fn check_family(
    reader: &Reader<'_>,
    node: Node<'_>,
    address: IpAddr,
    text: &str,
    gateway: IpAddr,
) -> Result<()> {
    let name = &reader.name;
    let (attribute, message) = match filled(node, "family") {
        None if address.is_ipv6() => (
            "address",
            format!("No family specified for non-IPv4 address '{text}' in route definition"),
        ),
        Some("ipv4") if address.is_ipv6() => (
            "address",
            format!("IPv4 family specified for non-IPv4 address '{text}' in route definition"),
        ),
        Some("ipv6") if address.is_ipv4() => (
            "address",
            format!("ipv6 family specified for non-IPv6 address '{text}' in route definition"),
        ),
        None | Some("ipv4") if gateway.is_ipv6() => (
            "gateway",
            format!(
                "IPv4 family specified for non-IPv4 gateway address '{gateway}' in route definition"
            ),
        ),
        Some("ipv6") if gateway.is_ipv4() => (
            "gateway",
            format!("ipv6 specified for non-IPv6 gateway address '{gateway}' in route definition"),
        ),
        None | Some("ipv4" | "ipv6") => return Ok(()),
        Some(family) => ("family", format!("Unrecognized family '{family}' in route definition")),
    };
    Err(reader
        .xml_at(node, attribute, format!("{name}: {message}"))
        .remedy("write family='ipv4' or family='ipv6' with address and gateway of that family"))
}

fn prefix(
    reader: &Reader<'_>,
    node: Node<'_>,
    address: IpAddr,
    text: &str,
) -> Result<(u8, PrefixNotation)> {
    let name = &reader.name;
    let fail = |attribute: &str, message: String, remedy: &str| {
        Err(reader.xml_at(node, attribute, format!("{name}: {message}")).remedy(remedy.to_owned()))
    };
    let netmask = filled(node, "netmask");
    let prefix = reader.number::<u32>(node, "prefix")?;
    match (netmask, prefix) {
        (Some(_), _) if address.is_ipv6() => fail(
            "netmask",
            format!("Specifying netmask invalid for IPv6 address '{text}' in route definition"),
            "write prefix='…' instead",
        ),
        (Some(_), Some(_)) => fail(
            "prefix",
            "Route definition cannot have both a prefix and a netmask".to_owned(),
            "keep one of them",
        ),
        (Some(mask), None) => match netmask_length(mask) {
            Ok(length) => Ok((length, PrefixNotation::Netmask)),
            Err(Netmask::NotAnAddress) => fail(
                "netmask",
                format!("Bad netmask address '{mask}' in route definition"),
                "write ones followed by zeros, as in 255.255.255.0",
            ),
            Err(Netmask::NotIpv4 | Netmask::Gaps) => fail(
                "netmask",
                format!("Invalid netmask '{mask}' for address '{text}' in route definition"),
                "write ones followed by zeros, as in 255.255.255.0",
            ),
        },
        (None, Some(prefix)) => {
            let most = if address.is_ipv4() { 32 } else { 128 };
            match u8::try_from(prefix) {
                Ok(length) if length <= most => Ok((length, PrefixNotation::Prefix)),
                _ => fail(
                    "prefix",
                    format!(
                        "Invalid prefix {prefix} specified in route definition, must be 0 - {most}"
                    ),
                    "write a length in that range",
                ),
            }
        }
        // Only the default route has no prefix to write.
        (None, None) if address.is_unspecified() => Ok((0, PrefixNotation::Absent)),
        (None, None) => fail(
            "address",
            format!("Address '{text}' in route definition is not a network address"),
            "add netmask or prefix",
        ),
    }
}
