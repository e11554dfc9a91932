//! Starting a network: steps in order, all or nothing.

use std::sync::Arc;

use api::{Code, PortState, Problem};
use ipnet::IpNet;
use netdef::model::{self, ForwardMode};
use switch::{Role, VlanMode};
use uuid::Uuid;

use super::dataplane::{BridgeSettings, PortSettings};
use super::hub::Hub;
use super::problem::{about, host, start_failed};
use super::raise::Raised;
use super::services::Services;
use super::tables::{Live, Tables, gateway_interface, has_gateway, mtu};
use super::undo::Undo;
use super::{Manager, services};
use crate::host::{FirewallNetwork, RouteSpec, TapSpec};

/// Why a network is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Somebody wants it.
    Fresh,
    /// It was active when the daemon stopped: the host still has most of it, guests use it, and
    /// its rules are applied together with those of the other networks.
    Restore,
}

/// A network that is up, for the tables.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) live: Live,
    pub(super) warnings: Vec<String>,
    pub(super) ports: PortOutcomes,
}

/// What became of the network's ports.
#[derive(Debug, Default)]
pub(super) struct PortOutcomes(Vec<(Uuid, Raised)>);

impl PortOutcomes {
    pub(super) fn uuids(&self) -> Vec<Uuid> {
        self.0.iter().map(|(uuid, _)| *uuid).collect()
    }

    /// What the ports made, for a start that fails after all.
    pub(super) fn into_undo(self) -> Vec<Undo> {
        self.0.into_iter().flat_map(|(_, raised)| raised.undo).collect()
    }

    /// Puts the outcomes into the tables.
    pub(super) fn settle(self, tables: &mut Tables) {
        for (uuid, raised) in self.0 {
            if let Some(port) = tables.ports.get_mut(&uuid) {
                port.state = raised.state;
                port.reason = raised.reason;
                port.undo = raised.undo;
            }
        }
    }
}

/// The steps, in order. What one makes, it adds to the undo list as soon as it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Conflicts,
    Bridge,
    Interface,
    Addresses,
    Forwarding,
    Routes,
    Firewall,
    Services,
    Ports,
    Hub,
}

impl Step {
    const ALL: [Self; 10] = [
        Self::Conflicts,
        Self::Bridge,
        Self::Interface,
        Self::Addresses,
        Self::Forwarding,
        Self::Routes,
        Self::Firewall,
        Self::Services,
        Self::Ports,
        Self::Hub,
    ];

    fn describe(self, start: &Start<'_>) -> String {
        let interface = &start.interface;
        match self {
            Self::Conflicts => "the check for address conflicts".to_owned(),
            Self::Bridge => "creating the bridge".to_owned(),
            Self::Interface => match (start.definition.forward.mode, interface) {
                (ForwardMode::Bridge, _) => "attaching the uplink".to_owned(),
                (_, Some(name)) => format!("creating interface {name}"),
                (_, None) => "creating the gateway interface".to_owned(),
            },
            Self::Addresses => "setting the gateway addresses".to_owned(),
            Self::Forwarding => "enabling IP forwarding".to_owned(),
            Self::Routes => "adding static routes".to_owned(),
            Self::Firewall => "applying the firewall rules".to_owned(),
            Self::Services => "starting DHCP and DNS".to_owned(),
            Self::Ports => "bringing up ports".to_owned(),
            Self::Hub => "making the hub socket".to_owned(),
        }
    }
}

struct Start<'a> {
    manager: &'a Manager,
    uuid: Uuid,
    definition: &'a Arc<model::Network>,
    mode: Mode,
    /// The gateway interface, in modes that have one.
    interface: Option<String>,
    undo: Vec<Undo>,
    warnings: Vec<String>,
    firewall: Option<FirewallNetwork>,
    services: Option<Arc<Services>>,
    services_missing: bool,
    ports: Vec<(Uuid, Raised)>,
    hub: Option<Arc<Hub>>,
}

impl Manager {
    /// # Errors
    /// The step that failed and why; everything before it is undone.
    pub(super) async fn bring_up(
        &self,
        uuid: Uuid,
        definition: &Arc<model::Network>,
        mode: Mode,
    ) -> Result<Started, Problem> {
        let mut start = Start::new(self, uuid, definition, mode);
        for step in Step::ALL {
            if let Err(cause) = start.run(step).await {
                let name = step.describe(&start);
                tracing::error!(
                    network = %definition.name, step = %name, causes = ?cause.causes,
                    "start failed: {cause}"
                );
                self.undo(PortOutcomes(start.ports).into_undo()).await;
                self.undo(start.undo).await;
                return Err(start_failed(&definition.name, &name, cause));
            }
        }
        Ok(Started {
            live: Live {
                definition: Arc::clone(definition),
                undo: start.undo,
                firewall: start.firewall,
                services: start.services,
                hub: start.hub,
                services_missing: start.services_missing,
                interface_missing: false,
            },
            warnings: start.warnings,
            ports: PortOutcomes(start.ports),
        })
    }
}

