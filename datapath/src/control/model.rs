//! Bridges and ports as the control plane knows them, and the snapshots made of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use switch::{Bridge, BridgeConfig, Fdb, MAX_PORTS, Mode, PortConfig, PortIndex, Role};
use uuid::Uuid;

use crate::counters::{Counters, empty_stats};
use crate::snapshot::{Device, Port, Snapshot};
use crate::{BridgeSpec, Config, PortStats};

/// What every IPv4 host must take (RFC 791 §3.1 says 68 for links; hosts take 576).
const MIN_MTU: usize = 576;

#[derive(Debug)]
pub(super) struct BridgeEntry {
    pub(super) spec: BridgeSpec,
    pub(super) fdb: Arc<Fdb>,
    bridge: Arc<Bridge>,
}

#[derive(Debug)]
pub(super) struct PortEntry {
    pub(super) index: PortIndex,
    /// For logs.
    pub(super) name: String,
    pub(super) bridge: Uuid,
    pub(super) config: PortConfig,
    pub(super) device: Device,
    pub(super) mtu: u32,
    pub(super) counters: Arc<[Counters]>,
}

impl PortEntry {
    /// The sum over all workers.
    pub(super) fn stats(&self) -> PortStats {
        let mut stats = empty_stats();
        self.counters.iter().for_each(|worker| worker.add_to(&mut stats));
        stats
    }
}

#[derive(Debug, Default)]
pub(super) struct Model {
    limits: FdbLimits,
    pub(super) bridges: HashMap<Uuid, BridgeEntry>,
    pub(super) ports: HashMap<Uuid, PortEntry>,
    /// Bridges of another process that nobody has asked for yet.
    pub(super) inherited_bridges: HashSet<Uuid>,
    /// Ports of another process that nobody has asked for yet.
    pub(super) inherited: HashSet<Uuid>,
}

/// Sizes of each bridge's forwarding table.
#[derive(Clone, Copy, Debug, Default)]
struct FdbLimits {
    entries: usize,
    per_guest: usize,
}

impl Model {
    pub(super) fn new(config: &Config) -> Self {
        let Config { fdb_entries: entries, fdb_entries_per_guest: per_guest, .. } = *config;
        Self { limits: FdbLimits { entries, per_guest }, ..Self::default() }
    }

    pub(super) fn add_bridge(&mut self, id: Uuid, spec: BridgeSpec) {
        let fdb = Arc::new(Fdb::new(self.limits.entries));
        let bridge = Arc::new(Bridge::new(BridgeConfig::default(), &[], Arc::clone(&fdb)));
        self.bridges.insert(id, BridgeEntry { spec, fdb, bridge });
        self.rebuild(id);
    }

    /// An index that no port has.
    pub(super) fn free_index(&self) -> Option<PortIndex> {
        let mut taken = vec![false; MAX_PORTS];
        for port in self.ports.values() {
            taken[usize::from(port.index.0)] = true;
        }
        let free = taken.iter().position(|taken| !taken)?;
        u16::try_from(free).ok().map(PortIndex)
    }

    pub(super) fn has_internal(&self, bridge: Uuid) -> bool {
        self.ports_of(bridge).any(|port| port.config.role == Role::Internal)
    }

    pub(super) fn ports_of(&self, bridge: Uuid) -> impl Iterator<Item = &PortEntry> {
        self.ports.values().filter(move |port| port.bridge == bridge)
    }

    /// Who has which index, to be asked often.
    pub(super) fn ids(&self) -> HashMap<PortIndex, Uuid> {
        self.ports.iter().map(|(&id, port)| (port.index, id)).collect()
    }

    /// Makes the bridge anew from its configuration and ports.
    pub(super) fn rebuild(&mut self, id: Uuid) {
        let mut ports: Vec<_> =
            self.ports_of(id).map(|port| (port.index, port.config.clone())).collect();
        ports.sort_by_key(|(index, _)| *index);
        let internal = ports.iter().find(|(_, config)| config.role == Role::Internal);
        let internal = internal.map(|(index, _)| *index);
        let Some(entry) = self.bridges.get_mut(&id) else { return };
        let config = BridgeConfig {
            mode: if entry.spec.hub { Mode::Hub } else { Mode::Learning },
            ageing: entry.spec.ageing,
            trap_dhcp4: internal.filter(|_| entry.spec.trap_dhcp4),
            gateway_v4: entry.spec.gateway_v4.clone(),
            max_entries_per_guest: self.limits.per_guest,
        };
        entry.bridge = Arc::new(Bridge::new(config, &ports, Arc::clone(&entry.fdb)));
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.ports.iter().filter_map(|(&id, port)| {
            let bridge = Arc::clone(&self.bridges.get(&port.bridge)?.bridge);
            Some(Arc::new(Port {
                index: port.index,
                id,
                bridge,
                device: port.device.clone(),
                // Ethernet header and one tag.
                longest: usize::try_from(port.mtu).map_or(usize::MAX, |mtu| mtu.max(MIN_MTU) + 18),
                counters: Arc::clone(&port.counters),
            }))
        }))
    }
}
