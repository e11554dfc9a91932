//! The names that a network's DNS server knows by itself: those of the configuration, and those
//! of DHCP clients.
//!
//! Shared by the DHCP thread, which enters and removes clients, and the DNS thread, which looks
//! up. A name of the configuration is never a client's; among clients the first to claim a name
//! has it until it goes, then the next one.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::Config;

/// A service record's data; the target has no final dot and is empty for "not available".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SrvData {
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) port: u16,
    pub(crate) target: String,
}

/// What a name has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) a: Vec<Ipv4Addr>,
    pub(crate) aaaa: Vec<Ipv6Addr>,
    pub(crate) txt: Vec<String>,
    pub(crate) srv: Vec<SrvData>,
    /// Name that an address has.
    pub(crate) ptr: Option<String>,
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It exists here; it may have nothing of the type asked for.
    Entry(Entry),
    /// It exists only as the end of longer names.
    Empty,
    /// It is ours to know, and it does not exist. The zone, without a final dot (empty: root).
    Nothing { zone: String },
    /// Somebody else may know.
    Elsewhere,
}

/// Names that a network knows by itself: configured ones and those of its DHCP clients.
#[derive(Debug, Default)]
pub struct Names(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    zone: Zone,
    /// Claimants of a name, the owner first.
    claims: HashMap<String, Vec<Ipv4Addr>>,
    clients: HashMap<Ipv4Addr, String>,
}

/// What the configuration says.
#[derive(Debug, Default)]
struct Zone {
    /// Lower case.
    domain: Option<String>,
    domain_local_only: bool,
    plain_local_only: bool,
    entries: HashMap<String, Entry>,
    /// Names between `domain` and a longer name.
    inner: HashSet<String>,
    reverse: Vec<IpNet>,
}

/// Names of the DHCP configuration's static hosts.
pub type StaticNames = Vec<(Ipv4Addr, String)>;

impl Names {
    /// Takes the configured names; clients keep theirs where the configuration does not have it.
    pub fn configure(&self, config: &Config, hosts: &StaticNames) {
        self.write().zone = Zone::new(config, hosts);
    }

    /// Enters the name of a client, or removes what it had. False: another one has the name.
    pub(crate) fn set_client(&self, ip: Ipv4Addr, name: Option<&str>) -> bool {
        let mut inner = self.write();
        let Inner { zone, claims, clients } = &mut *inner;
        let name = name.map(str::to_ascii_lowercase);
        if clients.get(&ip) != name.as_ref()
            && let Some(old) = clients.remove(&ip)
            && let Some(claimants) = claims.get_mut(&old)
        {
            claimants.retain(|claimant| *claimant != ip);
            if claimants.is_empty() {
                claims.remove(&old);
            }
        }
        let Some(name) = name else { return true };
        if clients.insert(ip, name.clone()).is_none() {
            claims.entry(name.clone()).or_default().push(ip);
        }
        let owner = claims.get(&name).and_then(|claimants| claimants.first());
        match zone.entries.get(&name) {
            Some(entry) => entry.a.contains(&ip),
            None => owner == Some(&ip),
        }
    }

    /// What is known about a name: lower case, without a final dot.
    pub(crate) fn find(&self, name: &str) -> Known {
        self.read().find(name)
    }

