//! The beginning and the end of the daemon's life: what is on disk becomes networks and ports
//! again, what is on the host is adopted or, where it belongs to nothing, removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::{PortState, Problem};
use uuid::Uuid;

use super::commit::Write;
use super::definition::{self, Document};
use super::lifecycle::{entry, forget};
use super::start::{Mode, Started};
use super::tables::{Port, gateway_interface};
use super::{Manager, peer, problem};
use crate::store::{PortDocument, Store, StoreError};

/// A network to bring back, and the definition that it was started with.
type Active = (Uuid, Arc<netdef::model::Network>);

struct Loaded {
    active: Vec<Active>,
    /// Ports whose network is neither defined nor was active.
    strays: Vec<PortDocument>,
}

/// What became of what was on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub networks: usize,
    pub ports: usize,
    /// Active again.
    pub active: usize,
    /// Documents that could not be read and networks that could not be started.
    pub failed: usize,
}

/// Definitions and ports of the store that cannot be used, one line each.
///
/// # Errors
/// When the store itself cannot be read.
pub fn check(store: &Store) -> Result<Vec<String>, StoreError> {
    let definitions = store.load_definitions()?;
    let mut wrong: Vec<String> = definitions.errors.iter().map(ToString::to_string).collect();
    for stored in definitions.items {
        if let Err(error) = definition::parse_now(&stored.xml) {
            let line = error.line.map(|line| format!(", line {line}")).unwrap_or_default();
            wrong.push(format!("{}{line}: {error}", stored.path.display()));
        }
    }
    wrong.extend(store.load_ports()?.errors.iter().map(ToString::to_string));
    Ok(wrong)
}

impl Manager {
    /// Loads everything and brings back what was active in this boot (or what is marked for
    /// autostart, in a new one).
    ///
    /// # Errors
    /// Only when the store itself cannot be read: single documents and networks that fail are
    /// logged and counted.
    pub async fn restore(&self) -> Result<Restored, Problem> {
        let _operation = self.operation.lock().await;
        let mut restored = Restored::default();
        let Loaded { active, strays } = self.load(&mut restored)?;
        self.load_guests();
        self.remove_orphans(&active, &strays).await;
        self.remove_old_records(&strays);
        self.drop_strays(strays, restored.failed);
        self.restoring.store(true, Ordering::Relaxed);
        for (uuid, definition) in &active {
            match self.bring_up(*uuid, definition, Mode::Restore).await {
                Ok(started) => {
                    self.settle(*uuid, &definition.name, started);
                    restored.active += 1;
                    tracing::info!(network = %definition.name, %uuid, "active again");
                }
                Err(error) => {
                    restored.failed += 1;
                    tracing::error!(network = %definition.name, causes = ?error.causes, "{error}");
                    self.give_up(*uuid).await;
                }
            }
        }
        self.restoring.store(false, Ordering::Relaxed);
        // All at once, so that no network is without rules while another gets its own.
        if let Err(error) = self.apply_firewall(None).await {
            tracing::error!(causes = ?error.causes, "cannot apply the firewall rules: {error}");
        }
        self.autostart(&mut restored).await?;
        self.disown().await?;
        let tables = self.tables();
        (restored.networks, restored.ports) = (tables.networks.len(), tables.ports.len());
        Ok(restored)
    }

