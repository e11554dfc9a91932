//! Model to libvirt's canonical XML.
use crate::model::Network;

/// The document that `virsh net-dumpxml` would print for this network.
#[must_use]
pub fn to_xml(network: &Network) -> String {
    format!("<network>\n  <name>{}</name>\n</network>\n", network.name)
}
