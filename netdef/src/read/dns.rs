//! `<dns>`: forwarders and records.

use super::reader::{Node, Reader, Result, Shape, attr, child, children, filled, text};
use super::values::number;
use crate::model::{Dns, DnsHost, Forwarder, Srv, Txt};

const DNS: Shape = Shape {
    attributes: &["enable", "forwardPlainNames"],
    once: &[],
    many: &["forwarder", "txt", "srv", "host"],
};

/// The longest SRV name that libvirt passes on.
const MAX_SERVICE: usize = 482;

pub(super) fn read(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Dns> {
    let Some(node) = child(root, "dns") else { return Ok(Dns::default()) };
    reader.shape(node, &DNS)?;
    let mut dns = Dns {
        enable: reader.yes_no(node, "enable")?,
        forward_plain_names: reader.yes_no(node, "forwardPlainNames")?,
        ..Dns::default()
    };
    for node in children(node, "forwarder") {
        dns.forwarders.push(forwarder(reader, node)?);
    }
    for node in children(node, "txt") {
        dns.txts.push(txt(reader, node)?);
    }
    for node in children(node, "srv") {
        dns.srvs.push(srv(reader, node)?);
    }
    for node in children(node, "host") {
        dns.hosts.push(host(reader, node)?);
    }
    let records = dns.forwarders.len() + dns.txts.len() + dns.srvs.len() + dns.hosts.len();
    if dns.enable == Some(false) && records > 0 {
        let message = format!("Extra data in disabled network '{}'", reader.name);
        return Err(reader.xml(node, message).remedy("remove enable='no', or what <dns> contains"));
    }
    Ok(dns)
}

fn forwarder(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Forwarder> {
    reader.shape(node, &Shape::leaf(&["domain", "addr", "port"]))?;
    let domain = filled(node, "domain");
    if let Some(domain) = domain {
        reader.dns_name(node, "domain", domain)?;
    }
    let addr = match filled(node, "addr") {
        None => None,
        Some(value) => {
            let message = format!(
                "XML error: Invalid forwarder IP address '{value}' in network '{}'",
                reader.name
            );
            Some(reader.address(node, "addr", value, message)?)
        }
    };
    if addr.is_none() && domain.is_none() {
        let message = "Invalid forwarder element, must contain at least one of addr or domain";
        return Err(reader.xml(node, message));
    }
    let port = reader.number::<u16>(node, "port")?;
    if port == Some(0) || (port.is_some() && addr.is_none()) {
        let message = format!("Invalid forwarder port in network '{}'", reader.name);
        return Err(reader
            .xml_at(node, "port", message)
            .remedy("write 1 to 65535, beside addr='…'"));
    }
    Ok(Forwarder { domain: domain.map(str::to_owned), addr, port })
}

fn txt(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Txt> {
    reader.shape(node, &Shape::leaf(&["name", "value"]))?;
    let network = &reader.name;
    let Some(name) = filled(node, "name") else {
        let message =
            format!("missing required name attribute in DNS TXT record of network {network}");
        return Err(reader.detail(node, message));
    };
    if name.contains([' ', ',']) || name.contains(char::is_control) {
        let message = format!(
            "prohibited character in DNS TXT record name '{}' of network {network}",
            name.escape_debug()
        );
        return Err(reader.detail_at(node, "name", message).remedy("leave out spaces and commas"));
    }
    reader.dns_name(node, "name", name)?;
    let Some(value) = attr(node, "value") else {
        let message = format!(
            "missing required value attribute in DNS TXT record named '{name}' of network {network}"
        );
        return Err(reader.detail(node, message));
    };
    no_line_break(reader, node, "value", value, "DNS TXT record value attribute")?;
    Ok(Txt { name: name.to_owned(), value: value.to_owned() })
}

fn no_line_break(
    reader: &Reader<'_>,
    node: Node<'_>,
    attribute: &str,
    value: &str,
    what: &str,
) -> Result<()> {
    if value.contains(['\n', '\r']) {
        return Err(reader
            .detail_at(node, attribute, format!("invalid line break in {what}"))
            .remedy("write it on one line"));
    }
    Ok(())
}

fn srv(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Srv> {
    reader.shape(
        node,
        &Shape::leaf(&["service", "protocol", "domain", "target", "port", "priority", "weight"]),
    )?;
    let network = reader.name.clone();
    let Some(service) = filled(node, "service") else {
        let message =
            format!("missing required service attribute in DNS SRV record of network '{network}'");
        return Err(reader.detail(node, message));
    };
    if service.len() > MAX_SERVICE {
        let message = format!(
            "service attribute '{}…' in network '{network}' is too long, limit is {MAX_SERVICE} bytes",
            service.chars().take(40).collect::<String>()
        );
        return Err(reader.detail_at(node, "service", message));
    }
    let Some(protocol) = filled(node, "protocol") else {
        let message = format!(
            "missing required protocol attribute in DNS SRV record '{service}' of network '{network}'"
        );
        return Err(reader.detail(node, message).remedy("add protocol='tcp' or protocol='udp'"));
    };
    for (attribute, value, good) in [("service", service, "_-+/"), ("protocol", protocol, "-+/")] {
        if !value.chars().all(|c| c.is_ascii_alphanumeric() || good.contains(c)) {
            let message = format!(
                "invalid character in {attribute} attribute '{}' in DNS SRV record of network '{network}'",
                value.escape_debug()
            );
            return Err(reader
                .detail_at(node, attribute, message)
                .remedy("use letters, digits and '-'"));
        }
    }
    for attribute in ["domain", "target"] {
        if let Some(value) = filled(node, attribute) {
            let what = format!("DNS SRV record {attribute} attribute");
            no_line_break(reader, node, attribute, value, &what)?;
            if value != "." {
                reader.dns_name(node, attribute, value)?;
            }
        }
    }
    let target = attr(node, "target");
    let field = |attribute: &'static str, least: u16| -> Result<Option<u16>> {
        let Some(value) = attr(node, attribute) else { return Ok(None) };
        if target.is_none() {
            let message = format!(
                "DNS SRV {attribute} attribute not permitted without target for service '{service}' in network '{network}'"
            );
            return Err(reader.detail_at(node, attribute, message).remedy("add target='…'"));
        }
        match number::<u16>(value) {
            Some(value) if value >= least => Ok((value > 0).then_some(value)),
            _ => {
                // libvirt writes this one with a capital.
                let invalid = if attribute == "priority" { "Invalid" } else { "invalid" };
                let message = format!(
                    "{invalid} DNS SRV {attribute} attribute for service '{service}' in network '{network}'"
                );
                let remedy = format!("write a number from {least} to 65535");
                Err(reader.detail_at(node, attribute, message).remedy(remedy))
            }
        }
    };
    Ok(Srv {
        service: service.to_owned(),
        protocol: protocol.to_owned(),
        domain: filled(node, "domain").map(str::to_owned),
        target: filled(node, "target").map(str::to_owned),
        port: field("port", 1)?,
        priority: field("priority", 0)?,
        weight: field("weight", 0)?,
    })
}

fn host(reader: &mut Reader<'_>, node: Node<'_>) -> Result<DnsHost> {
    reader.shape(node, &Shape { attributes: &["ip"], once: &[], many: &["hostname"] })?;
    let network = reader.name.clone();
    let Some(value) = filled(node, "ip") else {
        let message = format!("Missing IP address in network '{network}' DNS HOST record");
        return Err(reader.detail(node, message).remedy("add ip='…'"));
    };
    let message = format!("Invalid IP address in network '{network}' DNS HOST record");
    let ip = reader.address(node, "ip", value, message)?;
    let mut hostnames = Vec::new();
    for child in children(node, "hostname") {
        reader.shape(child, &Shape::leaf(&[]))?;
        let Some(name) = text(child) else { continue };
        reader.dns_name(child, "", &name)?;
        hostnames.push(name);
    }
    if hostnames.is_empty() {
        let message = format!("Missing hostname in network '{network}' DNS HOST record");
        return Err(reader.detail(node, message).remedy("add <hostname>…</hostname>"));
    }
    Ok(DnsHost { ip, hostnames })
}