impl Manager {
    /// Makes the gateway or uplink interface of an active network again, as it was; what was left
    /// of the old one in the datapath is gone already.
    ///
    /// # Errors
    /// Why it is not possible. Nothing is left then.
    pub(super) async fn remake_interface(
        &self,
        uuid: Uuid,
        definition: &Arc<model::Network>,
    ) -> Result<Vec<Undo>, Problem> {
        let mut start = Start::new(self, uuid, definition, Mode::Restore);
        for step in [Step::Interface, Step::Addresses, Step::Routes] {
            if let Err(error) = start.run(step).await {
                self.undo(start.undo).await;
                return Err(error);
            }
        }
        Ok(start.undo)
    }
}

impl<'a> Start<'a> {
    fn new(
        manager: &'a Manager,
        uuid: Uuid,
        definition: &'a Arc<model::Network>,
        mode: Mode,
    ) -> Self {
        Self {
            manager,
            uuid,
            definition,
            mode,
            interface: gateway_interface(definition).map(str::to_owned),
            undo: Vec::new(),
            warnings: Vec::new(),
            firewall: None,
            services: None,
            services_missing: false,
            ports: Vec::new(),
            hub: None,
        }
    }

    async fn run(&mut self, step: Step) -> Result<(), Problem> {
        match step {
            Step::Conflicts => self.conflicts().await,
            Step::Bridge => self.bridge().await,
            Step::Interface if has_gateway(self.definition) => self.gateway().await,
            Step::Interface => self.uplink().await,
            Step::Addresses => self.addresses().await,
            Step::Forwarding => self.forwarding().await,
            Step::Routes => self.routes().await,
            Step::Firewall => self.firewall().await,
            Step::Services => self.services().await,
            Step::Ports => self.ports().await,
            Step::Hub => {
                self.hub();
                Ok(())
            }
        }
    }

    fn gateway_name(&self) -> Result<&str, Problem> {
        self.interface
            .as_deref()
            .ok_or_else(|| super::problem::internal("the gateway interface has no name"))
    }

    /// No subnet of ours may overlap one that the host reaches otherwise, or another network's.
    async fn conflicts(&mut self) -> Result<(), Problem> {
        let ours = self.definition.ips.iter().map(|ip| ip.net.trunc());
        let ours: Vec<IpNet> =
            ours.chain(self.definition.routes.iter().map(|route| route.net.trunc())).collect();
        for net in ours {
            // A default route behind a guest is meant to overlap everything.
            if net.prefix_len() == 0 {
                continue;
            }
            if let Some(other) = self.other_network(net) {
                return Err(conflict(net, &other));
            }
            let found = self.manager.host.subnet_conflict(net, self.interface.as_deref()).await;
            if let Some(found) = found.map_err(|error| host(&error))? {
                return Err(conflict(net, &found.to_string()));
            }
        }
        Ok(())
    }

    fn other_network(&self, net: IpNet) -> Option<String> {
        let tables = self.manager.tables();
        tables.networks.values().filter(|other| other.uuid != self.uuid).find_map(|other| {
            let definition = &other.live.as_ref()?.definition;
            let nets = definition.ips.iter().map(|ip| ip.net.trunc());
            let theirs = nets
                .chain(definition.routes.iter().map(|route| route.net.trunc()))
                .filter(|theirs| theirs.prefix_len() != 0)
                .find(|theirs| theirs.contains(&net) || net.contains(theirs))?;
            Some(format!("subnet {theirs} of network '{}'", other.name))
        })
    }

    async fn bridge(&mut self) -> Result<(), Problem> {
        let settings = BridgeSettings {
            name: self.definition.name.clone(),
            mtu: mtu(self.definition),
            switch: self.definition.switch,
            trap_dhcp4: services::wants_dhcp4(self.definition),
            gateway_v4: self
                .definition
                .ips
                .iter()
                .filter_map(|ip| match ip.net {
                    IpNet::V4(net) => Some(net.addr()),
                    IpNet::V6(_) => None,
                })
                .collect(),
        };
        self.manager.dataplane.add_bridge(self.uuid, settings).await?;
        self.undo.push(Undo::Bridge(self.uuid));
        Ok(())
    }

    fn port(&self, name: &str, mac: wire::MacAddr, role: Role) -> PortSettings {
        PortSettings {
            id: self.uuid,
            name: name.to_owned(),
            bridge: self.uuid,
            mac,
            role,
            vlan: VlanMode::transparent(),
            isolated: false,
            mtu: mtu(self.definition),
        }
    }

