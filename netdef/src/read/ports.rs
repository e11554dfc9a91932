//! What ports inherit: `<vlan>`, `<port>`, `<virtualport>`, `<portgroup>`.
//!
//! libvirt refuses `<vlan>` on networks whose ports are those of a Linux bridge. Ports of netloom
//! are its own in every mode, so it is allowed on all of them.

use uuid::Uuid;

use super::reader::{Node, Reader, Result, Shape, attr, child, children, filled};
use crate::model::{NativeMode, PortGroup, VirtualPort, Vlan, VlanTag};

/// Highest VLAN identifier; 4095 is reserved, 0 means no VLAN (IEEE 802.1Q-2018 §9.6).
const MAX_VLAN: u16 = 4094;

pub(super) fn vlan(reader: &mut Reader<'_>, node: Node<'_>) -> Result<Vlan> {
    reader.shape(node, &Shape { attributes: &["trunk"], once: &[], many: &["tag"] })?;
    let mut tags: Vec<VlanTag> = Vec::new();
    let mut seen = vec![false; usize::from(MAX_VLAN) + 1];
    let mut native = false;
    for tag in children(node, "tag") {
        let parsed = self::tag(reader, tag)?;
        if std::mem::replace(&mut seen[usize::from(parsed.id)], true) {
            let message = format!("vlan tag id {} is listed twice", parsed.id);
            return Err(reader.xml_at(tag, "id", message).remedy("remove one of the two"));
        }
        if parsed.native_mode.is_some() && std::mem::replace(&mut native, true) {
            return Err(reader
                .xml(tag, "duplicate native vlan setting")
                .remedy("a port has one native VLAN"));
        }
        tags.push(parsed);
    }
    if tags.is_empty() {
        let message =
            "missing tag id - each <vlan> must have at least one <tag id='n'/> subelement";
        return Err(reader.xml(node, message));
    }
    let trunk = match attr(node, "trunk") {
        None => tags.len() > 1,
        Some(value) if value.eq_ignore_ascii_case("yes") => true,
        Some(value) if tags.len() > 1 => {
            let message = format!(
                "invalid \"trunk='{value}'\" in <vlan> - trunk='yes' is required for more than one vlan tag"
            );
            return Err(reader.xml_at(node, "trunk", message).remedy("write trunk='yes'"));
        }
        Some(_) if native => {
            let message = "invalid configuration in <vlan> - \"trunk='no'\" is not allowed with a native vlan id";
            return Err(reader.xml_at(node, "trunk", message).remedy("write trunk='yes'"));
        }
        Some(value) if value.eq_ignore_ascii_case("no") => false,
        Some(value) => {
            let message = format!("invalid \"trunk='{value}'\" in <vlan> - must be yes or no");
            return Err(reader.xml_at(node, "trunk", message));
        }
    };
    Ok(Vlan { trunk, tags })
}

fn tag(reader: &mut Reader<'_>, node: Node<'_>) -> Result<VlanTag> {
    reader.shape(node, &Shape::leaf(&["id", "nativeMode"]))?;
    reader.required(node, "id")?;
    let id = reader.number::<u32>(node, "id")?.unwrap_or_default();
    if id > 4095 {
        let message = format!("vlan tag id {id} too large (maximum 4095)");
        return Err(reader.xml_at(node, "id", message).remedy("write 1 to 4094"));
    }
    let id = match u16::try_from(id) {
        Ok(id) if (1..=MAX_VLAN).contains(&id) => id,
        _ => {
            let message = format!("vlan tag id {id} is reserved");
            return Err(reader
                .xml_at(node, "id", message)
                .remedy("write 1 to 4094; leave <vlan> out for untagged ports"));
        }
    };
    let modes = [("tagged", NativeMode::Tagged), ("untagged", NativeMode::Untagged)];
    let native_mode = reader.word(node, "nativeMode", &modes)?;
    Ok(VlanTag { id, native_mode })
}

