//! What users do to networks: define, create, start, destroy, undefine, autostart.

use std::sync::Arc;

use api::{Code, EventKind, NetworkInfo, Problem};
use netdef::model;
use uuid::Uuid;

use super::commit::Write;
use super::definition::{self, Document};
use super::hub::forget_guests;
use super::problem::{about, already_active};
use super::start::{Mode, Started};
use super::tables::{Network, Tables};
use super::undo::Undo;
use super::{Manager, Operation};
use crate::store::RunDocument;

impl Manager {
    /// Reads a definition and keeps it. An active network goes on with what it was started with.
    ///
    /// # Errors
    /// A bad document; a name or UUID that belongs to another network.
    pub async fn define(
        &self,
        _operation: &Operation<'_>,
        xml: impl AsRef<[u8]> + Send + 'static,
    ) -> Result<NetworkInfo, Problem> {
        let Document { model, warnings } = definition::parse(xml).await?;
        let uuid = self.identify(&model)?;
        let model = self.complete(uuid, model).await?;
        let name = model.name.clone();
        let write = Write::Definition { name: name.clone(), xml: netdef::to_xml(&model) };
        for warning in &warnings {
            tracing::warn!(network = %name, "{warning}");
        }
        tracing::info!(network = %name, %uuid, "defined");
        self.commit(vec![write], |tables| {
            let network = entry(tables, uuid, &name);
            network.persistent = Some(model);
            network.define_warnings = warnings;
            vec![EventKind::NetworkDefined { network: name.clone(), uuid }]
        })
        .await?;
        self.network(&uuid.to_string())
    }

    /// Reads a definition and starts it without keeping it.
    ///
    /// # Errors
    /// As [`Self::define`] and [`Self::start`].
    pub async fn create(
        &self,
        _operation: &Operation<'_>,
        xml: impl AsRef<[u8]> + Send + 'static,
    ) -> Result<NetworkInfo, Problem> {
        let Document { model, warnings } = definition::parse(xml).await?;
        let uuid = self.identify(&model)?;
        if self.tables().networks.get(&uuid).is_some_and(|network| network.live.is_some()) {
            return Err(about(
                Code::NetworkActive,
                &model.name,
                format!(
                    "Requested operation is not valid: network is already active as '{}'",
                    model.name
                ),
            ));
        }
        let model = self.complete(uuid, model).await?;
        self.start_definition(uuid, model, Some(warnings)).await
    }

    /// # Errors
    /// When it is active, when a subnet or port 53 is taken, when a step fails (all before it is
    /// then undone).
    pub async fn start(
        &self,
        _operation: &Operation<'_>,
        wanted: &str,
    ) -> Result<NetworkInfo, Problem> {
        let (uuid, definition) = {
            let tables = self.tables();
            let network = tables.network(wanted)?;
            match (&network.live, &network.persistent) {
                (None, Some(definition)) => (network.uuid, Arc::clone(definition)),
                _ => return Err(already_active(&network.name)),
            }
        };
        self.start_definition(uuid, definition, None).await
    }

    pub(super) async fn start_definition(
        &self,
        uuid: Uuid,
        definition: Arc<model::Network>,
        define_warnings: Option<Vec<String>>,
    ) -> Result<NetworkInfo, Problem> {
        let name = definition.name.clone();
        let begun = std::time::Instant::now();
        let started = self.bring_up(uuid, &definition, Mode::Fresh).await?;
        let written = match self.store.boot_id() {
            Ok(boot) => {
                let xml = netdef::to_xml(&definition);
                let document = RunDocument::new(boot, uuid, name.clone(), xml);
                self.write(vec![Write::RunState(document)]).await
            }
            Err(error) => Err(error.into()),
        };
        let Started { live, warnings, ports } = started;
        if let Err(error) = written {
            self.undo(ports.into_undo()).await;
            self.undo(live.undo).await;
            return Err(error);
        }
        for warning in &warnings {
            tracing::warn!(network = %name, "{warning}");
        }
        let raised = ports.uuids();
        self.change(|tables| {
            let network = entry(tables, uuid, &name);
            network.live = Some(live);
            network.start_warnings = warnings;
            if let Some(warnings) = define_warnings {
                network.define_warnings = warnings;
            }
            ports.settle(tables);
            vec![EventKind::NetworkStarted { network: name.clone(), uuid }]
        });
        raised.into_iter().for_each(|port| self.settle_state(port));
        let elapsed = begun.elapsed();
        tracing::info!(network = %name, %uuid, ?elapsed, "started");
        self.network(&uuid.to_string())
    }

