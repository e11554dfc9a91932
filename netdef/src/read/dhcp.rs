//! `<dhcp>`: ranges, static hosts, boot file.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::reader::{Node, Reader, Result, Shape, attr, child, children, filled};
use super::values::is_dns_name;
use crate::model::{Bootp, Dhcp, DhcpHost, DhcpRange, LeaseTime, LeaseUnit};

const DHCP: Shape = Shape { attributes: &[], once: &["bootp"], many: &["range", "host"] };
const RANGE: Shape = Shape { attributes: &["start", "end"], once: &["lease"], many: &[] };
const HOST: Shape = Shape { attributes: &["mac", "id", "name", "ip"], once: &["lease"], many: &[] };

/// Shortest lease, as libvirt has it.
const MIN_LEASE_SECONDS: u64 = 120;

/// `None` when it has neither ranges nor hosts, which is no DHCP at all.
pub(super) fn read(reader: &mut Reader<'_>, node: Node<'_>, net: IpNet) -> Result<Option<Dhcp>> {
    reader.shape(node, &DHCP)?;
    let ranges = ranges(reader, node, net)?;
    let hosts = hosts(reader, node, net)?;
    let mut bootp = None;
    if let Some(boot) = child(node, "bootp") {
        if net.addr().is_ipv6() {
            reader.warn(boot, "element 'bootp' of IPv6 is dropped, as libvirt does");
        } else {
            bootp = Some(self::bootp(reader, boot)?);
        }
    }
    if ranges.is_empty() && hosts.is_empty() {
        if bootp.is_some() {
            reader.warn(node, "without <range> or <host> there is no DHCP: <bootp> is dropped");
        }
        return Ok(None);
    }
    if net.addr().is_ipv6() {
        reader.warn(node, "DHCP of IPv6 is accepted and has no effect yet");
    }
    Ok(Some(Dhcp { ranges, hosts, bootp }))
}

