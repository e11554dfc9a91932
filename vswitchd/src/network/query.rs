//! What users ask. Nothing here waits for a change that is under way.

use std::sync::Arc;

use api::{
    InstanceInfo, Lease, NetworkInfo, NetworkStats, PortInfo, PortKind, PortState, PortStats,
    Problem, WorkerInfo, WorkerQueue,
};
use netdef::model::ForwardMode;
use uuid::Uuid;

use super::Manager;
use super::services::Services;
use super::tables::{DEFAULT_MTU, Network, Port, Tables, mtu};

impl Manager {
    #[must_use]
    pub fn instance(&self) -> InstanceInfo {
        InstanceInfo {
            name: self.store.instance().name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            revision: self.bus.revision(),
            workers: self.config.workers,
        }
    }

    /// All networks, by name.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkInfo> {
        let tables = self.tables();
        let mut list: Vec<_> =
            tables.networks.values().map(|network| network_info(&tables, network)).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// # Errors
    /// When there is no such network.
    pub fn network(&self, wanted: &str) -> Result<NetworkInfo, Problem> {
        let tables = self.tables();
        Ok(network_info(&tables, tables.network(wanted)?))
    }

    /// The definition in force, or the persistent one.
    ///
    /// # Errors
    /// When there is no such network, or a transient one has no persistent definition.
    pub fn xml(&self, wanted: &str, inactive: bool) -> Result<String, Problem> {
        let tables = self.tables();
        let network = tables.network(wanted)?;
        let persistent = network.persistent.as_ref().filter(|_| inactive);
        // As virsh does, a transient network shows what it has.
        let definition = persistent.or(network.current());
        definition
            .map(|definition| netdef::to_xml(definition))
            .ok_or_else(|| super::problem::network_not_found(wanted))
    }

    /// Current leases, by MAC; none when the network is inactive.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn leases(&self, wanted: &str) -> Result<Vec<Lease>, Problem> {
        let mut leases = match self.services(wanted)? {
            Some(services) => services.leases(|port| self.port_name(port)),
            None => Vec::new(),
        };
        leases.sort_by_key(|lease| (lease.mac, lease.ip));
        Ok(leases)
    }

    /// Counters of DHCP and DNS; nothing when the network is inactive.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn network_stats(&self, wanted: &str) -> Result<NetworkStats, Problem> {
        let services = self.services(wanted)?;
        Ok(services.map(|services| services.stats()).unwrap_or_default())
    }

    fn services(&self, wanted: &str) -> Result<Option<Arc<Services>>, Problem> {
        let tables = self.tables();
        Ok(tables.network(wanted)?.live.as_ref().and_then(|live| live.services.clone()))
    }

    /// Every worker with its queues, by network and port.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let status = self.dataplane.workers();
        let tables = self.tables();
        let queue = |queue: datapath::QueueStatus| {
            let port = tables.ports.get(&queue.port);
            // A gateway's or uplink's port has the network's UUID.
            let network = port.map_or(queue.port, |port| port.document.network);
            let network = tables.networks.get(&network);
            WorkerQueue {
                port: port.map(|port| port.document.name.clone()),
                network: network.map_or_else(|| queue.port.to_string(), |it| it.name.clone()),
                queue: queue.queue,
                load_ppm: queue.load_ppm,
            }
        };
        let workers = status.into_iter().enumerate().map(|(worker, status)| {
            let mut queues: Vec<_> = status.queues.into_iter().map(queue).collect();
            queues.sort_by(|a, b| {
                (&a.network, &a.port, a.queue).cmp(&(&b.network, &b.port, b.queue))
            });
            WorkerInfo { worker, cpu: status.cpu, load_ppm: status.load_ppm, queues }
        });
        workers.collect()
    }

    /// Ports by name, of one network or of all.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn ports(&self, network: Option<&str>) -> Result<Vec<PortInfo>, Problem> {
        let tables = self.tables();
        let only = network.map(|wanted| tables.network(wanted)).transpose()?.map(|n| n.uuid);
        let mut list: Vec<_> = tables
            .ports
            .values()
            .filter(|port| only.is_none_or(|only| port.document.network == only))
            .map(|port| self.port_info(&tables, port))
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// # Errors
    /// When there is no such port.
    pub fn port(&self, wanted: &str) -> Result<PortInfo, Problem> {
        let tables = self.tables();
        Ok(self.port_info(&tables, tables.port(wanted)?))
    }

    /// Counters since the port came up; zero while it is down.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn stats(&self, wanted: &str) -> Result<PortStats, Problem> {
        let uuid = self.tables().port(wanted)?.document.uuid;
        Ok(self.dataplane.stats(uuid).unwrap_or_default())
    }

    /// Name of a port that exists.
    pub(super) fn port_name(&self, uuid: Uuid) -> Option<String> {
        self.tables().ports.get(&uuid).map(|port| port.document.name.clone())
    }

    fn port_info(&self, tables: &Tables, port: &Port) -> PortInfo {
        let document = &port.document;
        let network = tables.networks.get(&document.network);
        let socket = match &document.port {
            PortKind::VhostUser { connect: Some(path), .. } => Some(path.clone()),
            PortKind::VhostUser { connect: None, .. } => {
                Some(self.store.instance().port_socket(&document.name))
            }
            _ => None,
        };
        PortInfo {
            name: document.name.clone(),
            uuid: document.uuid,
            network: network
                .map_or_else(|| document.network.to_string(), |network| network.name.clone()),
            port: document.port.clone(),
            mac: document.mac,
            profile: document.profile.clone(),
            state: port.state,
            reason: port.reason.clone().filter(|_| port.state != PortState::Up),
            socket,
            mtu: network.and_then(Network::current).map_or(DEFAULT_MTU, |model| mtu(model)),
        }
    }
}

fn network_info(tables: &Tables, network: &Network) -> NetworkInfo {
    let current = network.current();
    let warnings = network.define_warnings.iter().chain(&network.start_warnings);
    NetworkInfo {
        name: network.name.clone(),
        uuid: network.uuid,
        title: current.and_then(|definition| definition.title.clone()),
        active: network.live.is_some(),
        persistent: network.persistent.is_some(),
        autostart: network.autostart,
        mode: current
            .map_or(ForwardMode::Isolated, |definition| definition.forward.mode)
            .as_str()
            .to_owned(),
        bridge: current.map(Arc::as_ref).and_then(|definition| definition.bridge.name.clone()),
        ports: tables.ports_of(network.uuid).count(),
        warnings: warnings.cloned().collect(),
        hub: network.live.as_ref().and_then(|live| Some(live.hub.as_ref()?.info(tables))),
    }
}