    /// The addresses of a name, for the additional section.
    pub(crate) fn addresses(&self, name: &str) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
        match self.find(&name.to_ascii_lowercase()) {
            Known::Entry(entry) => (entry.a, entry.aaaa),
            _ => Default::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find(&self, name: &str) -> Known {
        if let Some(entry) = self.zone.entries.get(name) {
            return Known::Entry(entry.clone());
        }
        let (label, in_domain) = self.zone.relative(name);
        if let Some(owner) = label.and_then(|label| self.claims.get(label)?.first())
            && label.is_some_and(|label| !self.zone.entries.contains_key(label))
        {
            return Known::Entry(Entry { a: vec![*owner], ..Entry::default() });
        }
        if let Some(known) = special(name) {
            return known;
        }
        if let Some(ip) = reverse_ip(name) {
            return self.find_reverse(ip);
        }
        if let Some(domain) = &self.zone.domain
            && in_domain
        {
            if name == domain || self.zone.inner.contains(name) {
                return Known::Empty;
            }
            if self.zone.domain_local_only {
                return Known::Nothing { zone: domain.clone() };
            }
        }
        if let Some(zone) = self.zone.reverse_zone(name) {
            return Known::Nothing { zone };
        }
        if !name.is_empty() && !name.contains('.') && self.zone.plain_local_only {
            return Known::Nothing { zone: String::new() };
        }
        Known::Elsewhere
    }

    fn find_reverse(&self, ip: IpAddr) -> Known {
        let name = reverse_name(ip);
        if let IpAddr::V4(v4) = ip
            && let Some(label) = self.clients.get(&v4)
            && self.claims.get(label).and_then(|claimants| claimants.first()) == Some(&v4)
            && !self.zone.entries.contains_key(label)
        {
            let ptr = Some(self.zone.full(label));
            return Known::Entry(Entry { ptr, ..Entry::default() });
        }
        match self.zone.reverse_zone(&name) {
            Some(zone) => Known::Nothing { zone },
            None => Known::Elsewhere,
        }
    }
}

impl Zone {
    fn new(config: &Config, hosts: &StaticNames) -> Self {
        let mut zone = Self {
            domain: config.domain.as_ref().map(|domain| domain.to_ascii_lowercase()),
            // Nobody else can be asked in an isolated network.
            domain_local_only: config.domain_local_only || !config.forward,
            plain_local_only: !config.forward_plain_names || !config.forward,
            reverse: config.reverse.clone(),
            ..Self::default()
        };
        for host in &config.hosts {
            for name in &host.names {
                zone.add_address(name, host.ip);
            }
        }
        for (ip, name) in hosts {
            zone.add_address(name, IpAddr::V4(*ip));
        }
        for txt in &config.txts {
            zone.entry(&txt.name).txt.push(txt.value.clone());
        }
        for srv in &config.srvs {
            let mut name = format!("_{}._{}", srv.service, srv.protocol);
            if let Some(domain) = srv.domain.as_ref().or(zone.domain.as_ref()) {
                name = format!("{name}.{domain}");
            }
            zone.entry(&name).srv.push(SrvData {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.clone().unwrap_or_default().trim_end_matches('.').to_owned(),
            });
        }
        zone
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(domain) = &self.domain {
            let mut rest = name.as_str();
            while let Some((_, above)) = rest.split_once('.') {
                if is_in(above, domain) && above != domain {
                    self.inner.insert(above.to_owned());
                }
                rest = above;
            }
        }
        self.entries.entry(name).or_default()
    }

    fn add_address(&mut self, name: &str, ip: IpAddr) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let full = self.full(&name);
        let mut names = vec![full.clone()];
        if name != full {
            names.push(name);
        }
        for name in names {
            let entry = self.entry(&name);
            match ip {
                IpAddr::V4(ip) if !entry.a.contains(&ip) => entry.a.push(ip),
                IpAddr::V6(ip) if !entry.aaaa.contains(&ip) => entry.aaaa.push(ip),
                _ => {}
            }
        }
        // The first name that is given to an address is its own.
        self.entry(&reverse_name(ip)).ptr.get_or_insert(full);
    }

    /// The name with the domain, when it is plain.
    fn full(&self, name: &str) -> String {
        match &self.domain {
            Some(domain) if !name.contains('.') => format!("{name}.{domain}"),
            _ => name.to_owned(),
        }
    }

    /// The label under which a client would be found, and whether the name is in our domain.
    fn relative<'a>(&self, name: &'a str) -> (Option<&'a str>, bool) {
        let in_domain = self.domain.as_ref().is_some_and(|domain| is_in(name, domain));
        let below = self.domain.as_ref().and_then(|domain| name.strip_suffix(domain.as_str()));
        let label = below.and_then(|below| below.strip_suffix('.')).unwrap_or(name);
        ((!label.contains('.')).then_some(label), in_domain)
    }

    /// The zone of a reverse name that is ours alone: the largest one around it whose addresses
    /// all belong to one of the subnets.
    fn reverse_zone(&self, name: &str) -> Option<String> {
        if self.reverse.is_empty() || !is_in(name, "arpa") {
            return None;
        }
        let starts = name.rmatch_indices('.').map(|(dot, _)| dot + 1).chain([0]);
        let mut zones = starts.map(|start| &name[start..]);
        let ours = |zone: &&str| {
            reverse_net(zone).is_some_and(|zone| self.reverse.iter().any(|net| net.contains(&zone)))
        };
        zones.find(ours).map(str::to_owned)
    }
}

