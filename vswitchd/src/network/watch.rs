//! What happens to ports and interfaces without our doing: frontends that connect and leave,
//! namespaces that are deleted, rules that are flushed.

use std::sync::Arc;
use std::time::Duration;

use api::{EventKind, PortState};
use uuid::Uuid;

use super::hub::is_transient;
use super::start::{SERVICES_WARNING, port_warning};
use super::tables::{Network, Port, Tables};
use super::undo::Undo;
use super::{Manager, dataplane};
use crate::host::HostEvent;
use crate::log::Escaped;

/// How often the firewall rules are looked at, in case a notification was lost.
const FIREWALL_CHECK: Duration = Duration::from_secs(60);
/// How often what is missing of active networks is tried again: ports whose namespace or
/// interface was not there, services whose address was taken, interfaces that were deleted.
const RETRY: Duration = Duration::from_secs(5);

impl Manager {
    /// Follows the datapath and the host until the daemon ends.
    ///
    /// # Errors
    /// When the host cannot be watched.
    pub fn watch(
        self: &Arc<Self>,
        datapath: crossbeam_channel::Receiver<datapath::Event>,
    ) -> Result<(), crate::host::Error> {
        let mut host = self.host.events()?;
        let manager = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            for event in datapath {
                let datapath::Event::PortState { id, state, reason } = event;
                manager.port_state(id, dataplane::state(state), reason);
            }
        });
        let manager = Arc::clone(self);
        tokio::spawn(async move { manager.remove_departed().await });
        let manager = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(event) = host.recv().await {
                manager.host_event(event).await;
            }
        });
        let manager = Arc::clone(self);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(FIREWALL_CHECK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                manager.check_firewall().await;
            }
        });
        let manager = Arc::clone(self);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(RETRY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                manager.retry_interfaces().await;
                manager.retry_ports().await;
                manager.retry_services().await;
            }
        });
        Ok(())
    }

    /// The state of a port that is up, as the datapath has it.
    fn port_state(&self, uuid: Uuid, state: PortState, reason: Option<String>) {
        // It may quote what a frontend sent.
        let reason = reason.map(|reason| Escaped(&reason).to_string());
        self.note(|tables| {
            if state == PortState::Gone && tables.networks.contains_key(&uuid) {
                let definition = tables.networks.get(&uuid)?.current()?;
                let name = definition.bridge.name.clone().or(definition.forward.dev.clone())?;
                interface_gone(tables, uuid, &name);
                return None;
            }
            let port = tables.ports.get_mut(&uuid)?;
            // Late news of a port that is down, or gone with its namespace.
            if matches!(port.state, PortState::Down | PortState::Gone | PortState::Error)
                || (port.state == state && port.reason == reason)
            {
                return None;
            }
            port.state = state;
            port.reason.clone_from(&reason);
            if state == PortState::Gone && is_transient(port) {
                self.departed.notify_one();
                return None;
            }
            let port_name = port.document.name.clone();
            let mac = port.document.mac;
            let network = tables.networks.get(&port.document.network)?.name.clone();
            if state == PortState::Quarantined {
                let reason = reason.as_deref().unwrap_or("-");
                tracing::warn!(%network, port = %port_name, %mac, reason, "port quarantined");
            } else {
                tracing::info!(%network, port = %port_name, %mac, ?state, "port state");
            }
            Some(EventKind::PortState { network, port: port_name, uuid, state, reason })
        });
    }

    /// Takes over what the datapath said of a port before the tables knew it.
    pub(super) fn settle_state(&self, uuid: Uuid) {
        if let Some((state, reason)) = self.dataplane.status(uuid) {
            self.port_state(uuid, state, reason);
        }
    }

    async fn host_event(&self, event: HostEvent) {
        match event {
            HostEvent::FirewallRepaired => {
                tracing::warn!("the firewall rules had been removed and were applied again");
                self.bus.happened(EventKind::FirewallRepaired);
            }
            HostEvent::FirewallBroken { reason } => {
                tracing::error!(
                    "the firewall rules had been removed and could not be applied again: {reason}"
                );
                self.bus.happened(EventKind::FirewallBroken { reason });
            }
            HostEvent::NetnsGone { netns } => {
                let ports: Vec<Uuid> = {
                    let tables = self.tables();
                    let in_it = tables.ports.values().filter(|port| {
                        port.undo
                            .iter()
                            .any(|undo| matches!(undo, Undo::Watch { netns: n, .. } if *n == netns))
                    });
                    in_it.map(|port| port.document.uuid).collect()
                };
                for port in ports {
                    let reason = format!("network namespace {netns} was deleted");
                    self.port_gone(port, reason).await;
                }
            }
            HostEvent::LinkGone { name, object: Some(object), .. } => {
                // Waits for a change under way: it may be what deleted the link, or what has made
                // it again since.
                let _operation = self.operation.lock().await;
                let links = self.host.owned_links().await.unwrap_or_default();
                if links.iter().any(|link| link.object == object) {
                    return;
                }
                if self.tables().ports.contains_key(&object) {
                    self.port_gone_now(object, format!("interface {name} was deleted")).await;
                    return;
                }
                self.note(|tables| {
                    interface_gone(tables, object, &name);
                    None
                });
                self.mend_interfaces().await;
            }
            HostEvent::LinkGone { .. } => {}
        }
    }

    async fn port_gone(&self, uuid: Uuid, reason: String) {
        let _operation = self.operation.lock().await;
        self.port_gone_now(uuid, reason).await;
    }

    /// The port stays; what it had in the datapath goes, so that nobody spins on a dead device.
    async fn port_gone_now(&self, uuid: Uuid, reason: String) {
        let mut undo = Vec::new();
        self.note(|tables| {
            let port = tables.ports.get_mut(&uuid)?;
            if port.undo.is_empty() {
                return None;
            }
            undo = std::mem::take(&mut port.undo);
            port.state = PortState::Gone;
            port.reason = Some(reason.clone());
            let network = tables.networks.get(&port.document.network)?.name.clone();
            let port = port.document.name.clone();
            tracing::warn!(%network, %port, reason, "port gone");
            let state = PortState::Gone;
            Some(EventKind::PortState { network, port, uuid, state, reason: Some(reason) })
        });
        self.undo(undo).await;
    }

    /// Ports that are gone or failed in an active network may be possible now.
    async fn retry_ports(&self) {
        let broken = |port: &Port| {
            matches!(port.state, PortState::Gone | PortState::Error) && !is_transient(port)
        };
        if !self.tables().ports.values().any(broken) {
            return;
        }
        let _operation = self.operation.lock().await;
        let ports: Vec<_> = {
            let tables = self.tables();
            let ports = tables.ports.values().filter(|port| broken(port));
            ports
                .filter_map(|port| {
                    let live = tables.networks.get(&port.document.network)?.live.as_ref()?;
                    Some((port.document.clone(), Arc::clone(&live.definition)))
                })
                .collect()
        };
        for (document, definition) in ports {
            let uuid = document.uuid;
            let mut undo = Vec::new();
            self.note(|tables| {
                undo = std::mem::take(&mut tables.ports.get_mut(&uuid)?.undo);
                None
            });
            self.undo(undo).await;
            // Still not possible: the reason is known, and said once.
            let Ok(raised) = self.raise(&document, &definition).await else { continue };
            self.note(|tables| {
                let port = tables.ports.get_mut(&uuid)?;
                port.state = raised.state;
                port.reason = None;
                port.undo = raised.undo;
                let network = tables.networks.get_mut(&document.network)?;
                let port = document.name;
                network.start_warnings.retain(|text| !text.starts_with(&port_warning(&port)));
                tracing::info!(network = %network.name, %port, "port is back");
                let (network, state) = (network.name.clone(), raised.state);
                Some(EventKind::PortState { network, port, uuid, state, reason: None })
            });
            self.settle_state(uuid);
        }
    }

    /// Gateway and uplink interfaces that somebody deleted.
    async fn retry_interfaces(&self) {
        let missing =
            |network: &Network| network.live.as_ref().is_some_and(|live| live.interface_missing);
        if self.tables().networks.values().any(missing) {
            let _operation = self.operation.lock().await;
            self.mend_interfaces().await;
        }
    }

    /// Under the operation lock.
    async fn mend_interfaces(&self) {
        let networks: Vec<_> = {
            let tables = self.tables();
            let live = tables.networks.values().filter_map(|network| {
                let live = network.live.as_ref().filter(|live| live.interface_missing)?;
                Some((network.uuid, Arc::clone(&live.definition)))
            });
            live.collect()
        };
        for (uuid, definition) in networks {
            let of_interface = |undo: &Undo| match undo {
                Undo::DataplanePort(id) => *id == uuid,
                Undo::Link { object, .. } => *object == uuid,
                Undo::Route(_) => true,
                _ => false,
            };
            let mut old = Vec::new();
            self.note(|tables| {
                let live = tables.networks.get_mut(&uuid)?.live.as_mut()?;
                old = live.undo.extract_if(.., |undo| of_interface(undo)).collect();
                // The routes went with the interface.
                old.retain(|undo| !matches!(undo, Undo::Route(_)));
                None
            });
            self.undo(old).await;
            let Ok(undo) = self.remake_interface(uuid, &definition).await else { continue };
            self.note(|tables| {
                let network = tables.networks.get_mut(&uuid)?;
                network.start_warnings.retain(|text| !text.starts_with(INTERFACE_WARNING));
                let live = network.live.as_mut()?;
                live.undo.extend(undo);
                live.interface_missing = false;
                tracing::warn!(network = %network.name, "the interface was made again");
                None
            });
        }
    }

    /// Services that could not be started when their network came back.
    async fn retry_services(&self) {
        let missing =
            |network: &Network| network.live.as_ref().is_some_and(|live| live.services_missing);
        if !self.tables().networks.values().any(missing) {
            return;
        }
        let _operation = self.operation.lock().await;
        let networks: Vec<_> = {
            let tables = self.tables();
            let networks = tables.networks.values().filter(|network| missing(network));
            networks
                .filter_map(|network| {
                    Some((network.uuid, Arc::clone(&network.live.as_ref()?.definition)))
                })
                .collect()
        };
        for (uuid, definition) in networks {
            let Ok((services, undo)) = self.raise_services(uuid, &definition).await else {
                continue;
            };
            self.note(|tables| {
                let network = tables.networks.get_mut(&uuid)?;
                network.start_warnings.retain(|text| !text.starts_with(SERVICES_WARNING));
                let live = network.live.as_mut()?;
                live.services = services;
                live.services_missing = false;
                live.undo.extend(undo);
                tracing::info!(network = %network.name, "DHCP and DNS are served again");
                None
            });
        }
    }

    async fn check_firewall(&self) {
        let _operation = self.operation.lock().await;
        if self.tables().firewall().is_empty() {
            return;
        }
        match self.host.firewall_present().await {
            Ok(true) => {}
            Ok(false) => match self.apply_firewall(None).await {
                Ok(()) => tracing::warn!("the firewall rules were missing and were applied again"),
                Err(error) => tracing::error!(causes = ?error.causes, "firewall: {error}"),
            },
            Err(error) => tracing::error!("cannot look at the firewall rules: {error}"),
        }
    }
}

/// How the warning begins that the interface of a network was deleted.
const INTERFACE_WARNING: &str = "guests have lost their gateway or uplink: ";

/// Notes that the gateway or uplink interface of an active network was deleted.
fn interface_gone(tables: &mut Tables, network: Uuid, name: &str) {
    let Some(network) = tables.networks.get_mut(&network) else { return };
    let Some(live) = &mut network.live else { return };
    if !live.interface_missing {
        live.interface_missing = true;
        let warning = format!("{INTERFACE_WARNING}interface {name} was deleted");
        tracing::error!(network = %network.name, "{warning}");
        network.start_warnings.push(warning);
    }
}
