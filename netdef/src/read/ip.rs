//! `<ip>`: addresses of the gateway.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::dhcp;
use super::reader::{Node, Reader, Result, Shape, attr, child, children, filled};
use crate::model::{Ip, PrefixNotation};

const IP: Shape = Shape {
    attributes: &["family", "address", "netmask", "prefix", "localPtr"],
    once: &["tftp", "dhcp"],
    many: &[],
};

/// More addresses than any gateway has; every pair is compared.
const MAX_ADDRESSES: usize = 256;

pub(super) fn read(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Vec<Ip>> {
    let mut ips: Vec<Ip> = Vec::new();
    for node in children(root, "ip") {
        if ips.len() == MAX_ADDRESSES {
            let message = format!("more than {MAX_ADDRESSES} <ip> elements");
            return Err(reader.xml(node, message).remedy("split the network"));
        }
        let ip = ip(reader, node)?;
        if let Some(other) = ips.iter().find(|other| overlap(&other.net, &ip.net)) {
            let message = format!(
                "subnet {} overlaps subnet {} of the same network '{}'",
                ip.net.trunc(),
                other.net.trunc(),
                reader.name
            );
            return Err(reader
                .xml(node, message)
                .remedy("choose subnets without common addresses"));
        }
        let family = |ip: &Ip| ip.net.addr().is_ipv4();
        if ip.dhcp.is_some()
            && ips.iter().any(|other| other.dhcp.is_some() && family(other) == family(&ip))
        {
            let version = if family(&ip) { "IPv4" } else { "IPv6" };
            let message = format!(
                "Multiple {version} dhcp sections found -- dhcp is supported only for a single \
                 {version} address on each network"
            );
            let at = child(node, "dhcp").unwrap_or(node);
            return Err(reader
                .unsupported(at, message)
                .remedy("keep one <dhcp>, or use two networks"));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.trunc().addr()) || b.contains(&a.trunc().addr())
}

fn ip(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Ip> {
    reader.shape(node, &IP)?;
    let name = reader.name.clone();
    let Some(text) = filled(node, "address") else {
        let message = format!("Missing required address attribute in network '{name}'");
        return Err(reader.xml(node, message).remedy("add address='…', the gateway's own address"));
    };
    let message = format!("XML error: Invalid address '{text}' in network '{name}'");
    let address = reader.address(node, "address", text, message)?;
    check_family(reader, node, address, text)?;
    let (length, notation) = prefix(reader, node, address, text)?;
    let net = match address {
        IpAddr::V4(v4) => Ipv4Net::new(v4, length).map(IpNet::V4),
        IpAddr::V6(v6) => Ipv6Net::new(v6, length).map(IpNet::V6),
    }
    .map_err(|_| reader.xml(node, format!("Invalid prefix '{length}' in network '{name}'")))?;
    check_host(reader, node, net)?;
    let local_ptr = reader.yes_no(node, "localPtr")?;
    if local_ptr == Some(true) {
        check_local_ptr(reader, node, net)?;
    }
    let tftp_root = tftp(reader, node, address)?;
    let dhcp = match child(node, "dhcp") {
        Some(dhcp) => dhcp::read(reader, dhcp, net)?,
        None => None,
    };
    let family_written = filled(node, "family").is_some();
    Ok(Ip { net, notation, family_written, local_ptr, tftp_root, dhcp })
}

fn check_family(reader: &Reader<'_>, node: Node<'_>, address: IpAddr, text: &str) -> Result<()> {
    let name = &reader.name;
    let message = match (filled(node, "family"), address) {
        (None | Some("ipv4"), IpAddr::V4(_)) | (Some("ipv6"), IpAddr::V6(_)) => return Ok(()),
        (None, IpAddr::V6(_)) => {
            format!("no family specified for non-IPv4 address '{text}' in network '{name}'")
        }
        (Some("ipv4"), _) => {
            format!("ipv4 family specified for non-IPv4 address '{text}' in network '{name}'")
        }
        (Some("ipv6"), _) => {
            format!("Family 'ipv6' specified for non-IPv6 address '{text}' in network '{name}'")
        }
        (Some(family), _) => {
            let message = format!("Unrecognized family '{family}' in network '{name}'");
            return Err(reader
                .xml_at(node, "family", message)
                .remedy("write family='ipv4' or family='ipv6'"));
        }
    };
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    Err(reader.unsupported_at(node, "address", message).remedy(format!("write family='{family}'")))
}

/// Prefix length and how it was written; without both, classful (IPv4) or 64 (IPv6).
fn prefix(
    reader: &Reader<'_>,
    node: Node<'_>,
    address: IpAddr,
    text: &str,
) -> Result<(u8, PrefixNotation)> {
    let name = &reader.name;
    let netmask = filled(node, "netmask");
    let prefix = reader.number::<u32>(node, "prefix")?.filter(|prefix| *prefix != 0);
    match (netmask, prefix, address) {
        (Some(_), _, IpAddr::V6(_)) => Err(reader
            .unsupported_at(
                node,
                "netmask",
                format!("netmask not allowed for IPv6 address '{text}' in network '{name}'"),
            )
            .remedy("write prefix='64' instead")),
        (Some(_), Some(_), _) => Err(reader
            .unsupported_at(
                node,
                "prefix",
                format!("Network '{name}' IP address cannot have both a prefix and a netmask"),
            )
            .remedy("keep one of them")),
        (Some(mask), None, IpAddr::V4(_)) => {
            let length = netmask_length(mask).map_err(|problem| {
                let message = match problem {
                    Netmask::NotIpv4 => format!(
                        "unsupported configuration: Invalid netmask '{mask}' for address '{text}' \
                         in network '{name}' (both must be IPv4)"
                    ),
                    Netmask::NotAnAddress | Netmask::Gaps => {
                        format!("XML error: Invalid netmask '{mask}' in network '{name}'")
                    }
                };
                reader.detail_at(node, "netmask", message).remedy(
                    "write ones followed by zeros, as in 255.255.255.0, or a prefix instead",
                )
            })?;
            Ok((length, PrefixNotation::Netmask))
        }
        (None, Some(prefix), address) => {
            let (version, most) = if address.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
            match u8::try_from(prefix) {
                Ok(length) if length <= most => Ok((length, PrefixNotation::Prefix)),
                _ => Err(reader
                    .unsupported_at(
                        node,
                        "prefix",
                        format!("Invalid {version} prefix '{prefix}' in network '{name}'"),
                    )
                    .remedy(format!("write 1 to {most}"))),
            }
        }
        (None, None, IpAddr::V4(v4)) => Ok((classful(v4), PrefixNotation::Absent)),
        (None, None, IpAddr::V6(_)) => Ok((64, PrefixNotation::Absent)),
    }
}

pub(super) enum Netmask {
    NotAnAddress,
    NotIpv4,
    /// Ones after zeros, or no ones at all.
    Gaps,
}

pub(super) fn netmask_length(mask: &str) -> std::result::Result<u8, Netmask> {
    let mask = match mask.parse::<IpAddr>() {
        Ok(IpAddr::V4(mask)) => mask,
        Ok(IpAddr::V6(_)) => return Err(Netmask::NotIpv4),
        Err(_) => return Err(Netmask::NotAnAddress),
    };
    match ipnet::ipv4_mask_to_prefix(mask) {
        Ok(length) if length > 0 => Ok(length),
        _ => Err(Netmask::Gaps),
    }
}

fn classful(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// The gateway's address must be one that a host can have in that subnet.
fn check_host(reader: &Reader<'_>, node: Node<'_>, net: IpNet) -> Result<()> {
    let address = net.addr();
    let what = match net {
        IpNet::V4(v4) if v4.addr().is_multicast() || v4.addr().octets()[0] >= 240 => {
            "is not a unicast address"
        }
        IpNet::V4(v4) if v4.prefix_len() < 31 && v4.addr() == v4.network() => {
            "is the network address"
        }
        IpNet::V4(v4) if v4.prefix_len() < 31 && v4.addr() == v4.broadcast() => {
            "is the broadcast address"
        }
        IpNet::V6(v6) if v6.addr().is_multicast() => "is not a unicast address",
        IpNet::V6(v6) if v6.prefix_len() < 127 && v6.addr() == v6.network() => {
            "is the subnet-router anycast address"
        }
        _ if address.is_loopback() => "is a loopback address",
        _ if address.is_unspecified() => "is the unspecified address",
        _ => return Ok(()),
    };
    let message = format!(
        "Invalid address '{address}' in network '{}': it {what} of {}",
        reader.name,
        net.trunc()
    );
    Err(reader
        .xml_at(node, "address", message)
        .remedy("give the gateway a host's address, usually the first of the subnet"))
}

/// A reverse zone covers whole octets (IPv4) or nibbles (IPv6).
fn check_local_ptr(reader: &Reader<'_>, node: Node<'_>, net: IpNet) -> Result<()> {
    let (version, step) = if net.addr().is_ipv4() { ("IPv4", 8) } else { ("IPv6", 4) };
    let length = net.prefix_len();
    if length.is_multiple_of(step) && length > 0 {
        return Ok(());
    }
    let message = format!(
        "PTR domain for {version} network with prefix {length} cannot be automatically created"
    );
    Err(reader
        .unsupported_at(node, "localPtr", message)
        .remedy(format!("use a prefix that is a multiple of {step}, or remove localPtr")))
}

fn tftp(reader: &mut Reader<'_>, node: Node<'_>, address: IpAddr) -> Result<Option<String>> {
    let Some(tftp) = child(node, "tftp") else { return Ok(None) };
    reader.shape(tftp, &Shape::leaf(&["root"]))?;
    if address.is_ipv6() {
        let message =
            format!("Unsupported <tftp> element in an IPv6 element in network '{}'", reader.name);
        return Err(reader.unsupported(tftp, message).remedy("move it to the IPv4 <ip>"));
    }
    if filled(tftp, "root").is_some() {
        reader.warn(tftp, "element 'tftp' has no effect yet: netloom does not serve TFTP");
    }
    Ok(attr(tftp, "root").filter(|root| !root.is_empty()).map(str::to_owned))
}
