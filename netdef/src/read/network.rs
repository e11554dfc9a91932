//! The root element: identity, texts, and the order in which the parts are read.

use std::time::Duration;

use roxmltree::Document;
use uuid::Uuid;

use super::reader::{
    DNSMASQ, Node, Reader, Result, Shape, attr, child, children, filled, root, text,
};
use super::{Parsed, bridge, dns, forward, ip, ports, route, verbatim};
use crate::model::{Bridge, Domain, ForwardMode, Network, Switch};

/// A file of this name must fit into a directory, with `.xml` and a temporary suffix.
const MAX_NAME: usize = 200;

const SHAPE: Shape = Shape {
    attributes: &["ipv6", "trustGuestRxFilters", "connections"],
    once: &[
        "name",
        "uuid",
        "title",
        "description",
        "metadata",
        "forward",
        "bridge",
        "mtu",
        "mac",
        "domain",
        "dns",
        "vlan",
        "port",
        "virtualport",
    ],
    many: &["ip", "route", "portgroup"],
};

pub(super) fn read<'d>(source: &'d str, document: &'d Document<'d>) -> Result<Parsed> {
    let mut reader = Reader::new(source);
    let root = root(&reader, document)?;
    reader.name = name(&reader, root)?;
    let dnsmasq_options = dnsmasq_options(&mut reader, root)?;
    reader.shape(root, &SHAPE)?;
    let mut network = Network {
        name: reader.name.clone(),
        uuid: uuid(&reader, root)?,
        ipv6: ipv6(&reader, root)?,
        trust_guest_rx_filters: reader.yes_no(root, "trustGuestRxFilters")?,
        title: title(&reader, root)?,
        description: child(root, "description").and_then(text),
        metadata: metadata(&mut reader, root),
        switch: switch(&reader, root)?,
        forward: forward::read(&mut reader, root)?,
        dnsmasq_options,
        ..Network::default()
    };
    let mode = network.forward.mode;
    network.bridge = match child(root, "bridge") {
        Some(node) => bridge::bridge(&mut reader, node, mode)?,
        None => Bridge::default(),
    };
    network.ips = ip::read(&mut reader, root)?;
    network.routes = route::read(&mut reader, root, &network.ips)?;
    network.mtu = bridge::mtu(&mut reader, root, mode, &network.ips)?;
    network.mac = bridge::mac(&mut reader, root)?;
    network.domain = domain(&mut reader, root)?;
    network.dns = dns::read(&mut reader, root)?;
    network.vlan = match child(root, "vlan") {
        Some(node) => Some(ports::vlan(&mut reader, node)?),
        None => None,
    };
    network.port_isolated = ports::isolated(&mut reader, root)?;
    network.virtualport = match child(root, "virtualport") {
        Some(node) => ports::virtualport(&mut reader, node, true)?,
        None => None,
    };
    network.portgroups = ports::portgroups(&mut reader, root)?;
    forward::check(&mut reader, root, &network)?;
    if network.trust_guest_rx_filters == Some(true) {
        reader.warn(root, "attribute 'trustGuestRxFilters' has no effect");
    }
    network.unmodelled = std::mem::take(&mut reader.unmodelled);
    Ok(Parsed { network, warnings: reader.into_warnings() })
}

fn name(reader: &Reader<'_>, root: Node<'_>) -> Result<String> {
    let Some(node) = child(root, "name") else {
        return Err(reader
            .detail(root, "missing name information")
            .remedy("add <name>…</name> to <network>"));
    };
    let Some(name) = text(node) else {
        return Err(reader.detail(node, "missing name information").remedy("fill in <name>"));
    };
    if let Some(bad) = name.chars().find(|c| *c == '/' || c.is_control()) {
        return Err(reader
            .detail(node, format!("invalid char in name: {}", bad.escape_default()))
            .remedy(
                "the name becomes a file name: leave out '/', line breaks and control characters",
            ));
    }
    if name == "." || name == ".." || name.len() > MAX_NAME {
        let shown: String = name.chars().take(40).collect();
        return Err(reader.xml(node, format!("invalid network name '{shown}'")).remedy(format!(
            "the name becomes a file name: at most {MAX_NAME} bytes, not '.' or '..'"
        )));
    }
    Ok(name)
}

fn uuid(reader: &Reader<'_>, root: Node<'_>) -> Result<Option<Uuid>> {
    let Some(node) = child(root, "uuid") else { return Ok(None) };
    let Some(value) = text(node) else { return Ok(None) };
    let plain = value.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    match Uuid::try_parse(&value) {
        Ok(uuid) if plain => Ok(Some(uuid)),
        _ => Err(reader
            .internal(node, "malformed uuid element")
            .remedy("write 32 hexadecimal digits, or leave <uuid> out to get one")),
    }
}

fn ipv6(reader: &Reader<'_>, root: Node<'_>) -> Result<bool> {
    match attr(root, "ipv6") {
        None | Some("no") => Ok(false),
        Some("yes") => Ok(true),
        Some(value) => {
            let message = format!("Invalid ipv6 setting '{value}' in network '{}'", reader.name);
            Err(reader.xml_at(root, "ipv6", message).remedy("write ipv6='yes' or ipv6='no'"))
        }
    }
}