    async fn gateway(&mut self) -> Result<(), Problem> {
        let name = self.gateway_name()?.to_owned();
        let mac = self
            .definition
            .mac
            .ok_or_else(|| super::problem::internal("the gateway interface has no MAC address"))?;
        let has_v6 = self.definition.ips.iter().any(|ip| matches!(ip.net, IpNet::V6(_)));
        let spec = TapSpec {
            name: name.clone(),
            object: self.uuid,
            mac: Some(mac),
            mtu: mtu(self.definition),
            queues: self.manager.config.workers,
            netns: None,
            // One that is adopted must not go down: it would lose its IPv6 addresses.
            up: self.mode == Mode::Restore,
        };
        let host_ = &self.manager.host;
        let tap = self.manager.tap(&spec).await?;
        self.undo.push(Undo::Link { name: name.clone(), object: self.uuid, netns: None });
        host_.gateway_sysctls(&name, has_v6).await.map_err(|error| host(&error))?;
        let port = self.port(&name, mac, Role::Gateway);
        self.manager.dataplane.add_tap(port, tap.queues).await?;
        self.undo.push(Undo::DataplanePort(self.uuid));
        Ok(())
    }

    /// `bridge` mode: a TAP in an existing Linux bridge, or a host interface itself.
    async fn uplink(&mut self) -> Result<(), Problem> {
        let definition = Arc::clone(self.definition);
        let host_ = &self.manager.host;
        // The uplink has no address of its own; the datapath wants one to name the port by.
        let mac = super::definition::random_mac()?;
        if let Some(bridge) = &definition.bridge.name {
            if !host_.bridge_exists(bridge).await.map_err(|error| host(&error))? {
                return Err(Problem {
                    remedy: Some(format!("create it first: ip link add {bridge} type bridge")),
                    ..about(
                        Code::StartFailed,
                        bridge,
                        format!("there is no Linux bridge '{bridge}'"),
                    )
                });
            }
            let name = uplink_name(self.uuid);
            let spec = TapSpec {
                name: name.clone(),
                object: self.uuid,
                mac: None,
                mtu: mtu(&definition),
                queues: self.manager.config.workers,
                netns: None,
                up: self.mode == Mode::Restore,
            };
            let tap = self.manager.tap(&spec).await?;
            self.undo.push(Undo::Link { name: name.clone(), object: self.uuid, netns: None });
            host_.gateway_sysctls(&name, false).await.map_err(|error| host(&error))?;
            host_.enslave(&name, bridge).await.map_err(|error| host(&error))?;
            host_.set_up(&name, true).await.map_err(|error| host(&error))?;
            let port = self.port(&name, mac, Role::Uplink);
            self.manager.dataplane.add_tap(port, tap.queues).await?;
            self.undo.push(Undo::DataplanePort(self.uuid));
        } else if let Some(dev) = &definition.forward.dev {
            let port = self.port(dev, mac, Role::Uplink);
            if !self.manager.dataplane.adopt_packet(&port).await? {
                let socket = host_.open_packet(dev).await.map_err(|error| host(&error))?;
                self.manager.dataplane.add_packet(port, socket).await?;
            }
            self.undo.push(Undo::DataplanePort(self.uuid));
        } else {
            self.warnings.push(
                "the network names neither a bridge nor an interface: its guests reach only each \
                 other"
                    .to_owned(),
            );
        }
        Ok(())
    }

    async fn addresses(&mut self) -> Result<(), Problem> {
        if !has_gateway(self.definition) {
            return Ok(());
        }
        let name = self.gateway_name()?;
        let addresses: Vec<IpNet> = self.definition.ips.iter().map(|ip| ip.net).collect();
        let host_ = &self.manager.host;
        host_.set_addresses(name, &addresses).await.map_err(|error| host(&error))?;
        host_.set_up(name, true).await.map_err(|error| host(&error))
    }

    async fn forwarding(&mut self) -> Result<(), Problem> {
        let routed = matches!(
            self.definition.forward.mode,
            ForwardMode::Nat | ForwardMode::Route | ForwardMode::Open
        );
        let v4 = self.definition.ips.iter().any(|ip| matches!(ip.net, IpNet::V4(_)));
        let v6 = self.definition.ips.iter().any(|ip| matches!(ip.net, IpNet::V6(_)));
        if !routed || !(v4 || v6) {
            return Ok(());
        }
        self.manager.host.enable_forwarding(v4, v6).await.map_err(|error| host(&error))
    }

    async fn routes(&mut self) -> Result<(), Problem> {
        if !has_gateway(self.definition) {
            return Ok(());
        }
        let interface = self.gateway_name()?.to_owned();
        for route in &self.definition.routes {
            let spec = RouteSpec {
                net: route.net,
                gateway: route.gateway,
                interface: interface.clone(),
                metric: route.metric,
            };
            self.manager.host.add_route(&spec).await.map_err(|error| host(&error))?;
            self.undo.push(Undo::Route(spec));
        }
        Ok(())
    }

