//! From `--net` to a socket, a MAC address and an MTU.

use anyhow::Context as _;
use api::Instance;
use vmm_core::virtio::NetConfig;
use wire::MacAddr;

use crate::args::{NetArg, NetTarget};

/// Prefix of QEMU's and KVM's locally administered addresses.
const OUI: [u8; 3] = [0x52, 0x54, 0x00];

pub(crate) fn resolve(net: &NetArg, instance: &Instance) -> anyhow::Result<NetConfig> {
    let socket = match &net.target {
        NetTarget::Socket(path) => path.clone(),
        NetTarget::Port(name) => instance.port_socket(name),
    };
    let mac = match net.mac {
        Some(mac) => mac,
        None => random_mac().context("cannot make a MAC address")?,
    };
    Ok(NetConfig { socket, mac, mtu: net.mtu })
}

fn random_mac() -> anyhow::Result<MacAddr> {
    let [a, b, c, ..] = uuid::Uuid::new_v4().into_bytes();
    Ok(MacAddr([OUI[0], OUI[1], OUI[2], a, b, c]))
}