    /// Fills the tables; returns the networks that were active, and ports of networks that are
    /// no more.
    fn load(&self, restored: &mut Restored) -> Result<Loaded, Problem> {
        let mut strays = Vec::new();
        let definitions = self.store.load_definitions()?;
        let ports = self.store.load_ports()?;
        let run = self.store.load_run_state()?;
        for error in definitions.errors.iter().chain(&ports.errors).chain(&run.errors) {
            restored.failed += 1;
            tracing::error!("skipped: {error}");
        }
        let mut failed = 0;
        for stored in definitions.items {
            let path = stored.path.display().to_string();
            let Document { model, warnings } = match definition::parse_now(&stored.xml) {
                Ok(document) => document,
                Err(error) => {
                    failed += 1;
                    tracing::error!(path, line = error.line, "skipped: {error}");
                    continue;
                }
            };
            let uuid = match (model.uuid, self.identify(&model)) {
                (Some(_), Ok(uuid)) if model.name == stored.name => uuid,
                (None, _) => {
                    failed += 1;
                    tracing::error!(path, "skipped: the definition has no UUID");
                    continue;
                }
                (_, Err(error)) => {
                    failed += 1;
                    tracing::error!(path, "skipped: {error}");
                    continue;
                }
                _ => {
                    failed += 1;
                    tracing::error!(path, "skipped: it defines network '{}'", model.name);
                    continue;
                }
            };
            self.note(|tables| {
                let network = entry(tables, uuid, &stored.name);
                network.persistent = Some(Arc::new(model));
                network.autostart = stored.autostart;
                network.define_warnings = warnings;
                None
            });
        }
        let mut active = Vec::new();
        for document in run.items {
            match definition::parse_now(document.definition.as_bytes()) {
                Ok(Document { model, warnings }) => {
                    self.note(|tables| {
                        let network = entry(tables, document.uuid, &document.name);
                        if network.persistent.is_none() {
                            network.define_warnings = warnings;
                        }
                        None
                    });
                    active.push((document.uuid, Arc::new(model)));
                }
                Err(error) => {
                    failed += 1;
                    tracing::error!(network = %document.name, "run state skipped: {error}");
                }
            }
        }
        for document in ports.items {
            if self.tables().networks.contains_key(&document.network) {
                self.note(|tables| {
                    let port =
                        Port { state: PortState::Down, reason: None, undo: Vec::new(), document };
                    tables.ports.insert(port.document.uuid, port);
                    None
                });
            } else {
                strays.push(document);
            }
        }
        restored.failed += failed;
        Ok(Loaded { active, strays })
    }

    fn settle(&self, uuid: Uuid, name: &str, started: Started) {
        let Started { live, warnings, ports } = started;
        let mut raised = Vec::new();
        self.note(|tables| {
            let network = entry(tables, uuid, name);
            network.live = Some(live);
            for warning in &warnings {
                tracing::warn!(network = %name, "{warning}");
            }
            network.start_warnings = warnings;
            ports.settle(tables);
            raised = tables.ports_of(uuid).map(|port| port.document.uuid).collect();
            None
        });
        for port in raised {
            self.settle_state(port);
        }
    }

    /// A network that cannot come back is inactive; a transient one is no more.
    async fn give_up(&self, uuid: Uuid) {
        let persistent =
            self.tables().networks.get(&uuid).is_some_and(|network| network.persistent.is_some());
        let mut writes = vec![Write::RemoveRunState(uuid)];
        if !persistent {
            writes.extend(self.forget_writes(uuid));
        }
        let result = self
            .commit(writes, |tables| if persistent { Vec::new() } else { forget(tables, uuid) })
            .await;
        if let Err(error) = result {
            tracing::error!("{error}");
        }
    }

    async fn autostart(&self, restored: &mut Restored) -> Result<(), Problem> {
        if self.store.autostarted()? {
            return Ok(());
        }
        let networks: Vec<_> = {
            let tables = self.tables();
            let wanted = tables
                .networks
                .values()
                .filter(|network| network.autostart && network.live.is_none());
            wanted.filter_map(|network| Some((network.uuid, network.persistent.clone()?))).collect()
        };
        for (uuid, definition) in networks {
            match self.start_definition(uuid, definition, None).await {
                Ok(_) => restored.active += 1,
                Err(error) => {
                    restored.failed += 1;
                    tracing::error!(causes = ?error.causes, "autostart: {error}");
                }
            }
        }
        self.store.mark_autostarted()?;
        Ok(())
    }

    /// Ports whose network is no more: a transient one of an earlier boot, or one that went down
    /// with a crash. When a document could not be read, they may belong to that, and stay.
    fn drop_strays(&self, strays: Vec<PortDocument>, failed: usize) {
        for document in strays {
            let (port, network) = (&document.name, document.network);
            if failed != 0 {
                tracing::error!(%port, %network, "skipped: there is no such network");
                continue;
            }
            tracing::info!(%port, %network, "removing the port of a network that is no more");
            if let Err(error) = self.store.remove_port(document.uuid) {
                tracing::error!(%port, "{error}");
            }
        }
    }