/// `name` is `domain` or below it.
pub(crate) fn is_in(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Names that have a meaning of their own everywhere (RFC 6761, 7686, 9462).
fn special(name: &str) -> Option<Known> {
    if is_in(name, "localhost") {
        let (a, aaaa) = (vec![Ipv4Addr::LOCALHOST], vec![Ipv6Addr::LOCALHOST]);
        return Some(Known::Entry(Entry { a, aaaa, ..Entry::default() }));
    }
    if is_in(name, "resolver.arpa") {
        return Some(Known::Empty);
    }
    let zone = ["invalid", "onion"].into_iter().find(|zone| is_in(name, zone))?;
    Some(Known::Nothing { zone: zone.to_owned() })
}

/// The reverse name of an address, without a final dot.
pub(crate) fn reverse_name(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let mut name = String::with_capacity(72);
            for octet in ip.octets().iter().rev() {
                for nibble in [octet & 15, octet >> 4] {
                    name.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
                    name.push('.');
                }
            }
            name + "ip6.arpa"
        }
    }
}

/// The address of a whole reverse name.
fn reverse_ip(name: &str) -> Option<IpAddr> {
    let net = reverse_net(name)?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// The prefix of a reverse name of any length.
fn reverse_net(name: &str) -> Option<IpNet> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let (mut octets, mut len) = ([0; 4], 0_u8);
        for label in labels.rsplit('.') {
            // No leading zeros or signs: one spelling for each address.
            let value: u8 = label.parse().ok().filter(|value: &u8| value.to_string() == label)?;
            *octets.get_mut(usize::from(len))? = value;
            len += 1;
        }
        return Some(Ipv4Net::new(octets.into(), len * 8).ok()?.into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let (mut octets, mut len) = ([0; 16], 0_u8);
    for label in labels.rsplit('.') {
        let mut chars = label.chars();
        let digit = chars.next().filter(|c| chars.next().is_none() && !c.is_ascii_uppercase())?;
        let digit = u8::try_from(digit.to_digit(16)?).ok()?;
        let octet = octets.get_mut(usize::from(len / 2))?;
        *octet |= if len.is_multiple_of(2) { digit << 4 } else { digit };
        len += 1;
    }
    Some(Ipv6Net::new(octets.into(), len * 4).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::super::config::{Host, Srv, Txt};
    use super::*;

    fn names() -> Names {
        let mut config = Config::new(Vec::new());
        config.domain = Some("Net77.test".to_owned());
        config.domain_local_only = true;
        config.reverse = vec![
            "10.77.16.0/20".parse().expect("a prefix"),
            "fd77::/64".parse().expect("a prefix"),
        ];
        let host = |ip: &str, names: &[&str]| Host {
            ip: ip.parse().expect("an address"),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        config.hosts = vec![
            host("10.77.16.5", &["Web", "www.example.com"]),
            host("fd77::5", &["web"]),
            host("10.77.16.6", &["a.b.net77.test"]),
        ];
        config.txts = vec![Txt { name: "note.net77.test".into(), value: "hello".into() }];
        config.srvs = vec![Srv {
            service: "sip".into(),
            protocol: "tcp".into(),
            domain: None,
            target: None,
            port: 1,
            priority: 2,
            weight: 3,
        }];
        let names = Names::default();
        names.configure(&config, &vec![(Ipv4Addr::new(10, 77, 16, 7), "db".to_owned())]);
        names
    }

    fn a(names: &Names, name: &str) -> Vec<Ipv4Addr> {
        names.addresses(name).0
    }

    fn ptr(names: &Names, ip: &str) -> Option<String> {
        match names.find(&reverse_name(ip.parse().expect("an address"))) {
            Known::Entry(entry) => entry.ptr,
            _ => None,
        }
    }

    #[test]
    fn configured() {
        let names = names();
        let web = vec![Ipv4Addr::new(10, 77, 16, 5)];
        assert_eq!(a(&names, "web"), web);
        assert_eq!(a(&names, "WEB.net77.TEST"), web);
        assert_eq!(a(&names, "www.example.com"), web);
        assert_eq!(names.addresses("web").1, vec!["fd77::5".parse::<Ipv6Addr>().expect("v6")]);
        assert_eq!(ptr(&names, "10.77.16.5").as_deref(), Some("web.net77.test"));
        assert_eq!(ptr(&names, "fd77::5").as_deref(), Some("web.net77.test"));
        assert_eq!(ptr(&names, "10.77.16.7").as_deref(), Some("db.net77.test"));
        assert_eq!(names.find("b.net77.test"), Known::Empty);
        assert_eq!(names.find("net77.test"), Known::Empty);
        assert_eq!(names.find("example.com"), Known::Elsewhere);
        assert!(matches!(names.find("_sip._tcp.net77.test"), Known::Entry(e) if e.srv.len() == 1));
        assert!(matches!(names.find("note.net77.test"), Known::Entry(e) if e.txt == ["hello"]));
    }

    #[test]
    fn unknown() {
        let names = names();
        let nothing = |zone: &str| Known::Nothing { zone: zone.to_owned() };
        assert_eq!(names.find("x.net77.test"), nothing("net77.test"));
        assert_eq!(names.find("xnet77.test"), Known::Elsewhere);
        assert_eq!(names.find("plain"), nothing(""));
        assert_eq!(names.find("x.invalid"), nothing("invalid"));
        assert_eq!(names.find(""), Known::Elsewhere);
        // Inside the /20, at its edges, and outside.
        assert_eq!(names.find("9.17.77.10.in-addr.arpa"), nothing("17.77.10.in-addr.arpa"));
        assert_eq!(names.find("255.31.77.10.in-addr.arpa"), nothing("31.77.10.in-addr.arpa"));
        assert_eq!(names.find("1.32.77.10.in-addr.arpa"), Known::Elsewhere);
        assert_eq!(names.find("77.10.in-addr.arpa"), Known::Elsewhere);
        let zone = "0.0.0.0.0.0.0.0.0.0.0.0.7.7.d.f.ip6.arpa";
        assert_eq!(names.find(&reverse_name("fd77::9".parse().expect("v6"))), nothing(zone));
        assert_eq!(names.find("01.16.77.10.in-addr.arpa"), nothing("16.77.10.in-addr.arpa"));
        assert_eq!(names.find("x.y.20.77.10.in-addr.arpa"), nothing("20.77.10.in-addr.arpa"));
        for odd in ["01.77.10.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "x.ip6.arpa"] {
            assert_eq!(names.find(odd), Known::Elsewhere, "{odd}");
        }
    }

    #[test]
    fn clients() {
        let names = names();
        let (one, two) = (Ipv4Addr::new(10, 77, 17, 1), Ipv4Addr::new(10, 77, 17, 2));
        assert!(names.set_client(one, Some("vm")));
        assert_eq!(a(&names, "vm"), [one]);
        assert_eq!(a(&names, "vm.net77.test"), [one]);
        assert_eq!(ptr(&names, "10.77.17.1").as_deref(), Some("vm.net77.test"));
        // The first owner keeps it.
        assert!(!names.set_client(two, Some("vm")));
        assert_eq!(a(&names, "vm"), [one]);
        assert_eq!(ptr(&names, "10.77.17.2"), None);
        // Told again, nothing changes; gone, the next one has it.
        assert!(names.set_client(one, Some("vm")));
        assert!(names.set_client(one, Some("other")));
        assert_eq!(a(&names, "vm"), [two]);
        assert_eq!(a(&names, "other"), [one]);
        assert!(names.set_client(two, None));
        assert_eq!(a(&names, "vm"), Vec::<Ipv4Addr>::new());
        // The configuration's names cannot be taken.
        assert!(!names.set_client(two, Some("web")));
        assert_eq!(a(&names, "web"), [Ipv4Addr::new(10, 77, 16, 5)]);
        assert_eq!(ptr(&names, "10.77.17.2"), None);
        // The static host itself may have its own name.
        assert!(names.set_client(Ipv4Addr::new(10, 77, 16, 7), Some("db")));
    }
}
