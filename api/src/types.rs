//! Requests and responses, one type per resource.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use wire::MacAddr;

use crate::SocketAccess;

/// `GET /v1/networks`, `GET /v1/networks/{name or uuid}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkInfo {
    pub name: String,
    pub uuid: Uuid,
    pub title: Option<String>,
    pub active: bool,
    pub persistent: bool,
    pub autostart: bool,
    /// `nat`, `route`, `open`, `isolated` or `bridge`.
    pub mode: String,
    /// The gateway interface, or the Linux bridge of `bridge` mode; known while active, and
    /// before when the definition names it.
    pub bridge: Option<String>,
    /// Number of ports, up or not.
    pub ports: usize,
    /// What the last define or start warned about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The hub socket of an active network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubInfo>,
}

/// A socket on which every VMM that connects gets a port of its own, for as long as it is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HubInfo {
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Guests that are connected.
    pub guests: usize,
    /// How many there may be.
    pub limit: usize,
    /// Connections that were refused since the start because there were so many.
    pub refused: u64,
}

/// `GET /v1/networks/{network}/leases`: one current DHCP lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Unix seconds; absent when the lease never expires.
    pub expiry: Option<u64>,
    #[schema(value_type = String)]
    pub mac: MacAddr,
    /// `ipv4` or `ipv6`.
    pub protocol: String,
    #[schema(value_type = String)]
    pub ip: IpAddr,
    pub prefix: u8,
    pub hostname: Option<String>,
    /// Colon-separated hexadecimal, as virsh prints it.
    pub client_id: Option<String>,
    /// Name of the port through which the lease was taken, while that port exists.
    pub port: Option<String>,
}

/// `GET /v1/networks/{network}/stats`: what the network's services have seen and done since they
/// started. A service that the network does not have, or an inactive network's, is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkStats {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp4: Option<Dhcp4Stats>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsStats>,
}

/// Messages of DHCPv4, by type (RFC 2131 §3), and those that got no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dhcp4Stats {
    pub discovers: u64,
    pub requests: u64,
    pub declines: u64,
    pub releases: u64,
    pub informs: u64,
    pub offers: u64,
    pub acks: u64,
    pub naks: u64,
    /// Messages dropped, by reason; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
}

/// Queries to the network's DNS, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsStats {
    /// Messages received.
    pub queries: u64,
    /// Answered with an error for their form.
    pub malformed: u64,
    /// Answered from the network's own names.
    pub local: u64,
    /// Answered from the cache.
    pub cached: u64,
    /// Asked upstream, once for all clients that ask the same at the same time.
    pub forwarded: u64,
    /// Not for this server to answer.
    pub refused: u64,
    /// No upstream server gave an answer.
    pub failed: u64,
    /// Messages dropped, by reason; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
}

/// What a port is on the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PortKind {
    /// A guest over a Unix socket, on which we listen or its VMM does.
    VhostUser {
        /// Socket on which the VMM listens: we connect, again and again. Absent: we listen on a socket of our own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        connect: Option<PathBuf>,
        /// For the socket on which we listen.
        #[serde(flatten)]
        access: SocketAccess,
        /// Pairs of queues offered, 1 to 128.
        #[serde(default = "one")]
        queue_pairs: u16,
    },
    /// A TAP inside a network namespace (by name in /run/netns, or by path).
    Namespace { netns: String, ifname: String },
    /// A TAP in the daemon's own namespace, for a VMM that opens it or for the host itself.
    Tap { ifname: String },
    /// An existing host interface, through AF_PACKET.
    Packet { ifname: String },
    /// A guest on its network's hub socket. Such a port is not added, it comes with the connection and goes with it.
    Hub {
        /// Process that connected; absent when it is in another PID namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// Name of that process, as it chose it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command: Option<String>,
        queue_pairs: u16,
    },
}

fn one() -> u16 {
    1
}

/// Forwarding settings of a port. Absent fields take the network's (its `<portgroup>`, `<vlan>`
/// and `<port isolated>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortProfile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portgroup: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// Isolated ports do not exchange frames with each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
}

/// VLAN membership of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Vlan {
    /// Untagged on the wire, this VLAN inside. Tagged frames are refused.
    Access(u16),
    /// Tagged frames of these VLANs (all when empty); untagged ones belong to `native`.
    Trunk {
        #[serde(default)]
        native: Option<u16>,
        #[serde(default)]
        allowed: Vec<u16>,
    },
}

/// `POST /v1/networks/{network}/ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortAdd {
    /// `[A-Za-z0-9][A-Za-z0-9_.-]{0,31}`, unique in the daemon.
    pub name: String,
    #[serde(default)]
    pub uuid: Option<Uuid>,
    pub port: PortKind,
    /// The guest's MAC; generated when absent (52:54:00 and random).
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub mac: Option<MacAddr>,
    #[serde(default)]
    pub profile: PortProfile,
}