fn ranges(reader: &mut Reader<'_>, node: Node<'_>, net: IpNet) -> Result<Vec<DhcpRange>> {
    let mut ranges = Vec::new();
    let mut order: Vec<(IpAddr, IpAddr, Node<'_>)> = Vec::new();
    for child in children(node, "range") {
        let range = range(reader, child, net)?;
        order.push((range.start, range.end, child));
        ranges.push(range);
    }
    order.sort_by_key(|(start, end, _)| (*start, *end));
    for pair in order.windows(2) {
        let [(start, end, first), (next_start, next_end, second)] = pair else { continue };
        if next_start <= end {
            let later = if first.range().start > second.range().start { *first } else { *second };
            let message = format!(
                "range {next_start} - {next_end} overlaps range {start} - {end} in network '{}'",
                reader.name
            );
            return Err(reader.xml(later, message).remedy("merge the two, or make them disjoint"));
        }
    }
    Ok(ranges)
}

fn range(reader: &mut Reader<'_>, node: Node<'_>, net: IpNet) -> Result<DhcpRange> {
    reader.shape(node, &RANGE)?;
    let bound = |reader: &Reader<'_>, which: &'static str| {
        let Some(value) = filled(node, which) else {
            let message =
                format!("Missing '{which}' attribute in dhcp range for network '{}'", reader.name);
            return Err(reader.xml(node, message));
        };
        let message = format!("Cannot parse socket address '{value}': Name or service not known");
        reader.address(node, which, value, message)
    };
    let (start, end) = (bound(reader, "start")?, bound(reader, "end")?);
    check_range(reader, node, net, start, end)?;
    Ok(DhcpRange { start, end, lease: lease(reader, node)? })
}

fn check_range(
    reader: &Reader<'_>,
    node: Node<'_>,
    net: IpNet,
    start: IpAddr,
    end: IpAddr,
) -> Result<()> {
    let gateway = net.addr();
    let fail = |message: String, remedy: &str| {
        Err(reader.internal(node, message).remedy(remedy.to_owned()))
    };
    if start.is_ipv4() != end.is_ipv4() {
        return fail(
            format!("mismatch of address family in range {start} - {end}"),
            "give both ends in one family",
        );
    }
    if start.is_ipv4() != gateway.is_ipv4() {
        return fail(
            format!("mismatch of address family in range {start} - {end} for network {gateway}"),
            "move the range to the <ip> of its family",
        );
    }
    if !net.contains(&start) || !net.contains(&end) {
        return fail(
            format!("range {start} - {end} is not entirely within network {net}"),
            "choose both ends inside the subnet",
        );
    }
    if end < start {
        let what = if start.is_ipv4() { "is reversed " } else { "start larger than end" };
        return fail(format!("range {start} - {end} {what}"), "exchange start and end");
    }
    if let IpNet::V4(v4) = net
        && v4.prefix_len() < 31
    {
        if start == IpAddr::V4(v4.network()) {
            return fail(
                format!("start of range {start} - {end} in network {net} is the network address"),
                "start at the next address",
            );
        }
        if end == IpAddr::V4(v4.broadcast()) {
            return fail(
                format!("end of range {start} - {end} in network {net} is the broadcast address"),
                "end at the address before",
            );
        }
    }
    // libvirt's bounds: 65536 addresses, of IPv6 in one /112.
    let too_large = match (start, end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => end.to_bits() - start.to_bits() > 65535,
        (IpAddr::V6(start), IpAddr::V6(end)) => end.to_bits() >> 16 != start.to_bits() >> 16,
        _ => true,
    };
    if too_large {
        return fail(
            format!("range {start} - {end} is too large (> 65535)"),
            "use a smaller range",
        );
    }
    Ok(())
}

fn hosts(reader: &mut Reader<'_>, node: Node<'_>, net: IpNet) -> Result<Vec<DhcpHost>> {
    let mut hosts = Vec::new();
    let mut addresses = HashMap::new();
    let mut macs = HashSet::new();
    let mut ids = HashSet::new();
    let mut names = HashSet::new();
    for child in children(node, "host") {
        let host = host(reader, child, net)?;
        let twice = |reader: &Reader<'_>, attribute: &str, value: &str| {
            let message = format!(
                "there is an existing dhcp host entry in network '{}' with {attribute} '{value}'",
                reader.name
            );
            Err(reader
                .xml_at(child, attribute, message)
                .remedy("remove one of the two, or merge them"))
        };
        if addresses.insert(host.ip, ()).is_some() {
            return twice(reader, "ip", &host.ip.to_string());
        }
        if let Some(mac) = host.mac
            && !macs.insert(mac)
        {
            return twice(reader, "mac", &mac.to_string());
        }
        if let Some(id) = filled(child, "id")
            && !ids.insert(id.to_ascii_lowercase())
        {
            return twice(reader, "id", id);
        }
        if let Some(name) = filled(child, "name")
            && !names.insert(name.to_ascii_lowercase())
        {
            return twice(reader, "name", name);
        }
        hosts.push(host);
    }
    Ok(hosts)
}

fn host(reader: &mut Reader<'_>, node: Node<'_>, net: IpNet) -> Result<DhcpHost> {
    reader.shape(node, &HOST)?;
    let name = reader.name.clone();
    let v6 = net.addr().is_ipv6();
    let mac = match filled(node, "mac") {
        None => None,
        Some(value) if v6 => {
            let message = format!(
                "Invalid to specify MAC address '{value}' in network '{name}' IPv6 static host definition"
            );
            return Err(reader.xml_at(node, "mac", message).remedy("use id='…', the guest's DUID"));
        }
        Some(value) => {
            let message = format!("Cannot parse MAC address '{value}' in network '{name}'");
            let mac = reader.mac(node, "mac", value, &message)?;
            if mac.is_multicast() {
                let message = format!(
                    "expected unicast mac address, found multicast '{value}' in network '{name}'"
                );
                return Err(reader
                    .xml_at(node, "mac", message)
                    .remedy("the first octet must be even"));
            }
            Some(mac)
        }
    };
    let id = filled(node, "id");
    if let Some(id) = id
        && let Some(bad) = id.chars().find(|c| !c.is_ascii_hexdigit() && *c != ':')
    {
        let message = format!("Invalid character '{bad}' in id '{id}' of network '{name}'");
        return Err(reader
            .xml_at(node, "id", message)
            .remedy("write hexadecimal octets separated by colons"));
    }
    let host_name = filled(node, "name");
    if let Some(host_name) = host_name {
        check_host_name(reader, node, host_name)?;
    }
    if mac.is_none() && host_name.is_none() && (id.is_none() || !v6) {
        let (version, key) = if v6 { ("IPv6", "id") } else { ("IPv4", "mac") };
        let message = format!(
            "Static host definition in {version} network '{name}' must have {key} or name attribute"
        );
        return Err(reader.xml(node, message).remedy(format!("add {key}='…' or name='…'")));
    }
    let Some(value) = filled(node, "ip") else {
        let message = format!("Missing IP address in static host definition for network '{name}'");
        return Err(reader.xml(node, message).remedy("add ip='…'"));
    };
    let message =
        format!("XML error: Invalid IP address in static host definition for network '{name}'");
    let ip = reader.address(node, "ip", value, message)?;
    check_host_address(reader, node, net, ip)?;
    let lease = lease(reader, node)?;
    Ok(DhcpHost { mac, id: id.map(str::to_owned), name: host_name.map(str::to_owned), ip, lease })
}

