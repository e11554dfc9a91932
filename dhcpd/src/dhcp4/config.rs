//! Configuration of the DHCPv4 engine, and the rules that it must keep.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use wire::MacAddr;

/// How long a lease lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseTime {
    Finite(Duration),
    Infinite,
}

impl LeaseTime {
    /// One hour, as dnsmasq and libvirt have it.
    pub const DEFAULT: Self = Self::Finite(Duration::from_secs(3600));
}

impl Default for LeaseTime {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl From<Option<Duration>> for LeaseTime {
    /// `None` is infinite.
    fn from(duration: Option<Duration>) -> Self {
        duration.map_or(Self::Infinite, Self::Finite)
    }
}

/// Addresses that are given to anybody, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: Ipv4Addr,
    pub end: Ipv4Addr,
    /// In place of [`Config::lease`].
    pub lease: Option<LeaseTime>,
}

/// An address kept for one client. It may lie inside or outside the ranges.
///
/// With a MAC, the MAC decides and `name` is the client's name. Without one, a client that gives
/// `name` as its host name gets the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticHost {
    pub mac: Option<MacAddr>,
    pub name: Option<String>,
    pub ip: Ipv4Addr,
    /// In place of [`Config::lease`].
    pub lease: Option<LeaseTime>,
}

/// Network boot: header fields `file`, `sname`, `siaddr`, and options 67 and 66 when asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// At most 127 octets.
    pub file: String,
    /// TFTP server; this server when absent.
    pub server: Option<Ipv4Addr>,
    /// At most 63 octets.
    pub server_name: Option<String>,
}

/// A classless route for the clients (option 121, RFC 3442).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRoute {
    pub net: Ipv4Net,
    pub gateway: Ipv4Addr,
}

/// One subnet and how it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our address in the subnet: server identifier and source of replies.
    pub server: Ipv4Addr,
    pub net: Ipv4Net,
    /// Source MAC of replies.
    pub server_mac: MacAddr,
    /// Empty: only static hosts are served.
    pub ranges: Vec<Range>,
    pub hosts: Vec<StaticHost>,
    pub lease: LeaseTime,
    /// Option 3. An isolated network has none.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15, and the domain that client names may carry.
    pub domain: Option<String>,
    /// Option 26.
    pub mtu: Option<u16>,
    pub boot: Option<Boot>,
    pub routes: Vec<ClientRoute>,
    /// Addresses that one port may hold, offered and quarantined ones included. `None`: no limit,
    /// for a server whose clients all come through one interface.
    pub max_per_port: Option<usize>,
    /// Serve requests that came through a relay agent (giaddr set, in `net`). In a virtual
    /// network a relay is a guest that lies, so it is off by default.
    pub relay: bool,
}

impl Config {
    /// Address limit of a port in a virtual network: enough for nested guests, too few to drain
    /// a usual pool from one port.
    pub const DEFAULT_MAX_PER_PORT: usize = 16;

