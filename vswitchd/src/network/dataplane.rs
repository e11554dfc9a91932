//! The datapath as this module uses it. Its calls wait for the workers to let go of the old
//! configuration, so they run away from the threads that serve requests.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use api::{PortState, Problem};
use datapath::{BridgeSpec, Datapath, Inherited, PortIo, PortSpec, VhostSocket};
use switch::{Role, VlanMode};
use uuid::Uuid;
use wire::MacAddr;

use super::problem;
use super::profile::Forwarding;
use super::services::Trap;

// What the API promises is what the switch can do.
const _: () = assert!(api::MAX_QUEUE_PAIRS == datapath::port::MAX_PAIRS);

/// How long an address is remembered that is not seen any more (as Linux bridges do).
const AGEING: Duration = Duration::from_secs(300);
/// Frames that may wait for an engine.
const TRAP_QUEUE: usize = 1024;

/// A bridge to be made.
#[derive(Clone, Debug)]
pub(super) struct BridgeSettings {
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) switch: netdef::model::Switch,
    pub(super) trap_dhcp4: bool,
    pub(super) gateway_v4: Vec<Ipv4Addr>,
}

/// A port to be made.
#[derive(Clone, Debug)]
pub(super) struct PortSettings {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) bridge: Uuid,
    pub(super) mac: MacAddr,
    pub(super) role: Role,
    pub(super) vlan: VlanMode,
    pub(super) isolated: bool,
    pub(super) mtu: u32,
}

impl PortSettings {
    fn spec(self, io: PortIo) -> PortSpec {
        PortSpec {
            id: self.id,
            name: self.name,
            bridge: self.bridge,
            mac: self.mac,
            role: self.role,
            vlan: self.vlan,
            isolated: self.isolated,
            mtu: self.mtu,
            io,
        }
    }
}

/// A handle to the datapath.
#[derive(Clone, Debug)]
pub(super) struct Dataplane {
    datapath: Datapath,
}