    /// Deletes interfaces with our alias that belong to no active network.
    async fn remove_orphans(&self, active: &[Active], strays: &[PortDocument]) {
        let active: BTreeSet<Uuid> = active.iter().map(|(uuid, _)| *uuid).collect();
        let (wanted, down) = {
            let tables = self.tables();
            let (up, down): (Vec<_>, Vec<_>) = tables
                .ports
                .values()
                .map(|port| port.document.clone())
                .partition(|document| active.contains(&document.network));
            let wanted: BTreeSet<Uuid> =
                active.iter().copied().chain(up.iter().map(|port| port.uuid)).collect();
            (wanted, down)
        };
        match self.host.owned_links().await {
            Ok(links) => {
                for link in links.iter().filter(|link| !wanted.contains(&link.object)) {
                    tracing::info!(interface = %link.name, "removing an orphan");
                    if let Err(error) = self.host.delete_link(&link.name, link.object, None).await {
                        tracing::error!(interface = %link.name, "cannot remove it: {error}");
                    }
                }
            }
            Err(error) => tracing::error!("cannot look for orphans: {error}"),
        }
        for document in down.iter().chain(strays) {
            if let Some((name, object, Some(netns))) = Self::leftover(document)
                && let Err(error) = self.host.delete_link(&name, object, Some(&netns)).await
            {
                tracing::error!(interface = %name, netns, "cannot remove an orphan: {error}");
            }
        }
    }

    /// Deletes resume records of ports that do not come back. Those of a hub socket do when their process connects again.
    fn remove_old_records(&self, strays: &[PortDocument]) {
        let tables = self.tables();
        let known = |port: &Uuid| {
            tables.ports.contains_key(port)
                || strays.iter().any(|document| document.uuid == *port)
                || peer::is_running(*port)
        };
        for (_, path) in self.store.rings().filter(|(port, _)| !known(port)) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), "cannot remove an old record: {error}");
            }
        }
    }

    /// Stops DHCP and DNS, so that their leases and sockets are put away cleanly. Interfaces,
    /// addresses and rules stay for the next daemon.
    pub async fn stop(&self) {
        let _operation = self.operation.lock().await;
        let services: Vec<_> = {
            let tables = self.tables();
            let live = tables.networks.values().filter_map(|network| network.live.as_ref());
            live.filter_map(|live| live.services.clone()).collect()
        };
        // The threads are joined; a panic of one of them has been logged already.
        let _ = tokio::task::spawn_blocking(move || {
            services.iter().for_each(|services| services.stop());
        })
        .await;
    }

    /// `--teardown`: removes everything that the instance made on the host. Definitions, ports
    /// and leases stay on disk.
    ///
    /// # Errors
    /// What could not be removed, one cause each.
    pub async fn teardown(&self) -> Result<(), Problem> {
        let _operation = self.operation.lock().await;
        let mut restored = Restored::default();
        let Loaded { active, strays } = self.load(&mut restored)?;
        let mut causes = Vec::new();
        let mut failed = |what: String, error: &dyn std::fmt::Display| {
            causes.push(format!("{what}: {error}"));
        };
        let ports: Vec<_> =
            self.tables().ports.values().map(|port| port.document.clone()).collect();
        for document in ports.iter().chain(&strays) {
            if let Some((name, object, netns)) = Self::leftover(document)
                && let Err(error) = self.host.delete_link(&name, object, netns.as_deref()).await
            {
                failed(format!("interface {name}"), &error);
            }
        }
        match self.host.owned_links().await {
            Ok(links) => {
                for link in links {
                    if let Err(error) = self.host.delete_link(&link.name, link.object, None).await {
                        failed(format!("interface {}", link.name), &error);
                    }
                }
            }
            Err(error) => failed("interfaces".to_owned(), &error),
        }
        if let Err(error) = self.host.remove_firewall().await {
            failed("firewall rules".to_owned(), &error);
        }
        for (uuid, definition) in &active {
            if let Err(error) = self.store.remove_run_state(*uuid) {
                failed(format!("run state of {}", definition.name), &error);
            }
            tracing::info!(
                network = %definition.name,
                interface = gateway_interface(definition).unwrap_or("-"), "removed"
            );
        }
        for path in self.store.sockets() {
            if let Err(error) = crate::socket::remove_stale(&path) {
                failed(path.display().to_string(), &error);
            }
        }
        for (_, path) in self.store.rings() {
            if let Err(error) = std::fs::remove_file(&path) {
                failed(path.display().to_string(), &error);
            }
        }
        if let Err(error) = self.store.unmark_autostarted() {
            failed("autostart mark".to_owned(), &error);
        }
        if causes.is_empty() {
            return Ok(());
        }
        Err(Problem { causes, ..problem::internal("not everything could be removed") })
    }
}