fn title(reader: &Reader<'_>, root: Node<'_>) -> Result<Option<String>> {
    let Some(node) = child(root, "title") else { return Ok(None) };
    let title = text(node);
    if title.as_ref().is_some_and(|title| title.contains('\n')) {
        return Err(reader
            .xml(node, "Network title can't contain newlines")
            .remedy("put longer text into <description>"));
    }
    Ok(title)
}

fn metadata(reader: &mut Reader<'_>, root: Node<'_>) -> Option<String> {
    let node = child(root, "metadata")?;
    let kept: Vec<_> = verbatim::sanitized(node).map(|n| n.id()).collect();
    let dropped = node.children().filter(|n| n.is_element() && !kept.contains(&n.id()));
    if let Some(first) = dropped.into_iter().next() {
        reader.warn(
            first,
            "metadata needs a namespace of its own for each element: \
             elements without one, and further ones of the same, are dropped",
        );
    }
    Some(verbatim::metadata(node, 1))
}

fn switch(reader: &Reader<'_>, root: Node<'_>) -> Result<Switch> {
    let ours = (Switch::NAMESPACE, "switch");
    let Some(node) = child(root, "metadata")
        .and_then(|metadata| metadata.children().find(|node| node.has_tag_name(ours)))
    else {
        return Ok(Switch::default());
    };
    let invalid = |name: &str, value: &str, remedy: &str| {
        let message =
            format!("Invalid value for attribute '{name}' in element 'switch': '{value}'.");
        Err(reader.xml_at(node, name, message).remedy(remedy))
    };
    let hub = match node.attribute("mode") {
        None | Some("learning") => false,
        Some("hub") => true,
        Some(other) => return invalid("mode", other, "write learning or hub"),
    };
    let ageing = match node.attribute("ageing") {
        None => None,
        Some(text) => match text.parse::<u64>() {
            Ok(seconds @ 15..=3600) => Some(Duration::from_secs(seconds)),
            _ => return invalid("ageing", text, "write a number of seconds from 15 to 3600"),
        },
    };
    let hub_socket = match node.attribute("hub-socket") {
        None => None,
        Some("yes") => Some(true),
        Some("no") => Some(false),
        Some(other) => return invalid("hub-socket", other, "write yes or no"),
    };
    Ok(Switch { hub, ageing, hub_socket })
}

fn domain(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Option<Domain>> {
    let Some(node) = child(root, "domain") else { return Ok(None) };
    reader.shape(node, &Shape::leaf(&["name", "localOnly", "register"]))?;
    let local_only = reader.yes_no(node, "localOnly")?;
    let register = reader.yes_no(node, "register")?;
    let Some(name) = filled(node, "name") else {
        reader.warn(node, "element 'domain' without a name says nothing and is dropped");
        return Ok(None);
    };
    reader.dns_name(node, "name", name)?;
    if register == Some(true) {
        if local_only != Some(true) {
            let message = format!(
                "attribute 'register=yes' in <domain> element requires 'localOnly=yes' in network {}",
                reader.name
            );
            return Err(reader.xml_at(node, "register", message).remedy("add localOnly='yes'"));
        }
        reader
            .warn(node, "register='yes' has no effect: netloom does not talk to systemd-resolved");
    }
    Ok(Some(Domain { name: name.to_owned(), local_only, register }))
}

/// `<dnsmasq:options>`, which only dnsmasq could act on.
fn dnsmasq_options(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Vec<String>> {
    let mut options = Vec::new();
    let is = |node: &Node<'_>, name: &str| {
        node.tag_name().namespace() == Some(DNSMASQ) && node.tag_name().name() == name
    };
    for node in root.children().filter(|n| is(n, "options")) {
        for option in node.children().filter(|n| is(n, "option")) {
            let Some(value) = filled(option, "value") else {
                return Err(reader.internal(option, "No dnsmasq options value specified"));
            };
            options.push(value.to_owned());
        }
        reader.warn(
            node,
            "options of dnsmasq are kept and have no effect: netloom has its own DHCP and DNS",
        );
    }
    Ok(options)
}

/// The mode's word in libvirt's messages.
pub(super) fn mode_name(mode: ForwardMode) -> &'static str {
    if mode == ForwardMode::Isolated { "none" } else { mode.as_str() }
}

/// Refuses what stands in a `bridge` network only because it was copied from another mode.
pub(super) fn refuse_in_bridge(reader: &Reader<'_>, node: Node<'_>, what: &str) -> crate::Error {
    reader
        .unsupported(
            node,
            format!(
                "Unsupported <{what}> element in network {} with forward mode='bridge'",
                reader.name
            ),
        )
        .remedy("the network outside provides it: remove it, or choose another mode")
}

pub(super) fn first<'d>(root: Node<'d>, name: &'static str) -> Option<Node<'d>> {
    children(root, name).next()
}