/// `PATCH /v1/ports/{port}`, a merge patch (RFC 7396) of its profile: what is absent stays as it
/// is, `null` takes the network's setting again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSet {
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub portgroup: Option<Option<String>>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vlan>)]
    pub vlan: Option<Option<Vlan>>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bool>)]
    pub isolated: Option<Option<bool>>,
}

/// A field that is there, be it `null`.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    field: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

impl PortSet {
    /// The profile with these changes.
    #[must_use]
    pub fn applied_to(&self, profile: &PortProfile) -> PortProfile {
        let mut new = profile.clone();
        if let Some(portgroup) = &self.portgroup {
            new.portgroup.clone_from(portgroup);
        }
        if let Some(vlan) = &self.vlan {
            new.vlan.clone_from(vlan);
        }
        if let Some(isolated) = self.isolated {
            new.isolated = isolated;
        }
        new
    }
}

/// `GET /v1/ports`, `GET /v1/ports/{name or uuid}`, `GET /v1/networks/{network}/ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortInfo {
    pub name: String,
    pub uuid: Uuid,
    /// Name of the network.
    pub network: String,
    pub port: PortKind,
    #[schema(value_type = String)]
    pub mac: MacAddr,
    pub profile: PortProfile,
    pub state: PortState,
    /// Why the state is `connecting`, `quarantined`, `gone` or `error`; what was refused last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Socket of a vhost-user port, ours or the VMM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// MTU of the network, for the guest.
    pub mtu: u32,
}

/// Live state of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// The network is not active.
    Down,
    /// A vhost-user socket of ours, and no VMM on it.
    Listening,
    /// The VMM does not listen on its vhost-user socket; the reason says what was found.
    Connecting,
    /// A VMM is there, its guest's driver is not running.
    Connected,
    /// Frames flow.
    Up,
    /// The namespace or the host interface has gone away.
    Gone,
    /// The peer broke a rule; it may reconnect.
    Quarantined,
    /// It could not be set up.
    Error,
}

/// `GET /v1/ports/{port}/stats`: counters since the port came up. `rx` is from the guest into
/// the switch, `tx` from the switch to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Frames not delivered, by reason; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
}

/// `GET /v1/networks/{network}/fdb`: one entry of the forwarding database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbEntry {
    pub port: String,
    /// 0: untagged.
    pub vlan: u16,
    #[schema(value_type = String)]
    pub mac: MacAddr,
    /// Seconds since last seen; absent for a static entry.
    pub age: Option<u64>,
}

/// Pairs of queues that a vhost-user port can have.
pub const MAX_QUEUE_PAIRS: u16 = 16;

/// `POST /v1/networks/{network}/fdb`: a static entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// Name or UUID of the port.
    pub port: String,
    #[schema(value_type = String)]
    pub mac: MacAddr,
    /// Without it, the VLAN of the port's untagged frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// `DELETE /v1/networks/{network}/fdb`: which entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FdbRemove {
    /// Without it, all that were learned.
    #[param(value_type = Option<String>)]
    pub mac: Option<MacAddr>,
    /// Without it, in every VLAN.
    pub vlan: Option<u16>,
}

/// What [`FdbRemove`] has removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbRemoved {
    pub entries: usize,
}

/// `GET /v1/workers`: a thread that moves frames, and what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerInfo {
    pub worker: usize,
    /// The CPU that it is bound to; absent when the kernel chooses.
    pub cpu: Option<usize>,
    /// Millionths of its time that went to frames, over the last seconds.
    pub load_ppm: u64,
    pub queues: Vec<WorkerQueue>,
}

/// A queue that a worker takes frames from: a guest's transmit ring, a TAP queue, a packet socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerQueue {
    /// Absent for a network's gateway or uplink.
    pub port: Option<String>,
    pub network: String,
    pub queue: usize,
    pub load_ppm: u64,
}

/// `GET /v1/instance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceInfo {
    pub name: String,
    pub version: String,
    pub pid: u32,
    /// Revision of the whole state; every change adds one (also the ETag of collections).
    pub revision: u64,
    pub workers: usize,
}

/// `PUT /v1/networks/{network}/autostart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Autostart {
    pub autostart: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_tells_absent_from_null() {
        let old = PortProfile {
            portgroup: Some("red".to_owned()),
            vlan: Some(Vlan::Access(7)),
            isolated: Some(true),
        };
        let patch = |text: &str| serde_json::from_str::<PortSet>(text).expect("a patch");
        assert_eq!(patch("{}").applied_to(&old), old);
        let changed = patch(r#"{"vlan":{"access":9},"isolated":null}"#);
        let new = PortProfile { vlan: Some(Vlan::Access(9)), isolated: None, ..old.clone() };
        assert_eq!(changed.applied_to(&old), new);
        let text = serde_json::to_string(&changed).expect("JSON");
        assert_eq!(text, r#"{"vlan":{"access":9},"isolated":null}"#);
        assert!(serde_json::from_str::<PortSet>(r#"{"vlam":null}"#).is_err());
    }
}
