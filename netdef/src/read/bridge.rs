//! `<bridge>`, `<mtu>`, `<mac>`: the gateway interface.

use std::net::IpAddr;

use wire::MacAddr;

use super::network::mode_name;
use super::reader::{Node, Reader, Result, Shape, attr, child, filled};
use super::values::number;
use crate::model::{Bridge, ForwardMode, Ip, MacTableManager};

/// RFC 791 §3.2: every host must be able to forward 68 bytes.
const MIN_MTU: u32 = 68;
/// RFC 8200 §5.
const MIN_MTU_IPV6: u32 = 1280;
const MAX_MTU: u32 = 65535;

pub(super) fn bridge(reader: &mut Reader<'_>, node: Node<'_>, mode: ForwardMode) -> Result<Bridge> {
    reader.shape(node, &Shape::leaf(&["name", "zone", "stp", "delay", "macTableManager"]))?;
    let name = filled(node, "name");
    if let Some(name) = name {
        reader.interface(node, "name", name, mode != ForwardMode::Bridge)?;
    }
    let network = reader.name.clone();
    if attr(node, "zone").is_some() {
        return Err(reader
            .unsupported_at(
                node,
                "zone",
                format!(
                    "bridge zone of network '{network}' needs firewalld, which netloom does not use"
                ),
            )
            .remedy("remove zone='…'; netloom's own rules follow from the forward mode"));
    }
    let delay = match attr(node, "delay") {
        None => None,
        Some(value) => Some(number::<u32>(value).ok_or_else(|| {
            reader
                .xml_at(node, "delay", format!("Invalid delay value in network '{network}'"))
                .remedy("write seconds, 0 or more")
        })?),
    };
    // libvirt takes everything but 'off' for on.
    let stp = attr(node, "stp").map(|value| value != "off");
    let mac_table_manager = match attr(node, "macTableManager") {
        None => None,
        Some("kernel") => Some(MacTableManager::Kernel),
        Some("libvirt") => Some(MacTableManager::Libvirt),
        Some(value) => {
            let message =
                format!("Invalid macTableManager setting '{value}' in network '{network}'");
            return Err(reader
                .xml_at(node, "macTableManager", message)
                .remedy("write 'kernel' or 'libvirt'"));
        }
    };
    if mode == ForwardMode::Bridge {
        if stp.is_some() || delay.is_some_and(|delay| delay > 0) {
            let message = format!(
                "bridge delay/stp/zone options only allowed in open, route, nat, and isolated \
                 mode, not in bridge (network '{network}')"
            );
            return Err(reader.xml(node, message).remedy("set them on the bridge itself"));
        }
        return Ok(Bridge {
            name: name.map(str::to_owned),
            mac_table_manager,
            ..Bridge::default()
        });
    }
    if mac_table_manager == Some(MacTableManager::Libvirt) {
        reader
            .warn(node, "macTableManager='libvirt' has no effect: netloom's switch always learns");
    }
    Ok(Bridge { name: name.map(str::to_owned), stp, delay, mac_table_manager })
}

pub(super) fn mtu(
    reader: &mut Reader<'_>,
    root: Node<'_>,
    mode: ForwardMode,
    ips: &[Ip],
) -> Result<Option<u32>> {
    let Some(node) = child(root, "mtu") else { return Ok(None) };
    reader.shape(node, &Shape::leaf(&["size"]))?;
    let network = &reader.name;
    let size = match attr(node, "size") {
        None => 0,
        Some(value) => number::<u32>(value).ok_or_else(|| {
            reader
                .xml_at(node, "size", format!("Invalid mtu size '{value}' in network '{network}'"))
                .remedy(format!("write a number from {MIN_MTU} to {MAX_MTU}"))
        })?,
    };
    if size == 0 {
        return Ok(None);
    }
    if mode == ForwardMode::Bridge {
        let message = format!(
            "mtu size only allowed in open, route, nat, and isolated mode, not in {} (network '{network}')",
            mode_name(mode)
        );
        return Err(reader
            .xml(node, message)
            .remedy("set it on the bridge or the interface itself"));
    }
    let ipv6 = ips.iter().any(|ip| matches!(ip.net.addr(), IpAddr::V6(_)));
    let least = if ipv6 { MIN_MTU_IPV6 } else { MIN_MTU };
    if !(least..=MAX_MTU).contains(&size) {
        let message = format!("Invalid mtu size '{size}' in network '{network}'");
        let why = if ipv6 { " (IPv6 needs 1280)" } else { "" };
        return Err(reader
            .xml_at(node, "size", message)
            .remedy(format!("write a number from {least} to {MAX_MTU}{why}")));
    }
    Ok(Some(size))
}

pub(super) fn mac(reader: &mut Reader<'_>, root: Node<'_>) -> Result<Option<MacAddr>> {
    let Some(node) = child(root, "mac") else { return Ok(None) };
    reader.shape(node, &Shape::leaf(&["address"]))?;
    let network = &reader.name;
    let Some(value) = filled(node, "address") else { return Ok(None) };
    let message = format!("Invalid bridge mac address '{value}' in network '{network}'");
    let mac = reader.mac(node, "address", value, &message)?;
    if mac.is_multicast() {
        let message =
            format!("Invalid multicast bridge mac address '{value}' in network '{network}'");
        return Err(reader.xml_at(node, "address", message).remedy("the first octet must be even"));
    }
    if !mac.is_station() {
        return Err(reader.xml_at(node, "address", message).remedy("leave <mac> out to get one"));
    }
    Ok(Some(mac))
}