    /// Removes everything that the start made. Ports go down and come back with the network; a
    /// transient network ceases to exist, with its ports.
    ///
    /// # Errors
    /// When it is not active.
    pub async fn destroy(&self, _operation: &Operation<'_>, wanted: &str) -> Result<(), Problem> {
        let (uuid, name, persistent) = {
            let tables = self.tables();
            let (network, _) = tables.active(wanted)?;
            (network.uuid, network.name.clone(), network.persistent.is_some())
        };
        // The run state goes first: a crash in between must not bring back half a network. The
        // ports' documents go last: they say where to look for what a crash has left.
        self.write(vec![Write::RemoveRunState(uuid)]).await?;
        let mut ports = Vec::new();
        let mut live = Vec::new();
        self.note(|tables| {
            ports = ports_down(tables, uuid);
            if let Some(network) = tables.networks.get_mut(&uuid) {
                live = network.live.take().map(|live| live.undo).unwrap_or_default();
                network.start_warnings.clear();
            }
            None
        });
        self.undo(ports).await;
        self.undo(live).await;
        let written = if persistent { Ok(()) } else { self.write(self.forget_writes(uuid)).await };
        self.change(|tables| {
            let mut events = forget_guests(tables, uuid);
            events.push(EventKind::NetworkStopped { network: name.clone(), uuid });
            if !persistent {
                events.extend(forget(tables, uuid));
            }
            events
        });
        written?;
        tracing::info!(network = %name, %uuid, "destroyed");
        Ok(())
    }

    /// Removes the persistent definition. An active network becomes transient.
    ///
    /// # Errors
    /// When it is transient already.
    pub async fn undefine(&self, _operation: &Operation<'_>, wanted: &str) -> Result<(), Problem> {
        let (uuid, name, active) = {
            let tables = self.tables();
            let network = tables.network(wanted)?;
            if network.persistent.is_none() {
                return Err(about(
                    Code::NetworkTransient,
                    &network.name,
                    "Requested operation is not valid: can't undefine transient network",
                ));
            }
            (network.uuid, network.name.clone(), network.live.is_some())
        };
        let mut writes = vec![Write::RemoveDefinition { name: name.clone() }];
        if !active {
            writes.extend(self.forget_writes(uuid));
        }
        self.commit(writes, |tables| {
            let mut events = vec![EventKind::NetworkUndefined { network: name.clone(), uuid }];
            if active {
                if let Some(network) = tables.networks.get_mut(&uuid) {
                    network.persistent = None;
                    network.autostart = false;
                }
            } else {
                events.extend(forget(tables, uuid));
            }
            events
        })
        .await?;
        tracing::info!(network = %name, %uuid, "undefined");
        Ok(())
    }

    /// # Errors
    /// When it is transient.
    pub async fn set_autostart(
        &self,
        _operation: &Operation<'_>,
        wanted: &str,
        autostart: bool,
    ) -> Result<NetworkInfo, Problem> {
        let (uuid, name, now) = {
            let tables = self.tables();
            let network = tables.network(wanted)?;
            if network.persistent.is_none() {
                return Err(about(
                    Code::NetworkTransient,
                    &network.name,
                    "Requested operation is not valid: cannot set autostart for transient network",
                ));
            }
            (network.uuid, network.name.clone(), network.autostart)
        };
        if now != autostart {
            let write = Write::Autostart { name: name.clone(), autostart };
            self.commit(vec![write], |tables| {
                if let Some(network) = tables.networks.get_mut(&uuid) {
                    network.autostart = autostart;
                }
                vec![EventKind::NetworkAutostart { network: name.clone(), uuid, autostart }]
            })
            .await?;
        }
        self.network(&uuid.to_string())
    }

    /// What goes from disk with a network that ceases to exist, its definition aside.
    pub(super) fn forget_writes(&self, network: Uuid) -> Vec<Write> {
        let tables = self.tables();
        let ports = tables.ports_of(network).map(|port| Write::RemovePort(port.document.uuid));
        ports.chain([Write::RemoveLeases(network)]).collect()
    }
}

/// The network's entry, made when it is new.
pub(super) fn entry<'a>(tables: &'a mut Tables, uuid: Uuid, name: &str) -> &'a mut Network {
    tables.networks.entry(uuid).or_insert_with(|| Network {
        uuid,
        name: name.to_owned(),
        persistent: None,
        autostart: false,
        live: None,
        define_warnings: Vec::new(),
        start_warnings: Vec::new(),
    })
}

/// Marks the network's ports down; returns what they had made.
fn ports_down(tables: &mut Tables, network: Uuid) -> Vec<Undo> {
    let mut undo = Vec::new();
    for port in tables.ports.values_mut().filter(|port| port.document.network == network) {
        port.state = api::PortState::Down;
        port.reason = None;
        undo.append(&mut port.undo);
    }
    undo
}

/// Takes the network and its ports, which are down, out of the tables.
pub(super) fn forget(tables: &mut Tables, network: Uuid) -> Vec<EventKind> {
    let Some(gone) = tables.networks.remove(&network) else { return Vec::new() };
    let ports = tables.ports.extract_if(.., |_, port| port.document.network == network);
    ports
        .map(|(uuid, port)| EventKind::PortDeleted {
            network: gone.name.clone(),
            port: port.document.name,
            uuid,
        })
        .collect()
}
