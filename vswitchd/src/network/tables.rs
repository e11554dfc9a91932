//! What is known of networks and ports, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{PortState, Problem};
use netdef::model::{self, ForwardMode};
use uuid::Uuid;

use super::hub::Hub;
use super::problem;
use super::services::Services;
use super::undo::Undo;
use crate::host::FirewallNetwork;
use crate::store::PortDocument;

/// All networks and ports.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) networks: BTreeMap<Uuid, Network>,
    pub(super) ports: BTreeMap<Uuid, Port>,
}

/// A network: defined, active, or both.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    /// The persistent definition, complete (UUID, MAC and bridge name filled in).
    pub(super) persistent: Option<Arc<model::Network>>,
    pub(super) autostart: bool,
    pub(super) live: Option<Live>,
    /// What the last define and the last start warned about.
    pub(super) define_warnings: Vec<String>,
    pub(super) start_warnings: Vec<String>,
}

/// An active network.
#[derive(Debug)]
pub(super) struct Live {
    /// The definition that it was started with, complete.
    pub(super) definition: Arc<model::Network>,
    /// What it made, in the order of making.
    pub(super) undo: Vec<Undo>,
    pub(super) firewall: Option<FirewallNetwork>,
    pub(super) services: Option<Arc<Services>>,
    pub(super) hub: Option<Arc<Hub>>,
    /// They could not be started when the network came back; they are tried again.
    pub(super) services_missing: bool,
    /// Somebody deleted the gateway or uplink interface; it is tried again.
    pub(super) interface_missing: bool,
}

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) document: PortDocument,
    pub(super) state: PortState,
    pub(super) reason: Option<String>,
    /// What it made, while it is up.
    pub(super) undo: Vec<Undo>,
}

impl Network {
    /// The definition in force: the live one, else the persistent one.
    pub(super) fn current(&self) -> Option<&Arc<model::Network>> {
        self.live.as_ref().map(|live| &live.definition).or(self.persistent.as_ref())
    }
}

impl Tables {
    /// By UUID when it reads as one and there is such a network, else by name.
    pub(super) fn network(&self, wanted: &str) -> Result<&Network, Problem> {
        Uuid::try_parse(wanted)
            .ok()
            .and_then(|uuid| self.networks.get(&uuid))
            .or_else(|| self.network_named(wanted))
            .ok_or_else(|| problem::network_not_found(wanted))
    }

    /// A network that is active, and what is live of it.
    pub(super) fn active(&self, wanted: &str) -> Result<(&Network, &Live), Problem> {
        let network = self.network(wanted)?;
        let live = network.live.as_ref().ok_or_else(|| problem::not_active(&network.name))?;
        Ok((network, live))
    }

    pub(super) fn network_named(&self, name: &str) -> Option<&Network> {
        self.networks.values().find(|network| network.name == name)
    }

    /// By UUID when it reads as one and there is such a port, else by name.
    pub(super) fn port(&self, wanted: &str) -> Result<&Port, Problem> {
        Uuid::try_parse(wanted)
            .ok()
            .and_then(|uuid| self.ports.get(&uuid))
            .or_else(|| self.port_named(wanted))
            .ok_or_else(|| problem::port_not_found(wanted))
    }

    pub(super) fn port_named(&self, name: &str) -> Option<&Port> {
        self.ports.values().find(|port| port.document.name == name)
    }

    pub(super) fn ports_of(&self, network: Uuid) -> impl Iterator<Item = &Port> {
        self.ports.values().filter(move |port| port.document.network == network)
    }

    /// Another network, active or defined, whose gateway interface has this name.
    pub(super) fn bridge_owner(&self, bridge: &str, except: Uuid) -> Option<&Network> {
        self.networks.values().filter(|network| network.uuid != except).find(|network| {
            let live = network.live.as_ref().map(|live| &live.definition);
            live.into_iter()
                .chain(network.persistent.as_ref())
                .any(|definition| gateway_interface(definition) == Some(bridge))
        })
    }

    /// What the firewall must hold for all active networks.
    pub(super) fn firewall(&self) -> Vec<FirewallNetwork> {
        self.networks
            .values()
            .filter_map(|network| network.live.as_ref()?.firewall.clone())
            .collect()
    }
}

/// Whether we make the gateway interface ourselves (all modes but `bridge`).
pub(super) fn has_gateway(definition: &model::Network) -> bool {
    definition.forward.mode != ForwardMode::Bridge
}

/// The gateway interface that the definition names.
pub(super) fn gateway_interface(definition: &model::Network) -> Option<&str> {
    if has_gateway(definition) { definition.bridge.name.as_deref() } else { None }
}

/// MTU when the definition names none.
pub(super) const DEFAULT_MTU: u32 = 1500;

/// MTU of the network, in bytes of IP packet.
pub(super) fn mtu(definition: &model::Network) -> u32 {
    definition.mtu.filter(|&mtu| mtu != 0).unwrap_or(DEFAULT_MTU)
}