    async fn firewall(&mut self) -> Result<(), Problem> {
        let Some(interface) = &self.interface else { return Ok(()) };
        let definition = self.definition;
        let network = FirewallNetwork {
            name: definition.name.clone(),
            interface: interface.clone(),
            mode: definition.forward.mode,
            nets: definition
                .ips
                .iter()
                .map(|ip| ip.net.trunc())
                .chain(definition.routes.iter().map(|route| route.net.trunc()))
                .collect(),
            gateway: definition.ips.iter().map(|ip| ip.net.addr()).collect(),
            nat: definition.forward.nat.clone(),
            forward_dev: definition.forward.dev.clone(),
            dns: services::wants_dns(definition),
            dhcp: definition.ips.iter().any(|ip| ip.dhcp.is_some()),
            tftp: definition.ips.iter().any(|ip| ip.tftp_root.is_some()),
        };
        // On its way out of a failed start, the table is made again without this network.
        self.undo.push(Undo::Firewall);
        if self.mode == Mode::Fresh {
            self.manager.apply_firewall(Some(&network)).await?;
        }
        self.warnings.extend(self.manager.host.firewall_warnings(interface).await);
        self.firewall = Some(network);
        Ok(())
    }

    async fn services(&mut self) -> Result<(), Problem> {
        let definition = self.definition;
        if definition.ips.iter().any(|ip| ip.dhcp.is_some() && matches!(ip.net, IpNet::V6(_))) {
            self.warnings.push(
                "DHCP over IPv6 is not served yet: give guests static IPv6 addresses".to_owned(),
            );
        }
        if definition.ips.iter().any(|ip| ip.tftp_root.is_some()) {
            self.warnings.push("TFTP is not served yet".to_owned());
        }
        match self.manager.raise_services(self.uuid, definition).await {
            Ok((services, undo)) => {
                self.undo.extend(undo);
                self.services = services;
                Ok(())
            }
            // Guests that have their addresses go on; it is tried again.
            Err(error) if self.mode == Mode::Restore => {
                self.warnings.push(services_warning(&error));
                self.services_missing = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A port that cannot come up does not keep the network down: it says why.
    async fn ports(&mut self) -> Result<(), Problem> {
        let documents: Vec<_> = {
            let tables = self.manager.tables();
            tables.ports_of(self.uuid).map(|port| port.document.clone()).collect()
        };
        for document in documents {
            let raised = match self.manager.raise(&document, self.definition).await {
                Ok(raised) => raised,
                Err(error) => {
                    let mut reason = vec![error.title];
                    reason.extend(error.causes);
                    let reason = reason.join(": ");
                    self.warnings.push(port_warning(&document.name) + &reason);
                    Raised { undo: Vec::new(), state: PortState::Error, reason: Some(reason) }
                }
            };
            self.ports.push((document.uuid, raised));
        }
        Ok(())
    }
}

impl Start<'_> {
    /// Like a port, it does not keep the network down.
    fn hub(&mut self) {
        match self.manager.raise_hub(self.uuid, self.definition) {
            Ok(Some(hub)) => {
                self.undo.extend(hub.undo());
                self.hub = Some(hub);
            }
            Ok(None) => {}
            Err(error) => {
                let remedy = error.remedy.map(|text| format!("; {text}")).unwrap_or_default();
                self.warnings.push(format!("there is no hub socket: {}{remedy}", error.title));
            }
        }
    }
}

/// How the warning begins that a port is not up.
pub(super) fn port_warning(port: &str) -> String {
    format!("port '{port}' is not up: ")
}

/// How the warning begins that a network runs without DHCP and DNS.
pub(super) const SERVICES_WARNING: &str = "DHCP and DNS are not served: ";

fn services_warning(error: &Problem) -> String {
    let mut text = format!("{SERVICES_WARNING}{}", error.title);
    for cause in &error.causes {
        text.push_str(": ");
        text.push_str(cause);
    }
    text
}

fn conflict(net: IpNet, other: &str) -> Problem {
    Problem {
        remedy: Some("choose a subnet that is not in use on this host".to_owned()),
        ..about(Code::SubnetConflict, &net.to_string(), format!("subnet {net} overlaps {other}"))
    }
}

/// Name of the TAP that goes into a Linux bridge: from the network's UUID, so that a restart
/// finds it again.
pub(super) fn uplink_name(network: Uuid) -> String {
    let hex = network.simple().to_string();
    format!("vnl{}", hex.get(..10).unwrap_or(&hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplink_names_are_interface_names() {
        let name = uplink_name(Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0));
        assert_eq!(name, "vnl123456789a");
        assert!(name.len() <= 15);
    }
}
