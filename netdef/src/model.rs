//! The network model: what libvirt's `<network>` element says, in types.
//!
//! Every field is what the document said (or its absence); defaults that libvirt applies only when
//! it acts (a generated UUID, MAC or bridge name) are applied by the daemon, not here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use uuid::Uuid;
use wire::MacAddr;

/// One libvirt network (`<network>`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub uuid: Option<Uuid>,
    /// `ipv6='yes'`: guests speak IPv6 among themselves though the network has no IPv6 address.
    pub ipv6: bool,
    pub trust_guest_rx_filters: Option<bool>,
    pub title: Option<String>,
    pub description: Option<String>,
    /// The `<metadata>` element as libvirt writes it, without the indentation of its first line.
    pub metadata: Option<String>,
    /// What netloom's own element inside `<metadata>` says of the switch.
    pub switch: Switch,
    pub forward: Forward,
    pub bridge: Bridge,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddr>,
    pub domain: Option<Domain>,
    pub dns: Dns,
    pub vlan: Option<Vlan>,
    /// `<port isolated='yes'/>`
    pub port_isolated: Option<bool>,
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub virtualport: Option<VirtualPort>,
    pub portgroups: Vec<PortGroup>,
    /// Values of `<dnsmasq:option>`: kept and written back, never acted on.
    pub dnsmasq_options: Vec<String>,
    /// Elements that are not modelled yet, written back at the end of their parent.
    pub unmodelled: Vec<Unmodelled>,
}

/// How guests reach the outside. No `<forward>` element, or `mode='none'`, is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ForwardMode {
    #[default]
    Isolated,
    Nat,
    Route,
    Open,
    Bridge,
}

impl ForwardMode {
    /// libvirt's word for it; the API's, too. libvirt writes no `<forward>` for `isolated`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Nat => "nat",
            Self::Route => "route",
            Self::Open => "open",
            Self::Bridge => "bridge",
        }
    }
}

impl fmt::Display for ForwardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    pub mode: ForwardMode,
    /// Egress device of `nat` and `route`; uplink host interface of `bridge`.
    pub dev: Option<String>,
    pub nat: Option<Nat>,
}

/// `<nat>`: `ipv6='yes'` and the pools of source addresses and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    pub ipv6: Option<bool>,
    pub addresses: Option<(Ipv4Addr, Ipv4Addr)>,
    pub ports: Option<(u16, u16)>,
}

/// `<bridge>`. For `bridge` mode the name is an existing Linux bridge; otherwise it names the
/// gateway interface (a template when it contains `%d`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    pub name: Option<String>,
    pub stp: Option<bool>,
    /// Seconds.
    pub delay: Option<u32>,
    pub mac_table_manager: Option<MacTableManager>,
}

/// Who fills the forwarding table of a Linux bridge; netloom's switch always learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacTableManager {
    Kernel,
    Libvirt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub local_only: Option<bool>,
    pub register: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Absent means yes.
    pub enable: Option<bool>,
    pub forward_plain_names: Option<bool>,
    pub forwarders: Vec<Forwarder>,
    pub txts: Vec<Txt>,
    pub srvs: Vec<Srv>,
    pub hosts: Vec<DnsHost>,
}

/// `<forwarder>`: at least one of the two is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarder {
    pub domain: Option<String>,
    pub addr: Option<IpAddr>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txt {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    pub service: String,
    pub protocol: String,
    pub domain: Option<String>,
    pub target: Option<String>,
    pub port: Option<u16>,
    pub priority: Option<u16>,
    pub weight: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsHost {
    pub ip: IpAddr,
    pub hostnames: Vec<String>,
}

/// `<vlan>`: one tag is an access VLAN, several (or `trunk='yes'`) a trunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlan {
    pub trunk: bool,
    pub tags: Vec<VlanTag>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanTag {
    pub id: u16,
    pub native_mode: Option<NativeMode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeMode {
    Tagged,
    Untagged,
}

/// `<ip>`: an address of the gateway and the services on its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Gateway address and prefix length; see [`IpNet::addr`] and [`IpNet::trunc`].
    pub net: IpNet,
    /// How the prefix was written, so that it is written back the same way.
    pub notation: PrefixNotation,
    /// The `family` attribute was present.
    pub family_written: bool,
    pub local_ptr: Option<bool>,
    pub tftp_root: Option<String>,
    pub dhcp: Option<Dhcp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixNotation {
    Netmask,
    Prefix,
    /// Neither attribute: IPv4 classful, IPv6 /64.
    Absent,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dhcp {
    pub ranges: Vec<DhcpRange>,
    pub hosts: Vec<DhcpHost>,
    pub bootp: Option<Bootp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpRange {
    pub start: IpAddr,
    pub end: IpAddr,
    pub lease: Option<LeaseTime>,
}

/// `<host>`: IPv4 has `mac` or `name`, IPv6 `id` (DUID) or `name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpHost {
    pub mac: Option<MacAddr>,
    pub id: Option<String>,
    pub name: Option<String>,
    pub ip: IpAddr,
    pub lease: Option<LeaseTime>,
}

/// `<lease expiry unit>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime {
    pub expiry: u32,
    pub unit: LeaseUnit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseUnit {
    Seconds,
    Minutes,
    Hours,
}

impl LeaseTime {
    /// `None` is an infinite lease (`expiry='0'`).
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        let unit = match self.unit {
            LeaseUnit::Seconds => 1,
            LeaseUnit::Minutes => 60,
            LeaseUnit::Hours => 3600,
        };
        (self.expiry != 0).then(|| Duration::from_secs(u64::from(self.expiry) * unit))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootp {
    pub file: String,
    pub server: Option<IpAddr>,
}

/// `<route>`: a static route on the host through a guest of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub net: IpNet,
    pub notation: PrefixNotation,
    pub family_written: bool,
    pub gateway: IpAddr,
    pub metric: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualPort {
    /// `type`; always present on a network, may be absent in a `<portgroup>`.
    pub kind: Option<String>,
    /// Attributes of `<parameters>`, in libvirt's order.
    pub parameters: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroup {
    pub name: String,
    pub default: bool,
    pub trust_guest_rx_filters: Option<bool>,
    pub vlan: Option<Vlan>,
    pub virtualport: Option<VirtualPort>,
}

/// An element kept as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmodelled {
    /// Path of the parent, as in `network/ip[2]/dhcp`; repeated elements are numbered from 1.
    pub parent: String,
    pub name: String,
    /// The element, with the namespace declarations that it needs.
    pub xml: String,
}

/// `<netloom:switch mode='learning|hub' ageing='SECONDS' hub-socket='yes|no'/>` in the namespace [`Switch::NAMESPACE`],
/// inside `<metadata>`: libvirt keeps it and has no words of its own for these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switch {
    /// Every frame goes to every port, nothing is learned.
    pub hub: bool,
    /// How long an address is remembered that is not seen any more, from 15 s to an hour.
    pub ageing: Option<Duration>,
    /// Whether the network has a socket on which any guest gets a port; the daemon decides when it is not said.
    pub hub_socket: Option<bool>,
}

impl Switch {
    pub const NAMESPACE: &str = "urn:netloom:network:1";
}