impl Dataplane {
    pub(super) fn new(datapath: Datapath) -> Self {
        Self { datapath }
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Datapath) -> Result<T, datapath::Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let datapath = self.datapath.clone();
        tokio::task::spawn_blocking(move || call(&datapath))
            .await
            .map_err(|error| problem::inner(&error))?
            .map_err(|error| problem::inner(&error))
    }

    pub(super) async fn add_bridge(
        &self,
        id: Uuid,
        settings: BridgeSettings,
    ) -> Result<(), Problem> {
        self.call(move |datapath| {
            let spec = BridgeSpec {
                hub: settings.switch.hub,
                ageing: settings.switch.ageing.unwrap_or(AGEING),
                mtu: settings.mtu,
                trap_dhcp4: settings.trap_dhcp4,
                gateway_v4: settings.gateway_v4,
            };
            datapath.add_bridge(id, &settings.name, spec)
        })
        .await
    }

    pub(super) async fn remove_bridge(&self, id: Uuid) -> Result<(), Problem> {
        self.call(move |datapath| datapath.remove_bridge(id)).await
    }

    async fn add(&self, settings: PortSettings, io: PortIo) -> Result<(), Problem> {
        self.call(move |datapath| {
            // Of another daemon, and not as it is to be now.
            if !matches!(io, PortIo::Inherited) && datapath.inherited(settings.id).is_some() {
                datapath.remove_port(settings.id)?;
            }
            datapath.add_port(settings.spec(io))
        })
        .await
    }

    /// Goes on with the vhost-user port of another daemon. False when there is none of this kind.
    pub(super) async fn adopt_vhost_user(
        &self,
        settings: &PortSettings,
        queue_pairs: u16,
    ) -> Result<bool, Problem> {
        match self.datapath.inherited(settings.id) {
            Some(Inherited::VhostUser { queue_pairs: pairs }) if pairs == queue_pairs => {
                self.add(settings.clone(), PortIo::Inherited).await.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Goes on with the packet socket of another daemon. False when there is none.
    pub(super) async fn adopt_packet(&self, settings: &PortSettings) -> Result<bool, Problem> {
        match self.datapath.inherited(settings.id) {
            Some(Inherited::Packet) => {
                self.add(settings.clone(), PortIo::Inherited).await.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Whether another daemon has handed over so many queues of a TAP for this port.
    pub(super) fn inherits_tap(&self, id: Uuid, wanted: usize) -> bool {
        matches!(self.datapath.inherited(id), Some(Inherited::Tap { queues }) if queues == wanted)
    }

    /// The bridge's port for DHCP that another daemon has handed over.
    pub(super) fn inherited_trap(&self, bridge: Uuid) -> Option<Uuid> {
        self.datapath.inherited_internal(bridge)
    }

    /// Removes what another daemon has handed over and nobody has asked for.
    pub(super) async fn disown(&self) -> Result<(), Problem> {
        self.call(|datapath| {
            datapath.disown();
            Ok(())
        })
        .await
    }

    pub(super) async fn add_vhost_user(
        &self,
        settings: PortSettings,
        socket: VhostSocket,
        queue_pairs: u16,
    ) -> Result<(), Problem> {
        self.add(settings, PortIo::VhostUser { socket, queue_pairs }).await
    }

    pub(super) async fn add_tap(
        &self,
        settings: PortSettings,
        queues: Vec<OwnedFd>,
    ) -> Result<(), Problem> {
        // Without: the datapath has them.
        let io = if queues.is_empty() { PortIo::Inherited } else { PortIo::Tap { queues } };
        self.add(settings, io).await
    }

    pub(super) async fn add_packet(
        &self,
        settings: PortSettings,
        socket: OwnedFd,
    ) -> Result<(), Problem> {
        self.add(settings, PortIo::Packet { socket }).await
    }

    /// The internal port to which the bridge's DHCP goes.
    pub(super) async fn add_trap(&self, id: Uuid, bridge: Uuid) -> Result<Trap, Problem> {
        let (io, handle) = if let Some(Inherited::Internal(handle)) = self.datapath.inherited(id) {
            (PortIo::Inherited, handle)
        } else {
            let (port, handle) = datapath::internal(TRAP_QUEUE);
            (PortIo::Internal(port), handle)
        };
        let settings = PortSettings {
            id,
            name: "dhcp".to_owned(),
            bridge,
            mac: MacAddr::ZERO,
            role: Role::Internal,
            vlan: VlanMode::transparent(),
            isolated: false,
            mtu: super::tables::DEFAULT_MTU,
        };
        self.add(settings, io).await?;
        Ok(Trap(handle))
    }

    /// Changes how a port that is in the datapath forwards.
    pub(super) async fn set_port(&self, id: Uuid, forwarding: Forwarding) -> Result<(), Problem> {
        let Forwarding { vlan, isolated } = forwarding;
        self.call(move |datapath| datapath.set_port(id, vlan, isolated)).await
    }

    pub(super) async fn remove_port(&self, id: Uuid) -> Result<(), Problem> {
        self.call(move |datapath| datapath.remove_port(id)).await
    }

    /// State of a port that is in the datapath, and why it is so.
    pub(super) fn status(&self, id: Uuid) -> Option<(PortState, Option<String>)> {
        let status = self.datapath.port_status(id)?;
        Some((state(status.state), status.reason))
    }

    /// Counters of a port that is in the datapath. Drops by reason, only those that occurred.
    pub(super) fn stats(&self, id: Uuid) -> Option<api::PortStats> {
        let stats = self.datapath.port_stats(id)?;
        Some(api::PortStats {
            rx_packets: stats.rx_packets,
            rx_bytes: stats.rx_bytes,
            tx_packets: stats.tx_packets,
            tx_bytes: stats.tx_bytes,
            drops: stats
                .drops
                .iter()
                .filter(|(_, count)| *count != 0)
                .map(|(reason, count)| (reason.as_str().to_owned(), *count))
                .collect(),
        })
    }

    pub(super) fn workers(&self) -> Vec<datapath::WorkerStatus> {
        self.datapath.workers()
    }

    pub(super) async fn fdb_add(
        &self,
        bridge: Uuid,
        mac: MacAddr,
        vlan: u16,
        port: Uuid,
    ) -> Result<(), Problem> {
        self.call(move |datapath| datapath.fdb_add(bridge, mac, vlan, port)).await
    }

    pub(super) async fn fdb_del(
        &self,
        bridge: Uuid,
        mac: MacAddr,
        vlan: u16,
    ) -> Result<bool, Problem> {
        self.call(move |datapath| datapath.fdb_del(bridge, mac, vlan)).await
    }

    pub(super) async fn fdb_flush(&self, bridge: Uuid) -> Result<usize, Problem> {
        self.call(move |datapath| datapath.fdb_flush(bridge)).await
    }

    pub(super) fn fdb(&self, bridge: Uuid) -> Vec<datapath::FdbEntry> {
        self.datapath.fdb(bridge)
    }
}

/// The API's word for the datapath's state.
pub(super) fn state(state: datapath::PortState) -> PortState {
    match state {
        datapath::PortState::Listening => PortState::Listening,
        datapath::PortState::Connecting => PortState::Connecting,
        datapath::PortState::Connected => PortState::Connected,
        datapath::PortState::Up => PortState::Up,
        datapath::PortState::Gone => PortState::Gone,
        datapath::PortState::Quarantined => PortState::Quarantined,
    }
}