fn check_host_name(reader: &Reader<'_>, node: Node<'_>, value: &str) -> Result<()> {
    let first = value.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && is_dns_name(value) {
        return Ok(());
    }
    let message =
        format!("Cannot use host name '{}' in network '{}'", value.escape_debug(), reader.name);
    Err(reader.xml_at(node, "name", message).remedy(
        "start with a letter or digit; use letters, digits, '-', '_' and dots between labels",
    ))
}

fn check_host_address(reader: &Reader<'_>, node: Node<'_>, net: IpNet, ip: IpAddr) -> Result<()> {
    let what = match net {
        _ if !net.contains(&ip) => "is not within the network",
        _ if ip == net.addr() => "is the gateway's own",
        IpNet::V4(v4) if v4.prefix_len() < 31 && ip == IpAddr::V4(v4.network()) => {
            "is the network address"
        }
        IpNet::V4(v4) if v4.prefix_len() < 31 && ip == IpAddr::V4(v4.broadcast()) => {
            "is the broadcast address"
        }
        _ => return Ok(()),
    };
    let message = format!(
        "Invalid IP address '{ip}' in static host definition for network '{}': it {what} {net}",
        reader.name
    );
    Err(reader.xml_at(node, "ip", message).remedy("choose a free address of the subnet"))
}

/// The `<lease>` of a range or host. Without `expiry` it says nothing.
fn lease(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Option<LeaseTime>> {
    let Some(lease) = child(node, "lease") else { return Ok(None) };
    reader.shape(lease, &Shape::leaf(&["expiry", "unit"]))?;
    let Some(expiry) = reader.number::<u32>(lease, "expiry")? else { return Ok(None) };
    let units = [
        ("seconds", LeaseUnit::Seconds),
        ("minutes", LeaseUnit::Minutes),
        ("hours", LeaseUnit::Hours),
    ];
    let unit = reader.word(lease, "unit", &units)?.unwrap_or(LeaseUnit::Minutes);
    if expiry == 0 {
        return Ok(Some(LeaseTime { expiry, unit: LeaseUnit::Minutes }));
    }
    let time = LeaseTime { expiry, unit };
    if time.duration().is_some_and(|time| time.as_secs() < MIN_LEASE_SECONDS) {
        return Err(reader
            .unsupported_at(
                lease,
                "expiry",
                "The minimum lease time should be greater than 2 minutes",
            )
            .remedy("write 2 minutes or more, or 0 for a lease without end"));
    }
    Ok(Some(time))
}

fn bootp(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Bootp> {
    reader.shape(node, &Shape::leaf(&["file", "server"]))?;
    let file = reader.required(node, "file")?.to_owned();
    let server = match attr(node, "server").filter(|server| !server.is_empty()) {
        None => None,
        Some(value) => {
            let message =
                format!("Cannot parse socket address '{value}': Name or service not known");
            Some(reader.address(node, "server", value, message)?)
        }
    };
    Ok(Bootp { file, server })
}
