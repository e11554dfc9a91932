//! What happens to ports and interfaces without our doing: frontends that connect and leave,
//! namespaces that are deleted, rules that are flushed.

use std::sync::Arc;
use std::time::Duration;

use api::{EventKind, PortState};
use uuid::Uuid;

use super::undo::Undo;
use super::{Manager, dataplane};
use crate::host::HostEvent;

/// How often the firewall rules are looked at, in case a notification was lost.
const FIREWALL_CHECK: Duration = Duration::from_secs(60);

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
        Ok(())
    }

    /// The state of a port that is up, as the datapath has it.
    fn port_state(&self, uuid: Uuid, state: PortState, reason: Option<String>) {
        self.note(|tables| {
            let port = tables.ports.get_mut(&uuid)?;
            // Late news of a port that is down, or gone with its namespace.
            if matches!(port.state, PortState::Down | PortState::Gone | PortState::Error)
                || (port.state == state && port.reason == reason)
            {
                return None;
            }
            port.state = state;
            port.reason.clone_from(&reason);
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
            }
            HostEvent::FirewallBroken { reason } => tracing::error!(
                "the firewall rules had been removed and could not be applied again: {reason}"
            ),
            HostEvent::NetnsGone { netns } => {
                let ports: Vec<Uuid> = {
                    let tables = self.tables();
                    let in_it = tables.ports.values().filter(|port| {
                        port.undo.iter().any(
                            |undo| matches!(undo, Undo::Watch { netns: n, .. } if *n == netns),
                        )
                    });
                    in_it.map(|port| port.document.uuid).collect()
                };
                for port in ports {
                    let reason = format!("network namespace {netns} was deleted");
                    self.port_gone(port, reason).await;
                }
            }
            HostEvent::LinkGone { name, object: Some(object), .. } => {
                // Waits for a change under way: it may be what deleted the link.
                let _operation = self.operation.lock().await;
                let is_port = self.tables().ports.contains_key(&object);
                if is_port {
                    self.port_gone_now(object, format!("interface {name} was deleted")).await;
                } else {
                    self.interface_gone(object, &name);
                }
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

    fn interface_gone(&self, network: Uuid, name: &str) {
        self.note(|tables| {
            let network = tables.networks.get_mut(&network)?;
            network.live.as_ref()?;
            tracing::error!(
                network = %network.name,
                "interface {name} was deleted; destroy and start the network to mend it"
            );
            network.start_warnings.push(format!(
                "interface {name} was deleted: destroy and start the network to mend it"
            ));
            None
        });
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