pub(super) fn isolated(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Option<bool>> {
    let Some(node) = child(root, "port") else { return Ok(None) };
    reader.shape(node, &Shape::leaf(&["isolated"]))?;
    reader.yes_no(node, "isolated")
}

pub(super) fn portgroups(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Vec<PortGroup>> {
    let mut groups: Vec<PortGroup> = Vec::new();
    let mut default: Option<String> = None;
    let mut names = std::collections::HashSet::new();
    for node in children(root, "portgroup") {
        let group = portgroup(reader, node)?;
        let network = &reader.name;
        if !names.insert(group.name.clone()) {
            let message = format!(
                "multiple <portgroup> elements with the same name ({}) in network '{network}'",
                group.name
            );
            return Err(reader.unsupported_at(node, "name", message).remedy("rename one of them"));
        }
        if group.default {
            if let Some(other) = &default {
                let message = format!(
                    "network '{network}' has multiple default <portgroup> elements ({other} and {}), but only one default is allowed",
                    group.name
                );
                return Err(reader
                    .unsupported_at(node, "default", message)
                    .remedy("keep default='yes' on one of them"));
            }
            default = Some(group.name.clone());
        }
        groups.push(group);
    }
    Ok(groups)
}

fn portgroup(reader: &mut Reader<'_>, node: Node<'_>) -> Result<PortGroup> {
    if let Some(port) = child(node, "port") {
        return Err(reader
            .unsupported(port, "element 'port' is not available in a <portgroup>")
            .remedy("set <port isolated='yes'/> on the network, or --isolated on each port"));
    }
    reader.shape(
        node,
        &Shape {
            attributes: &["name", "default", "trustGuestRxFilters"],
            once: &["vlan", "virtualport"],
            many: &[],
        },
    )?;
    let Some(name) = filled(node, "name") else {
        return Err(reader.xml(node, "Missing required name attribute in portgroup"));
    };
    // libvirt takes everything but 'yes' for no.
    let default = attr(node, "default") == Some("yes");
    let trust_guest_rx_filters = reader.yes_no(node, "trustGuestRxFilters")?;
    if trust_guest_rx_filters == Some(true) {
        reader.warn(node, "attribute 'trustGuestRxFilters' has no effect");
    }
    let vlan = match child(node, "vlan") {
        Some(vlan) => Some(self::vlan(reader, vlan)?),
        None => None,
    };
    let virtualport = match child(node, "virtualport") {
        Some(virtualport) => self::virtualport(reader, virtualport, false)?,
        None => None,
    };
    Ok(PortGroup { name: name.to_owned(), default, trust_guest_rx_filters, vlan, virtualport })
}

/// Parameters in libvirt's order, with the types that take them.
const PARAMETERS: [(&str, &[&str]); 6] = [
    ("managerid", &["802.1Qbg"]),
    ("typeid", &["802.1Qbg"]),
    ("typeidversion", &["802.1Qbg"]),
    ("instanceid", &["802.1Qbg"]),
    ("interfaceid", &["openvswitch", "midonet"]),
    ("profileid", &["802.1Qbh", "openvswitch"]),
];

const TYPES: [&str; 4] = ["802.1Qbg", "802.1Qbh", "openvswitch", "midonet"];

/// A `<virtualport>`; `None` when it says nothing, which a portgroup's may.
pub(super) fn virtualport(
    reader: &mut Reader<'_>,
    node: Node<'_>,
    type_required: bool,
) -> Result<Option<VirtualPort>> {
    reader.shape(node, &Shape { attributes: &["type"], once: &["parameters"], many: &[] })?;
    let kind = filled(node, "type");
    match kind {
        None if type_required => {
            return Err(reader
                .xml(node, "missing required virtualport type")
                .remedy(format!("known are: {}", TYPES.join(", "))));
        }
        Some(kind) if !TYPES.contains(&kind) => {
            return Err(reader
                .unsupported_at(node, "type", format!("unknown virtualport type {kind}"))
                .remedy(format!("known are: {}", TYPES.join(", "))));
        }
        _ => {}
    }
    let parameters = match child(node, "parameters") {
        Some(parameters) => self::parameters(reader, parameters, kind)?,
        None => Vec::new(),
    };
    reader.warn(
        node,
        "element 'virtualport' is kept and has no effect: ports belong to netloom's switch",
    );
    if kind.is_none() && parameters.is_empty() {
        return Ok(None);
    }
    Ok(Some(VirtualPort { kind: kind.map(str::to_owned), parameters }))
}

fn parameters(
    reader: &mut Reader<'_>,
    node: Node<'_>,
    kind: Option<&str>,
) -> Result<Vec<(String, String)>> {
    reader.shape(
        node,
        &Shape::leaf(&[
            "managerid",
            "typeid",
            "typeidversion",
            "instanceid",
            "interfaceid",
            "profileid",
        ]),
    )?;
    let mut parameters = Vec::new();
    for (name, types) in PARAMETERS {
        let Some(value) = attr(node, name) else { continue };
        let value = parameter(reader, node, name, value)?;
        if let Some(kind) = kind
            && !types.contains(&kind)
        {
            let message = format!("extra {name} unsupported in <virtualport type='{kind}'>");
            return Err(reader.xml_at(node, name, message).remedy(format!("remove {name}")));
        }
        parameters.push((name.to_owned(), value));
    }
    Ok(parameters)
}

fn parameter(reader: &Reader<'_>, node: Node<'_>, name: &str, value: &str) -> Result<String> {
    let (most, range) = match name {
        "managerid" => (0xff, "value of managerid out of range"),
        "typeid" => (0x00ff_ffff, "value for typeid out of range"),
        "typeidversion" => (0xff, "value of typeidversion out of range"),
        "profileid" if value.len() >= 40 => {
            return Err(reader
                .xml_at(node, name, "profileid parameter too long")
                .remedy("use up to 39 bytes"));
        }
        "profileid" => return Ok(value.to_owned()),
        _ => {
            return Uuid::try_parse(value).map(|uuid| uuid.to_string()).map_err(|_| {
                reader.xml_at(node, name, format!("cannot parse {name} parameter as a uuid"))
            });
        }
    };
    let number = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => super::values::number(value),
    };
    match number {
        Some(number) if number <= most => Ok(number.to_string()),
        Some(_) => Err(reader.xml_at(node, name, range).remedy(format!("write 0 to {most}"))),
        None => Err(reader.xml_at(node, name, format!("cannot parse value of {name} parameter"))),
    }
}