    /// A server without ranges, hosts or options.
    #[must_use]
    pub fn new(server: Ipv4Addr, net: Ipv4Net, server_mac: MacAddr) -> Self {
        Self {
            server,
            net: net.trunc(),
            server_mac,
            ranges: Vec::new(),
            hosts: Vec::new(),
            lease: LeaseTime::DEFAULT,
            router: None,
            dns: Vec::new(),
            domain: None,
            mtu: None,
            boot: None,
            routes: Vec::new(),
            max_per_port: Some(Self::DEFAULT_MAX_PER_PORT),
            relay: false,
        }
    }

    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_host(self.net, self.server) {
            return Err(ConfigError::Server { ip: self.server, net: self.net });
        }
        if !self.server_mac.is_station() {
            return Err(ConfigError::ServerMac(self.server_mac));
        }
        self.check_ranges()?;
        self.check_hosts()?;
        let times = self.ranges.iter().filter_map(|r| r.lease);
        let times = times.chain(self.hosts.iter().filter_map(|h| h.lease)).chain([self.lease]);
        for time in times {
            if let LeaseTime::Finite(time) = time
                && !(1..u64::from(u32::MAX)).contains(&time.as_secs())
            {
                return Err(ConfigError::LeaseTime(time));
            }
        }
        if let Some(domain) = &self.domain
            && !crate::name::is_domain(domain)
        {
            return Err(ConfigError::Domain(domain.clone()));
        }
        if let Some(boot) = &self.boot
            && (boot.file.len() > 127 || boot.server_name.as_ref().is_some_and(|n| n.len() > 63))
        {
            return Err(ConfigError::Boot);
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let mut total = 0_u64;
        for (index, range) in self.ranges.iter().enumerate() {
            let inside = |ip: Ipv4Addr| self.net.contains(&ip);
            if range.start > range.end || !inside(range.start) || !inside(range.end) {
                return Err(ConfigError::Range { range: *range, net: self.net });
            }
            let overlaps = |other: &&Range| range.start <= other.end && other.start <= range.end;
            if let Some(other) = self.ranges[..index].iter().find(overlaps) {
                return Err(ConfigError::Overlap { first: *other, second: *range });
            }
            total += u64::from(u32::from(range.end) - u32::from(range.start)) + 1;
        }
        if total > MAX_ADDRESSES {
            return Err(ConfigError::TooMany(total));
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), ConfigError> {
        let mut ips = std::collections::HashSet::new();
        let mut macs = std::collections::HashSet::new();
        for host in &self.hosts {
            if host.mac.is_none() && host.name.is_none() {
                return Err(ConfigError::HostWithoutKey(host.ip));
            }
            if !is_host(self.net, host.ip) || host.ip == self.server {
                return Err(ConfigError::Host { ip: host.ip, net: self.net });
            }
            if !ips.insert(host.ip) {
                return Err(ConfigError::DuplicateIp(host.ip));
            }
            if let Some(mac) = host.mac
                && !macs.insert(mac)
            {
                return Err(ConfigError::DuplicateMac(mac));
            }
            if let Some(name) = &host.name
                && !crate::name::is_domain(name)
            {
                return Err(ConfigError::HostName(name.clone()));
            }
        }
        Ok(())
    }
}

/// Most addresses in all ranges of one engine (its table has a bit for each).
pub const MAX_ADDRESSES: u64 = 1 << 22;

/// An address that a client can have in this subnet: not its network or broadcast address.
pub(crate) fn is_host(net: Ipv4Net, ip: Ipv4Addr) -> bool {
    let edge = net.prefix_len() < 31 && (ip == net.network() || ip == net.broadcast());
    net.contains(&ip) && !edge && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
}

/// Why a [`Config`] is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the server's address {ip} is not a host address of {net}")]
    Server { ip: Ipv4Addr, net: Ipv4Net },
    #[error("{0} cannot be the server's MAC address")]
    ServerMac(MacAddr),
    #[error("the DHCP range {} - {} is empty or not inside {net}", .range.start, .range.end)]
    Range { range: Range, net: Ipv4Net },
    #[error("the DHCP ranges {} - {} and {} - {} overlap", .first.start, .first.end, .second.start, .second.end)]
    Overlap { first: Range, second: Range },
    #[error("the DHCP ranges have {0} addresses; at most {MAX_ADDRESSES} are possible")]
    TooMany(u64),
    #[error("the static host {ip} is not a host address of {net}, or is the server's own")]
    Host { ip: Ipv4Addr, net: Ipv4Net },
    #[error("the static host {0} has neither a MAC address nor a name")]
    HostWithoutKey(Ipv4Addr),
    #[error("two static hosts have the address {0}")]
    DuplicateIp(Ipv4Addr),
    #[error("two static hosts have the MAC address {0}")]
    DuplicateMac(MacAddr),
    #[error("{0:?} is not a host name: use letters, digits, hyphens and dots")]
    HostName(String),
    #[error("{0:?} is not a domain name: use letters, digits, hyphens and dots")]
    Domain(String),
    #[error("a lease of {} s is not possible: use 1 s to 4294967294 s, or infinite", .0.as_secs())]
    LeaseTime(Duration),
    #[error("the boot file name has more than 127 octets, or the boot server's more than 63")]
    Boot,
}
