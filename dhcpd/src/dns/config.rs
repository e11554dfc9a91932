//! Configuration of one network's DNS server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;

use super::inherited::InheritedSockets;

/// Names of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub ip: IpAddr,
    pub names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txt {
    pub name: String,
    pub value: String,
}

/// `_service._protocol[.domain]`; the network's domain when `domain` is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// Without the underscore.
    pub service: String,
    /// Without the underscore.
    pub protocol: String,
    pub domain: Option<String>,
    /// Absent: the service is decidedly not available (RFC 2782, target `.`).
    pub target: Option<String>,
    pub port: u16,
    pub priority: u16,
    pub weight: u16,
}

/// Where queries go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarder {
    /// Only for names in this domain; the longest match wins.
    pub domain: Option<String>,
    /// Absent, with a domain: names in it take the way of all others, although a forwarder for a
    /// domain above says otherwise.
    pub addr: Option<SocketAddr>,
}

/// Addresses on which servers of this process listen, so that none forwards to another (or to
/// itself) in a circle. Clones share one set.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses(Arc<RwLock<BTreeMap<IpAddr, usize>>>);

impl OwnAddresses {
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&ip)
    }

    /// Counts: each insertion needs its own [`Self::remove`].
    pub fn insert(&self, ip: IpAddr) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner).entry(ip).or_default() += 1;
    }

    pub fn remove(&self, ip: IpAddr) {
        let mut set = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = set.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                set.remove(&ip);
            }
        }
    }
}

/// One network's DNS.
#[derive(Clone, Debug)]
pub struct Config {
    /// Gateway addresses; UDP and TCP on each. Never a wildcard.
    pub listen: Vec<IpAddr>,
    /// 53, except in tests.
    pub port: u16,
    /// The interface that has the addresses: the scope of link-local ones.
    pub interface: Option<String>,
    /// Who may ask: source addresses inside these, link-local ones, and this host itself. Empty:
    /// everybody.
    pub clients: Vec<IpNet>,
    /// Subnets whose reverse names are answered here alone, never forwarded.
    pub reverse: Vec<IpNet>,
    /// Appended to plain names of hosts and clients.
    pub domain: Option<String>,
    /// Names in `domain` are never forwarded.
    pub domain_local_only: bool,
    /// Forward names of a single label; otherwise unknown ones do not exist.
    pub forward_plain_names: bool,
    pub hosts: Vec<Host>,
    pub txts: Vec<Txt>,
    pub srvs: Vec<Srv>,
    /// When one has no domain, they replace `default_upstreams` and `resolv_conf`.
    pub forwarders: Vec<Forwarder>,
    /// When not empty, they replace `resolv_conf`.
    pub default_upstreams: Vec<SocketAddr>,
    /// Read again when it changes.
    pub resolv_conf: Option<PathBuf>,
    pub own_addresses: OwnAddresses,
    pub inherited: InheritedSockets,
    /// `false` in an isolated network: names that are not local are refused.
    pub forward: bool,
}

impl Config {
    /// Serves `listen`, knows no names and forwards to the servers of `/etc/resolv.conf`.
    #[must_use]
    pub fn new(listen: Vec<IpAddr>) -> Self {
        Self {
            listen,
            port: 53,
            interface: None,
            clients: Vec::new(),
            reverse: Vec::new(),
            domain: None,
            domain_local_only: false,
            forward_plain_names: false,
            hosts: Vec::new(),
            txts: Vec::new(),
            srvs: Vec::new(),
            forwarders: Vec::new(),
            default_upstreams: Vec::new(),
            resolv_conf: Some(PathBuf::from("/etc/resolv.conf")),
            own_addresses: OwnAddresses::default(),
            inherited: InheritedSockets::default(),
            forward: true,
        }
    }
}
