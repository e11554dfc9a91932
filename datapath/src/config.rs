//! What the control plane tells the datapath, and what it learns from it.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use switch::{BridgeConfig, DropReason, Fdb, Role, VlanMode};
use uuid::Uuid;
use wire::MacAddr;

use crate::port::internal::InternalPort;

/// How the datapath runs; fixed from start to stop.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that move frames, at least 1.
    pub workers: usize,
    /// Processors that the workers are bound to, one each in turn. Empty: wherever the kernel puts them.
    pub cpus: Vec<usize>,
    /// How long a ring is polled after its last frame before the worker waits for a kick.
    pub spin: Duration,
    /// Where each port keeps what its packed rings need to go on after this process was killed: a directory on a
    /// tmpfs that exists. `None`: nothing is kept.
    pub resume_dir: Option<PathBuf>,
    /// How often it is looked at whether queues should move to workers with less to do. `None`: they stay where they are.
    pub rebalance: Option<Duration>,
    /// Addresses that one bridge's forwarding table can hold.
    pub fdb_entries: usize,
    /// Addresses that one guest's port may own of them.
    pub fdb_entries_per_guest: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 1,
            cpus: Vec::new(),
            spin: Duration::from_micros(50),
            rebalance: Some(Duration::from_secs(10)),
            resume_dir: None,
            fdb_entries: Fdb::DEFAULT_MAX_ENTRIES,
            fdb_entries_per_guest: BridgeConfig::DEFAULT_MAX_ENTRIES_PER_GUEST,
        }
    }
}

/// A bridge without its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Flood every frame, learn nothing.
    pub hub: bool,
    /// How long a silent address is remembered.
    pub ageing: Duration,
    /// Bytes of payload behind the Ethernet header, told to guests.
    pub mtu: u32,
    /// Frames to DHCPv4 servers go to the bridge's internal port.
    pub trap_dhcp4: bool,
    /// The gateway's addresses: a DHCP renewal to one of them is trapped too.
    pub gateway_v4: Vec<Ipv4Addr>,
}

impl Default for BridgeSpec {
    fn default() -> Self {
        Self {
            hub: false,
            ageing: Duration::from_secs(300),
            mtu: 1500,
            trap_dhcp4: false,
            gateway_v4: Vec::new(),
        }
    }
}

/// A port to be added.
#[derive(Debug)]
pub struct PortSpec {
    pub id: Uuid,
    /// For logs.
    pub name: String,
    pub bridge: Uuid,
    /// The station behind the port; told to vhost-user guests. Zero when unknown.
    pub mac: MacAddr,
    pub role: Role,
    pub vlan: VlanMode,
    pub isolated: bool,
    pub mtu: u32,
    pub io: PortIo,
}

/// What a port's frames come from and go to. The descriptors belong to the datapath from here on.
#[derive(Debug)]
pub enum PortIo {
    /// Guests' frontends, one at a time.
    VhostUser { socket: VhostSocket, queue_pairs: u16 },
    /// Queues of one TAP device, from [`open_tap`](crate::port::tap::open_tap).
    Tap { queues: Vec<OwnedFd> },
    /// From [`open_packet`](crate::port::packet::open_packet).
    Packet { socket: OwnedFd },
    /// From [`internal`](crate::internal).
    Internal(InternalPort),
    /// What another process has handed over for the port of this id; see [`Datapath::inherited`](crate::Datapath::inherited).
    Inherited,
}

/// How a vhost-user port comes by its frontend.
#[derive(Debug)]
pub enum VhostSocket {
    /// Frontends connect here.
    Listen(UnixListener),
    /// The VMM listens on this path, and is connected to whenever it does.
    Connect(PathBuf),
    /// This one only: when it leaves the port is [gone](PortState::Gone).
    Connected(UnixStream),
}

/// How a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// A vhost-user port on whose socket no frontend is.
    Listening,
    /// A vhost-user port whose VMM does not listen; the reason says what was found instead.
    Connecting,
    /// A frontend is there, the guest's driver is not running.
    Connected,
    /// Frames can move.
    Up,
    /// The device behind the port was deleted, or the only connection has ended.
    Gone,
    /// The guest's rings or memory broke a rule that cannot be mended frame by frame; the reason says which. Over when the frontend
    /// sets its rings up again.
    Quarantined,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listening => "listening",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Up => "up",
            Self::Gone => "gone",
            Self::Quarantined => "quarantined",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    pub state: PortState,
    /// Why it is so, when something went wrong. May contain words of a guest's frontend: escape before printing.
    pub reason: Option<String>,
    /// Virtio features that the guest's driver accepted; 0 for other ports.
    pub features: u64,
    /// Queue pairs in use.
    pub queue_pairs: u16,
}

/// Counters of a port since it was added, seen from the switch: rx came from the port, tx went to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Every reason, with how many frames it took: refused on the way in, or lost on the way out of this port.
    pub drops: Vec<(DropReason, u64)>,
}

/// A worker and what it serves. Loads are millionths of the worker's time, over the last seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The processor that it is bound to.
    pub cpu: Option<usize>,
    pub load_ppm: u64,
    pub queues: Vec<QueueStatus>,
}

/// A queue that frames come from: a guest's TX ring by its pair, a TAP queue, a packet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    pub port: Uuid,
    pub queue: usize,
    pub load_ppm: u64,
}

/// An entry of a bridge's forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    pub mac: MacAddr,
    pub vlan: u16,
    pub port: Uuid,
    /// Since it was last heard; `None` for a static entry.
    pub age: Option<Duration>,
}

/// Something that happened without a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    PortState { id: Uuid, state: PortState, reason: Option<String> },
}

/// Why a call failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("bridge {0} does not exist")]
    NoBridge(Uuid),
    #[error("bridge {0} exists already")]
    BridgeExists(Uuid),
    #[error("bridge {0} still has ports; remove them first")]
    BridgeInUse(Uuid),
    #[error("bridge {0} has an internal port already")]
    InternalExists(Uuid),
    #[error("port {0} does not exist")]
    NoPort(Uuid),
    #[error("port {0} exists already")]
    PortExists(Uuid),
    #[error("no more than {} ports can exist", switch::MAX_PORTS)]
    TooManyPorts,
    #[error("a vhost-user port has 1 to {max} queue pairs, not {0}", max = crate::port::vhost_user::MAX_PAIRS)]
    QueuePairs(u16),
    #[error("a TAP port needs at least one queue")]
    NoQueues,
    #[error("port {port} has no queue {queue} in use")]
    NoQueue { port: Uuid, queue: usize },
    #[error("there are {workers} workers, from 0, and none has number {worker}")]
    NoWorker { worker: usize, workers: usize },
    #[error("VLAN {0} does not exist, expected 0 to 4094")]
    Vlan(u16),
    #[error("the forwarding table refuses {mac}: {reason}")]
    Static { mac: MacAddr, reason: switch::StaticError },
    #[error("{context}")]
    System { context: &'static str, source: std::io::Error },
    #[error("the datapath has stopped")]
    Stopped,
}
