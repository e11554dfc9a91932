//! The configuration file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use dhcpd::ServiceConfig;
use dhcpd::dhcp4::{self, Boot, ClientRoute, LeaseTime, StaticHost};
use dhcpd::dns;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, de};
use wire::MacAddr;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) interface: String,
    #[serde(default = "default_lease_file")]
    lease_file: PathBuf,
    #[serde(default)]
    domain: Option<String>,
    pub(crate) dhcp4: Option<Dhcp4>,
    dns: Option<Dns>,
}

fn default_lease_file() -> PathBuf {
    PathBuf::from("/var/lib/netloom/dhcpd.leases")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dhcp4 {
    /// The interface's address and prefix.
    address: Ipv4Net,
    #[serde(default)]
    ranges: Vec<Range>,
    #[serde(default)]
    hosts: Vec<DhcpHost>,
    #[serde(default)]
    lease: Lease,
    /// `false`: none; absent: the server's address.
    #[serde(default)]
    router: Router,
    /// Absent: the server's address when it serves DNS.
    dns: Option<Vec<Ipv4Addr>>,
    mtu: Option<u16>,
    boot: Option<BootSettings>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    relay: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Router {
    #[default]
    Server,
    Address(Ipv4Addr),
    Given(bool),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    start: Ipv4Addr,
    end: Ipv4Addr,
    lease: Option<Lease>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DhcpHost {
    mac: Option<MacAddr>,
    name: Option<String>,
    ip: Ipv4Addr,
    lease: Option<Lease>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootSettings {
    file: String,
    server: Option<Ipv4Addr>,
    server_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    net: Ipv4Net,
    gateway: Ipv4Addr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dns {
    /// Absent: the DHCP server's address.
    listen: Option<Vec<IpAddr>>,
    #[serde(default)]
    local_only: bool,
    #[serde(default)]
    forward_plain_names: bool,
    #[serde(default = "yes")]
    forward: bool,
    /// Who may ask, beside the DHCP subnet and this host.
    #[serde(default)]
    clients: Vec<IpNet>,
    #[serde(default)]
    upstreams: Vec<Server>,
    #[serde(default = "default_resolv_conf")]
    resolv_conf: PathBuf,
    #[serde(default)]
    hosts: Vec<DnsHost>,
    #[serde(default)]
    forwarders: Vec<Forwarder>,
    #[serde(default)]
    txt: Vec<Txt>,
    #[serde(default)]
    srv: Vec<Srv>,
}

fn yes() -> bool {
    true
}

fn default_resolv_conf() -> PathBuf {
    PathBuf::from("/etc/resolv.conf")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DnsHost {
    ip: IpAddr,
    names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forwarder {
    domain: String,
    /// Absent: names in this domain take the way of all others.
    address: Option<Server>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Txt {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Srv {
    service: String,
    protocol: String,
    domain: Option<String>,
    target: Option<String>,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    priority: u16,
    #[serde(default)]
    weight: u16,
}

/// `1.2.3.4`, `[2001:db8::1]:5353` and what is between.
#[derive(Clone, Copy, Debug)]
struct Server(SocketAddr);

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ip = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
        let server = ip.or_else(|_| text.parse()).map(Self);
        server.map_err(|_| {
            de::Error::custom(format!("{text:?} is not an address (with or without port)"))
        })
    }
}

/// `"90s"`, `"30m"`, `"12h"`, `"7d"` or `"infinite"`.
#[derive(Clone, Copy, Debug, Default)]
struct Lease(LeaseTime);

impl<'de> Deserialize<'de> for Lease {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "infinite" {
            return Ok(Self(LeaseTime::Infinite));
        }
        let wrong = || {
            de::Error::custom(format!(
                "{text:?} is not a time: use \"90s\", \"30m\", \"12h\", \"7d\" or \"infinite\""
            ))
        };
        let unit = match text.bytes().last() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let seconds = count.checked_mul(unit).ok_or_else(wrong)?;
        Ok(Self(LeaseTime::Finite(Duration::from_secs(seconds))))
    }
}

/// Reads the file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    toml::from_str(&text)
        .with_context(|| format!("the configuration file {} is wrong", path.display()))
}

impl Settings {
    /// Checks what can be checked without the interface.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let service = self.service(MacAddr([2, 0, 0, 0, 0, 1]))?;
        if let Some(dhcp4) = &service.dhcp4 {
            dhcp4.check()?;
        }
        Ok(())
    }

    pub(crate) fn service(&self, mac: MacAddr) -> anyhow::Result<ServiceConfig> {
        if self.dhcp4.is_none() && self.dns.is_none() {
            bail!("nothing to serve: the configuration has neither [dhcp4] nor [dns]");
        }
        Ok(ServiceConfig {
            network: self.interface.clone(),
            dhcp4: self.dhcp4.as_ref().map(|dhcp4| self.dhcp4(dhcp4, mac)),
            dns: self.dns.as_ref().map(|dns| self.dns(dns)).transpose()?,
            lease_file: self.lease_file.clone(),
        })
    }

    fn dhcp4(&self, from: &Dhcp4, mac: MacAddr) -> dhcp4::Config {
        let server = from.address.addr();
        let mut config = dhcp4::Config::new(server, from.address, mac);
        let range = |range: &Range| dhcp4::Range {
            start: range.start,
            end: range.end,
            lease: range.lease.map(|lease| lease.0),
        };
        config.ranges = from.ranges.iter().map(range).collect();
        let host = |host: &DhcpHost| StaticHost {
            mac: host.mac,
            name: host.name.clone(),
            ip: host.ip,
            lease: host.lease.map(|lease| lease.0),
        };
        config.hosts = from.hosts.iter().map(host).collect();
        config.lease = from.lease.0;
        config.router = match from.router {
            Router::Server | Router::Given(true) => Some(server),
            Router::Given(false) => None,
            Router::Address(ip) => Some(ip),
        };
        config.dns = match (&from.dns, &self.dns) {
            (Some(dns), _) => dns.clone(),
            (None, Some(_)) => vec![server],
            (None, None) => Vec::new(),
        };
        config.domain = self.domain.clone();
        config.mtu = from.mtu;
        config.boot = from.boot.as_ref().map(|boot| Boot {
            file: boot.file.clone(),
            server: boot.server,
            server_name: boot.server_name.clone(),
        });
        let route = |route: &Route| ClientRoute { net: route.net, gateway: route.gateway };
        config.routes = from.routes.iter().map(route).collect();
        config.relay = from.relay;
        // All clients come through the one interface.
        config.max_per_port = None;
        config
    }

    fn dns(&self, from: &Dns) -> anyhow::Result<dns::Config> {
        let subnet = self.dhcp4.as_ref().map(|dhcp4| dhcp4.address);
        let listen = match (&from.listen, subnet) {
            (Some(listen), _) => listen.clone(),
            (None, Some(subnet)) => vec![subnet.addr().into()],
            (None, None) => bail!("[dns] needs `listen` when there is no [dhcp4]"),
        };
        if listen.iter().any(IpAddr::is_unspecified) {
            bail!("[dns] listen: name addresses of {}, not the wildcard", self.interface);
        }
        let mut config = dns::Config::new(listen);
        config.interface = Some(self.interface.clone());
        let subnet = subnet.map(|subnet| IpNet::V4(subnet.trunc()));
        config.clients = from.clients.iter().copied().chain(subnet).collect();
        config.reverse = subnet.into_iter().collect();
        config.domain = self.domain.clone();
        config.domain_local_only = from.local_only;
        config.forward_plain_names = from.forward_plain_names;
        config.forward = from.forward;
        config.default_upstreams = from.upstreams.iter().map(|server| server.0).collect();
        config.resolv_conf = Some(from.resolv_conf.clone());
        let host = |host: &DnsHost| dns::Host { ip: host.ip, names: host.names.clone() };
        config.hosts = from.hosts.iter().map(host).collect();
        let forwarder = |forwarder: &Forwarder| dns::Forwarder {
            domain: Some(forwarder.domain.clone()),
            addr: forwarder.address.map(|server| server.0),
        };
        config.forwarders = from.forwarders.iter().map(forwarder).collect();
        let txt = |txt: &Txt| dns::Txt { name: txt.name.clone(), value: txt.value.clone() };
        config.txts = from.txt.iter().map(txt).collect();
        let srv = |srv: &Srv| dns::Srv {
            service: srv.service.clone(),
            protocol: srv.protocol.clone(),
            domain: srv.domain.clone(),
            target: srv.target.clone(),
            port: srv.port,
            priority: srv.priority,
            weight: srv.weight,
        };
        config.srvs = from.srv.iter().map(srv).collect();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/dhcpd.toml");
        let settings = read(&path).expect("the example can be read");
        settings.check().expect("the example is good");
        let service = settings.service(MacAddr([2, 0, 0, 0, 0, 1])).expect("it is complete");
        let dhcp4 = service.dhcp4.expect("it has DHCP");
        assert_eq!(dhcp4.router, Some(dhcp4.server));
        assert_eq!(dhcp4.dns, [dhcp4.server]);
        assert_eq!(dhcp4.hosts.len(), 2);
        assert!(service.dns.is_some());
    }

    #[test]
    fn mistakes_are_named() {
        let base = "interface = \"br0\"\n";
        let wrong = [
            ("", "neither [dhcp4] nor [dns]"),
            ("[dhcp4]\naddress = \"10.0.0.1/24\"\nlease = \"1w\"\n", "\"1w\" is not a time"),
            ("[dhcp4]\naddress = \"10.0.0.1/24\"\nleas = \"1h\"\n", "unknown field `leas`"),
            ("[dns]\n", "needs `listen`"),
            ("[dns]\nlisten = [\"0.0.0.0\"]\n", "not the wildcard"),
            (
                "[dhcp4]\naddress = \"10.0.0.1/24\"\nranges = [{ start = \"10.0.1.1\", end = \"10.0.1.9\" }]\n",
                "not inside 10.0.0.0/24",
            ),
            ("[dns]\nlisten = [\"10.0.0.1\"]\nupstreams = [\"x\"]\n", "\"x\" is not an address"),
        ];
        for (text, expected) in wrong {
            let parsed =
                toml::from_str::<Settings>(&format!("{base}{text}")).map_err(anyhow::Error::from);
            let error = parsed.and_then(|settings| settings.check()).expect_err(text);
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
